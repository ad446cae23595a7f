"""The record of an output folder."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..image_reading import ImageFileError, decoding, open_image
from ..images.atomic import FileWriteError, atomic_writer, sweep_parts
from .crops import CroppedImage
from .identity import FileState

if TYPE_CHECKING:
    from .sources import Source

JOURNAL = ".setcrop.jsonl"
"""What has been done in an output folder: a line per image and set of options."""


class Entry(NamedTuple):
    """What the journal says of an image.

    Attributes:
        key: Which file it is (`Source.key`).
        place: Where its crops go and what they are named after, relative to the output folder.
        options: What its crops were made with.
        state: The file as it was cropped; None while its crops are being written.
        image: The image and its crops.
        sizes: Bytes of the crops' files.
    """

    key: str
    place: str
    options: str
    state: FileState | None
    image: CroppedImage
    sizes: list[int]

    @classmethod
    def from_line(cls, line: bytes) -> Entry:
        """Parse a line.

        Raises:
            ValueError, KeyError, TypeError: It is no whole line of this form, as a killed run may leave.
        """
        values = json.loads(line)
        state = values["state"] and FileState.from_list(values["state"])
        image = CroppedImage.from_dict(values["image"])
        options = sys.intern(values["options"])
        return cls(values["source"], values["place"], options, state, image, values["sizes"])

    def to_line(self) -> bytes:
        """Return the line, with its end."""
        values = {
            "source": self.key,
            "place": self.place,
            "options": self.options,
            "state": self.state and self.state.to_list(),
            "image": self.image.to_dict(),
            "sizes": self.sizes,
        }
        return json_line(values)


def json_line(values: dict[str, Any]) -> bytes:
    """Return values as a line of JSON; names that are not UTF-8 are escaped, and read back as they are."""
    try:
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(values).encode() + b"\n"


def recorded_files(path: Path) -> set[str]:
    """Return the files that a journal has, relative to its folder; none where there is no such journal."""
    return {crop.file for _, entry in _entries(path) for crop in entry.image.crops}


def _entries(path: Path) -> Iterator[tuple[int, Entry]]:
    """Yield the entries of a journal and where their lines begin."""
    if not path.is_file():
        return
    offset = 0
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                yield offset, Entry.from_line(line)
            offset += len(line)


class Journal:
    """The record of an output folder: which images are done, with which options, and what their crops are.

    An image counts as done when its file has the same content, the options are the same and its crops are whole.

    Args:
        folder: The output folder.
        options: What the crops are made with (`CropPlan.signature`).
        read_only: Record nothing, for workers whose driver does that.
    """

    def __init__(self, folder: Path, options: dict[str, Any], read_only: bool = False) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self.options = json.dumps(options, sort_keys=True)
        self.read_only = read_only
        self.load()

    def load(self) -> None:
        """Read what has been recorded so far."""
        # Where the last line of each image begins, with each set of options.
        self._offsets: dict[tuple[str, str], int] = {}
        self._of_place: dict[str, tuple[str, str]] = {}
        self._writers: dict[str, tuple[str, str]] = {}
        self._unfinished: set[tuple[str, str]] = set()
        # Files that have moved since: what they were called.
        self._moved: dict[str, str] = {}
        for offset, entry in _entries(self.path):
            self._note(offset, entry)

    def _note(self, offset: int, entry: Entry) -> None:
        which = (entry.key, entry.options)
        self._offsets[which] = offset
        self._of_place[entry.place] = which
        self._writers.update((crop.file, which) for crop in entry.image.crops)
        (self._unfinished.add if entry.state is None else self._unfinished.discard)(which)

    def sweep(self) -> None:
        """Remove what a killed run left half written."""
        unfinished = [self._read(which) for which in self._unfinished]
        for folder in {(self.folder / crop.file).parent for entry in unfinished for crop in entry.image.crops}:
            sweep_parts(folder)

    def is_done(self, source: Source, record: bool = True) -> bool:
        """Whether the image's crops, made with these options, are there and whole; `record` where it was moved."""
        which = (self._key(source), self.options)
        if which not in self._offsets:
            return False
        entry = self._read(which)
        try:
            if entry.state is None or not entry.state.is_still(source.path):
                return False
        except OSError:
            return False
        for crop, size in zip(entry.image.crops, entry.sizes, strict=True):
            # With other options, the same name may have been given to another crop since.
            if self._writers[crop.file] != which or not _is_whole(self.folder / crop.file, size):
                return False
        if which[0] != source.key and record:
            self._append(entry._replace(key=source.key))
        return True

    def _key(self, source: Source) -> str:
        """Return the key under which a file is recorded: its own, or the one it had before it was moved."""
        if source.key in self._moved:
            return self._moved[source.key]
        which = self._of_place.get(_place(source))
        if which is not None and which[0] != source.key and not os.path.lexists(which[0]):
            state = self._read(which).state
            with suppress(OSError):
                if state is not None and state.is_still(source.path):
                    self._moved[source.key] = which[0]
                    return which[0]
        return source.key

    def is_crop_of(self, file: str, source: Source) -> bool:
        """Whether a file, relative to the output folder, is recorded as a crop of an image."""
        writer = self.writer(file)
        return writer is not None and writer in (source.key, self._key(source))

    def is_retouched(self, file: str) -> bool:
        """Whether a recorded crop, relative to the output folder, is another whole image now than was written."""
        entry = self._read(self._writers[file])
        sizes = {crop.file: size for crop, size in zip(entry.image.crops, entry.sizes, strict=False)}
        path = self.folder / file
        return file in sizes and path.is_file() and path.stat().st_size != sizes[file] and _is_whole(path, sizes[file])

    def writer(self, file: str) -> str | None:
        """Return the key of the image of which a file is a crop; None for files of no recorded run."""
        return self._writers[file][0] if file in self._writers else None

    def begin(self, source: Source, image: CroppedImage) -> None:
        """Record which files are about to be written, so that a run after a killed one knows them for its own.

        Raises:
            FileWriteError: It cannot be recorded.
        """
        self._append(Entry(source.key, _place(source), self.options, None, image, []))

    def add(self, source: Source, image: CroppedImage, state: FileState, sizes: list[int]) -> None:
        """Record an image whose crops are all written.

        Raises:
            FileWriteError: It cannot be recorded.
        """
        self._append(Entry(source.key, _place(source), self.options, state, image, sizes))

    def _append(self, entry: Entry) -> None:
        if self.read_only:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                # A run that was killed, or a full disk, may have left half a line.
                if file.tell() > 0 and not self._ends_a_line():
                    file.write(b"\n")
                offset = file.tell()
                file.write(entry.to_line())
        except OSError as error:
            raise FileWriteError(self.path, error) from None
        self._note(offset, entry)

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _read(self, which: tuple[str, str]) -> Entry:
        with self.path.open("rb") as file:
            file.seek(self._offsets[which])
            return Entry.from_line(file.readline())

    def rows(self, sources: Iterable[Source]) -> Iterator[dict[str, Any]]:
        """Yield the manifest's rows of those images that are done with these options, in order."""
        for source in sources:
            which = (self._key(source), self.options)
            if which in self._offsets:
                entry = self._read(which)
                if entry.state is not None:
                    yield from entry.image.rows(source.path.as_posix())

    def entries(self) -> Iterator[Entry]:
        """Yield the last entry of each image and set of options."""
        for which in list(self._offsets):
            yield self._read(which)

    def forget(self, keys: set[str]) -> None:
        """Take images out of the record.

        Raises:
            FileWriteError: The record cannot be written.
        """
        kept = [entry.to_line() for entry in self.entries() if entry.key not in keys]
        with atomic_writer(self.path) as file:
            file.writelines(kept)
        self.load()


def _place(source: Source) -> str:
    return (source.folder / source.stem).as_posix()


def _is_whole(path: Path, size: int) -> bool:
    """Whether a crop's file is as long as it was written, or somebody has made another whole image of it."""
    try:
        state = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISREG(state.st_mode):
        return False
    if state.st_size == size:
        return True
    try:
        with open_image(path) as image, decoding(path):
            image.load()
    except ImageFileError:
        return False
    return True
