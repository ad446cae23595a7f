"""Crops without cutting: written as metadata that photographers' and newsrooms' programs read.

Every crop becomes an IPTC image region with a cropping role; the best one also the crop of Adobe's raw settings, which
Lightroom, Camera Raw and darktable apply when they show or export the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.dom.minidom import Document

from PIL import ExifTags, Image

from ..image_reading import RAW_SUFFIXES, ImageFileError, open_image, orientation, swaps_sides
from ..images.atomic import FileWriteError, atomic_writer
from ..images.embedding import EmbeddingError, with_xmp
from ..images.writing import stored_box
from ..images.xmp import (
    XmpError,
    add_child,
    add_property,
    parse_xmp,
    properties,
    set_text,
    value_of,
    write_xmp,
)
from .formats import Row

ROLE = "http://cv.iptc.org/newscodes/imageregionrole/"
_EMBEDDING = frozenset({"JPEG", "MPO", "PNG", "WEBP"})
_ID = "setcrop-"
# An aspect ratio this near to 1 is a square.
_SQUARE = 0.02


def roles(row: Row, is_best: bool) -> list[str]:
    """Return the cropping roles of a crop in IPTC's vocabulary: its shape, and whether it is the recommended one."""
    ratio = (row["xmax"] - row["xmin"]) / (row["ymax"] - row["ymin"])
    shape = "square" if abs(ratio - 1) <= _SQUARE else "landscape" if ratio > 1 else "portrait"
    return (["recomCropping"] if is_best else []) + [f"{shape}Cropping"]


def set_regions(document: Document, rows: Sequence[Row]) -> None:
    """Give a document an IPTC image region for each crop, in place of those that an earlier run gave it.

    Args:
        document: From `parse_xmp`; other regions in it stay.
        rows: One image's crops, best first.
    """
    bags = [
        bag
        for node in properties(document, "Iptc4xmpExt", "ImageRegion")
        for bag in node.childNodes
        if bag.nodeType == bag.ELEMENT_NODE
    ]
    bag = bags[0] if bags else add_child(add_property(document, "Iptc4xmpExt", "ImageRegion"), "rdf", "Bag")
    for li in _our_regions(document):
        li.parentNode.removeChild(li)
    for number, row in enumerate(rows, start=1):
        _add_region(bag, row, f"{_ID}{number}", roles(row, number == 1))


def _our_regions(document: Document) -> list[Any]:
    """Return the regions that a run gave a document, best first."""
    return [
        li
        for node in properties(document, "Iptc4xmpExt", "ImageRegion")
        for bag in node.childNodes
        if bag.nodeType == bag.ELEMENT_NODE
        for li in bag.childNodes
        if li.nodeType == li.ELEMENT_NODE
        and any(field.localName == "rId" and value_of(field).startswith(_ID) for field in li.getElementsByTagName("*"))
    ]


def _add_region(bag: Any, row: Row, name: str, found: list[str]) -> None:
    li = _structure(bag, "rdf", "li")
    boundary = _structure(li, "Iptc4xmpExt", "RegionBoundary")
    width, height = row["picture_width"], row["picture_height"]
    shares = {
        "rbShape": "rectangle",
        "rbUnit": "relative",
        "rbX": f"{row['xmin'] / width:.6g}",
        "rbY": f"{row['ymin'] / height:.6g}",
        "rbW": f"{(row['xmax'] - row['xmin']) / width:.6g}",
        "rbH": f"{(row['ymax'] - row['ymin']) / height:.6g}",
    }
    for field, value in shares.items():
        add_child(boundary, "Iptc4xmpExt", field, value)
    add_child(li, "Iptc4xmpExt", "rId", name)
    _add_names(li, f"SetCrop {row['aspect_ratio'] or 'crop'} ({row['score']:.2f})")
    bag = add_child(add_child(li, "Iptc4xmpExt", "rRole"), "rdf", "Bag")
    for role in found:
        concept = _structure(bag, "rdf", "li")
        _add_names(concept, role)
        add_child(add_child(add_child(concept, "xmp", "Identifier"), "rdf", "Bag"), "rdf", "li", ROLE + role)


def _structure(parent: Any, prefix: str, name: str) -> Any:
    node = add_child(parent, prefix, name)
    node.setAttribute("rdf:parseType", "Resource")
    return node


def _add_names(parent: Any, text: str) -> None:
    names = add_child(add_child(parent, "Iptc4xmpExt", "Name"), "rdf", "Alt")
    add_child(names, "rdf", "li", text).setAttribute("xml:lang", "x-default")


def set_raw_crop(document: Document, row: Row, image: Image.Image) -> None:
    """Give a document the crop of Adobe's raw settings, with the image's dimensions that darktable needs beside it.

    The settings count from the corners of the image as it is stored, whatever way up it is shown.

    Args:
        document: From `parse_xmp`.
        row: The crop.
        image: The image, opened.
    """
    size = (row["picture_height"], row["picture_width"])
    for name, share in _raw_edges((row["xmin"], row["ymin"], row["xmax"], row["ymax"]), size, image).items():
        set_text(document, "crs", name, f"{share:.9f}")
    height, width = size[::-1] if swaps_sides(orientation(image)) else size
    set_text(document, "crs", "CropAngle", "0")
    set_text(document, "crs", "HasCrop", "True")
    set_text(document, "crs", "AlreadyApplied", "False")
    set_text(document, "tiff", "ImageWidth", width)
    set_text(document, "tiff", "ImageLength", height)
    set_text(document, "tiff", "Orientation", image.getexif().get(ExifTags.Base.Orientation, 1))


