"""What the crops of one image must satisfy, and by how much a box breaks it.

Boxes are whole pixels of the image, float64, corner format.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .crop_geometry import box_area, box_intersection, pixel_sizes
from .crop_options import CropOptions, parse_aspect_ratio, turned_with

# What a broken constraint costs for each unit of its share: bounds give way first, kept content last.
_COSTS = {"min_size": 1.0, "min_area": 1.0, "max_area": 1.0, "avoid": 10.0, "keep": 100.0}
_WEIGHTS = np.array(list(_COSTS.values()))
_AGAINST = np.array([1, 1, 1, 1, -1])


class ConstraintError(ValueError):
    """With `strict`, no crop satisfies every constraint; `gave_way` names those that had to give."""

    def __init__(self, gave_way: Sequence[str]) -> None:
        super().__init__(f"no crop satisfies every constraint: {', '.join(gave_way)} had to give way")
        self.gave_way = tuple(gave_way)


@dataclass(frozen=True)
class CropConstraints:
    """What the crops of one image must satisfy; the aspect ratio is exact to one pixel, the rest can give way.

    Attributes:
        aspect_ratio: Width over height, or None for any shape.
        min_area, max_area: Bounds on the crop's share of the image, in 0..1.
        min_size: Least width and height in pixels.
        keep: (K, 4) whole-pixel boxes that must not be cut.
        avoid: (A, 4) boxes that must stay outside.
        wishes: (W, 5) boxes that crops had better hold, each with a weight in 0..1, or leave out, with one below 0.
        unmet_size: Width and height at which the crop will be shown, where no crop of this image is so large. That
            is told, and changes nothing else.
    """

    aspect_ratio: float | None
    min_area: float
    max_area: float
    min_size: tuple[float, float]
    keep: np.ndarray
    avoid: np.ndarray
    wishes: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))
    unmet_size: tuple[int, int] | None = None

    @classmethod
    def from_options(cls, options: CropOptions, ratio: Any, image_size: tuple[int, int]) -> CropConstraints:
        """Return the constraints that options set for one of their aspect ratios on one image (height and width).

        Raises:
            ValueError: Content to keep or avoid lies outside the image.
        """
        aspect_ratio = None if ratio is None else parse_aspect_ratio(ratio, image_size)
        least, shown = options.min_size or (1, 1), (options.width or 1, options.height or 1)
        if options.width is not None and options.height is not None:
            aspect_ratio = options.width / options.height
        if options.follow_orientation and aspect_ratio is not None:
            turned = turned_with(aspect_ratio, image_size)
            shown = shown if turned == aspect_ratio else shown[::-1]
            aspect_ratio = turned
        largest = image_size[::-1] if aspect_ratio is None else pixel_sizes(aspect_ratio, image_size)[-1]
        met = shown[0] <= largest[0] and shown[1] <= largest[1]
        wishes = np.concatenate(
            [_wishes(options.keep, image_size, "keep"), _wishes(options.avoid, image_size, "avoid") * _AGAINST]
        )
        return cls(
            aspect_ratio=aspect_ratio,
            min_area=options.min_area or 0.0,
            max_area=1.0 if options.max_area is None else options.max_area,
            min_size=(max(least[0], shown[0]), max(least[1], shown[1])) if met else least,
            keep=_content_boxes([item for item in options.keep if len(item) in (2, 4)], image_size, "keep"),
            avoid=_content_boxes([item for item in options.avoid if len(item) == 4], image_size, "avoid"),
            wishes=wishes[wishes[:, 4] != 0],  # one of weight 0 asks for nothing
            unmet_size=None if met else shown,
        )

    @property
    def is_free(self) -> bool:
        """Whether nothing is asked of a crop."""
        content = len(self.keep) + len(self.avoid) + len(self.wishes)
        return self.aspect_ratio is None and not self.has_bounds and content == 0

    @property
    def has_bounds(self) -> bool:
        """Whether a crop's area or size is bounded."""
        return (self.min_area, self.max_area, tuple(self.min_size)) != (0.0, 1.0, (1, 1))

    def wished(self, boxes: np.ndarray) -> np.ndarray:
        """How far (M,) boxes (M, 4) are as it is wished: the sum of weights, each by the share of its box inside."""
        shares = box_intersection(boxes, self.wishes[:, :4]) / box_area(self.wishes[:, :4])
        return shares @ self.wishes[:, 4]


