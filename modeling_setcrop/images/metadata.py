"""What a crop's file says of the photograph besides its pixels."""

from __future__ import annotations

from typing import Any

from PIL import ExifTags, Image

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


_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_EXIF_FORMATS = frozenset({"JPEG", "PNG", "WEBP", "TIFF", "AVIF"})


def prepare_metadata(source: Image.Image, format: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return Pillow's options for saving what a source says of itself in a crop's file, without the colour profile.

    Args:
        source: The opened image file.
        format: Pillow's name of the crop's format.
        size: The crop's width and height in pixels.
    """
    if format not in _EXIF_FORMATS:
        return {}
    exif = _cleaned_exif(source, size)
    if len(exif) == 0:
        return {}
    options: dict[str, Any] = {"exif": exif}
    if format == "TIFF" and any(exif.get_ifd(directory) for directory in _DIRECTORIES):
        # libtiff, by which Pillow compresses, cannot write EXIF's sub-directories.
        options["compression"] = "raw"
    return options


def _cleaned_exif(source: Image.Image, size: tuple[int, int]) -> Image.Exif:
    """Return the source's EXIF without orientation, thumbnail or file structure, its pixel size that of the crop."""
    old, new = source.getexif(), Image.Exif()
    for tag in _DESCRIPTIVE_TAGS:
        if tag in old:
            new[tag] = old[tag]
    for directory in _DIRECTORIES:
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
