"""How well the crops follow the image: every data set of people's and editors' crops, in one run, as one table.

    python benchmarks/crop_quality.py --editor-data DIR [--flms DIR] [--gaic DIR] [--site-crops DIR] [--model DIR]
        [--method NAME ...] [--out FILE.json]

Methods: the model through its pipeline (`faces`: the faces that `--keep faces` finds are wishes), the best answer that
never looks at the image (constant), smartcrop.py, and libvips' attention crop. Every figure is a mean with its 95 %
bootstrap interval over images. A window is the largest crop of an aspect ratio. Faces are those that OpenCV's frontal
cascade finds (`pip install "opencv-python-headless<5"`; version 5 has none), which is not the package's detector.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.io import loadmat
from scipy.stats import spearmanr
from transformers import pipeline

import modeling_setcrop
from modeling_setcrop.crop_geometry import box_iou, hull, kept_shares, largest_area, xyxy_to_cxcywh
from modeling_setcrop.data import Problems
from modeling_setcrop.data.any_box_rating import labelled_window, mirror_boxes
from modeling_setcrop.data.editor import EditorImage, read_editor_images
from modeling_setcrop.image_reading import decode_image
from modeling_setcrop.images.faces import find_faces as detect_faces
from modeling_setcrop.metrics.functional import average_precision
from modeling_setcrop.runs.content import FACE_WEIGHT

FACE_RATIOS = (16 / 9, 2.0, 1.0, 4 / 5, 9 / 16)
_SALIENCY_SIDE = 512
Crops = np.ndarray


class Method:
    """A way to crop: `free(image)` the crops that it likes best, `window(image, ratio)` the largest of a ratio."""

    name = ""

    def free(self, image: Image.Image, count: int) -> Crops:
        raise NotImplementedError

    def window(self, image: Image.Image, ratio: float) -> Crops:
        """Return the place of the largest crop of this ratio, (4,)."""
        raise NotImplementedError

    def any_size(self, image: Image.Image, ratio: float) -> Crops:
        """Return the best crop of this ratio, of any size, (4,)."""
        return self.window(image, ratio)


class Constant(Method):
    """The best answer that never looks at the image: boxes fitted to the training images, windows in the middle."""

    name = "constant"

    def __init__(self, boxes: Crops) -> None:
        self.boxes = boxes

    def free(self, image: Image.Image, count: int) -> Crops:
        return self.boxes[:count]

    def window(self, image: Image.Image, ratio: float) -> Crops:
        width, height = window_size(image.width / image.height, ratio)
        return np.array([(1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2])


class SmartCrop(Method):
    name = "smartcrop"

    def __init__(self) -> None:
        from smartcrop import SmartCrop as Cropper

        self.cropper = Cropper()

    def _crop(self, image: Image.Image, size: tuple[int, int], least: float) -> Crops:
        small = image.copy()
        small.thumbnail((_SALIENCY_SIDE, _SALIENCY_SIDE))
        wanted = max(1, round(size[0] * small.width)), max(1, round(size[1] * small.height))
        found = self.cropper.crop(small, *wanted, min_scale=least, max_scale=1)["top_crop"]
        box = np.array([found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"]], float)
        return (box / [small.width, small.height, small.width, small.height]).clip(0, 1)

    def free(self, image: Image.Image, count: int) -> Crops:
        return self._crop(image, (0.9, 0.9), 1.0)[None]

    def window(self, image: Image.Image, ratio: float) -> Crops:
        return self._crop(image, window_size(image.width / image.height, ratio), 1.0)

    def any_size(self, image: Image.Image, ratio: float) -> Crops:
        return self._crop(image, window_size(image.width / image.height, ratio), 0.7)


class Vips(Method):
    name = "libvips attention"

    def _crop(self, image: Image.Image, size: tuple[float, float]) -> Crops:
        import pyvips

        small = image.copy()
        small.thumbnail((_SALIENCY_SIDE, _SALIENCY_SIDE))
        width, height = max(1, round(size[0] * small.width)), max(1, round(size[1] * small.height))
        found = pyvips.Image.new_from_array(np.asarray(small)).smartcrop(width, height, interesting="attention")
        box = np.array([-found.xoffset, -found.yoffset, -found.xoffset + width, -found.yoffset + height], float)
        return (box / [small.width, small.height, small.width, small.height]).clip(0, 1)

    def free(self, image: Image.Image, count: int) -> Crops:
        return self._crop(image, (0.9, 0.9))[None]

    def window(self, image: Image.Image, ratio: float) -> Crops:
        return self._crop(image, window_size(image.width / image.height, ratio))


class Model(Method):
    """A checkpoint through `pipeline("image-cropping")`."""

    def __init__(self, name: str, checkpoint: str, tightness: str | None = None) -> None:
        self.name, self.options = name, {} if tightness is None else {"tightness": tightness}
        self.cropper = pipeline("image-cropping", model=checkpoint, device="cpu")

    def _boxes(self, image: Image.Image, **options) -> Crops:
        found = self.cropper(image, **self.options, **options)
        boxes = np.array([[crop["box"][key] for key in ("xmin", "ymin", "xmax", "ymax")] for crop in found], float)
        return boxes / [image.width, image.height, image.width, image.height]

    def free(self, image: Image.Image, count: int) -> Crops:
        return self._boxes(image, top_k=count)

    def window(self, image: Image.Image, ratio: float) -> Crops:
        return self._boxes(image, top_k=1, aspect_ratio=ratio, min_area=largest_area(ratio, image.size[::-1]))[0]

    def any_size(self, image: Image.Image, ratio: float) -> Crops:
        return self._boxes(image, top_k=1, aspect_ratio=ratio)[0]

    def ratings(self, image: Image.Image, boxes: Crops, source: int | None = None) -> np.ndarray:
        """Ratings (M,) of boxes (M, 4), corners in [0, 1]."""
        import torch

        model, processor = self.cropper.model, self.cropper.image_processor
        inputs = processor(image, return_tensors="pt")
        with torch.inference_mode():
            encoded = model.model.encode(inputs["pixel_values"], inputs.get("pixel_mask"))
            given = torch.from_numpy(xyxy_to_cxcywh(boxes)).float()[None]
            chosen = None if source is None else torch.tensor([source])
            return model.score_crops(given, encoded, source=chosen)[0].numpy()


class KeepFaces(Model):
    """A checkpoint as `setcrop crop --keep faces` asks it: faces that the package's detector finds are wishes."""

    def _boxes(self, image: Image.Image, **options) -> Crops:
        found = detect_faces(decode_image(image, self.cropper.short_side))
        return super()._boxes(image, keep=[(*box, FACE_WEIGHT) for box in found], **options)


