"""The one row format of all crop data sets, and the problems found while reading."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from datasets import Features, Image, List, Value

from .any_box_rating import CropLabels

# Corners x1, y1, x2, y2 in [0, 1] of the image's width and height.
_BOX = List(Value("float64"), length=4)

FEATURES = Features(
    {
        # Decoded only when the column is read; the file's EXIF orientation is applied then.
        "image": Image(),
        # File name without its ending, unique within a split.
        "image_id": Value("string"),
        # Size in pixels as displayed, that is, after the EXIF orientation.
        "width": Value("int32"),
        "height": Value("int32"),
        # (S, 4) crops as x1, y1, x2, y2 in pixels of the image as displayed; x2 and y2 lie outside the crop.
        "boxes": List(List(Value("float32"), length=4)),
        # (S,) rating of each crop, mapped to 1..5; null where the image has none.
        "scores": List(Value("float32")),
        # (S,) whether the crop is one that a person would keep, the ground truth of the set prediction.
        "good": List(Value("bool")),
        # train, validation or test.
        "split": Value("string"),
        # (2,) lowest and highest rating of the scale on which people gave them; null where there are none.
        "rating_scale": List(Value("float32"), length=2),
        # What is known of the image beyond its rated crops, from which the rating of any box follows; null where
        # nothing is. The fields are those of `any_box_rating.CropLabels`.
        "crop_labels": {
            "crops": List(_BOX),
            "ratings": List(Value("float64")),
            "whole": Value("float64"),
            "subjects": List(_BOX),
            "importance": List(Value("float64")),
            "square": Value("float64"),
            "slim": Value("float64"),
            "people": _BOX,
            "faces": List(_BOX),
        },
        # The image's number in the COCO file that it was read from, by which results name it; null elsewhere.
        "coco_id": Value("int64"),
    }
)
# What copies from before a column was added may lack.
OPTIONAL = ("rating_scale", "crop_labels", "coco_id")
RATING_SCALE = (1.0, 5.0)
"""The scale of ratings in the schema, of the model and of its thresholds; GAIC's own."""
GOOD_RATING = 4.0
"""A crop with at least this rating on `RATING_SCALE` is good (paper, section 4.3), where nothing else says what is."""
SPLITS = ("train", "validation", "test")


class DataError(ValueError):
    """A data set that cannot be read, or, with `strict`, its first bad entry."""


@dataclass(frozen=True)
class Problem:
    """One bad entry: `kind` is a short name to count by, `line` is 1-based (None: the whole file)."""

    kind: str
    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


@dataclass
class Problems:
    """Collects the bad entries that a reader leaves out; with `strict`, the first one raises `DataError`."""

    strict: bool = False
    found: list[Problem] = field(default_factory=list)

    def add(self, kind: str, file: str | os.PathLike, message: str, line: int | None = None) -> None:
        # File names may hold bytes that are not text; the report has to be printable all the same.
        name, message = (text.encode("utf-8", "backslashreplace").decode() for text in (os.fspath(file), message))
        problem = Problem(kind, name, line, message)
        if self.strict:
            raise DataError(str(problem))
        self.found.append(problem)

    def counts(self) -> dict[str, int]:
        """Return the number of problems of each kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.found).most_common())


class Row(NamedTuple):
    """One image with its crops, as a reader yields it (fields as in `FEATURES`, the image as a path).

    Three things differ from the schema: `scores` are on `rating_scale`, or on the data set's where that is None; where
    `good` is None, the crops rated 4 or more on the scale 1..5 are, or the best-rated ones, or, without ratings, all;
    and `crop_labels` is an object.
    """

    image: str
    image_id: str
    width: int
    height: int
    boxes: np.ndarray
    scores: np.ndarray | None
    good: np.ndarray | None
    split: str
    rating_scale: tuple[float, float] | None = None
    crop_labels: CropLabels | None = None
    coco_id: int | None = None


def good_or_best(scores: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the good flags, or, where no crop is good, flags of the best-scored ones (as the authors' release)."""
    return good if good.any() else scores == scores.max()
