"""Reading photographs for a suggestion and writing crops of them, whatever the file.

A suggestion needs only a small copy, so JPEG files are decoded at reduced scale; a crop is cut from the full file.
Pictures are handled as displayed: the EXIF orientation is applied, and boxes refer to the upright picture.

Memory: a suggestion from a JPEG file stays far below the size of the picture, except for progressive files (whose
decoder holds all coefficients, up to 6 bytes a pixel); other formats are decoded whole (4 bytes a pixel) and reduced
at once. Writing a crop holds the decoded file and the crop, together at most 8 bytes a pixel of the source. Pictures
above `MAX_PIXELS` are refused.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from PIL import ExifTags, Image, ImageCms, ImageSequence, JpegImagePlugin, UnidentifiedImageError

from .picture_reading import Picture, has_alpha, orientation, read_picture, swaps_sides, to_rgb

MAX_PIXELS = 300_000_000
"""Largest picture that is opened, in pixels."""

# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".mpo", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
"""File names taken for photographs when a folder is searched, lower case."""

_SUFFIX_OF_FORMAT = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
}
_FORMAT_OF_SUFFIX = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
}
_ANIMATED_FORMATS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_MODES_OF_FORMAT = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB"),
    "AVIF": ("L", "RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
}
# What describes the photograph rather than the bytes of its old file; sub-directories are handled apart.
_DESCRIPTIVE_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
    ExifTags.Base.Rating,
)


class PictureError(ValueError):
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
    """Let Pillow open pictures up to `MAX_PIXELS` in this process; `open_picture` refuses what is larger."""
    Image.MAX_IMAGE_PIXELS = None


@contextmanager
def open_picture(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open a picture file, its pixels not yet decoded.

    Raises:
        PictureError: The file is missing, empty, not a picture, truncated or too large, found on opening or, inside
            the `with` block, on decoding.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0 and path.is_file():
            raise PictureError(path, "empty file (0 bytes)")
        if path.is_dir():
            raise PictureError(path, "a folder, not a picture")
        try:
            image = Image.open(path)
        except UnidentifiedImageError:
            is_heif = path.suffix.lower() in (".heic", ".heif")
            if not _register_heif():
                hint = " (HEIC files need the package pillow-heif)" if is_heif else ""
                raise PictureError(path, f"not a picture that can be read{hint}") from None
            image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(path, f"{image.width} x {image.height} is over {MAX_PIXELS // 10**6} megapixels")
            yield image
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(path, "no such file") from None
    except PermissionError:
        raise PictureError(path, "no permission to read it") from None
    except UnidentifiedImageError:
        raise PictureError(path, "not a picture that can be read") from None
    except Image.DecompressionBombError:
        raise PictureError(path, "more pixels than Pillow is allowed to open") from None
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, MemoryError) as error:
        # Pillow's decoders report a broken file by any of these.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(path, f"broken or truncated picture ({reason})") from None


def load_picture(path: str | os.PathLike[str], short_side: int) -> Picture:
    """Read a photograph for a suggestion: upright, RGB, reduced when it is much larger than needed.

    Args:
        path: A file in any format Pillow reads; of an animation the first frame.
        short_side: The copy's short side is at least this many pixels, unless the picture's own is shorter.

    Raises:
        PictureError: See `open_picture`.
    """
    with open_picture(path) as image:
        return read_picture(image, short_side)


def stored_box(box: tuple[int, int, int, int], size: tuple[int, int], image: Image.Image) -> tuple[int, int, int, int]:
    """Where a box of the upright picture, whose height and width are `size`, lies in the picture as it is stored."""
    x1, y1, x2, y2 = box
    height, width = size
    flipped_x, flipped_y = (width - x2, y1, width - x1, y2), (x1, height - y2, x2, height - y1)
    turned = (width - x2, height - y2, width - x1, height - y1)
    transpose = orientation(image)
    if transpose is None:
        return box
    if transpose == Image.Transpose.FLIP_LEFT_RIGHT:
        return flipped_x
    if transpose == Image.Transpose.FLIP_TOP_BOTTOM:
        return flipped_y
    if transpose == Image.Transpose.ROTATE_180:
        return turned
    # The other four swap the axes: (x, y) as displayed comes from (y, x), each axis perhaps reversed.
    a, b, c, d = {
        Image.Transpose.TRANSPOSE: box,
        Image.Transpose.TRANSVERSE: turned,
        Image.Transpose.ROTATE_270: flipped_x,
        Image.Transpose.ROTATE_90: flipped_y,
    }[transpose]
    return b, a, d, c


def output_suffix(path: str | os.PathLike[str], format: str | None = None) -> str:
    """The suffix of a crop's file: of the wanted format, else of the source's real format, else `.jpg`.

    A suffix that already names the source's format (`.JPEG`) is kept.
    """
    if format is not None:
        suffix = "." + format.lower().lstrip(".")
        if suffix not in _FORMAT_OF_SUFFIX:
            known = ", ".join(sorted(name[1:] for name in _FORMAT_OF_SUFFIX))
            raise ValueError(f"unknown picture format {format!r}: use one of {known}")
        return suffix
    with open_picture(path) as image:
        suffix = _SUFFIX_OF_FORMAT.get(image.format or "", ".jpg")
    own = Path(path).suffix
    return own if _FORMAT_OF_SUFFIX.get(own.lower()) == _FORMAT_OF_SUFFIX[suffix] else suffix


def _cleaned_exif(source: Image.Image, size: tuple[int, int]) -> Image.Exif:
    """The source's EXIF without orientation, thumbnail or file structure, its pixel size set to `size` (w, h)."""
    old, new = source.getexif(), Image.Exif()
    for tag in _DESCRIPTIVE_TAGS:
        if tag in old:
            new[tag] = old[tag]
    for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        entries = dict(old.get_ifd(directory))
        if directory == ExifTags.IFD.Exif and entries:
            # Maker notes hold absolute offsets into the old file and often a preview of the whole picture.
            entries.pop(ExifTags.Base.MakerNote, None)
            entries.pop(ExifTags.Base.ExifInteroperabilityOffset, None)
            entries[ExifTags.Base.ExifImageWidth], entries[ExifTags.Base.ExifImageHeight] = size
        if entries:
            new.get_ifd(directory).update(entries)
            new[directory] = new.get_ifd(directory)
    return new


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """A CMYK picture in RGB through its colour profile, and the profile that now applies."""
    if profile is not None:
        with suppress(ImageCms.PyCMSError, OSError):
            srgb = ImageCms.createProfile("sRGB")
            turned = ImageCms.profileToProfile(image, BytesIO(profile), srgb, outputMode="RGB")
            if turned is not None:
                return turned, ImageCms.ImageCmsProfile(srgb).tobytes()
    return image.convert("RGB"), None


