"""What a crop's file says of the photograph besides its pixels."""

from __future__ import annotations

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


def prepare_metadata(source: Image.Image, size: tuple[int, int]) -> Image.Exif:
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
