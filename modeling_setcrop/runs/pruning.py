"""Crops whose image is gone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..images.atomic import FileWriteError
from .journal import Journal


def stale_crops(journal: Journal, roots: Iterable[Path]) -> Iterator[tuple[str, list[str]]]:
    """Yield images that are gone, and the files, relative to the output folder, of their recorded crops.

    A file that has another size than it was written with is somebody's work by now, and stays.

    Args:
        journal: The output folder's record.
        roots: Folders that were searched; images elsewhere may lie on a disk that is not there today.
    """
    below = tuple(os.path.join(os.path.realpath(root), "") for root in roots)
    files: dict[str, dict[str, int]] = {}
    for entry in journal.entries():
        if entry.key.startswith(below) and not os.path.lexists(entry.key):
            written = zip(entry.image.crops, entry.sizes, strict=True) if entry.state is not None else ()
            files.setdefault(entry.key, {}).update((crop.file, size) for crop, size in written)
    for key, crops in files.items():
        yield key, [file for file, size in crops.items() if _is_ours(journal, key, file, size)]


def _is_ours(journal: Journal, key: str, file: str, size: int) -> bool:
    path = Path(os.path.normpath(journal.folder / file))
    inside = os.path.realpath(path.parent) + os.sep
    if not inside.startswith(os.path.join(os.path.realpath(journal.folder), "")) or journal.writer(file) != key:
        return False
    try:
        state = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(state.st_mode) and state.st_size == size


def remove_crops(journal: Journal, stale: list[tuple[str, list[str]]]) -> None:
    """Remove the files that `stale_crops` gave, folders that are empty then, and their images' entries.

    Raises:
        FileWriteError: A file cannot be removed, or the record cannot be written.
    """
    folder = journal.folder.resolve()
    for _, files in stale:
        for file in files:
            path = folder / file
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise FileWriteError(path, error) from None
            for parent in path.parents:
                if parent == folder or any(parent.iterdir()):
                    break
                parent.rmdir()
    if stale:
        journal.forget({key for key, _ in stale})