def constant_boxes(firsts: Crops, good: Crops, count: int = 10) -> Crops:
    """Return the box that overlaps the training images' first crops most, then those that cover most good ones.

    Args:
        firsts: (I, 4) first crops; good: (G, 4) all good crops.
    """
    near = np.arange(0, 9) / 24
    lattice = np.stack(np.meshgrid(near, near, 1 - near, 1 - near, indexing="ij"), axis=-1).reshape(-1, 4)
    means = np.concatenate([box_iou(part, firsts).mean(1) for part in np.array_split(lattice, 30)])
    chosen = [lattice[means.argmax()]]
    rng = np.random.default_rng(0)
    good = good[rng.permutation(len(good))[:6000]]
    met = np.concatenate([box_iou(part, good) >= 0.85 for part in np.array_split(lattice, 60)])
    left = ~(box_iou(chosen[0][None], good)[0] >= 0.85)
    while len(chosen) < count:
        best = met[:, left].sum(1).argmax()
        chosen.append(lattice[best])
        left &= ~met[best]
    return np.stack(chosen)


def window_size(image_ratio: float, ratio: float) -> tuple[float, float]:
    """Width and height, in [0, 1] of the image, of the largest crop of an aspect ratio."""
    return (1.0, image_ratio / ratio) if image_ratio < ratio else (ratio / image_ratio, 1.0)


def labelled_windows(entry: EditorImage, image_ratio: float) -> list[tuple[str, float, Crops]]:
    """Name, aspect ratio and place (4,) of the labels' windows, largest of their shapes, but for the whole image."""
    long = max(image_ratio, 1 / image_ratio)
    asked = {"square": (1.0, 1.0), "slim": (9 / 16, 9 / 16 if image_ratio >= 1 else 16 / 9)}
    return [
        (name, ratio, labelled_window(length / long, image_ratio, entry.labels))
        for name, (length, ratio) in asked.items()
        if length / long < 0.999
    ]


