"""A photograph as a model sees it: upright, RGB, decoded no larger than needed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 300_000_000
"""Largest picture that is opened, in pixels."""

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


class ImageFileError(ValueError):
    """A photograph that cannot be read or written; the message is one line that names the file."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


@cache
def _register_heif() -> bool:
    """Teach Pillow HEIC and HEIF where the package for them is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def lift_pixel_limit() -> None:
    """Let Pillow open pictures up to `MAX_PIXELS` in this process; `open_image` refuses what is larger."""
    Image.MAX_IMAGE_PIXELS = None


@contextmanager
def open_image(source: str | os.PathLike[str] | BinaryIO, name: str | None = None) -> Iterator[Image.Image]:
    """Open an image file, its pixels not yet decoded.

    Args:
        source: Its path, or a binary file object that can seek.
        name: What errors call it, the path when left out.

    Raises:
        ImageFileError: The file is missing, empty, not a picture, truncated or too large, found on opening or, inside
            the `with` block, on decoding.
    """
    path: Path | BinaryIO = Path(source) if isinstance(source, str | os.PathLike) else source
    named = name or str(source)
    try:
        if isinstance(path, Path):
            if path.stat().st_size == 0 and path.is_file():
                raise ImageFileError(named, "empty file (0 bytes)")
            if path.is_dir():
                raise ImageFileError(named, "a folder, not a picture")
        try:
            image = Image.open(path)
        except UnidentifiedImageError:
            is_heif = Path(named).suffix.lower() in (".heic", ".heif")
            if not _register_heif():
                hint = " (HEIC files need the package pillow-heif)" if is_heif else ""
                raise ImageFileError(named, f"not a picture that can be read{hint}") from None
            if not isinstance(path, Path):
                path.seek(0)
            image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageFileError(named, f"{image.width} x {image.height} is over {MAX_PIXELS // 10**6} megapixels")
            yield image
    except ImageFileError:
        raise
    except FileNotFoundError:
        raise ImageFileError(named, "no such file") from None
    except PermissionError:
        raise ImageFileError(named, "no permission to read it") from None
    except UnidentifiedImageError:
        raise ImageFileError(named, "not a picture that can be read") from None
    except Image.DecompressionBombError:
        raise ImageFileError(named, "more pixels than Pillow is allowed to open") from None
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, MemoryError) as error:
        # Pillow's decoders report a broken file by any of these.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageFileError(named, f"broken or truncated picture ({reason})") from None


def load_image_file(path: str | os.PathLike[str], short_side: int) -> Picture:
    """Read a photograph for a suggestion: upright, RGB, reduced when it is much larger than needed.

    Args:
        path: A file in any format Pillow reads; of an animation the first frame.
        short_side: The copy's short side is at least this many pixels, unless the picture's own is shorter.

    Raises:
        ImageFileError: See `open_image`.
    """
    with open_image(path) as image:
        return read_picture(image, short_side)
