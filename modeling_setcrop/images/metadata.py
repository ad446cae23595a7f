"""What a crop's file says of the image besides its pixels: EXIF, IPTC-IIM and XMP, corrected for the crop."""

from __future__ import annotations

from typing import Any, Literal

from PIL import ExifTags, Image, PngImagePlugin

from .iptc import TIFF_IPTC, Datasets, fill_xmp, jpeg_segment, png_text, read_iptc, without_location, write_iptc
from .xmp import Cut, Document, XmpError, crop_xmp, drop, drop_location, parse_xmp, properties, write_xmp

Strip = Literal["nothing", "location", "all"]
"""What of an image's metadata its crops may lose: nothing, where it was taken, or all but the colour profile."""

# What describes the image rather than the bytes of its old file; sub-directories are handled apart.
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
    ExifTags.Base.XPTitle,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPAuthor,
    ExifTags.Base.XPKeywords,
    ExifTags.Base.XPSubject,
)
_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_FORMATS = frozenset({"JPEG", "PNG", "WEBP", "TIFF", "AVIF"})
_TIFF_XMP = 700
# What one JPEG segment holds of XMP.
_MOST_JPEG_XMP = 65_502
# Namespaces that tell how an image was worked on rather than what it is; they go where XMP would be too long.
_HISTORY = ("crs", "xmpMM")


def prepare_metadata(source: Image.Image, format: str, cut: Cut, strip: Strip = "nothing") -> dict[str, Any]:
    """Return Pillow's options for saving what a source says of itself in a crop's file, without the colour profile.

    Orientation, previews and maker notes go, dimensions become the crop's, and regions move with it. A format that
    holds no IPTC-IIM (WebP, AVIF) gets what it says as XMP.

    Args:
        source: The opened image file.
        format: Pillow's name of the crop's format.
        cut: How the crop lies in the source.
        strip: What is left out.
    """
    if format not in _FORMATS or strip == "all":
        return {}
    exif = _cleaned_exif(source, cut.size, strip)
    datasets = read_iptc(source)
    if strip == "location":
        datasets = without_location(datasets)
    packet = _cropped_xmp(source, format, cut, strip, datasets)
    options: dict[str, Any] = {}
    if format == "TIFF":
        for tag, value in ((_TIFF_XMP, packet), (TIFF_IPTC, write_iptc(datasets))):
            if value:
                exif[tag] = value
        if any(exif.get_ifd(directory) for directory in _DIRECTORIES):
            # libtiff, by which Pillow compresses, cannot write EXIF's sub-directories.
            options["compression"] = "raw"
    elif format == "PNG":
        text = PngImagePlugin.PngInfo()
        if packet:
            text.add_itxt("XML:com.adobe.xmp", packet.decode())
        if datasets:
            text.add_text(*png_text(write_iptc(datasets)), zip=True)
        options["pnginfo"] = text
    elif packet:
        options["xmp"] = packet
    if format == "JPEG" and datasets:
        options["extra"] = jpeg_segment(write_iptc(datasets))
    if len(exif) > 0:
        options["exif"] = exif
    return options


def _cropped_xmp(source: Image.Image, format: str, cut: Cut, strip: Strip, datasets: Datasets) -> bytes | None:
    """Return the source's XMP packet corrected for a crop, or None where it has none."""
    packet = source.info.get("xmp")
    try:
        document = parse_xmp(packet)
    except XmpError:
        # What cannot be read cannot be corrected.
        packet, document = None, parse_xmp(None)
    if packet is None and (not datasets or format not in ("WEBP", "AVIF")):
        return None
    if packet is not None:
        crop_xmp(document, cut)
    if format in ("WEBP", "AVIF"):
        fill_xmp(document, datasets)
    if strip == "location":
        drop_location(document)
    return _short_enough(document) if format == "JPEG" else write_xmp(document)


def _short_enough(document: Document) -> bytes | None:
    """Return the packet, without the history of the image's making where it would not fit into a JPEG file."""
    packet = write_xmp(document)
    for prefix in _HISTORY:
        if len(packet) > _MOST_JPEG_XMP and any(True for _ in properties(document, prefix)):
            drop(document, prefix, lambda name: True)
            packet = write_xmp(document)
    return packet if len(packet) <= _MOST_JPEG_XMP else None


def _cleaned_exif(source: Image.Image, size: tuple[int, int], strip: Strip) -> Image.Exif:
    """Return the source's EXIF without orientation, thumbnail or file structure, its pixel size that of the crop."""
    old, new = source.getexif(), Image.Exif()
    for tag in _DESCRIPTIVE_TAGS:
        if tag in old:
            new[tag] = old[tag]
    for directory in _DIRECTORIES:
        if directory == ExifTags.IFD.GPSInfo and strip == "location":
            continue
        entries = dict(old.get_ifd(directory))
        if directory == ExifTags.IFD.Exif and entries:
            # Maker notes hold absolute offsets into the old file and often a preview of the whole image.
            entries.pop(ExifTags.Base.MakerNote, None)
            entries.pop(ExifTags.Base.ExifInteroperabilityOffset, None)
            entries[ExifTags.Base.ExifImageWidth], entries[ExifTags.Base.ExifImageHeight] = size
        if entries:
            new.get_ifd(directory).update(entries)
            new[directory] = new.get_ifd(directory)
    return new
