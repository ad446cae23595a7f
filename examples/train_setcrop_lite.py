"""Train setcrop-lite on crops by editors: features, ratings of any box, and the map of subjects (first stage).

    python examples/train_setcrop_lite.py --editor-data DIR --start MODEL --output_dir OUT --steps 5000

`--start` is a SetCrop checkpoint, or a folder that `setcrop init` wrote, whose backbone and encoder training starts
from; of a checkpoint of setcrop-lite itself, everything goes on. `--faces` names boxes of faces, which no crop should
cut (`find_faces.py` writes the file). `--raters-data` adds a data set of densely rated crops (layout gaic's windows as
JSON lines) as a third source. Every step draws views, boxes and ratings afresh (`modeling_setcrop.data.crop_views`).
With `--teachers` the model learns from the labels and, with the weight `--taught`, from what other models predict
(knowledge distillation, Hinton et al., 2015): the ratings that teachers with a face finder teach have its penalty for
cut faces in them. A teacher that was trained with `--fold 0/4`, without a quarter of the images, teaches that quarter
alone: what it says of them is free of the label's chance, if the model that it started from never saw them either.
Beside such teachers those that learned from all images teach only views without labels: `--anywhere` shows parts of
images drawn without a look at the labels, too, and teachers alone say what is good in them.
The second stage, `train_setcrop_lite_set.py`, trains the set on top.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from modeling_setcrop import SetCropConfig, SetCropForImageCropping
from modeling_setcrop.crop_geometry import box_iou, xyxy_to_cxcywh
from modeling_setcrop.data import Problems
from modeling_setcrop.data.any_box_rating import labelled_window, rate_boxes, windows_at
from modeling_setcrop.data.crop_views import (
    BOXES,
    FAMILIES,
    LONGEST_WINDOW,
    WINDOWS,
    distort,
    draw_source,
    draw_view,
    draw_window,
    family_lengths,
    grid_boxes,
    random_boxes,
    stretched,
)
from modeling_setcrop.data.editor import EditorImage, read_editor_images
from modeling_setcrop.loss_any_box_setcrop import RATINGS_PER_IOU, any_box_losses, subject_map_loss, window_losses

STRIDE = 16
KEPT_LONG_SIDE = 400
SOURCES = ["editors", "people", "raters"]
RATERS_SHARE = 1 / 8
# FCDB's training images that are kept out, to choose by.
HELD_OUT = 80
LOGGED_EVERY = 50
# A part of an image that labels say nothing of: its sides, in [0, 1] of the image's, how many of its boxes are the
# grid's, and how often it is rated as by each source.
SIDES_OF_A_PART, GRID_BOXES = (0.45, 0.95), 32
SOURCES_OF_PARTS = (0.5, 0.3, 0.2)
# In a teacher's folder: which fold of how many it left out.
FOLD_FILE = "fold.json"


def nearest_size(ratio: float, long: int) -> tuple[int, int]:
    """Width and height at which the model sees an image of this aspect ratio; its long side is `long` pixels."""
    sides = range(math.ceil(long / 4 / STRIDE) * STRIDE, long + 1, STRIDE)
    sizes = [(long, side) for side in sides] + [(side, long) for side in sides]
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] / ratio)))


def read_image(path: Path) -> Image.Image:
    """Read an image, upright, at most `KEPT_LONG_SIDE` pixels long."""
    with Image.open(path) as image:
        image.draft("RGB", (KEPT_LONG_SIDE * 2, KEPT_LONG_SIDE * 2))
        image = image.convert("RGB")
    image.thumbnail((KEPT_LONG_SIDE, KEPT_LONG_SIDE), Image.Resampling.BICUBIC)
    return image


def with_faces(images: list[EditorImage], path: Path) -> list[EditorImage]:
    """Return the same images, with the faces that a file names."""
    with open(path) as lines:
        faces = {Path(row["photo"]).name: row["faces"] for row in map(json.loads, lines)}
    return [
        replace(image, labels=replace(image.labels, faces=np.array(faces[image.path.name], float).reshape(-1, 4)))
        if image.path.name in faces
        else image
        for image in images
    ]


def image_number(image: EditorImage) -> int:
    """Return a number by which an image belongs to a fold, whatever other images there are."""
    return zlib.crc32(image.path.name.encode())


def in_fold(image: int | torch.Tensor, fold: tuple[int, int]) -> bool | torch.Tensor:
    """Say of an image's number, or of several (B,), whether it belongs to a fold: which, of how many."""
    number, count = fold
    return image % count == number


