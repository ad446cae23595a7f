"""Bars, mats and passepartouts: the plain borders that were put around an image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from .crop_constraints import CropConstraints
from .crop_options import CropOptions
from .image_reading import LoadedImage

# Colours this near to each other, of 255, are one: what JPEG makes of a plain border.
_TOLERANCE = 12
# A line is of one colour where all but this share of its pixels are.
_STRAY = 0.02
# A border ends where the content begins along most of a side. A sky or a backdrop ends at an outline instead.
_EDGE = 0.6
# A mat around a thin line around another mat is as many borders as this.
_RINGS = 4
# What is left of a side's length at least.
_LEAST = 0.25


def trimmed(loaded: LoadedImage) -> LoadedImage:
    """Return an image without its plain borders; boxes are given in the whole one all the same."""
    x1, y1, x2, y2 = content_box(loaded.image)
    if (x2 - x1, y2 - y1) == loaded.image.size:
        return loaded
    across, down = loaded.size[1] / loaded.image.width, loaded.size[0] / loaded.image.height
    # Inwards, so that of a border that was seen at a reduced scale nothing is left.
    inside = (math.ceil(x1 * across), math.ceil(y1 * down), int(x2 * across), int(y2 * down))
    return replace(loaded, image=loaded.image.crop((x1, y1, x2, y2)), inside=inside)


def options_inside(
    options: CropOptions, inside: tuple[int, int, int, int], image_size: tuple[int, int]
) -> CropOptions:
    """Return options whose content counts from the corner of what is inside the borders.

    Of content that reaches into a border the rest counts; what lies in one altogether is left out in any case, and
    cannot be kept.

    Args:
        options: What is asked of the whole image.
        inside: x1, y1, x2, y2 of what is inside.
        image_size: Height and width of the whole image.

    Raises:
        ValueError: Content lies outside the image, or must be kept and lies in a border.
    """
    # Content outside the whole image is refused as it was written.
    CropConstraints.from_options(options, None, image_size)
    keep, avoid = _moved(options.keep, inside), _moved(options.avoid, inside)
    for item, found in zip(options.keep, keep, strict=True):
        if found is None and len(item) in (2, 4):
            raise ValueError(f"keep: {list(item)} lies in the border that trim leaves out")
    return replace(options, keep=list(filter(None, keep)), avoid=list(filter(None, avoid)))


def _moved(items: tuple[tuple[float, ...], ...], inside: tuple[int, int, int, int]) -> list[tuple[float, ...] | None]:
    """Return boxes and points, perhaps with weights, as they lie inside, or None for those that do not."""
    x1, y1, x2, y2 = inside
    moved: list[tuple[float, ...] | None] = []
    for item in items:
        count = 2 * (len(item) // 2)
        if count == 2:
            place = item[:2]
            found = x1 <= item[0] <= x2 and y1 <= item[1] <= y2
        else:
            place = (max(item[0], x1), max(item[1], y1), min(item[2], x2), min(item[3], y2))
            found = place[0] < place[2] and place[1] < place[3]
        shifted = (at - start for at, start in zip(place, (x1, y1, x1, y1), strict=False))
        moved.append((*shifted, *item[count:]) if found else None)
    return moved


def answer_outside(answer: Any, inside: tuple[int, int, int, int], size: tuple[int, int]) -> Any:
    """Return an answer whose boxes and focus point count from the corner of the whole image (height and width)."""
    x, y = inside[:2]
    several = answer["crops"] if isinstance(answer, dict) else answer
    for crop in several:
        box = crop["box"]
        crop["box"] = {name: value + (x if name[0] == "x" else y) for name, value in box.items()}
    if isinstance(answer, dict):
        focus, (width, height) = answer["focus_point"], (inside[2] - x, inside[3] - y)
        answer["focus_point"] = {
            "x": round((x + focus["x"] * width) / size[1], 4),
            "y": round((y + focus["y"] * height) / size[0], 4),
        }
    return answer


def content_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of what is inside an image's plain borders, in pixels; the whole image where it has none.

    Args:
        image: An RGB image.
    """
    pixels = np.asarray(image, dtype=np.int16)
    height, width = pixels.shape[:2]
    box = (0, 0, width, height)
    for _ in range(_RINGS):
        inner = _without_border(pixels, box)
        if inner == box:
            break
        if inner[2] - inner[0] < _LEAST * width or inner[3] - inner[1] < _LEAST * height:
            return (0, 0, width, height)
        box = inner
    return box


def _without_border(pixels: np.ndarray, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the box without one plain border at each of its sides."""
    x1, y1, x2, y2 = box
    top, bottom = _border(pixels[y1:y2, x1:x2]), _border(pixels[y1:y2, x1:x2][::-1])
    rows = pixels[y1 + top : y2 - bottom, x1:x2].swapaxes(0, 1)
    left, right = _border(rows), _border(rows[::-1])
    # A mat is wider than its bars are known to be before the other pair of sides is off.
    inside = pixels[y1:y2, x1 + left : x2 - right]
    return x1 + left, y1 + max(top, _border(inside)), x2 - right, y2 - max(bottom, _border(inside[::-1]))


def _border(lines: np.ndarray) -> int:
    """How many lines (N, M, 3), from the first, are a border: of the first one's colour, with a straight end."""
    if lines.shape[0] < 3 or lines.shape[1] < 3:
        return 0
    colour = np.median(lines[0], axis=0)
    most = len(lines) // 2 + 1
    count = next((at for at in range(most) if _share_of(lines[at], colour) < 1 - _STRAY), 0)
    # Scaling and JPEG blur the edge over a few lines, which belong to neither side.
    for soft in range(1, 5):
        if 0 < count < len(lines) - soft and _share_of(lines[count + soft], colour) <= 1 - _EDGE:
            return count + soft if soft > 1 else count
    return 0


def _share_of(line: np.ndarray, colour: np.ndarray) -> float:
    return float((np.abs(line - colour).max(axis=-1) <= _TOLERANCE).mean())
