"""The formats that crops are written in: their suffixes, modes and options."""

from __future__ import annotations

import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, JpegImagePlugin

from ..image_reading import has_alpha, open_image, to_rgb, with_plain_alpha

SUFFIX_OF_FORMAT = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "TGA": ".tga",
}
FORMAT_OF_SUFFIX = {
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
    ".tga": "TGA",
}
ANIMATED_FORMATS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
MODES_OF_FORMAT = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB"),
    "AVIF": ("L", "RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "TGA": ("L", "LA", "P", "RGB", "RGBA"),
}


def output_suffix(path: str | os.PathLike[str], format: str | None = None) -> str:
    """Return the suffix of a crop's file: of the wanted format, else the one of `own_suffix`.

    Raises:
        ValueError: The format is unknown.
        ImageFileError: The source cannot be opened.
    """
    if format is None:
        with open_image(path) as image:
            return own_suffix(path, image)
    suffix = "." + format.lower().lstrip(".")
    if suffix not in FORMAT_OF_SUFFIX:
        known = ", ".join(sorted(name[1:] for name in FORMAT_OF_SUFFIX))
        raise ValueError(f"unknown image format {format!r}: use one of {known}")
    return suffix


def format_of(path: Path) -> str:
    """Return Pillow's name of the format that a file's suffix says.

    Raises:
        ValueError: It is that of no known format.
    """
    format = FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path}: unknown image format {path.suffix!r}")
    return format


def own_suffix(path: str | os.PathLike[str], image: Image.Image) -> str:
    """Return the suffix for crops in the source's real format, or in one that holds its pixels where it has no writer.

    A suffix that already names the source's format (`.JPEG`) is kept.
    """
    suffix = SUFFIX_OF_FORMAT.get(image.format or "", ".png" if has_alpha(image) else ".jpg")
    own = Path(path).suffix
    return own if FORMAT_OF_SUFFIX.get(own.lower()) == FORMAT_OF_SUFFIX[suffix] else suffix


def is_animated_in(image: Image.Image, format: str) -> bool:
    """Whether an image has frames that a file of this format would show one after another."""
    return bool(getattr(image, "is_animated", False)) and {image.format, format} <= ANIMATED_FORMATS


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """Return a CMYK image in RGB through its colour profile, and the profile that now applies."""
    if profile is not None:
        from PIL import ImageCms

        with suppress(ImageCms.PyCMSError, OSError):
            srgb = ImageCms.createProfile("sRGB")
            turned = ImageCms.profileToProfile(image, BytesIO(profile), srgb, outputMode="RGB")
            if turned is not None:
                return turned, ImageCms.ImageCmsProfile(srgb).tobytes()
    return image.convert("RGB"), None


def fit_mode(image: Image.Image, format: str, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """Return an image in a mode that the format can hold, and its colour profile where that still applies."""
    modes = MODES_OF_FORMAT[format]
    image = with_plain_alpha(image)
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


def save_options(source: Image.Image, format: str, quality: int) -> dict[str, Any]:
    """Return Pillow's options for saving crops of a source in a format."""
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
    elif format == "TGA":
        options |= {"compression": "tga_rle"}
    if "dpi" in source.info and format in ("JPEG", "PNG", "TIFF", "BMP") and all(d > 0 for d in source.info["dpi"]):
        options["dpi"] = source.info["dpi"]
    return options
