"""Train setcrop-lite to find faces, so that crops that cut one are rated lower (third stage).

    python examples/find_faces.py --editor-data DIR --out faces.jsonl
    python examples/train_setcrop_lite_faces.py --editor-data DIR --faces faces.jsonl --start MODEL --output_dir OUT

`--start` is a checkpoint of setcrop-lite after its two other stages; it stays as it is, only its face finder is new,
or goes on where it has one.
The loss is CenterNet's (Zhou et al., "Objects as Points", 2019): a focal loss on a map of the faces' middles, and the
generalised IoU of their boxes there. Every step draws views afresh; half of them are of images with faces.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset
from train_setcrop_lite import LOGGED_EVERY, nearest_size, note, read_image
from train_setcrop_lite_set import LONG, save_half
from transformers.loss.loss_for_object_detection import generalized_box_iou

from modeling_setcrop import SetCropForImageCropping
from modeling_setcrop.crop_geometry import box_area, kept_shares
from modeling_setcrop.data import Problems
from modeling_setcrop.data.any_box_rating import mirror_boxes
from modeling_setcrop.data.crop_views import distort, stretched
from modeling_setcrop.data.editor import read_editor_images
from modeling_setcrop.face_finding_setcrop import SetCropFaceFinder

CELL = 8
FACES_SHARE = 0.55
# Windows instead of whole images: how often, how large, and how often about a face.
WINDOW_SHARE, WINDOW_SIDES, ABOUT_FACE = 0.6, (0.35, 1.0), 0.7
# A face is one to find if the view keeps so much of it and it is so many pixels wide; else, down to so much of it, it
# is neither a face nor none.
VISIBLE, LEAST_PIXELS, ANY = 0.65, 7, 0.1
# Spread of the map around a face's middle, in shares of its sides, and in cells at least.
SPREAD, LEAST_SPREAD = 0.14, 0.6
# Cells that see so much of a face's middle tell its box.
NEAR = 0.3


class FaceViews(IterableDataset):
    """Batches of views of one size, without end: pixels, the map of faces' middles, its weights, boxes."""

    def __init__(self, paths: list[Path], faces: list[np.ndarray], unsure: list[np.ndarray], batch: int, seed: int):
        self.pixels = [np.asarray(read_image(path)) for path in paths]
        self.faces, self.unsure, self.batch, self.seed = faces, unsure, batch, seed

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        rng = np.random.default_rng(self.seed)
        with_faces = [index for index, boxes in enumerate(self.faces) if len(boxes)]
        without = [index for index, boxes in enumerate(self.faces) if not len(boxes)]
        waiting: dict[tuple[int, int], list[tuple[np.ndarray, ...]]] = {}
        while True:
            index = int(rng.choice(with_faces if rng.random() < FACES_SHARE or not without else without))
            size, view = self._draw(index, rng)
            waiting.setdefault(size, []).append(view)
            if len(waiting[size]) == self.batch:
                yield [torch.from_numpy(np.stack(part)) for part in zip(*waiting.pop(size), strict=True)]

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[np.ndarray, ...]]:
        image = Image.fromarray(self.pixels[index])
        window = draw_window(self.faces[index], rng)
        sides = window[2:] - window[:2]
        size = nearest_size(stretched(image.width / image.height * sides[0] / sides[1], rng), LONG)
        box = tuple(window * np.tile(image.size, 2))
        pixels = distort(image.resize(size, Image.Resampling.LANCZOS, box=box), rng)
        faces, unsure = (
            (boxes - np.tile(window[:2], 2)) / np.tile(sides, 2) for boxes in (self.faces[index], self.unsure[index])
        )
        if rng.random() < 0.5:
            pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            faces, unsure = mirror_boxes(faces), mirror_boxes(unsure)
        return size, (np.asarray(pixels), *targets(faces, unsure, (size[1] // CELL, size[0] // CELL)))


def draw_window(faces: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the part (4,) of an image that a view shows, corners in [0, 1]; mostly about one of the faces (F, 4)."""
    if rng.random() >= WINDOW_SHARE:
        return np.array([0.0, 0.0, 1.0, 1.0])
    sides = (rng.uniform(*WINDOW_SIDES) * np.exp(rng.normal(0, 0.12, 2))).clip(0.3, 1)
    corner = rng.random(2) * (1 - sides)
    if len(faces) and rng.random() < ABOUT_FACE:
        face = faces[rng.integers(len(faces))]
        corner = ((face[:2] + face[2:]) / 2 - sides * rng.uniform(0.2, 0.8, 2)).clip(0, 1 - sides)
    return np.concatenate([corner, corner + sides])


def targets(
    faces: np.ndarray, unsure: np.ndarray, cells: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the map (H, W) of faces' middles, its weights (H, W) in the loss, and the face's box (H, W, 4) there.

    Args:
        faces: (F, 4) corners in [0, 1] of the view, which they may leave.
        unsure: (U, 4) what may be faces and may be none.
        cells: H and W.
    """
    height, width = cells
    middles, weights, boxes = np.zeros(cells), np.ones(cells), np.zeros((*cells, 4))
    y, x = np.mgrid[:height, :width] + 0.5
    seen, kept = faces.clip(0, 1), kept_shares(faces, np.array([[0.0, 0.0, 1.0, 1.0]]))[:, 0]
    found = (kept > VISIBLE) & ((seen[:, 2] - seen[:, 0]) * width * CELL >= LEAST_PIXELS)
    for box in np.concatenate([seen[~found & (kept > ANY)], unsure.clip(0, 1)]):
        if box_area(box[None])[0] > 0:
            near_x, near_y = np.abs(x / width * 2 - box[0] - box[2]), np.abs(y / height * 2 - box[1] - box[3])
            weights[(near_x < box[2] - box[0] + 2 / width) & (near_y < box[3] - box[1] + 2 / height)] = 0
    for box in seen[found]:
        centre, sides = (box[:2] + box[2:]) / 2 * [width, height], (box[2:] - box[:2]) * [width, height]
        spread = np.maximum(SPREAD * sides, LEAST_SPREAD)
        bump = np.exp(-(((x - centre[0]) / spread[0]) ** 2 + ((y - centre[1]) / spread[1]) ** 2) / 2)
        bump[np.unravel_index(bump.argmax(), cells)] = 1
        boxes[bump > middles] = box
        middles = np.maximum(middles, bump)
        weights[bump > NEAR] = 1
    return middles.astype(np.float32), weights.astype(np.float32), boxes.astype(np.float32)


def face_losses(
    finder: SetCropFaceFinder, features: tuple[torch.Tensor, torch.Tensor], view: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return CenterNet's focal loss, and the mean of 1 - GIoU where a face's middle is near."""
    middles, weights, boxes = view
    logits, found = finder.maps(*features)
    certainty = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = (middles == 1).float()
    focal = peak * (1 - certainty) ** 2 * certainty.log()
    focal = focal + (1 - peak) * (1 - middles) ** 4 * certainty**2 * (1 - certainty).log()
    near = middles > NEAR
    share = middles[near]
    overlap = generalized_box_iou(found[near], boxes[near]).diagonal() if len(share) else share
    return {
        "middles": -(focal * weights).sum() / peak.sum().clamp(min=1),
        "boxes": 2 * ((1 - overlap) * share).sum() / share.sum().clamp(min=1e-6),
    }


def features_of(model: SetCropForImageCropping, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the face finder sees of views (B, H, W, 3): memory and detail, which do not learn."""
    pixels = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        encoded = model.model.encode(pixels)
    return encoded.last_hidden_state.float().unflatten(1, encoded.feature_mask.shape[1:]), encoded.detail.float()


def read_faces(args: argparse.Namespace) -> tuple[list[Path], list[np.ndarray], list[np.ndarray]]:
    """Training images, their faces, and what may be faces."""
    paths = [image.path for image in read_editor_images(args.editor_data, Problems()) if image.split == "train"]
    with open(args.faces) as lines:
        known = {Path(row["photo"]).name: row for row in map(json.loads, lines)}
    rows = [known.get(path.name, {}) for path in paths]
    faces, unsure = (
        [np.array(row.get(name, []), float).reshape(-1, 4) for row in rows] for name in ("faces", "unsure")
    )
    return paths, faces, unsure


def train_finder(model: SetCropForImageCropping, views: FaceViews, args: argparse.Namespace) -> SetCropFaceFinder:
    """Train the face finder alone, and return the average of its weights."""
    finder = model.model.face_finder.requires_grad_(True)
    average = AveragedModel(finder, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(finder.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 100) * (0.01 + 0.495 * (1 + math.cos(math.pi * min(s / args.steps, 1))))
    )
    began, sums = time.time(), {}
    loader = DataLoader(views, batch_size=None, num_workers=1, prefetch_factor=6)
    for step, (pixels, *view) in zip(range(1, args.steps + 1), loader, strict=False):
        losses = face_losses(finder, features_of(model, pixels), view)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(finder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(finder)
        sums = {name: sums.get(name, 0.0) + value.item() / LOGGED_EVERY for name, value in losses.items()}
        if step % LOGGED_EVERY == 0:
            means = {name: round(value, 4) for name, value in sums.items()}
            note(args.output_dir, {"step": step, "seconds": round(time.time() - began), **means})
            sums = {}
    return average.module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor-data", type=Path, required=True)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--start", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    known = SetCropForImageCropping.from_pretrained(args.start, dtype=torch.float32)
    known.config.face_finding = True
    model = SetCropForImageCropping(known.config).eval().requires_grad_(False)
    model.load_state_dict(known.state_dict(), strict=False)
    paths, faces, unsure = read_faces(args)
    print(len(paths), "training images,", sum(len(boxes) > 0 for boxes in faces), "with faces", flush=True)
    model.model.face_finder = train_finder(model, FaceViews(paths, faces, unsure, args.batch_size, args.seed), args)
    save_half(model, args.output_dir)


if __name__ == "__main__":
    main()
