"""GAIC, "Grid Anchor based Image Cropping" (Zeng et al., CVPR 2019 and TPAMI 2020): versions 1 and 2 as distributed.

Version 1 keeps the annotations of both of its splits in one folder (`annotations/NAME.txt`, images in
`images/{train,test}/`); version 2 has a folder for each split of both (`annotations/{train,val,test}/NAME.txt`).
Every annotation line reads `y1 x1 y2 x2 score`: pixels of the image, and a mean opinion score 1..5, or -2 for a crop
that nobody rated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from .cache import build
from .reading import boxes_inside, files_in, held_out, image_size, images_by_stem, read_annotation_text
from .schema import GOOD_RATING, RATING_SCALE, DataError, Problems, Row, good_or_best

NOT_RATED = -2.0
# Version 1 has no validation split: 36 of its 1,036 training images are held out.
V1_VALIDATION_SHARE = 36 / 1036
V1_VALIDATION_SEED = 0

_V2_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def load_gaic(path: str | os.PathLike, *, problems: Problems | None = None) -> DatasetDict:
    """Read GAIC version 1 or 2, which differ in whether `annotations` has a folder for each split.

    Good crops are those with a mean opinion score of at least 4; an image that has none takes its best-scored crops
    (as in the authors' release; the paper names the threshold alone, section 4.3). Crops scored -2 ("not rated") are
    left out. Version 2 comes in its official splits; version 1 in its official test split and a seeded validation
    sample of 36 in 1,036 of the training images.

    Args:
        path: the folder with `images` and `annotations`.
        problems: receives the bad entries, which are left out; None logs a summary.

    Returns:
        Splits "train", "validation" and "test" (those that have images), rows as in `schema.FEATURES`.

    Raises:
        DataError: the folder is not laid out so, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    if not (root / "images").is_dir() or not (root / "annotations").is_dir():
        raise DataError(f"{root}: layout 'gaic' needs the folders 'images' and 'annotations'")
    has_split_folders = any((root / "annotations" / name).is_dir() for name in _V2_SPLITS)
    parts = ("train", "val", "test") if has_split_folders else ("train", "test")
    folders = [root / "images" / part for part in parts]
    if has_split_folders:
        folders += [root / "annotations" / part for part in parts]
        return build("gaic", root, folders, lambda found: _version_2(root, found), problems)
    folders.append(root / "annotations")
    return build("gaic", root, folders, lambda found: _version_1(root, found), problems)


def read_annotation(path: str | os.PathLike, problems: Problems) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return the rated crops of one annotation file.

    Returns:
        (S, 4) boxes x1, y1, x2, y2 in pixels, (S,) scores 1..5, and the 1-based line of each.
    """
    try:
        text = read_annotation_text(path)
    except (OSError, ValueError) as error:
        problems.add("unreadable annotation", path, f"cannot be read ({error})")
        return np.zeros((0, 4)), np.zeros(0), []
    try:
        table = np.array([line.split() for line in text.splitlines() if line.strip()], dtype=np.float64)
        numbers = [number for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    except ValueError:  # ragged or not numeric: line by line, to name the bad ones
        table, numbers = _parse_lines(path, text, problems)
    if table.ndim != 2 or table.shape[1] != 5:
        table, numbers = _parse_lines(path, text, problems)
    scores = table[:, 4]
    rated = scores != NOT_RATED
    valid = (scores >= RATING_SCALE[0]) & (scores <= RATING_SCALE[1])
    for index in np.flatnonzero(rated & ~valid):
        message = f"score {scores[index]:g} is neither in 1..5 nor -2 (not rated)"
        problems.add("score out of range", path, message, numbers[index])
    kept = np.flatnonzero(valid)
    return table[kept][:, [1, 0, 3, 2]], scores[kept], [numbers[index] for index in kept]


def _parse_lines(path: str | os.PathLike, text: str, problems: Problems) -> tuple[np.ndarray, list[int]]:
    rows, numbers = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 5:
            problems.add("wrong number of fields", path, f"has {len(fields)} fields, not y1 x1 y2 x2 score", number)
            continue
        try:
            rows.append([float(value) for value in fields])
        except ValueError:
            problems.add("not a number", path, f"{line.strip()!r} is not five numbers", number)
            continue
        numbers.append(number)
    return np.array(rows, dtype=np.float64).reshape(-1, 5), numbers


def _version_1(root: Path, problems: Problems) -> Iterator[Row]:
    annotations = _annotations(root / "annotations")
    images = {part: images_by_stem(root / "images" / part, problems) for part in ("train", "test")}
    validation = held_out(images["train"], V1_VALIDATION_SHARE, V1_VALIDATION_SEED)
    for part, of_part in images.items():
        for stem, image in of_part.items():
            split = "validation" if part == "train" and stem in validation else part
            yield from _row(image, stem, annotations.get(stem), split, problems)
    for stem, file in annotations.items():
        if stem not in images["train"] and stem not in images["test"]:
            problems.add("annotation without image", file, "no such image in images/train or images/test")


def _version_2(root: Path, problems: Problems) -> Iterator[Row]:
    for part, split in _V2_SPLITS.items():
        annotations = _annotations(root / "annotations" / part)
        images = images_by_stem(root / "images" / part, problems)
        for stem, image in images.items():
            yield from _row(image, stem, annotations.get(stem), split, problems)
        for stem, file in annotations.items():
            if stem not in images:
                problems.add("annotation without image", file, f"no such image in images/{part}")


def _annotations(folder: Path) -> dict[str, str]:
    return {name.removesuffix(".txt"): entry.path for name, entry in files_in(folder).items() if name.endswith(".txt")}


def _row(image: str, stem: str, annotation: str | None, split: str, problems: Problems) -> Iterator[Row]:
    if annotation is None:
        problems.add("image without annotation", image, "has no annotation file")
        return
    size = image_size(image, problems)
    if size is None:
        return
    boxes, scores, lines = read_annotation(annotation, problems)
    boxes, keep = boxes_inside(boxes, size, annotation, lines, problems)
    boxes, scores = boxes[keep], scores[keep]
    if not len(boxes):
        problems.add("no usable crop", annotation, "has no rated crop inside the image")
        return
    yield Row(image, stem, *size, boxes, scores, good_or_best(scores, scores >= GOOD_RATING), split)