def violations(boxes: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int]) -> np.ndarray:
    """By what share (M, 5) each box breaks each constraint, in the order of `_COSTS`; 0 where it holds."""
    shares = np.zeros((len(boxes), len(_COSTS)))
    column = {name: shares[:, index] for index, name in enumerate(_COSTS)}
    # Only what can be broken is looked at: mostly that is nothing.
    if tuple(constraints.min_size) != (1, 1):
        least, size = np.array(constraints.min_size, dtype=np.float64), boxes[:, 2:] - boxes[:, :2]
        column["min_size"][:] = np.maximum((least - size) / least, 0).max(axis=-1)
    # Areas are compared in whole pixels' terms, so that a bound met exactly is met.
    slack = 1e-9
    whole = image_size[0] * image_size[1]
    if constraints.min_area > 0:
        short = constraints.min_area - box_area(boxes) / whole - slack
        column["min_area"][:] = np.maximum(short, 0) / max(constraints.min_area, slack)
    if constraints.max_area < 1:
        over = box_area(boxes) / whole - constraints.max_area - slack
        column["max_area"][:] = np.maximum(over, 0) / max(constraints.max_area, slack)
    if len(constraints.avoid):
        column["avoid"][:] = (box_intersection(boxes, constraints.avoid) / box_area(constraints.avoid)).sum(axis=-1)
    if len(constraints.keep):
        column["keep"][:] = (1 - box_intersection(boxes, constraints.keep) / box_area(constraints.keep)).sum(axis=-1)
    return shares


def broken_by(boxes: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int]) -> np.ndarray:
    """Which constraints (M, 5) each box breaks."""
    broken = violations(boxes, constraints, image_size) > 0
    if constraints.unmet_size is not None:
        broken[:, list(_COSTS).index("min_size")] = True
    return broken


def breach_cost(boxes: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int]) -> np.ndarray:
    """Return what (M,) boxes cost for the constraints they break."""
    return violations(boxes, constraints, image_size) @ _WEIGHTS


def names_of(row: np.ndarray) -> tuple[str, ...]:
    return tuple(name for name, is_broken in zip(_COSTS, row.tolist(), strict=True) if is_broken)


def _wishes(items: Sequence[Sequence[float]], image_size: tuple[int, int], name: str) -> np.ndarray:
    """Whole-pixel boxes with their weights (W, 5), of the items that have one."""
    weighted = [item for item in items if len(item) in (3, 5)]
    boxes = _content_boxes([item[:-1] for item in weighted], image_size, name)
    return np.concatenate([boxes, np.array([item[-1:] for item in weighted]).reshape(-1, 1)], axis=1)


def _content_boxes(items: Sequence[Sequence[float]], image_size: tuple[int, int], name: str) -> np.ndarray:
    """Whole-pixel boxes (K, 4) inside the image that cover the given boxes or points."""
    height, width = image_size
    outside = f"lies outside the image ({width} x {height})"
    boxes = []
    for item in items:
        if len(item) == 2:
            if not (0 <= item[0] <= width and 0 <= item[1] <= height):
                raise ValueError(f"{name}: point {list(item)} {outside}")
            x, y = (min(math.floor(v), side - 1) for v, side in zip(item, (width, height), strict=True))
            boxes.append((x, y, x + 1, y + 1))
            continue
        x1, y1 = max(math.floor(item[0]), 0), max(math.floor(item[1]), 0)
        x2, y2 = min(math.ceil(item[2]), width), min(math.ceil(item[3]), height)
        if x1 >= x2 or y1 >= y2:
            raise ValueError(f"{name}: box {list(item)} {outside}")
        boxes.append((x1, y1, x2, y2))
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
