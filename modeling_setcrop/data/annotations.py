"""What the exports of annotation tools have in common: rectangles, perhaps rated, on images that lie beside them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .reading import boxes_inside, image_size
from .schema import Problems, Row

_TOLERANCE = 1.5


@dataclass(frozen=True)
class Region:
    """A rectangle that a person drew or rated.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the image as displayed.
        rating: Higher is better; None where the person gave none.
    """

    box: tuple[float, float, float, float]
    rating: float | None = None


def annotated_row(
    root: Path,
    image: str,
    size: tuple[float, float] | None,
    regions: Sequence[Region],
    split: str,
    file: Path,
    line: int | None,
    problems: Problems,
) -> Row | None:
    """Return the row of one annotated image, or None after noting why there is none.

    Regions that coincide, as they do when several annotators rate the same crops, become one with the mean of their
    ratings. Without ratings every region is a good crop; with ratings, regions without one are noted and left out.

    Args:
        root: The folder; `image` is relative to it.
        image: The image's file name.
        size: Width and height that the tool worked with, None where it does not say. Another size than the displayed
            one is a problem: the boxes would be wrong.
        regions: In any order.
        split: train, validation or test.
        file: The export, for messages.
        line: Line of the image's entry in it.
        problems: Told of what is wrong.
    """
    path = root / image
    if not path.is_file():
        problems.add("annotation without image", file, f"no such image: {image}", line)
        return None
    displayed = image_size(path, problems)
    if displayed is None:
        return None
    if size is not None and not np.allclose(displayed, size, atol=1):
        shown = "{:g} x {:g}".format(*size)
        message = f"{image} was annotated at {shown} pixels but is displayed at {displayed[0]} x {displayed[1]}"
        problems.add("size differs", file, message, line)
        return None
    merged = _merged(regions)
    rated = [region for region in merged if region.rating is not None]
    if rated and len(rated) < len(merged):
        message = f"{len(merged) - len(rated)} of {len(merged)} crops of {image} have no rating"
        problems.add("crop without rating", file, message, line)
        merged = rated
    boxes = np.array([region.box for region in merged], dtype=np.float64).reshape(-1, 4)
    boxes, keep = boxes_inside(boxes, displayed, file, [line] * len(boxes), problems)
    if not keep.any():
        problems.add("no usable crop", file, f"{image} has no crop inside the image", line)
        return None
    scores = np.array([region.rating for region in merged])[keep] if rated else None
    return Row(str(path), os.path.splitext(image)[0], *displayed, boxes[keep], scores, None, split)


def _merged(regions: Sequence[Region]) -> list[Region]:
    """One region for those that coincide to a pixel and a half, with the mean of the ratings."""
    groups: dict[tuple[float, float, float, float], list[Region]] = defaultdict(list)
    for region in regions:
        same = (box for box in groups if np.abs(np.subtract(box, region.box)).max() <= _TOLERANCE)
        groups[next(same, region.box)].append(region)
    merged = []
    for box, members in groups.items():
        ratings = [region.rating for region in members if region.rating is not None]
        merged.append(Region(box, float(np.mean(ratings)) if ratings else None))
    return merged


def find_image(root: Path, name: str, shorter: Callable[[str], str | None] = lambda name: None) -> str:
    """Return the image's name relative to the folder: the path that the export gives, or its last parts.

    Args:
        root: The folder.
        name: As the export has it, perhaps with folders that are not there.
        shorter: Another name for the last part, for tools that put something in front of it.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        candidate = "/".join(parts[start:])
        if (root / candidate).is_file():
            return candidate
    last = parts[-1] if parts else name
    other = shorter(last)
    return other if other is not None and (root / other).is_file() else last
