"""The images of a run, and what their crops are named after."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..image_reading import ImageFileError
from ..images.finding import IMAGE_SUFFIXES, find_images


@dataclass(frozen=True)
class Source:
    """A photograph to be cropped.

    Attributes:
        path: The file.
        folder: Where it lies below the folder that was searched; crops go to the same place below the output folder.
        stem: What its crops are named after: the file's stem, with the suffix where two photographs share the stem.
    """

    path: Path
    folder: Path
    stem: str


def list_sources(
    paths: Iterable[str | os.PathLike[str]],
    on_error: Callable[[ImageFileError], None],
    exclude: Path | None = None,
    suffixes: Container[str] = IMAGE_SUFFIXES,
) -> list[Source]:
    """Photographs under files and folders, in order.

    Args:
        paths: Files, and folders searched recursively.
        on_error: Told of paths without photographs, and of photographs whose crops would overwrite another's.
        exclude: A folder that is not searched: the output's.
        suffixes: Of the files that are taken in folders, lower case.
    """
    excluded = None if exclude is None else exclude.resolve()
    found = [
        (path, relative)
        for path, relative in find_images(paths, on_error, suffixes)
        if excluded is None or excluded not in path.resolve().parents
    ]
    shared = Counter((relative.parent, relative.stem) for _, relative in found)
    photos: dict[tuple[Path, str], Source] = {}
    for path, relative in found:
        stem = relative.stem
        if shared[relative.parent, stem] > 1:
            stem = f"{stem}_{relative.suffix[1:]}"
        key = (relative.parent, stem)
        if key in photos:
            on_error(ImageFileError(path, f"its crops would have the names of those of {photos[key].path}"))
        else:
            photos[key] = Source(path, relative.parent, stem)
    return list(photos.values())
