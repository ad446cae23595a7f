"""IPTC-IIM, the older form of captions and credits that newsrooms' systems read."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Sequence
from xml.dom.minidom import Document

from PIL import Image, TiffImagePlugin

from .xmp import properties, set_array, set_text

TIFF_IPTC = 33723
_PHOTOSHOP_IPTC = 0x0404
_UTF8 = b"\x1b%G"
_PNG_PROFILE = "Raw profile type iptc"
# Application record: sub-location, city, state, country code and country; content location code and name.
_LOCATION = frozenset({26, 27, 90, 92, 95, 100, 101})
# Where each dataset of the application record stands in XMP: property, and the kind of its array or None for a text.
_XMP_OF_DATASET = {
    5: ("dc", "title", "Alt"),
    25: ("dc", "subject", "Bag"),
    80: ("dc", "creator", "Seq"),
    105: ("photoshop", "Headline", None),
    110: ("photoshop", "Credit", None),
    115: ("photoshop", "Source", None),
    116: ("dc", "rights", "Alt"),
    120: ("dc", "description", "Alt"),
    90: ("photoshop", "City", None),
    95: ("photoshop", "State", None),
    101: ("photoshop", "Country", None),
}

Datasets = list[tuple[int, int, bytes]]


def read_iptc(image: Image.Image) -> Datasets:
    """Return an image file's datasets, each a record, a number and a value, as far as they can be read."""
    data: object = None
    if isinstance(image.info.get("photoshop"), dict):
        data = image.info["photoshop"].get(_PHOTOSHOP_IPTC)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        data = image.tag_v2.get(TIFF_IPTC)
        if isinstance(data, tuple):  # written as numbers by some programs
            data = b"".join(struct.pack("<I", value & 0xFFFFFFFF) for value in data if isinstance(value, int))
    elif isinstance(image.info.get(_PNG_PROFILE), str):
        data = _from_png(image.info[_PNG_PROFILE])
    return parse_iptc(data) if isinstance(data, bytes) else []


def parse_iptc(data: bytes) -> Datasets:
    """Return the datasets of a block, as far as it is whole."""
    datasets, at = [], data.find(b"\x1c")
    while at >= 0 and at + 5 <= len(data) and data[at] == 0x1C:
        record, number, length = data[at + 1], data[at + 2], int.from_bytes(data[at + 3 : at + 5], "big")
        start = at + 5
        if length & 0x8000:  # the length's own length
            more = length & 0x7FFF
            length, start = int.from_bytes(data[start : start + more], "big"), start + more
        if start + length > len(data):
            break
        datasets.append((record, number, data[start : start + length]))
        at = start + length
    return datasets


def write_iptc(datasets: Datasets) -> bytes:
    """Return the block of datasets."""
    parts = []
    for record, number, value in datasets:
        length = len(value)
        size = struct.pack(">H", length) if length < 0x8000 else struct.pack(">HI", 0x8004, length)
        parts.append(bytes([0x1C, record, number]) + size + value)
    return b"".join(parts)


def without_location(datasets: Datasets) -> Datasets:
    """Return the datasets that name no place."""
    return [entry for entry in datasets if not (entry[0] == 2 and entry[1] in _LOCATION)]


def jpeg_segment(block: bytes) -> bytes:
    """Return a JPEG segment with a block, empty where it is longer than a segment can be."""
    padded = block + b"\0" * (len(block) % 2)
    resource = b"8BIM" + struct.pack(">HHI", _PHOTOSHOP_IPTC, 0, len(block)) + padded
    content = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content if len(content) < 65534 else b""


def png_text(block: bytes) -> tuple[str, str]:
    """Return keyword and text of the PNG chunk in which ImageMagick, exiftool and others keep a block."""
    digits = binascii.hexlify(block).decode()
    lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    return _PNG_PROFILE, f"\niptc\n{len(block):8d}\n{lines}\n"


def fill_xmp(document: Document, datasets: Datasets) -> None:
    """Say in XMP what only the datasets say, for files that can hold no IPTC-IIM."""
    encoding = "utf-8" if (1, 90, _UTF8) in datasets else "cp1252"
    for number, (prefix, name, kind) in _XMP_OF_DATASET.items():
        found = [value for record, other, value in datasets if (record, other) == (2, number)]
        values = [value.decode(encoding, "replace") for value in found]
        if values and next(properties(document, prefix, name), None) is None:
            _set(document, prefix, name, kind, values)


def _set(document: Document, prefix: str, name: str, kind: str | None, values: Sequence[str]) -> None:
    if kind is None:
        set_text(document, prefix, name, values[0])
    else:
        set_array(document, prefix, name, kind, list(values[:1] if kind == "Alt" else values))


def _from_png(text: str) -> bytes | None:
    parts = text.split()
    try:
        return binascii.unhexlify("".join(parts[2:]))
    except (binascii.Error, ValueError):
        return None
