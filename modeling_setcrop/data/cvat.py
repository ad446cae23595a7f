"""Crops and ratings made in CVAT: a folder of images with an export in the form "CVAT for images 1.1".

Every box is a crop; a box's attribute `rating` (a number, higher is better) is its rating. An image's `subset` is its
split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from datasets import DatasetDict

from .annotations import Region, annotated_row, find_image
from .cache import build
from .schema import RATING_SCALE, DataError, Problems, Row

ANNOTATIONS = "annotations.xml"

_SPLIT_OF_SUBSET = {"": "train", "default": "train", "train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "val", "valid"), "validation"
)


def load_cvat(
    path: str | os.PathLike, *, problems: Problems | None = None, rating_scale: Sequence[float] = RATING_SCALE
) -> DatasetDict:
    """Read a folder of images with a CVAT export.

    Args:
        path: The folder, with `annotations.xml`; images lie beside it or in `images/`, as CVAT exports them.
        problems: Receives the bad entries, which are left out; None logs a summary.
        rating_scale: Lowest and highest rating that the labelling interface allows.

    Returns:
        The splits that the images' subsets name, rows as in `schema.FEATURES`.

    Raises:
        DataError: There is no `annotations.xml`, it is not CVAT's, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    file = root / ANNOTATIONS
    if not file.is_file():
        raise DataError(f"{root}: layout 'cvat' needs the file '{ANNOTATIONS}' (export as 'CVAT for images 1.1')")
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: is not XML ({error})") from None
    if tree.tag != "annotations":
        raise DataError(f"{file}: its root is <{tree.tag}>, not <annotations>: export as 'CVAT for images 1.1'")
    return build(
        "cvat",
        root,
        [root, root / "images", file],
        lambda found: _rows(root, file, tree, found),
        problems,
        rating_scale=rating_scale,
    )


def _rows(root: Path, file: Path, tree: ElementTree.Element, problems: Problems) -> Iterator[Row]:
    if tree.find("track") is not None:
        problems.add("undecodable annotation", file, "tracks of a video are left out: only <image> entries are read")
    for image in tree.iter("image"):
        name, subset = image.get("name", ""), image.get("subset", "")
        split = _SPLIT_OF_SUBSET.get(subset.lower())
        if split is None:
            problems.add("unknown split", file, f"{name}: subset {subset!r} is none of train, validation and test")
            continue
        try:
            size = (float(image.attrib["width"]), float(image.attrib["height"]))
            regions = [_region(box) for box in image.iter("box")]
        except (KeyError, ValueError) as error:
            problems.add("undecodable annotation", file, f"{name}: {type(error).__name__}: {error}")
            continue
        if not regions:
            continue  # images that nobody has labelled yet
        found = find_image(root, name, lambda last: f"images/{last}")
        if not (root / found).is_file() and (root / "images" / name).is_file():
            found = f"images/{name}"
        row = annotated_row(root, found, size, regions, split, file, None, problems)
        if row is not None:
            yield row


def _region(box: ElementTree.Element) -> Region:
    """Raise ValueError where a box is turned or a value no number, KeyError where an edge is missing."""
    if float(box.get("rotation", 0)) % 360:
        raise ValueError(f"box turned by {box.get('rotation')} degrees")
    x1, y1, x2, y2 = (float(box.attrib[edge]) for edge in ("xtl", "ytl", "xbr", "ybr"))
    rating = next((item.text for item in box.iter("attribute") if item.get("name") == "rating"), None)
    return Region((x1, y1, x2, y2), float(rating) if rating and rating.strip() else None)