def _raw_edges(box: tuple[int, int, int, int], size: tuple[int, int], image: Image.Image) -> dict[str, float]:
    """Return Adobe's crop of a box of an image (height, width): shares of the image as it is stored."""
    x1, y1, x2, y2 = stored_box(box, size, image)
    height, width = size[::-1] if swaps_sides(orientation(image)) else size
    return {"CropLeft": x1 / width, "CropTop": y1 / height, "CropRight": x2 / width, "CropBottom": y2 / height}


def _is_our_raw_crop(document: Document, image: Image.Image) -> bool:
    """Whether Adobe's crop in a document is still that of the first region that an earlier run gave it."""
    regions = _our_regions(document)
    if not regions:
        return False
    width, height = image.size[::-1] if swaps_sides(orientation(image)) else image.size
    told = {node.localName: value_of(node) for node in regions[0].getElementsByTagName("*")}
    try:
        x, y, across, down = (float(told[name]) for name in ("rbX", "rbY", "rbW", "rbH"))
        box = (round(x * width), round(y * height), round((x + across) * width), round((y + down) * height))
        ours = _raw_edges(box, (height, width), image) | {"CropAngle": 0.0}
        found = {name: float(value_of(next(properties(document, "crs", name)))) for name in ours}
    except (KeyError, ValueError, StopIteration):
        return False
    return all(abs(found[name] - value) < 1e-6 for name, value in ours.items())


def write_sidecar(target: Path, rows: Sequence[Row], image: Image.Image) -> None:
    """Write one image's crops into an XMP sidecar; what an existing one says otherwise stays.

    Args:
        target: The sidecar.
        rows: The crops, best first.
        image: The image, opened.

    Raises:
        ImageFileError: The sidecar exists and is not XMP or has a crop that somebody made, or cannot be written.
    """
    try:
        document = parse_xmp(target.read_bytes() if target.exists() else None)
    except (OSError, XmpError) as error:
        raise ImageFileError(target, f"exists and cannot be read as XMP ({error})") from None
    cropped = any(value_of(node).lower() == "true" for node in properties(document, "crs", "HasCrop"))
    if cropped and not _is_our_raw_crop(document, image):
        raise ImageFileError(target, "has a crop of its own, which stays")
    set_regions(document, rows)
    set_raw_crop(document, rows[0], image)
    _write(target, write_xmp(document))


class MetadataWriter:
    """Writes images' crops as metadata: sidecars beside them, or copies in a folder.

    Args:
        folder: Where copies go, in the folders that were searched; what takes no XMP (all but JPEG, PNG and WebP)
            gets a sidecar there. None for sidecars beside the images.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._written: dict[Path, Path] = {}

    def write(self, source: Path, below: Path, rows: Sequence[Row]) -> Path:
        """Write one image's crops and return the file.

        Args:
            source: The image.
            below: Where it lies in the folder that was searched.
            rows: The crops, best first.

        Raises:
            ImageFileError: The file is another image's or somebody's own, or cannot be written.
        """
        with open_image(source) as image:
            copied = (
                self.folder is not None and image.format in _EMBEDDING and source.suffix.lower() not in RAW_SUFFIXES
            )
            target = source if self.folder is None else self.folder / below / source.name
            target = target if copied else target.with_suffix(".xmp")
            if self._written.setdefault(target, source) != source:
                raise ImageFileError(source, f"{target} is that of {self._written[target]}")
            if not copied:
                write_sidecar(target, rows, image)
                return target
        if target.exists() and target.samefile(source):
            raise ImageFileError(source, "its copy would overwrite the image itself")
        if target.exists() and not _has_our_regions(target):
            raise ImageFileError(source, f"{target} exists and is no copy with crops, so it stays")
        write_copy(source, target, rows)
        return target


def _has_our_regions(path: Path) -> bool:
    """Whether an image file has a region that an earlier run gave it."""
    try:
        with Image.open(path) as image:
            return _our_regions(parse_xmp(image.info.get("xmp"))) != []
    except (OSError, XmpError):
        return False


def write_copy(source: Path, target: Path, rows: Sequence[Row]) -> None:
    """Write a copy of an image with its crops as image regions; its pixels are not touched.

    Raises:
        ImageFileError: The file takes no XMP (only JPEG, PNG and WebP do), or cannot be read or written.
    """
    try:
        content = source.read_bytes()
        with Image.open(source) as image:
            packet = image.info.get("xmp")
        document = parse_xmp(packet)
        set_regions(document, rows)
        content = with_xmp(content, write_xmp(document))
    except (OSError, XmpError, EmbeddingError) as error:
        raise ImageFileError(source, f"cannot be given image regions ({error})") from None
    _write(target, content)


def _write(target: Path, content: bytes) -> None:
    try:
        with atomic_writer(target) as file:
            file.write(content)
    except FileWriteError as error:
        raise ImageFileError(target, str(error)) from None
