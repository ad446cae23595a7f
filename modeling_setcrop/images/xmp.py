"""XMP packets: read, corrected for a crop, and given regions of their own.

A property of XMP may stand as an element or as an attribute; the functions here find it either way. Prefixes and
everything that is not understood stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.dom import minidom
from xml.dom.minidom import Attr, Document, Element
from xml.parsers.expat import ExpatError

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMLNS = "http://www.w3.org/2000/xmlns/"
NAMESPACES = {
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "MP": "http://ns.microsoft.com/photo/1.2/",
    "MPReg": "http://ns.microsoft.com/photo/1.2/t/Region#",
    "mwg-rs": "http://www.metadataworkinggroup.com/schemas/regions/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "stArea": "http://ns.adobe.com/xmp/sType/Area#",
    "stDim": "http://ns.adobe.com/xap/1.0/sType/Dimensions#",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
}

_EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about=""/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
# Where an image was taken, and what it shows of places.
_LOCATION = {
    "photoshop": ("City", "State", "Country"),
    "Iptc4xmpCore": ("Location", "CountryCode"),
    "Iptc4xmpExt": ("LocationCreated", "LocationShown"),
}
# What is true of the whole image's file alone: its previews, and crops that are still to be applied.
_OF_THE_WHOLE = {"xmp": ("Thumbnails",), "tiff": ("Orientation",)}


@dataclass(frozen=True)
class Cut:
    """How a crop lies in its source.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the source as displayed.
        source_size: Width and height of the source as displayed.
        size: Width and height of the crop's file.
    """

    box: tuple[int, int, int, int]
    source_size: tuple[int, int]
    size: tuple[int, int]

    def moved(self, low: tuple[float, float], high: tuple[float, float]) -> tuple[float, ...] | None:
        """Return x1, y1, x2, y2, in shares of the crop, of a box given in shares of the source; None where outside."""
        corners = []
        for axis in (0, 1):
            start, end = (self.box[axis + offset] / self.source_size[axis] for offset in (0, 2))
            corners.append([(value[axis] - start) / (end - start) for value in (low, high)])
        (x1, x2), (y1, y2) = corners
        if x2 <= 0 or x1 >= 1 or y2 <= 0 or y1 >= 1:
            return None
        return max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0)


class XmpError(ValueError):
    """A packet that is not XMP."""


def parse_xmp(packet: bytes | str | None) -> Document:
    """Return a packet's document, an empty one for None.

    Raises:
        XmpError: It is not XMP, or has a document type, which XMP never has and which could make it grow without end.
    """
    if packet is None:
        return minidom.parseString(_EMPTY.encode())
    data = packet.encode() if isinstance(packet, str) else packet
    data = data.strip(b"\0 \t\r\n")
    try:
        if b"<!DOCTYPE" in data.replace(b"\0", b""):
            raise XmpError("has a document type")
        document = minidom.parseString(data)
    except (ExpatError, ValueError) as error:
        raise XmpError(str(error)) from None
    if not document.getElementsByTagNameNS(RDF, "RDF"):
        raise XmpError("has no RDF")
    return document


def write_xmp(document: Document) -> bytes:
    """Return the packet of a document, in UTF-8."""
    return "".join(node.toxml() for node in document.childNodes).encode()


def descriptions(document: Document) -> list[Element]:
    """Return the elements whose attributes and children are the packet's properties."""
    found = []
    for rdf in document.getElementsByTagNameNS(RDF, "RDF"):
        found += [
            node
            for node in rdf.childNodes
            if node.nodeType == node.ELEMENT_NODE and node.namespaceURI == RDF and node.localName == "Description"
        ]
    if not found:
        rdf = document.getElementsByTagNameNS(RDF, "RDF")[0]
        found = [rdf.appendChild(document.createElementNS(RDF, f"{rdf.prefix}:Description"))]
        found[0].setAttributeNS(RDF, f"{rdf.prefix}:about", "")
    return found


def properties(document: Document, prefix: str, name: str | None = None) -> Iterator[Element | Attr]:
    """Yield the properties of a namespace, or those of one name in it."""
    space = NAMESPACES[prefix]
    for description in descriptions(document):
        for attribute in list(description.attributes.values()):
            if attribute.namespaceURI == space and name in (None, attribute.localName):
                yield attribute
        for node in list(description.childNodes):
            if node.nodeType == node.ELEMENT_NODE and node.namespaceURI == space and name in (None, node.localName):
                yield node


def drop(document: Document, prefix: str, wanted: Callable[[str], bool]) -> None:
    """Remove the properties of a namespace whose names are wanted away."""
    for node in properties(document, prefix):
        if wanted(node.localName):
            if node.nodeType == node.ATTRIBUTE_NODE:
                node.ownerElement.removeAttributeNode(node)
            else:
                node.parentNode.removeChild(node)


