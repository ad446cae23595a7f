"""A plain folder of images with a `metadata.jsonl`, for people's own data.

Every line describes one image, in pixels of the image as displayed:

    {"file_name": "beach.jpg", "boxes": [[x1, y1, x2, y2], ...], "scores": [4.2, ...], "good": [true, ...],
     "split": "test"}

(without the line break). `scores` (ratings, higher is better), `good` and `split` (train, validation or test; train
when left out) are optional. Ratings are on the scale 1..5, or on that which the caller or the line's `rating_scale`,
[lowest, highest], gives; they are mapped to 1..5. Without `good`, all crops without scores are good, and of crops with
scores those of at least 4 on that scale, or else the best-scored ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from .cache import build
from .reading import LARGEST_ANNOTATION, boxes_inside, image_size
from .schema import RATING_SCALE, SPLITS, DataError, Problems, Row

METADATA = "metadata.jsonl"


def load_folder(
    path: str | os.PathLike, *, problems: Problems | None = None, rating_scale: Sequence[float] = RATING_SCALE
) -> DatasetDict:
    """Read a folder of images with a `metadata.jsonl` (see above).

    Args:
        path: the folder; `file_name`s are relative to it.
        problems: receives the bad entries, which are left out; None logs a summary.
        rating_scale: lowest and highest rating, of the lines that do not say it themselves.

    Returns:
        The splits that the file names, rows as in `schema.FEATURES`.

    Raises:
        DataError: there is no `metadata.jsonl`, a rating is not on its scale, or, with `problems.strict`, at the first
            bad entry.
    """
    root = Path(path).resolve()
    if not (root / METADATA).is_file():
        raise DataError(f"{root}: layout 'folder' needs the file '{METADATA}'")
    return build(
        "folder", root, [root, root / METADATA], lambda found: _rows(root, found), problems, rating_scale=rating_scale
    )


def _rows(root: Path, problems: Problems) -> Iterator[Row]:
    file = root / METADATA
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if len(line) > LARGEST_ANNOTATION:
                problems.add("annotation too large", file, f"has {len(line) / 1e6:.0f} MB", number)
            elif line.strip():
                row = _row(root, file, number, line, problems)
                if row is not None:
                    yield row


def _row(root: Path, file: Path, number: int, line: str, problems: Problems) -> Row | None:
    try:
        entry = json.loads(line)
    except ValueError as error:
        problems.add("undecodable annotation", file, f"is not JSON ({error})", number)
        return None
    return entry_row(root, file, number, entry, problems)


def entry_row(root: Path, file: Path, number: int, entry: Any, problems: Problems) -> Row | None:
    """Return the row of one line of metadata, or None after noting what is wrong with it."""
    try:
        split = _checked_place(entry)
        image = root / entry["file_name"]
        if not image.is_file():
            raise _BadEntryError("annotation without image", f"no such image: {entry['file_name']}")
        size = image_size(image, problems)
        if size is None:
            return None
        boxes = _numbers(entry.get("boxes"), (None, 4))
        if boxes is None or not len(boxes):
            raise _BadEntryError("wrong number of fields", "boxes is not a list of [x1, y1, x2, y2]")
        scores, good, scale = _checked_labels(entry, len(boxes))
        boxes, keep = boxes_inside(boxes, size, file, [number] * len(boxes), problems)
        if not keep.any():
            raise _BadEntryError("no usable crop", "has no crop inside the image")
    except _BadEntryError as error:
        problems.add(error.kind, file, str(error), number)
        return None
    except (OSError, OverflowError, ValueError) as error:
        problems.add("undecodable annotation", file, f"cannot be read ({error})", number)
        return None
    scores = None if scores is None else scores[keep]
    good = None if good is None else good[keep]
    name = os.path.splitext(entry["file_name"])[0]
    return Row(str(image), name, *size, boxes[keep], scores, good, split, scale)


class _BadEntryError(ValueError):
    """What is wrong with a line, and of which kind that is."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _checked_place(entry: Any) -> str:
    """Return the split of an entry whose file lies in the folder."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise _BadEntryError("wrong number of fields", "has no file_name")
    split = entry.get("split", "train")
    if split not in SPLITS:
        raise _BadEntryError("unknown split", f"split {split!r} is not one of {', '.join(SPLITS)}")
    path = Path(entry["file_name"])
    if path.is_absolute() or ".." in path.parts:
        raise _BadEntryError("outside the folder", f"file_name {entry['file_name']!r} leaves the folder")
    return split


def _checked_labels(
    entry: dict[str, Any], count: int
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[float, float] | None]:
    """Return the scores, the good flags and the rating scale of an entry with so many boxes, None where left out."""
    scores = good = None
    if entry.get("scores") is not None:
        scores = _numbers(entry["scores"], (count,))
        if scores is None or not np.isfinite(scores).all():
            raise _BadEntryError("score out of range", f"scores are not {count} finite numbers")
    if entry.get("good") is not None:
        good = _flags(entry["good"], count)
        if good is None:
            raise _BadEntryError("wrong number of fields", f"good is not a list of {count} booleans")
    scale = _numbers(entry.get("rating_scale"), (2,))
    if scale is None and entry.get("rating_scale") is not None:
        raise _BadEntryError("wrong number of fields", "rating_scale is not [lowest, highest]")
    return scores, good, None if scale is None else (float(scale[0]), float(scale[1]))


def _numbers(value: Any, shape: tuple[int | None, ...]) -> np.ndarray | None:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    return array if fits else None


def _flags(value: Any, count: int) -> np.ndarray | None:
    if isinstance(value, list) and len(value) == count and all(isinstance(flag, bool) for flag in value):
        return np.array(value, dtype=bool)
    return None
