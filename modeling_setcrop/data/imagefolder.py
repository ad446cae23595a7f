"""The image folder of `datasets` with `objects`, as its object detection guide has it.

`metadata.jsonl`, in the folder or in one folder a split (`train`, `validation` or `val`, `test`), has a line per
image:

    {"file_name": "beach.jpg", "objects": {"bbox": [[x, y, width, height], ...], "categories": [...]}}

in pixels of the image as displayed. In `objects` there may also be a `rating` (higher is better) and a `validity` (at
least 0.5: a good crop) for each box. The categories are not read: every box is a crop.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..coco_annotations import corners
from .cache import build
from .folder import METADATA, entry_row
from .schema import RATING_SCALE, DataError, Problems, Row

_SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def load_imagefolder(
    path: str | os.PathLike, *, problems: Problems | None = None, rating_scale: Sequence[float] = RATING_SCALE
) -> DatasetDict:
    """Read an image folder with `objects` (see above).

    Args:
        path: The folder.
        problems: Receives the bad entries, which are left out; None logs a summary.
        rating_scale: Lowest and highest rating that people could give.

    Raises:
        DataError: There is no `metadata.jsonl`, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    files = {root / METADATA: "train"} | {root / name / METADATA: split for name, split in _SPLIT_FOLDERS.items()}
    files = {file: split for file, split in files.items() if file.is_file()}
    if not files:
        raise DataError(f"{root}: layout 'imagefolder' needs '{METADATA}' or 'SPLIT/{METADATA}'")

    def rows(found: Problems) -> Iterator[Row]:
        for file, split in files.items():
            yield from _rows(file, split, found)

    folders = [place for file in files for place in (file, file.parent)]
    return build("imagefolder", root, folders, rows, problems, rating_scale=rating_scale)


def _rows(file: Path, split: str, problems: Problems) -> Iterator[Row]:
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = _as_crops(json.loads(line), split)
            except (AttributeError, ValueError, KeyError, TypeError) as error:
                problems.add("undecodable annotation", file, f"no file_name with objects.bbox ({error!r})", number)
                continue
            row = entry_row(file.parent, file, number, entry, problems)
            if row is not None:
                yield row


def _as_crops(line: dict[str, Any], split: str) -> dict[str, Any]:
    """Return a line in the words of layout `folder`."""
    objects = line["objects"]
    validity = objects.get("validity")
    return {
        "file_name": line["file_name"],
        "boxes": [corners(bbox) for bbox in objects["bbox"]],
        "scores": objects.get("rating"),
        "good": None if validity is None else [value >= 0.5 for value in validity],
        "split": split,
    }
