"""Crops by editors: a folder with `labels.jsonl` (or `labels.jsonl.gz`), a line of JSON an image, and the images.

docs/editor-layout.md describes the fields, so that anyone can label a library of their own.
"""

from __future__ import annotations

import difflib
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
FIELDS = ("photo", "crops", "people", "whole", "subjects", "faces", "square", "slim", "split", "source")
# Characters of a wrong value that a message shows.
_SHOWN = 60
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
                except (ValueError, TypeError, OverflowError) as error:
                    problems.add("bad field", file, str(error), number)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _parse(root: Path, entry: Any, line: int) -> EditorImage:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object with 'photo' and 'crops' or 'people', not {_shown(entry)}")
    _check_names(entry)
    photo, split = entry.get("photo"), entry.get("split", "train")
    if not isinstance(photo, str) or not photo or "\0" in photo:
        raise ValueError(f"'photo' must name the image's file, not {_shown(photo)}")
    if not isinstance(split, str):
        raise ValueError(f"'split' must be a name, not {_shown(split)}")
    crops = _boxes(entry, "crops", ("a rating", 1, 5))
    subjects = _boxes(entry, "subjects", ("an importance", 0, 1))
    people = None
    if entry.get("people") is not None:
        people = _box(entry["people"], "'people'", None)[:4]
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
        faces=_boxes(entry, "faces", None)[:, :4],
    )
    if (labels.square is None) != (labels.slim is None):
        raise ValueError("'square' and 'slim' go together")
    return EditorImage(root / photo, split, str(entry.get("source", "")), line, labels)


def _check_names(entry: dict[str, Any]) -> None:
    """Refuse a field whose name is nearly one of the layout's; others are the author's own records."""
    for name in entry:
        if name not in FIELDS and (near := difflib.get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.8)):
            raise ValueError(f"there is no field {name!r}; did you mean {near[0]!r}?")


def _boxes(entry: dict[str, Any], name: str, number: tuple[str, float, float] | None) -> np.ndarray:
    """Rows (K, 5) x1, y1, x2, y2 and `number` (0 without one) of a field; none where it is missing."""
    values = entry.get(name)
    if values is None:
        return np.zeros((0, 5))
    if not isinstance(values, list):
        raise ValueError(f"'{name}' must be a list of bounding boxes, not {_shown(values)}")
    rows = [_box(value, f"'{name}', number {place}", number) for place, value in enumerate(values, start=1)]
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _box(value: Any, where: str, number: tuple[str, float, float] | None) -> np.ndarray:
    """Return x1, y1, x2, y2 and `number`, which has a name, a least and a largest value, or 0 without one."""
    wanted = "x1, y1, x2, y2" + (f" and {number[0]}" if number else "")
    if (
        not isinstance(value, list)
        or len(value) != (5 if number else 4)
        or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in value)
        or not all(map(math.isfinite, value))
    ):
        raise ValueError(f"{where}: expected the numbers {wanted}, not {_shown(value)}")
    x1, y1, x2, y2 = value[:4]
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise ValueError(f"{where}: a box is x1, y1, x2, y2 in 0..1 with x1 < x2 and y1 < y2, not {_shown(value)}")
    if number and not number[1] <= value[4] <= number[2]:
        raise ValueError(f"{where}: {number[0]} must lie in {number[1]}..{number[2]}, not {value[4]:g}")
    return np.array([*value, *[0.0] * (5 - len(value))])


def _shown(value: Any) -> str:
    """Return a value as it stands in the file, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


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
        raise ValueError(f"'{name}' must lie in {low}..{high}, not {_shown(value)}")
    return float(value)


def _rows(root: Path, problems: Problems) -> Iterator[Row]:
    file = label_file(root)
    lines: dict[Path, int] = {}
    for image in read_editor_images(root, problems):
        split = _SPLITS.get(image.split)
        if split is None:
            # A split of another name is one more benchmark, but a slip of the pen is none.
            if near := difflib.get_close_matches(image.split.lower(), _SPLITS, n=1, cutoff=0.75):
                message = f"'split': {image.split!r} is neither trained nor validated on; did you mean {near[0]!r}?"
                problems.add("bad field", file, message, image.line)
            continue
        first = lines.setdefault(image.path, image.line)
        if first != image.line:
            problems.add("image given twice", file, f"'photo': line {first} has labels of this image", image.line)
            continue
        size = image_size(image.path, problems, (file, image.line))
        if size is None:
            continue
        yield _row(root, image, split, size)


def _name(root: Path, image: Path) -> str:
    """Return an image's path as its line has it, without its ending and steps out of the folder."""
    parts = image.relative_to(root).with_suffix("").parts
    return "/".join(part for part in parts if part not in ("..", "/"))


def _row(root: Path, image: EditorImage, split: str, size: tuple[int, int]) -> Row:
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
    return Row(str(image.path), _name(root, image.path), *size, boxes, ratings, good, split, crop_labels=labels)
