"""A list of every crop of a run, and of every image without one."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..image_reading import ImageFileError
from ..images.atomic import atomic_writer
from .journal import json_line

_FIELDS = (
    "source", "file", "rank", "score", "xmin", "ymin", "xmax", "ymax", "width", "height", "aspect_ratio", "gave_way",
    "picture_width", "picture_height", "keep_original", "improves", "focus_x", "focus_y", "note", "error",
)  # fmt: skip


def write_manifest(path: Path, rows: Iterable[dict[str, Any]], errors: Iterable[ImageFileError]) -> None:
    """Write a row a crop, one an image without crops and one an image that failed, as JSON lines or (`.csv`) a table.

    Names that are not UTF-8 are escaped: in JSON they read back as they are, in the table as `\\xe9`.

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
                binary.writelines(map(json_line, part))
            return
        table = csv.DictWriter(_Utf8Lines(binary.write), _FIELDS)
        table.writeheader()
        for part in (rows, failed):
            for row in part:
                table.writerow(row | {"gave_way": " ".join(row.get("gave_way", []))})


class _Utf8Lines:
    """The text file that `csv` wants, over a binary one."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write

    def write(self, text: str) -> None:
        self._write(printable(text).encode())


def printable(text: object) -> str:
    """Return a path's text with bytes that are not UTF-8 escaped, so that it can be printed."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
