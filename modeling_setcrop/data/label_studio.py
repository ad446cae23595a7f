"""Crops and ratings made in Label Studio: a folder of images with the project's JSON export.

The labelling interface is that of `integrations.formats.LABEL_STUDIO_CONFIG`, or any with rectangles and, a region, a
`<Rating>` (or a `<Number>`): every rectangle is a crop. Export as "JSON" (JSON-MIN does not say which region a rating
belongs to) and put the file or files beside the images.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from datasets import DatasetDict

from .annotations import Region, annotated_row, find_image
from .cache import build
from .reading import reading_entry
from .schema import RATING_SCALE, SPLITS, DataError, Problems, Row

# What Label Studio puts in front of the name of an uploaded file.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


def load_label_studio(
    path: str | os.PathLike, *, problems: Problems | None = None, rating_scale: Sequence[float] = RATING_SCALE
) -> DatasetDict:
    """Read a folder of images with a Label Studio export.

    Args:
        path: The folder, with one or more `*.json` exports; images are found by the names that their tasks give.
        problems: Receives the bad entries, which are left out; None logs a summary.
        rating_scale: Lowest and highest rating that the labelling interface allows.

    Returns:
        The splits that the tasks' `data.split` names (train where it is left out), rows as in `schema.FEATURES`.
        Ratings of several annotators are averaged where their rectangles coincide.

    Raises:
        DataError: There is no export, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    exports = sorted(root.glob("*.json"))
    if not exports:
        raise DataError(f"{root}: layout 'label-studio' needs a JSON export of the project (*.json)")

    def rows(found: Problems) -> Iterator[Row]:
        for export in exports:
            yield from _rows(root, export, found)

    return build("label-studio", root, [root, *exports], rows, problems, rating_scale=rating_scale)


def _rows(root: Path, export: Path, problems: Problems) -> Iterator[Row]:
    try:
        tasks = json.loads(export.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        problems.add("undecodable annotation", export, f"is not JSON ({error})")
        return
    for number, task in enumerate(tasks if isinstance(tasks, list) else [tasks], start=1):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            problems.add("wrong number of fields", export, f"task {number} has no data: export as JSON, not JSON-MIN")
            continue
        row = None
        with reading_entry(problems, export, f"task {number}"):
            row = _row(root, export, number, task, problems)
        if row is not None:
            yield row


def _row(root: Path, export: Path, number: int, task: dict[str, Any], problems: Problems) -> Row | None:
    split = task["data"].get("split", "train")
    if split not in SPLITS:
        message = f"task {number}: split {split!r} is not one of {', '.join(SPLITS)}"
        problems.add("unknown split", export, message)
        return None
    image = _image(root, task["data"])
    if image is None:
        problems.add("annotation without image", export, f"task {number}: its data names no image")
        return None
    regions: list[Region] = []
    size: tuple[float, float] | None = None
    for annotation in task.get("annotations") or []:
        if not annotation.get("was_cancelled"):
            try:
                found, size = _regions(annotation.get("result") or [], size)
            except (KeyError, TypeError, ValueError) as error:
                message = f"task {number}: a region that cannot be read ({type(error).__name__}: {error})"
                problems.add("undecodable annotation", export, message)
                return None
            regions += found
    if not regions:
        problems.add("no usable crop", export, f"task {number}: no annotation of {image} has a rectangle")
        return None
    return annotated_row(root, image, size, regions, split, export, None, problems)


def _image(root: Path, data: dict[str, Any]) -> str | None:
    """Return the image's file in the folder, from a task's data."""
    values = [data.get("image"), *data.values()]
    address = next((value for value in values if isinstance(value, str) and "." in value), None)
    if address is None:
        return None
    parts = urlsplit(address)
    # Files of local storage stand in the query: /data/local-files/?d=album/beach.jpg
    name = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    return find_image(root, name, lambda last: _UPLOAD_PREFIX.sub("", last))


def _regions(
    results: list[dict[str, Any]], size: tuple[float, float] | None
) -> tuple[list[Region], tuple[float, float] | None]:
    """One annotator's rectangles with their ratings, and the image's size as the tool had it.

    Raises:
        ValueError: A rectangle is turned, or a value is not a number.
        KeyError: A field is missing.
    """
    boxes, ratings = {}, {}
    for result in results:
        value = result.get("value") or {}
        if result.get("type") in ("rectanglelabels", "rectangle"):
            if value.get("rotation"):
                raise ValueError(f"rectangle turned by {value['rotation']:g} degrees")
            width, height = float(result["original_width"]), float(result["original_height"])
            size = (width, height)
            left, top = float(value["x"]) * width / 100, float(value["y"]) * height / 100
            across, down = float(value["width"]) * width / 100, float(value["height"]) * height / 100
            boxes[result["id"]] = (left, top, left + across, top + down)
        elif result.get("type") in ("rating", "number") and result.get("id") is not None:
            ratings[result["id"]] = float(value[result["type"]])
    return [Region(box, ratings.get(name)) for name, box in boxes.items()], size
