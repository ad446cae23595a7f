"""Images under files and folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from ..image_reading import ImageFileError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".mpo", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
"""File names taken for photographs when a folder is searched, lower case."""


def find_images(
    paths: Iterable[str | os.PathLike[str]],
    on_error: Callable[[ImageFileError], None],
    suffixes: Container[str] = IMAGE_SUFFIXES,
) -> Iterator[tuple[Path, Path]]:
    """Photographs under the given files and folders, as (file, path relative to where the search began), sorted.

    Folders are searched recursively, hidden files and folders left out; a file named directly is taken whatever its
    suffix. A path that does not exist, and a folder without pictures, is reported to `on_error`.
    """
    for path in map(Path, paths):
        if not path.exists():
            on_error(ImageFileError(path, "no such file or folder"))
        elif not path.is_dir():
            yield path, Path(path.name)
        else:
            found = False
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                        found = True
                        file = Path(folder, name)
                        yield file, file.relative_to(path)
            if not found:
                on_error(ImageFileError(path, "a folder without pictures"))