def displacement(a: Crops, b: Crops) -> float:
    """Mean distance of four edges, in [0, 1] of the image (BDE)."""
    return float(np.abs(a - b).mean())


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def editor_rows(method: Method, entries: list[EditorImage], constant: Crops) -> dict[str, list[float]]:
    """First crop, five crops and windows on the editors' validation and test images."""
    rows: dict[str, list[float]] = {}
    sets, scores, good, flags, first_boxes = [], [], [], [], []
    for entry in track(entries, f"{method.name}: editors' crops"):
        image, labels = opened(entry.path), entry.labels
        ratio = image.width / image.height
        crops = method.free(image, 10)
        sets.append(crops)
        scores.append(1 - np.arange(len(crops)) / 100)
        good.append(labels.crops)
        flags.append(np.ones(len(labels.crops), bool))
        ious = box_iou(labels.crops, crops[:1])[:, 0]
        first_boxes.append(crops[0])
        add(rows, "first crop's IoU with the editor's first", ious[0])
        add(rows, "first crop's mean IoU with the editor's five", ious.mean())
        for name, asked, wanted in labelled_windows(entry, ratio):
            add(rows, f"IoU of the {name} window", box_iou(wanted[None], method.window(image, asked)[None])[0, 0])
    for eps in (0.85, 0.90):
        value = average_precision(sets, scores, good, flags, eps=eps, k=10)
        rows[f"AP ({eps:.2f}, K = 10)"] = [value]
    stacked = np.stack(first_boxes)
    labels = np.stack([entry.labels.crops[0] for entry in entries])
    rows["spread of the first crop's edges"] = [float(stacked.std(0).mean())]
    rows["the same of the editors' first"] = [float(labels.std(0).mean())]
    rows["share within IoU 0.95 of the constant box"] = list((box_iou(constant[:1], stacked)[0] >= 0.95).astype(float))
    return rows


def fcdb_rows(method: Method, entries: list[EditorImage]) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    for entry in track(entries, f"{method.name}: FCDB"):
        crop = method.free(opened(entry.path), 1)[0]
        add(rows, "FCDB test, 334 of 345: IoU", box_iou(entry.labels.people[None], crop[None])[0, 0])
        add(rows, "FCDB test, 334 of 345: BDE", displacement(crop, entry.labels.people))
    return rows


def flms_rows(method: Method, folder: Path) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    for name, crops in (entry.tolist()[:2] for entry in loadmat(folder / "500_image_dataset.mat")["img_gt"].ravel()):
        image = opened(folder / "image" / str(np.ravel(name)[0]))
        crops = np.asarray(crops, float)
        crops = crops[(crops >= 0).all(1)][:, [1, 0, 3, 2]] / np.tile(image.size, 2)
        found = method.free(image, 5)
        ious = box_iou(found, crops)
        add(rows, "FLMS-43: IoU with the nearest annotator", ious[0].max())
        add(rows, "FLMS-43: BDE", min(displacement(found[0], crop) for crop in crops))
        add(rows, "FLMS-43: IoU with the average annotator", ious[0].mean())
        add(rows, "FLMS-43: best of five, nearest annotator", ious.max())
    return rows


def gaic_rows(method: Method, folder: Path) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    if not isinstance(method, Model):
        return rows
    sources = method.cropper.model.config.rating_sources or [None]
    for path in sorted((folder / "images").rglob("*.jpg")):
        image = opened(path)
        lines = next((folder / "annotations").rglob(f"{path.stem}.txt")).read_text().splitlines()
        rated = np.array([[float(value) for value in line.split()] for line in lines if line.strip()])
        rated = rated[rated[:, 4] >= 0]
        boxes = rated[:, [1, 0, 3, 2]] / np.tile(image.size, 2)
        for number, source in enumerate(sources):
            ratings = method.ratings(image, boxes, None if source is None else number)
            name = "GAICD five: rank correlation" + (f", as {source}" if source else "")
            add(rows, name, spearmanr(ratings, rated[:, 4])[0])
    return rows