def read_raters(path: Path, images: list[EditorImage]) -> dict[int, list[dict]]:
    """Rated windows by index of the image that they are windows of; only of images that are given."""
    index = {image.path.name: number for number, image in enumerate(images)}
    found: dict[int, list[dict]] = {}
    with gzip.open(path / "labels.jsonl.gz", "rt") as lines:
        for entry in map(json.loads, lines):
            number = index.get(entry["photo"])
            if number is None or entry["split"] != "train":
                continue
            crops = np.asarray(entry["crops"], np.float32)
            x1, y1, x2, y2 = entry["window"]
            boxes = crops[:, [1, 0, 3, 2]] / [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
            found.setdefault(number, []).append(
                {
                    "window": np.array([x1, y1, x2, y2], np.float32),
                    "label_width": entry["label_width"],
                    "boxes": boxes.clip(0, 1).astype(np.float32),
                    "ratings": crops[:, 4],
                }
            )
    return found


class Views(IterableDataset):
    """Batches of views of one size, without end."""

    def __init__(
        self, images: list[EditorImage], pixels: list[np.ndarray], raters: dict, args: argparse.Namespace
    ) -> None:
        self.images, self.pixels, self.raters = images, pixels, raters
        self.batch, self.seed, self.long, self.anywhere = args.batch_size, args.seed, args.long_side, args.anywhere

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        waiting: dict[tuple[int, int], list[dict[str, np.ndarray]]] = {}
        # Few images have faces, and they decide much: each is drawn twice as often.
        drawn = [i for i, image in enumerate(self.images) for _ in range(1 + bool(len(image.labels.faces)))]
        while True:
            for index in rng.permutation(drawn):
                draw = self._draw_part if rng.random() < self.anywhere else self._draw
                size, view = draw(int(index), rng)
                view["image"] = np.array(image_number(self.images[index]))
                waiting.setdefault(size, []).append(view)
                if len(waiting[size]) == self.batch:
                    views = waiting.pop(size)
                    yield {name: torch.from_numpy(np.stack([view[name] for view in views])) for name in views[0]}

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
        labels, image = self.images[index].labels, Image.fromarray(self.pixels[index])
        ratio = image.width / image.height
        rated = self.raters.get(index)
        if rated and rng.random() < RATERS_SHARE * 2.5:  # two images in five have such ratings
            source, entry = "raters", rated[rng.integers(len(rated))]
            scale = entry["label_width"]
            window = entry["window"] / [scale, scale / ratio, scale, scale / ratio]
            window = window.clip(0, 1)
        else:
            source = draw_source(labels, rng)
            window = draw_window(labels, source, ratio, rng)
        size = nearest_size(stretched(ratio * (window[2] - window[0]) / (window[3] - window[1]), rng), self.long)
        view = draw_view(image, labels, window, size, "editors" if source == "raters" else source, rng)
        boxes, ratings, weight = view.boxes, view.ratings, np.ones(BOXES)
        windows, fit, families = view.windows, view.window_fit, view.family_weight
        pixels = view.image
        if source == "raters":
            pixels = image.resize(size, Image.Resampling.LANCZOS, box=tuple(window * np.tile(image.size, 2)))
            pixels = distort(pixels, rng)
            boxes, ratings = np.zeros((BOXES, 4)), np.ones(BOXES) * 3
            boxes[:, 2:] = 1
            count = min(BOXES, len(entry["ratings"]))
            boxes[:count], ratings[:count] = entry["boxes"][:count], entry["ratings"][:count]
            weight = (np.arange(BOXES) < count).astype(float)
            families = np.zeros_like(families)
            if rng.random() < 0.5:
                pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
        values = {
            "pixels": np.asarray(pixels),
            "boxes": boxes,
            "ratings": ratings,
            "weight": weight,
            "windows": windows,
            "fit": fit,
            "families": families,
            "importance": view.labels.importance_map((size[1] // STRIDE, size[0] // STRIDE)),
            "source": np.array(SOURCES.index(source)),
            "labelled": np.array(1.0),
        }
        return size, _single(values)

    def _draw_part(self, index: int, rng: np.random.Generator) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
        """Draw a part of an image of which the labels say nothing, and windows that slide along it."""
        image = Image.fromarray(self.pixels[index])
        across, down = rng.uniform(*SIDES_OF_A_PART, 2)
        left, top = rng.uniform(0, 1 - across), rng.uniform(0, 1 - down)
        size = nearest_size(stretched(image.width * across / (image.height * down), rng), self.long)
        box = np.array([left, top, left + across, top + down]) * np.tile(image.size, 2)
        pixels = distort(image.resize(size, Image.Resampling.LANCZOS, box=tuple(box)), rng)
        if rng.random() < 0.5:
            pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        shape, axis = size[0] / size[1], int(size[0] < size[1])
        grid = grid_boxes(shape)
        boxes = [np.array([[0.0, 0.0, 1.0, 1.0]]), rng.permutation(grid)[:GRID_BOXES], random_boxes(BOXES, rng)]
        lengths = np.array(family_lengths(shape, rng))
        windows = [windows_at(np.linspace(0, 1 - length, WINDOWS), length, axis) for length in lengths]
        values = {
            "pixels": np.asarray(pixels),
            "boxes": np.concatenate(boxes)[:BOXES],
            "ratings": np.zeros(BOXES),
            "weight": np.ones(BOXES),
            "windows": np.stack(windows),
            "fit": np.zeros((FAMILIES, WINDOWS)),
            "families": lengths <= LONGEST_WINDOW,
            "importance": np.zeros((size[1] // STRIDE, size[0] // STRIDE)),
            "source": np.array(rng.choice(len(SOURCES), p=SOURCES_OF_PARTS)),
            "labelled": np.array(0.0),
        }
        return size, _single(values)


def _single(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a view's arrays in single precision, but for the pixels and whose ratings they are."""
    return {name: v if name in ("pixels", "source") else v.astype(np.float32) for name, v in values.items()}


def predict(model: SetCropForImageCropping, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Predict ratings of B views' boxes (B, M) and windows (B, families, W), and the map of subjects.

    The map is (B, rows, columns), 0..1.
    """
    pixels = (batch["pixels"].permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast(pixels.device.type, torch.bfloat16):
        encoded = model.model.encode(pixels)
        encoded.last_hidden_state = encoded.last_hidden_state.float()
        encoded.detail = encoded.detail.float()
    windows = batch["windows"]
    boxes = torch.cat([batch["boxes"], windows.flatten(1, 2)], dim=1)
    ratings = model.score_crops(xyxy_to_cxcywh(boxes), encoded, source=batch["source"])
    return {
        "ratings": ratings[:, :BOXES],
        "windows": ratings[:, BOXES:].unflatten(1, windows.shape[1:3]),
        "importance": encoded.importance,
    }


def losses_from(
    wanted: dict[str, torch.Tensor],
    predicted: dict[str, torch.Tensor],
    batch: dict[str, torch.Tensor],
    known: torch.Tensor,
    windows_weight: float,
) -> dict[str, torch.Tensor]:
    """Return the first stage's losses of one batch, from the labels or from what teachers predict.

    `known` (B,) is 1 for the views of which these say anything, and 0 for others.
    """
    losses = any_box_losses(predicted["ratings"], wanted["ratings"], batch["weight"] * known[:, None])
    slide = window_losses(predicted["windows"], wanted["fit"])
    families = batch["families"] * known[:, None]
    seen = ((batch["source"] != SOURCES.index("raters")) * known)[:, None, None]
    importance = subject_map_loss(predicted["importance"], wanted["importance"])
    return {
        "rating": losses["score"],
        "order": losses["order"],
        "choice": losses["choice"],
        "windows": (slide * families).sum() / families.sum().clamp(min=1) * windows_weight,
        "importance": (importance * seen).mean() * 0.5,
    }


def batch_loss(
    model: SetCropForImageCropping,
    batch: dict[str, torch.Tensor],
    windows_weight: float = 0.4,
    taught: dict[str, torch.Tensor] | None = None,
    share: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Return the first stage's losses of one batch; with teachers, `share` of them from what these predict."""
    predicted = predict(model, batch)
    labelled = batch["labelled"]
    losses = losses_from(batch, predicted, batch, labelled, windows_weight)
    if taught is None:
        return losses
    learned = losses_from(taught, predicted, batch, torch.ones_like(labelled), windows_weight)
    return {name: (1 - share) * loss + share * learned[name] for name, loss in losses.items()}


@dataclass
class Teacher:
    """A model whose predictions another learns from; `fold`, where it left one out, is which of how many."""

    model: SetCropForImageCropping
    fold: tuple[int, int] | None

    def teaches(self, image: torch.Tensor) -> torch.Tensor:
        """Say of images (B,), by their numbers, whether this model teaches them."""
        return torch.ones_like(image, dtype=torch.bool) if self.fold is None else in_fold(image, self.fold)


def who_teaches(teachers: list[Teacher], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return 1 where a teacher teaches a view, else 0 (teachers, B).

    Of a view with labels, teachers that have learned these labels stand back where there is one that has not.
    """
    teaches = torch.stack([teacher.teaches(batch["image"]) for teacher in teachers])
    learned_all = torch.tensor([teacher.fold is None for teacher in teachers], device=teaches.device)
    spared = (batch["labelled"] > 0) & teaches[~learned_all].any(0)
    return (teaches & ~(learned_all[:, None] & spared)).float()


@torch.no_grad()
def teach(teachers: list[Teacher], batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the means, in the form of the labels, of what the teachers of each view's image predict."""
    out = {name: torch.zeros_like(batch[name]) for name in ("ratings", "fit", "importance")}
    teaches = who_teaches(teachers, batch)
    for teacher, share in zip(teachers, teaches / teaches.sum(0), strict=True):
        # A GPU takes long over every new number of views, so all of them are predicted.
        if not share.any():
            continue
        predicted = predict(teacher.model, batch)
        out["ratings"] += predicted["ratings"] * share[:, None]
        # Windows are wanted by IoU; of ratings it is the difference that counts.
        out["fit"] += predicted["windows"] * share[:, None, None] / RATINGS_PER_IOU
        out["importance"] += predicted["importance"] * share[:, None, None]
    return out


_LINES = np.linspace(0, 1, 17)
LATTICE = np.array(
    [
        (x1, y1, x2, y2)
        for x1 in _LINES[:9]
        for y1 in _LINES[:9]
        for x2 in _LINES[8:]
        for y2 in _LINES[8:]
        if (x2 - x1) * (y2 - y1) >= 0.25
    ]
)


@torch.inference_mode()
def validate(
    model: SetCropForImageCropping, images: list[EditorImage], pixels: list[np.ndarray], long_side: int
) -> dict[str, float]:
    """First crop on a lattice, and windows, against the editors' on whole images."""
    model.eval()
    device = next(model.parameters()).device
    figures: dict[str, list[float]] = {name: [] for name in ("first", "mean5", "square", "slim", "rank", "people")}
    rng = np.random.default_rng(0)
    for image, array in zip(images, pixels, strict=True):
        labels, ratio = image.labels, array.shape[1] / array.shape[0]
        size = nearest_size(ratio, long_side)
        small = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.LANCZOS), np.float32) / 127.5 - 1
        encoded = model.model.encode(torch.from_numpy(small).permute(2, 0, 1)[None].to(device))

        def rate(boxes: np.ndarray, encoded=encoded, source: int = 0) -> np.ndarray:
            given = xyxy_to_cxcywh(torch.from_numpy(boxes).float())[None].to(device)
            return model.score_crops(given, encoded, source=torch.tensor([source], device=device))[0].cpu().numpy()

        shapes = (LATTICE[:, 2] - LATTICE[:, 0]) * ratio / (LATTICE[:, 3] - LATTICE[:, 1])
        lattice = LATTICE[(shapes > 0.4) & (shapes < 2.5)]
        lattice = lattice if len(lattice) else LATTICE
        if labels.people is not None:
            best = lattice[rate(lattice, source=1).argmax()]
            figures["people"].append(box_iou(labels.people[None], best[None])[0, 0])
            continue
        best = lattice[rate(lattice).argmax()]
        ious = box_iou(labels.crops, best[None])[:, 0]
        figures["first"].append(ious[0])
        figures["mean5"].append(ious.mean())
        boxes = np.concatenate([grid_boxes(ratio), lattice[rng.permutation(len(lattice))[:60]]])
        figures["rank"].append(
            np.corrcoef(rate(boxes).argsort().argsort(), rate_boxes(boxes, labels).argsort().argsort())[0, 1]
        )
        for name, window in (("square", 1.0), ("slim", 9 / 16)):
            length = window / max(ratio, 1 / ratio)
            if length >= 1:
                continue
            places = windows_at(np.linspace(0, 1 - length, 41), length, int(ratio < 1))
            wanted = labelled_window(length, ratio, labels)[None]
            figures[name].append(box_iou(wanted, places[[rate(places).argmax()]])[0, 0])
    model.train()
    return {name: round(float(np.mean(values)), 4) for name, values in figures.items() if values}


def note(folder: Path, line: dict) -> None:
    """Print a line of the log and keep it."""
    print(json.dumps(line), flush=True)
    with open(folder / "log.jsonl", "a") as log:
        log.write(json.dumps(line) + "\n")


def parameter_groups(model: SetCropForImageCropping, args: argparse.Namespace) -> list[dict]:
    model.requires_grad_(False)
    backbone = model.model.backbone.model
    late = [p for stage in backbone.stages[args.freeze_backbone_stages :] for p in stage.parameters()]
    body = [p for module in (model.model.encoder, model.model.input_projection) for p in module.parameters()]
    heads = [*model.crop_scorer.parameters(), *model.model.subject_map.parameters()]
    for parameter in (*late, *body, *heads):
        parameter.requires_grad_(True)
    return [
        {"params": late, "lr": args.lr_backbone},
        {"params": body, "lr": args.lr_encoder},
        {"params": heads, "lr": args.lr},
    ]


def new_model(start: str, dropout: float = 0.1, encoder_layers: int | None = None) -> SetCropForImageCropping:
    """setcrop-lite with the backbone and encoder of a checkpoint, or with all of a checkpoint of setcrop-lite."""
    loaded = SetCropForImageCropping.from_pretrained(start, ignore_mismatched_sizes=True, dtype=torch.float32)
    old = loaded.config.to_dict()
    old["encoder_layers"] = encoder_layers or old["encoder_layers"]
    backbone = loaded.config.backbone_config
    backbone.detail = True
    backbone.set_output_features_output_indices(out_features=["stage3", "stage5", "stage7"], out_indices=None)
    names = ("d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim")
    config = SetCropConfig(
        backbone_config=backbone,
        **{name: old[name] for name in names},
        dropout=dropout,
        cls_loss_coefficient=2,
        anchor_sizes=True,
        crop_scoring=True,
        crop_scoring_dim=224,
        crop_scoring_detail=True,
        rating_sources=SOURCES,
        tightness_sources={"loose": "raters", "default": "editors", "tight": "people"},
        subject_map=True,
        rerank=True,
    )
    model = SetCropForImageCropping(config)
    kept = ("model.backbone", "model.encoder", "model.input_projection")
    if loaded.config.subject_map:
        kept = ("",)
    weights = {
        name: value
        for name, value in loaded.state_dict().items()
        # Faces are found in features that change now; the third stage learns to find them again.
        if name.startswith(kept) and not name.startswith("model.face_finder")
    }
    # Of a shallower encoder the upper layers go, of a deeper one they are new.
    known = model.state_dict()
    model.load_state_dict({name: value for name, value in weights.items() if name in known}, strict=False)
    return model


def fold_of(text: str) -> tuple[int, int]:
    """Read "0/4" as the first of four folds."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count) and int(count) > 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0/4, the first of four, to 3/4, the last")
    return int(number), int(count)


def read_teachers(folders: list[Path], device: str) -> list[Teacher]:
    """Read models; those that were trained with `--fold` teach only what they left out.

    Raises:
        ValueError: some images have no teacher.
    """
    teachers = []
    for folder in folders:
        fold = folder / FOLD_FILE
        model = SetCropForImageCropping.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        teachers.append(Teacher(model, tuple(json.loads(fold.read_text())) if fold.exists() else None))
    numbers = torch.arange(math.lcm(*(teacher.fold[1] for teacher in teachers if teacher.fold)))
    if not torch.stack([teacher.teaches(numbers) for teacher in teachers]).any(0).all():
        raise ValueError(f"--teachers: some images have none; each teaches {[t.fold or 'all' for t in teachers]}")
    return teachers


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor-data", type=Path, required=True)
    parser.add_argument("--raters-data", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--start", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--minutes", type=float, help="stop after this long instead; the schedule follows the clock")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lr_encoder", type=float, default=4e-4)
    parser.add_argument("--lr_backbone", type=float, default=1.5e-4)
    parser.add_argument("--weight_decay", type=float, default=0.03)
    parser.add_argument("--freeze_backbone_stages", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="share of the training images")
    parser.add_argument("--long_side", type=int, default=256, help=f"pixels, a multiple of {STRIDE}")
    parser.add_argument("--validate_every", type=int, default=500)
    parser.add_argument("--windows_weight", type=float, default=0.4)
    parser.add_argument("--encoder_layers", type=int, help="by default as many as --start has")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--average", type=float, default=0.998, help="decay of the average of the weights")
    parser.add_argument("--fold", type=fold_of, help="leave these images out, as 0/4: the first of four folds")
    parser.add_argument("--teachers", type=Path, nargs="+", help="models to learn from, besides the labels")
    parser.add_argument("--taught", type=float, default=0.5, help="share of the loss that is from the teachers")
    parser.add_argument("--anywhere", type=float, default=0.0, help="share of the views that only teachers rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw views")
    args = parser.parse_args()
    if args.anywhere and not args.teachers:
        parser.error("--anywhere: only teachers know what is good in any part of an image; name them with --teachers")
    return args


def read_data(args: argparse.Namespace) -> tuple[list[EditorImage], list[EditorImage]]:
    """Images to train on and to choose by: the validation split and 80 of FCDB's training images."""
    images = list(read_editor_images(args.editor_data, Problems()))
    images = with_faces(images, args.faces) if args.faces else images
    train = [image for image in images if image.split == "train"]
    order = np.random.default_rng(1).permutation(len(train))
    held = [i for i in order if train[i].labels.people is not None][-HELD_OUT:]
    val = [image for image in images if image.split == "val"] + [train[i] for i in held]
    kept = [train[i] for i in order[: round(len(order) * args.share)] if i not in set(held)]
    if args.fold:
        kept = [image for image in kept if not in_fold(image_number(image), args.fold)]
    return kept, val


def batches(views: Views, args: argparse.Namespace) -> Iterator[dict[str, torch.Tensor]]:
    """Batches on the device, without end, drawn by worker processes."""
    loader = DataLoader(
        views, batch_size=None, num_workers=args.workers, prefetch_factor=4, pin_memory=args.device != "cpu"
    )
    for batch in loader:
        yield {name: values.to(args.device, non_blocking=True) for name, values in batch.items()}


def train_first_stage(
    model: SetCropForImageCropping,
    loader: Iterator[dict[str, torch.Tensor]],
    validated: Callable[[SetCropForImageCropping], dict[str, float]],
    args: argparse.Namespace,
    taught: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> None:
    """Train, and keep the average of the weights and the log in the output folder.

    Args:
        model: setcrop-lite.
        loader: batches of views.
        validated: the figures of a model.
        args: of the command line.
        taught: what teachers predict of a batch.

    Raises:
        FloatingPointError: a loss is not a number; the last validated weights are in the output folder.
    """
    groups = parameter_groups(model, args)
    optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay)
    rates = [group["lr"] for group in groups]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.average))
    began, step, done, sums = time.time(), 0, 0.0, {}
    while done < 1:
        done = (time.time() - began) / 60 / args.minutes if args.minutes else step / args.steps
        factor = min(1, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        batch = next(loader)
        losses = batch_loss(model, batch, args.windows_weight, taught and taught(batch), args.taught)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        average.update_parameters(model)
        step += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach()
        line = {"step": step, "seconds": round(time.time() - began)}
        if step % LOGGED_EVERY == 0:
            means = {name: round(value.item() / LOGGED_EVERY, 4) for name, value in sums.items()}
            note(args.output_dir, {**line, "lr": factor, **means})
            if not all(map(math.isfinite, means.values())):
                raise FloatingPointError(f"step {step}: a loss is not a number; lower the learning rates")
            sums = {}
        if step % args.validate_every == 0 or done >= 1:
            average.module.save_pretrained(args.output_dir)
            note(args.output_dir, {**line, **validated(average.module)})


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    train, val = read_data(args)
    pixels, val_pixels = ([np.asarray(read_image(image.path)) for image in part] for part in (train, val))
    raters = read_raters(args.raters_data, train) if args.raters_data else {}
    print(len(train), "training images", len(val), "for validation;", len(raters), "with raters' crops", flush=True)
    model = new_model(args.start, args.dropout, args.encoder_layers)
    model.to(args.device).train()
    model.model.backbone.to(memory_format=torch.channels_last)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    taught = partial(teach, read_teachers(args.teachers, args.device)) if args.teachers else None
    (args.output_dir / FOLD_FILE).unlink(missing_ok=True)
    if args.fold:
        (args.output_dir / FOLD_FILE).write_text(json.dumps(args.fold))
    loader = batches(Views(train, pixels, raters, args), args)
    train_first_stage(model, loader, lambda average: validate(average, val, val_pixels, args.long_side), args, taught)


if __name__ == "__main__":
    main()