def set_text(document: Document, prefix: str, name: str, value: object) -> None:
    """Give a property of one value its text, instead of any that it had."""
    drop(document, prefix, lambda other: other == name)
    add_property(document, prefix, name).appendChild(document.createTextNode(str(value)))


def set_array(document: Document, prefix: str, name: str, kind: str, values: list[str]) -> None:
    """Give a property an array of texts; `kind` is Bag, Seq or Alt."""
    drop(document, prefix, lambda other: other == name)
    array = add_child(add_property(document, prefix, name), "rdf", kind)
    for value in values:
        item = add_child(array, "rdf", "li", value)
        if kind == "Alt":
            item.setAttribute("xml:lang", "x-default")


def add_property(document: Document, prefix: str, name: str) -> Element:
    """Add an empty property and return it."""
    return add_child(descriptions(document)[0], prefix, name)


def add_child(parent: Element, prefix: str, name: str, text: str | None = None) -> Element:
    """Add an element, declaring its namespace unless that is known where it stands, and return it."""
    space = RDF if prefix == "rdf" else NAMESPACES[prefix]
    child = parent.ownerDocument.createElementNS(space, f"{prefix}:{name}")
    if _declared(parent, prefix) != space:
        child.setAttributeNS(XMLNS, f"xmlns:{prefix}", space)
    if text is not None:
        child.appendChild(parent.ownerDocument.createTextNode(text))
    return parent.appendChild(child)


def _declared(node: Element, prefix: str) -> str | None:
    """Return the namespace that a prefix stands for in an element."""
    place: Any = node
    while place is not None and place.nodeType == place.ELEMENT_NODE:
        if place.hasAttribute(f"xmlns:{prefix}"):
            return place.getAttribute(f"xmlns:{prefix}")
        place = place.parentNode
    return None


def value_of(node: Element | Attr) -> str:
    """Return a property's text."""
    if node.nodeType == node.ATTRIBUTE_NODE:
        return node.value
    return "".join(child.data for child in node.childNodes if child.nodeType == child.TEXT_NODE).strip()


def crop_xmp(document: Document, cut: Cut) -> None:
    """Correct what a crop makes wrong in a document.

    Its dimensions become the crop's; orientation, previews and crops still to be applied go. Regions (IPTC, the
    Metadata Working Group's and Microsoft's) are moved; those outside the crop are dropped.
    """
    for prefix, names in _OF_THE_WHOLE.items():
        drop(document, prefix, names.__contains__)
    drop(document, "crs", lambda name: name.startswith("Crop") or name in ("HasCrop", "AlreadyApplied"))
    sizes = {"tiff": ("ImageWidth", "ImageLength"), "exif": ("PixelXDimension", "PixelYDimension")}
    for prefix, sides in sizes.items():
        for name, side in zip(sides, cut.size, strict=True):
            for node in list(properties(document, prefix, name)):
                _set_value(node, str(side))
    for li in _regions(document, "Iptc4xmpExt", "ImageRegion"):
        _keep_or_drop(li, _move_iptc(li, cut))
    for li in _regions(document, "mwg-rs", "Regions"):
        _keep_or_drop(li, _move_area(li, cut))
    for prefix, name, value in (("stDim", "w", cut.size[0]), ("stDim", "h", cut.size[1])):
        for node in properties(document, "mwg-rs", "Regions"):
            for field in _fields(node, prefix, name):
                _set_value(field, str(value))
    for li in _regions(document, "MP", "RegionInfo"):
        _keep_or_drop(li, _move_microsoft(li, cut))


def drop_location(document: Document) -> None:
    """Remove where the image was taken and what places it names."""
    drop(document, "exif", lambda name: name.startswith("GPS"))
    for prefix, names in _LOCATION.items():
        drop(document, prefix, names.__contains__)


def _regions(document: Document, prefix: str, name: str) -> list[Element]:
    """Return the items of a property's outermost array."""
    items = []
    for node in properties(document, prefix, name):
        if node.nodeType == node.ELEMENT_NODE:
            inside = node.getElementsByTagNameNS(RDF, "li")
            items += [li for li in inside if not any(_contains(other, li) for other in inside)]
    return items


def _contains(outer: Element, inner: Element) -> bool:
    parent = inner.parentNode
    while parent is not None:
        if parent is outer:
            return True
        parent = parent.parentNode
    return False


def _keep_or_drop(li: Element, kept: bool) -> None:
    if not kept:
        li.parentNode.removeChild(li)


def _fields(node: Element, prefix: str, name: str) -> list[Element | Attr]:
    """Return the fields of a structure, at any depth, of one name."""
    space = NAMESPACES[prefix]
    found: list[Element | Attr] = list(node.getElementsByTagNameNS(space, name))
    for element in (node, *node.getElementsByTagName("*")):
        attribute = element.getAttributeNodeNS(space, name)
        if attribute is not None:
            found.append(attribute)
    return found