def site_rows(method: Method, folder: Path) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    with open(folder / "labels.jsonl") as lines:
        entries = [json.loads(line) for line in lines]
    for entry in track(entries, f"{method.name}: site authors' crops"):
        image, box = opened(folder / entry["photo"]), np.array(entry["box"], float)
        ratio = (box[2] - box[0]) * image.width / ((box[3] - box[1]) * image.height)
        if entry["kind"] == "window":
            add(
                rows,
                "site authors' crops (138): windows, largest size",
                box_iou(box[None], method.window(image, ratio)[None])[0, 0],
            )
            add(
                rows,
                "site authors' crops (138): windows, any size",
                box_iou(box[None], method.any_size(image, ratio)[None])[0, 0],
            )
        else:
            add(
                rows,
                "site authors' crops (138): free, ratio given",
                box_iou(box[None], method.any_size(image, ratio)[None])[0, 0],
            )
            ious = box_iou(box[None], method.free(image, 5))[0]
            add(rows, "site authors' crops (138): free, first crop", ious[0])
            add(rows, "site authors' crops (138): free, best of five", ious.max())
    return rows


def face_rows(method: Method, faces: list[tuple[Path, np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
    """Share of faces that a crop of a ratio cuts though all faces of the image would fit into one."""
    rows: dict[str, list[float]] = {}
    for path, boxes, confirmed in track(faces, f"{method.name}: faces"):
        image = opened(path)
        together = hull(boxes)
        for ratio in FACE_RATIOS:
            width, height = window_size(image.width / image.height, ratio)
            if together[2] - together[0] > width or together[3] - together[1] > height:
                continue
            kept = kept_shares(boxes, method.any_size(image, ratio)[None])[:, 0]
            for share, twice in zip(kept, confirmed, strict=True):
                add(rows, "faces cut (less than 95 % kept)", float(share < 0.95))
                if twice:
                    add(rows, "faces cut, of those that a second cascade finds too", float(share < 0.95))
    return rows


def find_faces(entries: list[EditorImage], extra: list[Path]) -> list[tuple[Path, np.ndarray, np.ndarray]]:
    """Faces wider than 4 % of the image, by OpenCV's frontal cascade, and which of them its second cascade finds too.

    About a third of what the first finds is no face, as a look at it or another detector says.
    """
    import cv2

    first, second = (
        cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_{name}.xml")
        for name in ("default", "alt2")
    )
    found = []
    for path in [*(entry.path for entry in entries), *extra]:
        grey = cv2.cvtColor(np.asarray(opened(path)), cv2.COLOR_RGB2GRAY)
        sides = np.tile([grey.shape[1], grey.shape[0]], 2)
        least = max(20, math.ceil(grey.shape[1] * 0.04))
        boxes = _corners(first.detectMultiScale(grey, 1.1, 6, minSize=(least, least))) / sides
        if len(boxes):
            again = _corners(second.detectMultiScale(grey, 1.1, 3, minSize=(20, 20))) / sides
            found.append((path, boxes, (box_iou(again, boxes) > 0.3).any(axis=0)))
    return found


def _corners(found: np.ndarray) -> np.ndarray:
    boxes = np.asarray(found, float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def stability_rows(method: Method, entries: list[EditorImage]) -> dict[str, list[float]]:
    """Mirrored images, and images trimmed by half a per cent."""
    rows: dict[str, list[float]] = {}
    for entry in track(entries, f"{method.name}: stability"):
        image = opened(entry.path)
        crop, ratio_crop = method.free(image, 1)[0], method.any_size(image, 4 / 5)
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for name, before, after in (
            ("free", crop, method.free(mirrored, 1)[0]),
            ("4:5", ratio_crop, method.any_size(mirrored, 4 / 5)),
        ):
            add(rows, f"mirrored image, {name}: IoU", box_iou(before[None], mirror_boxes(after)[None])[0, 0])
        trim = 0.0025
        box = (trim * image.width, trim * image.height, (1 - trim) * image.width, (1 - trim) * image.height)
        trimmed = image.crop(tuple(round(value) for value in box))
        for name, before, after in (
            ("free", crop, method.free(trimmed, 1)[0]),
            ("4:5", ratio_crop, method.any_size(trimmed, 4 / 5)),
        ):
            back = after * (1 - 2 * trim) + trim
            add(
                rows,
                f"image trimmed by 0.5 %, {name}: moves by more than 3 %",
                float(np.abs(before - back).max() > 0.03),
            )
    return rows


def add(rows: dict[str, list[float]], name: str, value: float) -> None:
    rows.setdefault(name, []).append(float(value))


def interval(values: list[float], samples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(0)
    array = np.asarray(values)
    means = array[rng.integers(len(array), size=(samples, len(array)))].mean(1)
    return tuple(np.quantile(means, [0.025, 0.975]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor-data", type=Path, required=True)
    parser.add_argument("--flms", type=Path)
    parser.add_argument("--gaic", type=Path)
    parser.add_argument("--site-crops", type=Path)
    parser.add_argument("--model", default=modeling_setcrop.DEFAULT_CHECKPOINT)
    parser.add_argument("--method", nargs="+", default=["constant", "smartcrop", "vips", "model", "tight"])
    parser.add_argument("--limit", type=int, help="at most so many images of each part")
    parser.add_argument("--parts", nargs="+", default=["editor", "fcdb", "flms", "gaic", "site", "faces", "stability"])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    made: dict[str, Callable[[], Method]] = {
        "constant": lambda: Constant(constant),
        "smartcrop": SmartCrop,
        "vips": Vips,
        "model": lambda: Model("SetCrop", args.model),
        "tight": lambda: Model("SetCrop, tight", args.model, "tight"),
        "faces": lambda: KeepFaces("SetCrop, keep faces", args.model),
        "loose": lambda: Model("SetCrop, loose", args.model, "loose"),
    }
    entries = list(read_editor_images(args.editor_data, Problems()))
    held = [entry for entry in entries if entry.split in ("val", "test")][: args.limit]
    fcdb = [entry for entry in entries if entry.split == "fcdb_test"][: args.limit]
    train = [entry.labels for entry in entries if entry.split == "train"]
    edited = [labels for labels in train if len(labels.crops)]
    constant = constant_boxes(
        np.stack([labels.crops[0] for labels in edited]), np.concatenate([labels.crops for labels in edited])
    )
    people = np.stack([labels.people for labels in train if labels.people is not None])
    of_people = constant_boxes(people, people, 1)
    faces = []
    if "faces" in args.parts:
        import matplotlib

        faces = find_faces(held + fcdb, [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"])
    parts: dict[str, Callable[[Method], dict[str, list[float]]]] = {
        "editor": lambda method: editor_rows(method, held, constant),
        "fcdb": lambda method: fcdb_rows(Constant(of_people) if isinstance(method, Constant) else method, fcdb),
        "flms": lambda method: flms_rows(method, args.flms) if args.flms else {},
        "gaic": lambda method: gaic_rows(method, args.gaic) if args.gaic else {},
        "site": lambda method: site_rows(method, args.site_crops) if args.site_crops else {},
        "faces": lambda method: face_rows(method, faces) if faces else {},
        "stability": lambda method: stability_rows(method, held) if isinstance(method, Model) else {},
    }
    results: dict[str, dict[str, list[float]]] = {}
    for name in args.method:
        method = made[name]()
        results[method.name] = {
            row: values for part, rows in parts.items() if part in args.parts for row, values in rows(method).items()
        }
    print_table(results)
    if args.out:
        write_summary(results, args.out)


def write_summary(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Write mean, number of images and interval of every figure as JSON."""
    summary = {
        method: {
            row: {"mean": float(np.mean(v)), "images": len(v), "interval": interval(v)} for row, v in rows.items()
        }
        for method, rows in results.items()
    }
    path.write_text(json.dumps(summary, indent=1))


def print_table(results: dict[str, dict[str, list[float]]]) -> None:
    table = Table()
    table.add_column("")
    for method in results:
        table.add_column(method, justify="right")
    for row in dict.fromkeys(row for rows in results.values() for row in rows):
        cells = []
        for rows in results.values():
            values = rows.get(row)
            if not values:
                cells.append("-")
            elif len(values) == 1:
                cells.append(f"{values[0]:.3f}")
            else:
                low, high = interval(values)
                cells.append(f"{np.mean(values):.3f} ({low:.3f}-{high:.3f})")
        table.add_row(row, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
