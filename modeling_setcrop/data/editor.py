"""Crops by editors: a folder with `labels.jsonl` (or `labels.jsonl.gz`), a line of JSON an image, and the images.

docs/editor-layout.md describes the fields, so that anyone can label a library of their own.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from .any_box_rating import CropLabels
from .cache import build
from .reading import image_size
from .schema import DataError, Problems, Row

LABEL_FILES = ("labels.jsonl", "labels.jsonl.gz")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class EditorImage:
    """One line of the labels: the image's path, its split as written, where it came from, and its labels."""

    path: Path
    split: str
    source: str
    line: int
    labels: CropLabels


def load_editor(path: str | os.PathLike, *, problems: Problems | None = None) -> DatasetDict:
    """Read crops by editors into the shared schema: their crops with ratings, all of them good, and the whole image.

    Where people made a crop, it is the first; it has the rating of the best one. `crop_labels` has everything that the
    line says, from which training draws its views and rates any box. The splits are "train", "val" (or
    "validation") and "test"; lines of other splits, such as a benchmark's own test split, are left out here.

    Args:
        path: the folder with `labels.jsonl` or `labels.jsonl.gz`.
        problems: receives the bad entries, which are left out; None logs a summary.

    Raises:
        DataError: no labels there, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    file = label_file(root)
    return build("editor", root, [file, root], lambda found: _rows(root, found), problems)


def label_file(root: Path) -> Path:
    """Return the folder's file of labels.

    Raises:
        DataError: it has none.
    """
    for name in LABEL_FILES:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{root}: layout 'editor' needs the file {' or '.join(LABEL_FILES)}")


def read_editor_images(path: str | os.PathLike, problems: Problems) -> Iterator[EditorImage]:
    """Read the labels of every image, without opening the images; broken lines are noted and left out.

    Raises:
        DataError: there is no file of labels, or it cannot be read as text.
    """
    root = Path(path)
    file = label_file(root)
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield _parse(root, json.loads(line), number)
                except json.JSONDecodeError as error:
                    problems.add("not JSON", file, f"not a line of JSON ({error})", number)
                except (ValueError, TypeError) as error:
                    problems.add("bad field", file, str(error), number)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _parse(root: Path, entry: Any, line: int) -> EditorImage:
    if not isinstance(entry, dict) or not isinstance(entry.get("photo"), str):
        raise ValueError("'photo' must name the image's file")
    crops = _boxes(entry, "crops", rated=True)
    subjects = _boxes(entry, "subjects", rated=True)
    if ((crops[:, 4] < 1) | (crops[:, 4] > 5)).any():
        raise ValueError("'crops': ratings must lie in 1..5")
    if ((subjects[:, 4] < 0) | (subjects[:, 4] > 1)).any():
        raise ValueError("'subjects': importance must lie in 0..1")
    people = None
    if entry.get("people") is not None:
        people = _boxes({"people": [entry["people"][:4]]}, "people", rated=False)[0]
    if not len(crops) and people is None:
        raise ValueError("neither 'crops' nor 'people'")
    labels = CropLabels(
        crops=crops[:, :4],
        ratings=crops[:, 4],
        whole=_number(entry, "whole", 1, 5),
        subjects=subjects[:, :4],
        importance=subjects[:, 4],
        square=_number(entry, "square", 0, 1),
        slim=_number(entry, "slim", 0, 1),
        people=people,
        faces=_boxes(entry, "faces", rated=False),
    )
    if (labels.square is None) != (labels.slim is None):
        raise ValueError("'square' and 'slim' go together")
    return EditorImage(
        root / entry["photo"], str(entry.get("split", "train")), str(entry.get("source", "")), line, labels
    )


def _boxes(entry: dict[str, Any], name: str, rated: bool) -> np.ndarray:
    """Rows x1, y1, x2, y2 (and, `rated`, one number) of a field; none where it is missing."""
    columns = 5 if rated else 4
    rows = np.asarray(entry.get(name) or np.zeros((0, columns)), dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != columns or not np.isfinite(rows).all():
        raise ValueError(f"'{name}': expected rows of {columns} finite numbers")
    corners = rows[:, :4]
    if (corners < 0).any() or (corners > 1).any() or (corners[:, 2:] <= corners[:, :2]).any():
        raise ValueError(f"'{name}': boxes are x1, y1, x2, y2 in 0..1 with x1 < x2 and y1 < y2")
    return rows


def _number(entry: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise ValueError(f"'{name}' must lie in {low}..{high}, not {value!r}")
    return float(value)


def _rows(root: Path, problems: Problems) -> Iterator[Row]:
    for image in read_editor_images(root, problems):
        split = _SPLITS.get(image.split)
        if split is None:
            continue
        size = image_size(image.path, problems)
        if size is None:
            continue
        labels = image.labels
        boxes, ratings = labels.crops, labels.ratings
        good = np.ones(len(boxes), dtype=bool)
        if labels.people is not None:
            best = ratings.max() if len(ratings) else 4.0
            boxes, ratings = np.concatenate([labels.people[None], boxes]), np.append(best, ratings)
            good = np.append(True, good)
        if labels.whole is not None:
            boxes, ratings = np.concatenate([boxes, [[0.0, 0.0, 1.0, 1.0]]]), np.append(ratings, labels.whole)
            good = np.append(good, False)
        boxes = boxes * np.tile(size, 2)
        yield Row(str(image.path), image.path.stem, *size, boxes, ratings, good, split, crop_labels=labels)