def _set_value(node: Element | Attr, value: str) -> None:
    if node.nodeType == node.ATTRIBUTE_NODE:
        node.value = value
        return
    while node.firstChild is not None:
        node.removeChild(node.firstChild)
    node.appendChild(node.ownerDocument.createTextNode(value))


def _numbers(node: Element, prefix: str, names: tuple[str, ...]) -> list[float] | None:
    """Return the fields' values; None where one is missing or no number."""
    try:
        values = [float(value_of(_fields(node, prefix, name)[0])) for name in names]
    except (IndexError, ValueError):
        return None
    return values if all(map(math.isfinite, values)) else None


def _write_numbers(node: Element, prefix: str, names: tuple[str, ...], values: tuple[float, ...]) -> None:
    for name, value in zip(names, values, strict=True):
        _set_value(_fields(node, prefix, name)[0], f"{value:.6g}")


def _move_area(li: Element, cut: Cut) -> bool:
    """Move a region of the Metadata Working Group: the middle and the size, in shares of the image."""
    names = ("x", "y", "w", "h")
    values = _numbers(li, "stArea", names)
    if values is None:
        # A point, a circle or nothing that is understood: right only where it still lies in the crop.
        middle = _numbers(li, "stArea", ("x", "y"))
        moved = None if middle is None else cut.moved((middle[0], middle[1]), (middle[0], middle[1]))
        if moved is not None:
            _write_numbers(li, "stArea", ("x", "y"), moved[:2])
        return moved is not None
    x, y, w, h = values
    moved = cut.moved((x - w / 2, y - h / 2), (x + w / 2, y + h / 2))
    if moved is None:
        return False
    x1, y1, x2, y2 = moved
    _write_numbers(li, "stArea", names, ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
    return True


def _move_iptc(li: Element, cut: Cut) -> bool:
    """Move an IPTC image region: a rectangle, a circle or a polygon, in shares or pixels of the image."""
    unit = [value_of(field) for field in _fields(li, "Iptc4xmpExt", "rbUnit")]
    by = cut.source_size if unit == ["pixel"] else (1.0, 1.0)
    onto = cut.size if unit == ["pixel"] else (1.0, 1.0)
    names = ("rbX", "rbY", "rbW", "rbH")
    values = _numbers(li, "Iptc4xmpExt", names)
    if values is not None:
        x, y, w, h = (value / by[index % 2] for index, value in enumerate(values))
        moved = cut.moved((x, y), (x + w, y + h))
        if moved is None:
            return False
        x1, y1, x2, y2 = (value * onto[index % 2] for index, value in enumerate(moved))
        _write_numbers(li, "Iptc4xmpExt", names, (x1, y1, x2 - x1, y2 - y1))
        return True
    points = list(zip(*(_fields(li, "Iptc4xmpExt", name) for name in ("rbX", "rbY")), strict=False))
    try:
        places = [(float(value_of(x)) / by[0], float(value_of(y)) / by[1]) for x, y in points]
    except ValueError:
        return False
    if not places:
        return True  # a region of the whole image
    radius = _numbers(li, "Iptc4xmpExt", ("rbRx",))
    reach = (0.0, 0.0) if radius is None else (radius[0] / by[0], radius[0] / by[0] * _shape(cut))
    low, high = (
        (choose(x for x, _ in places) + sign * reach[0], choose(y for _, y in places) + sign * reach[1])
        for choose, sign in ((min, -1), (max, 1))
    )
    if cut.moved(low, high) is None:
        return False
    for (x_field, y_field), place in zip(points, places, strict=True):
        for axis, field in enumerate((x_field, y_field)):
            start, end = (cut.box[axis + offset] / cut.source_size[axis] for offset in (0, 2))
            share = min(max((place[axis] - start) / (end - start), 0.0), 1.0)
            _set_value(field, f"{share * onto[axis]:.6g}")
    if radius is not None:
        across = radius[0] / by[0] * cut.source_size[0] / (cut.box[2] - cut.box[0]) * onto[0]
        _write_numbers(li, "Iptc4xmpExt", ("rbRx",), (across,))
    return True


def _shape(cut: Cut) -> float:
    return cut.source_size[0] / cut.source_size[1]


def _move_microsoft(li: Element, cut: Cut) -> bool:
    """Move a region of Microsoft's: `x, y, w, h` in shares of the image; people without a place stay."""
    fields = _fields(li, "MPReg", "Rectangle")
    if not fields:
        return True
    try:
        x, y, w, h = (float(part) for part in value_of(fields[0]).split(","))
    except ValueError:
        return False
    moved = cut.moved((x, y), (x + w, y + h))
    if moved is not None:
        x1, y1, x2, y2 = moved
        _set_value(fields[0], ", ".join(f"{value:.6g}" for value in (x1, y1, x2 - x1, y2 - y1)))
    return moved is not None