def _fit_mode(image: Image.Image, format: str, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """The picture in a mode that the format can hold, and its colour profile where that still applies."""
    modes = _MODES_OF_FORMAT[format]
    if image.mode in modes and not (format in ("JPEG", "BMP") and "transparency" in image.info):
        return image, profile
    if image.mode == "CMYK":
        return _to_srgb(image, profile)
    if has_alpha(image) and "RGBA" in modes:
        return image.convert("RGBA"), profile if image.mode == "RGBA" else None
    if image.mode in ("L", "1") and "L" in modes:
        return image.convert("L"), profile
    grey = image.mode in ("L", "LA", "1", "I", "F") or image.mode.startswith("I;16")
    return to_rgb(image), None if grey else profile


def _save_options(source: Image.Image, format: str, quality: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if format == "JPEG":
        options |= {"quality": quality, "subsampling": 0 if quality >= 95 else 2}
        if source.format == "JPEG":
            sampling = JpegImagePlugin.get_sampling(source)
            options["subsampling"] = sampling if sampling >= 0 else options["subsampling"]
    elif format in ("WEBP", "AVIF"):
        options |= {"quality": quality}
    elif format == "TIFF":
        options |= {"compression": "tiff_deflate"}
    if "dpi" in source.info and format in ("JPEG", "PNG", "TIFF", "BMP") and all(d > 0 for d in source.info["dpi"]):
        options["dpi"] = source.info["dpi"]
    return options


@dataclass(frozen=True)
class CropFile:
    """A crop to be written.

    Attributes:
        box: x1, y1, x2, y2 in whole pixels of the upright picture.
        target: File to write; its suffix says the format.
        size: Width and height to resize the crop to; None keeps its pixels.
    """

    box: tuple[int, int, int, int]
    target: Path
    size: tuple[int, int] | None = None

    @property
    def format(self) -> str:
        """Pillow's name of the target's format.

        Raises:
            ValueError: The suffix is that of no known format.
        """
        format = _FORMAT_OF_SUFFIX.get(self.target.suffix.lower())
        if format is None:
            raise ValueError(f"{self.target}: unknown picture format {self.target.suffix!r}")
        return format

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the file's picture."""
        return self.size or (self.box[2] - self.box[0], self.box[3] - self.box[1])


def write_crops(source: str | os.PathLike[str], crops: Sequence[CropFile], quality: int = 92) -> None:
    """Cut crops from the full file, decoded once, and write them upright, with colour profile and cleaned EXIF.

    An animation keeps all its frames, each cut the same, where the target's format can hold them. A target appears
    under its name only when it is complete.

    Args:
        source: The photograph.
        crops: What to write.
        quality: 1..100, for JPEG, WebP and AVIF.

    Raises:
        PictureError: The source cannot be read, or a crop cannot be written.
        ValueError: A target's suffix is no known format, or a box is not inside the picture.
    """
    with open_picture(source) as image:
        transpose = orientation(image)
        swapped = swaps_sides(transpose)
        width, height = image.size[::-1] if swapped else image.size
        for crop in crops:
            x1, y1, x2, y2 = crop.box
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError(f"{source}: box {crop.box} is not inside the picture ({width} x {height})")
        options = [_save_options(image, crop.format, quality) for crop in crops]
        places = [stored_box(crop.box, (height, width), image) for crop in crops]
        sizes = [crop.size[::-1] if crop.size and swapped else crop.size for crop in crops]
        places = _draft_for(image, places, sizes)
        for crop, place, size, option in zip(crops, places, sizes, options, strict=True):
            _write(image, crop, place, size, transpose, option)


def _write(
    image: Image.Image,
    crop: CropFile,
    place: tuple[float, float, float, float],
    size: tuple[int, int] | None,
    transpose: Image.Transpose | None,
    options: dict[str, Any],
) -> None:
    """Write one crop of an opened picture; `place` and `size` are those of the picture as it is stored."""
    format = crop.format
    exif, profile = _cleaned_exif(image, crop.final_size), image.info.get("icc_profile")
    if getattr(image, "is_animated", False) and {image.format, format} <= _ANIMATED_FORMATS:
        options |= _animation_options(image, format)
        frames = (
            _fit_mode(_cut(frame, place, size, transpose), format, profile)[0]
            for frame in ImageSequence.Iterator(image)
        )
        cut = next(frames)
        # The PNG writer goes through its frames twice.
        options["append_images"] = list(frames) if format == "PNG" else frames
    else:
        if getattr(image, "is_animated", False):
            image.seek(0)
        cut, profile = _fit_mode(_cut(image, place, size, transpose), format, profile)
    if profile is not None:
        options["icc_profile"] = profile
    if len(exif) > 0 and format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        options["exif"] = exif
    cut.info = {key: value for key, value in cut.info.items() if key == "transparency"}
    with atomic_writer(crop.target) as file:
        try:
            cut.save(file, format=format, **options)
        except (OSError, ValueError) as error:
            raise PictureError(crop.target, f"cannot be written ({' '.join(str(error).split())})") from None


def _animation_options(image: Image.Image, format: str) -> dict[str, Any]:
    """How the frames are shown: for how long each, and how often in all."""
    durations = []
    for index in range(image.n_frames):
        image.seek(index)
        image.load()
        durations.append(int(image.info.get("duration", 100)))
    image.seek(0)
    options: dict[str, Any] = {"save_all": True, "duration": durations}
    if format == "GIF":
        options["disposal"] = 2
    if "loop" in image.info:
        options["loop"] = image.info["loop"]
    return options


def _draft_for(
    image: Image.Image, places: Sequence[tuple[int, int, int, int]], sizes: Sequence[tuple[int, int] | None]
) -> list[tuple[float, float, float, float]]:
    """Decode a JPEG file no larger than resized crops need, and say where the crops then lie."""
    if None in sizes:
        return list(places)
    width, height = image.size
    scales = [
        max(size[0] / (x2 - x1), size[1] / (y2 - y1)) for (x1, y1, x2, y2), size in zip(places, sizes, strict=True)
    ]
    scale = min(1.0, 2 * max(scales))
    image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    across, down = image.width / width, image.height / height
    return [(x1 * across, y1 * down, x2 * across, y2 * down) for x1, y1, x2, y2 in places]


def _cut(
    frame: Image.Image,
    place: tuple[float, float, float, float],
    size: tuple[int, int] | None,
    transpose: Image.Transpose | None,
) -> Image.Image:
    if size is None:
        crop = frame.crop(tuple(int(edge) for edge in place))
    else:
        if frame.mode in ("P", "PA", "1"):
            frame = frame.convert("RGBA" if has_alpha(frame) else "L" if frame.mode == "1" else "RGB")
        crop = frame.resize(size, Image.Resampling.LANCZOS, box=place, reducing_gap=3.0)
    return crop if transpose is None else crop.transpose(transpose)


@contextmanager
def atomic_writer(target: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that gets its name only when the block ends well; otherwise nothing is left behind.

    Raises:
        PictureError: The folder or the file cannot be written.
    """
    target = Path(target)
    part = target.with_name(f".{target.name[:64]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("wb")
    except OSError as error:
        raise PictureError(target, f"cannot be written ({error.strerror})") from None
    try:
        with file:
            yield file
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def find_pictures(
    paths: Iterable[str | os.PathLike[str]], on_error: Callable[[PictureError], None]
) -> Iterator[tuple[Path, Path]]:
    """Photographs under the given files and folders, as (file, path relative to where the search began), sorted.

    Folders are searched recursively, hidden files and folders left out; a file named directly is taken whatever its
    suffix. A path that does not exist, and a folder without pictures, is reported to `on_error`.
    """
    for path in map(Path, paths):
        if not path.exists():
            on_error(PictureError(path, "no such file or folder"))
        elif not path.is_dir():
            yield path, Path(path.name)
        else:
            found = False
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                        found = True
                        file = Path(folder, name)
                        yield file, file.relative_to(path)
            if not found:
                on_error(PictureError(path, "a folder without pictures"))
