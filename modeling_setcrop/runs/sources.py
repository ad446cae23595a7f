"""The image files of a run, and what their crops are named after."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..image_reading import ImageFileError
from ..images.finding import IMAGE_SUFFIXES, find_images


@dataclass(frozen=True)
class Source:
    """An image file to be cropped.

    Attributes:
        path: The file, as it was named.
        folder: Where it lies below the folder that was searched; crops go to the same place below the output folder.
        stem: What its crops are named after: the file's stem, with the suffix where two files share the stem.
    """

    path: Path
    folder: Path
    stem: str

    @cached_property
    def key(self) -> str:
        """Which file it is, however its path was spelled and from whatever folder."""
        # A link to a file is a file of its own: its name is another, and so are its crops'.
        return os.path.join(os.path.realpath(self.path.parent), self.path.name)


def list_sources(
    paths: Iterable[str | os.PathLike[str]],
    on_error: Callable[[ImageFileError], None],
    exclude: Path | None = None,
    suffixes: Container[str] = IMAGE_SUFFIXES,
    on_left_out: Callable[[Path, str], None] = lambda path, reason: None,
) -> list[Source]:
    """Return the image files under files and folders, in order, each once.

    Args:
        paths: Files, and folders searched recursively.
        on_error: Told of paths without images, and of images whose crops would overwrite another's.
        exclude: A folder that is not searched: the output's.
        suffixes: Of the files that are taken in folders, lower case.
        on_left_out: Told of files that are left out, and why: crops that earlier runs wrote below a folder, links to
            folders, and images of kinds that are not read.
    """
    given = [Path(path) for path in paths]
    excluded = None if exclude is None else os.path.join(os.path.realpath(exclude), "")
    earlier = _EarlierCrops()

    def is_output(path: Path) -> bool:
        return excluded is not None and os.path.join(os.path.realpath(path.parent), "").startswith(excluded)

    def left_out(path: Path, reason: str) -> None:
        if not is_output(path):
            on_left_out(path, reason)

    found: dict[str, tuple[Path, Path]] = {}
    for path, relative in find_images(given, on_error, suffixes, left_out):
        if is_output(path):
            continue
        made_in = None if path in given else earlier.folder_of(path, relative)
        if made_in is not None:
            on_left_out(path, f"a crop that an earlier run wrote to {made_in}")
        else:
            found.setdefault(Source(path, relative.parent, relative.stem).key, (path, relative))
    return _named(found.values(), on_error)


def _named(found: Collection[tuple[Path, Path]], on_error: Callable[[ImageFileError], None]) -> list[Source]:
    shared = Counter((relative.parent, relative.stem) for _, relative in found)
    sources: dict[tuple[Path, str], Source] = {}
    for path, relative in found:
        stem = relative.stem
        if shared[relative.parent, stem] > 1:
            stem = f"{stem}_{relative.suffix[1:]}"
        source = Source(path, relative.parent, stem)
        other = sources.setdefault((relative.parent, stem), source)
        if other is not source:
            on_error(ImageFileError(path, f"its crops would have the names of those of {other.path}"))
    return list(sources.values())


class _EarlierCrops:
    """The files that earlier runs wrote into folders that are now searched, by these folders' journals."""

    def __init__(self) -> None:
        self._files: dict[Path, set[str]] = {}

    def folder_of(self, path: Path, relative: Path) -> Path | None:
        """Return the output folder, at or below the one searched, of which a file is a crop."""
        for folder in path.parents[: len(relative.parts)]:
            if folder not in self._files:
                # Only here, because single files need no journal.
                from .journal import JOURNAL, recorded_files

                self._files[folder] = recorded_files(folder / JOURNAL)
            if path.relative_to(folder).as_posix() in self._files[folder]:
                return folder
        return None
