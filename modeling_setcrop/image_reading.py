"""An image as a model sees it: upright, RGB, decoded no larger than needed."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from PIL import ExifTags, Image, ImageStat, UnidentifiedImageError

MAX_PIXELS = 300_000_000
"""Largest image that is opened, in pixels."""

READ_FACTOR = 1
"""Images are decoded at no less than this many times the model's size, and where the format can at less than twice."""

RAW_SUFFIXES = frozenset({".nef", ".cr2", ".cr3", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef"})
"""Cameras' raw files, lower case: they are read by the preview inside them."""

MAX_BYTES = 8 * MAX_PIXELS
"""Most memory, in bytes, that decoding an image file and cutting crops from it may take."""

# Mean lightness of 255 above which a cut-out needs a dark backdrop to be seen.
_LIGHT = 200
# Bytes a pixel that decoders take beside the decoded image, measured (AVIF and HEIF: guesses on the safe side); others
# take almost nothing.
_DECODER_BYTES = {"WEBP": 12, "AVIF": 12, "JPEG2000": 16, "HEIF": 12, "GIF": 8}
# Modes that Pillow converts through copies of the whole image are converted in bands of so many pixels.
_BAND_PIXELS = 1_000_000
# Decoded by starting another program, or not at all.
_RUN_BY_OTHERS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5"})

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
class LoadedImage:
    """An image for a suggestion.

    Attributes:
        image: Upright RGB copy, possibly smaller than the image.
        size: Height and width in pixels of the whole upright image, in which boxes are given.
        inside: x1, y1, x2, y2 in those pixels of what the copy shows; None for all of it.
    """

    image: Image.Image
    size: tuple[int, int]
    inside: tuple[int, int, int, int] | None = None


def orientation(image: Image.Image) -> Image.Transpose | None:
    """Return the turn that brings a stored image upright, or None where it is already.

    Pillow turns TIFF files itself as it decodes them, and gives their size as upright.
    """
    if image.format == "TIFF":
        return None
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
    """Whether an image has transparent parts, by a channel or by a colour or palette entry."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in eight-bit RGB.

    Transparency is laid over white, or over dark grey where what is seen is light; 16 bits are scaled down, other
    ranges stretched.
    """
    return _reduced_rgb(image, 1)


def _reduced_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Return an RGB copy, `factor` by `factor` pixels averaged into one.

    Other modes than RGB are converted a band of rows at a time: whole, they would be held several times over.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.reduce(factor) if factor > 1 else image
    backdrop = _backdrop(image)
    extrema = image.getextrema() if image.mode in ("I", "F") else None
    copy = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = max(1, _BAND_PIXELS // (image.width * factor))
    for top in range(0, copy.height, rows):
        band = image.crop((0, top * factor, image.width, min(image.height, (top + rows) * factor)))
        band = _band_to_rgb(band, extrema, backdrop)
        copy.paste(band.reduce(factor) if factor > 1 else band, (0, top))
    return copy


def _band_to_rgb(image: Image.Image, extrema: Any, backdrop: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if extrema is not None:
        low, high = extrema
        scale = 255 / (high - low) if high > low else 0.0
        return image.convert("F").point(lambda value: value * scale + (-low * scale)).convert("L").convert("RGB")
    if has_alpha(image):
        image = with_plain_alpha(image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, backdrop), image).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only of a conversion in place
        return converted
    return image.convert("RGB")


def _backdrop(image: Image.Image) -> str:
    """White, or a dark grey for an image whose visible parts are so light that they would vanish on white."""
    if not has_alpha(image):
        return "white"
    # Any mode can be resized so; the parts that are seen are large.
    small = image.resize((min(image.width, 64), min(image.height, 64)), Image.Resampling.NEAREST)
    small = with_plain_alpha(small).convert("RGBA")
    visible, light = small.getchannel("A"), small.convert("RGB").convert("L")
    mean = ImageStat.Stat(light, visible.point(lambda value: 255 * (value > 127))).mean
    return "dimgrey" if mean and mean[0] > _LIGHT else "white"


def with_plain_alpha(image: Image.Image) -> Image.Image:
    """Return an image whose colours are not multiplied by its alpha channel: modes La and RGBa become LA and RGBA."""
    return image.convert(image.mode.upper()) if image.mode in ("La", "RGBa") else image


def decode_image(image: Image.Image, short_side: int, draft: bool = False) -> LoadedImage:
    """Decode an opened image for a suggestion.

    Args:
        image: Any image; it keeps its size and pixels.
        short_side: The copy's short side is at least this many pixels, unless the image's own is shorter.
        draft: The image was opened for this call alone: of a JPEG file only as many pixels as needed are decoded, and
            the object is of that size afterwards.
    """
    width, height = image.size
    transpose = orientation(image)
    if draft:
        scale = min(1.0, short_side / min(width, height))
        image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    image.load()
    copy = _reduced_rgb(image, max(1, min(image.size) // short_side))
    if transpose is not None:
        copy = copy.transpose(transpose)
    return LoadedImage(copy, (width, height) if swaps_sides(transpose) else (height, width))


class ImageFileError(ValueError):
    """A file that cannot be read or written as an image; the message is one line that names the file."""

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
    """Let Pillow open images up to `MAX_PIXELS` in this process; `open_image` refuses what is larger."""
    Image.MAX_IMAGE_PIXELS = None


@contextmanager
def open_image(source: str | os.PathLike[str] | IO[bytes], name: str | None = None) -> Iterator[Image.Image]:
    """Open an image file, its pixels not yet decoded; what decodes them belongs inside `decoding`.

    Args:
        source: Its path, or a binary file object that can seek.
        name: What errors call it, the path when left out.

    Raises:
        ImageFileError: The file is missing, empty, no regular file, not an image, or has too many pixels.
    """
    named = name or str(source)
    if not isinstance(source, str | os.PathLike):
        content = _raw_preview(source, named) if Path(named).suffix.lower() in RAW_SUFFIXES else source
        with _identify(content, named) as image:
            yield image
        return
    with open_regular_file(source, named) as file:
        content = _raw_preview(file, named) if Path(source).suffix.lower() in RAW_SUFFIXES else file
        with _identify(content, named) as image:
            yield image


def _raw_preview(file: IO[bytes], named: str) -> IO[bytes]:
    """Return the image that a camera has put into its raw file.

    Raises:
        ImageFileError: There is none, or rawpy is not installed.
    """
    try:
        import rawpy
    except ImportError:
        raise ImageFileError(named, "raw files need the package rawpy") from None
    try:
        with rawpy.imread(cast(BinaryIO, file)) as raw:
            preview = raw.extract_thumb()
    except (rawpy.LibRawError, OSError, ValueError) as error:
        raise ImageFileError(named, f"not a raw file with a preview ({one_line(error)})") from None
    if preview.format != rawpy.ThumbFormat.JPEG:
        raise ImageFileError(named, "its preview is no JPEG image")
    return io.BytesIO(cast(bytes, preview.data))


@contextmanager
def open_regular_file(path: str | os.PathLike[str], name: str | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading, but no folder, pipe, socket or device, which could block for ever.

    Raises:
        ImageFileError: The file cannot be opened, is empty or is no regular file.
    """
    named = name or str(path)
    try:
        _check_regular(named, os.stat(path))
        # A pipe that took the file's place meanwhile must not block either.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ImageFileError(named, _reason(error)) from None
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        _check_regular(named, state)
        if state.st_size == 0:
            raise ImageFileError(named, "empty file (0 bytes)")
        yield file


def held_bytes(image: Image.Image) -> int:
    """Return how many bytes of memory an opened image takes once it is decoded."""
    whole = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    # The frames of a GIF after the first are composed in full colour.
    whole = 4 if image.format == "GIF" else whole
    return image.width * image.height * whole


def decoding_bytes(image: Image.Image) -> int:
    """Estimate how many bytes of memory it takes to decode an opened image file."""
    held, pixels = held_bytes(image), image.width * image.height
    if image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        # Pillow turns it into a second copy.
        return 2 * held
    # A progressive file's coefficients, of three colours, are held until its last scan.
    beside = 6 if image.info.get("progressive") else _DECODER_BYTES.get(image.format or "", 0)
    return held + pixels * beside


def refuse_over_limit(name: str | os.PathLike[str], needed: int, doing: str) -> None:
    """Raise an ImageFileError where something would take more than `MAX_BYTES` bytes of memory."""
    if needed > MAX_BYTES:
        limit = f"{MAX_BYTES / 1e9:.1f} GB"
        raise ImageFileError(name, f"{doing} it would take {needed / 1e9:.1f} GB of memory, over the limit of {limit}")


def _check_regular(named: str, state: os.stat_result) -> None:
    for is_kind, kind in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if is_kind(state.st_mode):
            raise ImageFileError(named, f"{kind}, not an image file")


def _identify(file: IO[bytes], named: str) -> Image.Image:
    """Read the head of an image file that is open."""
    with decoding(named):
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            if not _register_heif():
                is_heif = Path(named).suffix.lower() in (".heic", ".heif")
                hint = " (HEIC files need the package pillow-heif)" if is_heif else ""
                raise ImageFileError(named, f"not an image that can be read{hint}") from None
            file.seek(0)
            image = Image.open(file)
    if image.format in _RUN_BY_OTHERS:
        raise ImageFileError(named, f"not an image that can be read ({image.format})")
    if image.width * image.height > MAX_PIXELS:
        raise ImageFileError(named, f"{image.width} x {image.height} is over {MAX_PIXELS // 10**6} megapixels")
    with decoding(named):
        needed = decoding_bytes(image)
    refuse_over_limit(named, needed, "decoding")
    return image


@contextmanager
def decoding(path: str | os.PathLike[str]) -> Iterator[None]:
    """Report what a decoder raises as an error of the file; hold nothing but decoding inside.

    Raises:
        ImageFileError: The image is broken, truncated or too large for memory.
    """
    try:
        yield
    except ImageFileError:
        raise
    except OSError as error:
        raise ImageFileError(path, _reason(error)) from None
    except Image.DecompressionBombError:
        raise ImageFileError(path, "more pixels than Pillow is allowed to open") from None
    except MemoryError:
        raise ImageFileError(path, "not enough memory to decode it") from None
    except Exception as error:
        # Pillow's decoders report a broken file by SyntaxError, EOFError, IndexError, struct.error and more.
        raise ImageFileError(path, f"broken or truncated image ({one_line(error)})") from None


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    if error.errno is not None:
        return f"cannot be read ({error.strerror})"
    # Pillow's own: the system's errors have a number.
    return f"broken or truncated image ({one_line(error)})"


def one_line(error: BaseException) -> str:
    """Return an exception's message in one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def load_image_file(path: str | os.PathLike[str], short_side: int) -> LoadedImage:
    """Read an image for a suggestion: upright, RGB, reduced when it is much larger than needed.

    Args:
        path: A file in any format Pillow reads; of an animation the first frame.
        short_side: The copy's short side is at least this many pixels, unless the image's own is shorter.

    Raises:
        ImageFileError: See `open_image` and `decoding`.
    """
    with open_image(path) as image, decoding(path):
        return decode_image(image, short_side, draft=True)
