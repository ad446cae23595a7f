"""A list of every crop of a run, and of every image that failed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..image_reading import ImageFileError
from ..images.atomic import atomic_writer

_MANIFEST_FIELDS = (
    "source", "file", "rank", "score", "xmin", "ymin", "xmax", "ymax", "width", "height", "aspect_ratio", "gave_way",
    "picture_width", "picture_height", "keep_original", "improves", "focus_x", "focus_y", "error",
)  # fmt: skip


def write_manifest(path: Path, rows: Iterable[dict[str, Any]], errors: Iterable[ImageFileError]) -> None:
    """Write one row a crop, and one a photograph that failed, as JSON lines or (`.csv`) a table.

    Raises:
        ValueError: The suffix is neither .jsonl nor .csv.
        ImageFileError: The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv"):
        raise ValueError(f"manifest {path}: use .jsonl or .csv")
    failed = ({"source": error.path.as_posix(), "error": error.reason} for error in errors)
    with atomic_writer(path) as binary:
        if suffix == ".jsonl":
            for part in (rows, failed):
                for row in part:
                    binary.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            return
        lines = _Utf8Lines(binary.write)
        table = csv.DictWriter(lines, _MANIFEST_FIELDS)
        table.writeheader()
        for part in (rows, failed):
            for row in part:
                table.writerow(row | {"gave_way": " ".join(row.get("gave_way", []))})


class _Utf8Lines:
    """The text file that `csv` wants, over a binary one."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write

    def write(self, text: str) -> None:
        self._write(text.encode())
