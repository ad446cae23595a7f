"""A photograph as a model sees it: upright, RGB, decoded no larger than needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import ExifTags, Image

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A photograph for a suggestion.

    Attributes:
        image: Upright RGB copy, possibly smaller than the picture.
        size: Height and width in pixels of the whole upright picture, in which boxes are given.
    """

    image: Image.Image
    size: tuple[int, int]


def orientation(image: Image.Image) -> Image.Transpose | None:
    """The turn that brings a stored picture upright, or None where it is already."""
    return _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))


def swaps_sides(transpose: Image.Transpose | None) -> bool:
    """Whether a turn makes width of height."""
    return transpose in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture has transparent parts, by a channel or by a colour or palette entry."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight-bit RGB of a picture in any mode: transparency over white, 16-bit scaled down, others stretched."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        low, high = image.getextrema()
        scale = 255 / (high - low) if high > low else 0.0
        return image.convert("F").point(lambda value: value * scale + (-low * scale)).convert("L").convert("RGB")
    if has_alpha(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def read_picture(image: Image.Image, short_side: int) -> Picture:
    """Decode an opened picture for a suggestion.

    Args:
        image: As `Image.open` returns it, so that a JPEG file can still be decoded at reduced scale, or any picture.
        short_side: The copy's short side is at least this many pixels, unless the picture's own is shorter.
    """
    width, height = image.size
    transpose = orientation(image)
    scale = min(1.0, short_side / min(width, height))
    image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    image.load()
    factor = min(image.size) // short_side
    # Palette entries and 16-bit integers cannot be averaged as they are.
    if factor > 1 and image.mode in ("L", "LA", "RGB", "RGBA", "CMYK", "F"):
        image = image.reduce(factor)
    copy = to_rgb(image)
    if transpose is not None:
        copy = copy.transpose(transpose)
    return Picture(copy, (width, height) if swaps_sides(transpose) else (height, width))
