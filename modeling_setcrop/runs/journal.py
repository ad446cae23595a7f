"""The record of an output folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .sources import Source

JOURNAL = ".setcrop.jsonl"
"""What has been done in an output folder: a line a photograph, with the manifest's rows."""


class Journal:
    """The record of an output folder: which photographs are done, with which options, and their manifest rows.

    A photograph counts as done when its file has not changed, the options are the same and its crops are there.

    Args:
        folder: The output folder.
        options: What the crops are made with (`CropPlan.signature`).
        read_only: Record nothing, for workers whose driver does that.
    """

    def __init__(self, folder: Path, options: dict[str, Any], read_only: bool = False) -> None:
        self.path = folder / JOURNAL
        self.options = json.dumps(options, sort_keys=True)
        self.read_only = read_only
        self._offsets: dict[str, int] = {}
        self._writers: dict[str, str] = {}
        if self.path.exists():
            for offset, entry in self._entries():
                self._offsets[entry["source"]] = offset
                self._writers.update((row["file"], entry["source"]) for row in entry["rows"])

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                # What a killed run was writing is no whole line.
                with suppress(ValueError):
                    yield offset, json.loads(line)
                offset += len(line)

    def is_done(self, photo: Source) -> bool:
        """Whether the photograph's crops, made with these options, are there."""
        offset = self._offsets.get(photo.path.as_posix())
        if offset is None:
            return False
        with self.path.open("rb") as file:
            file.seek(offset)
            entry = json.loads(file.readline())
        return (
            entry["options"] == self.options
            and entry["state"] == _file_state(photo.path)
            and all((self.path.parent / row["file"]).exists() for row in entry["rows"])
        )

    def writer(self, file: str) -> str | None:
        """The photograph whose crop a file, relative to the output folder, is; None for files of no recorded run."""
        return self._writers.get(file)

    def begin(self, photo: Source, rows: list[dict[str, Any]]) -> None:
        """Record which files are about to be written, so that a run after a killed one knows them for its own."""
        self._append(photo, rows, None)

    def add(self, photo: Source, rows: list[dict[str, Any]]) -> None:
        """Record a photograph whose crops are all written."""
        self._append(photo, rows, _file_state(photo.path))

    def _append(self, photo: Source, rows: list[dict[str, Any]], state: list[int] | None) -> None:
        if self.read_only:
            return
        entry = {"source": photo.path.as_posix(), "state": state, "options": self.options, "rows": rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            # A run that was killed may have left half a line.
            if file.tell() > 0 and not self._ends_a_line():
                file.write(b"\n")
            offset = file.tell()
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._offsets[entry["source"]] = offset
        self._writers.update((row["file"], entry["source"]) for row in rows)

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def rows(self, photos: Iterable[Source]) -> Iterator[dict[str, Any]]:
        """The manifest rows of those photographs that are done, in order."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for photo in photos:
                offset = self._offsets.get(photo.path.as_posix())
                if offset is not None:
                    file.seek(offset)
                    entry = json.loads(file.readline())
                    if entry["state"] is not None:
                        yield from entry["rows"]


def _file_state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]
