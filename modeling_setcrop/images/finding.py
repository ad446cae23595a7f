"""Images under files and folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from ..image_reading import ImageFileError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".tga", ".tif", ".tiff",
    ".webp",
})
"""File names taken for images when a folder is searched, lower case."""

UNREAD_SUFFIXES = frozenset({
    ".3fr", ".ai", ".ari", ".arw", ".bay", ".bpg", ".cap", ".cr2", ".cr3", ".crw", ".cur", ".dcr", ".dds", ".dng",
    ".emf", ".eps", ".erf", ".exr", ".fff", ".fit", ".fits", ".hdr", ".icns", ".ico", ".iiq", ".jls", ".jp3", ".jxl",
    ".jxr", ".k25", ".kdc", ".kra", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pam", ".pcx", ".pef", ".pfm",
    ".psb", ".raf", ".ras", ".raw", ".rw2", ".rwl", ".sgi", ".sr2", ".srf", ".srw", ".svg", ".wdp", ".wmf", ".x3f",
    ".xcf",
})
"""File names of images that are left out, lower case: raw files, drawings and kinds that are not read."""
# fmt: on


def find_images(
    paths: Iterable[str | os.PathLike[str]],
    on_error: Callable[[ImageFileError], None],
    suffixes: Container[str] = IMAGE_SUFFIXES,
    on_left_out: Callable[[Path, str], None] = lambda path, reason: None,
) -> Iterator[tuple[Path, Path]]:
    """Yield images under the given files and folders, as (file, path relative to where the search began), sorted.

    Folders are searched recursively, hidden files and folders left out; a file named directly is taken whatever its
    suffix.

    Args:
        paths: Files and folders.
        on_error: Told of a path that does not exist, a folder without images and one that cannot be searched.
        suffixes: Of the files that are taken in folders, lower case.
        on_left_out: Told of images of kinds that are not read, and of links to folders, which are not followed.
    """
    for path in map(Path, paths):
        if os.path.isdir(path):
            found = False
            for file in _files_below(path, on_error, on_left_out):
                suffix = file.suffix.lower()
                if suffix in suffixes:
                    found = True
                    yield file, file.relative_to(path)
                elif suffix in UNREAD_SUFFIXES:
                    on_left_out(file, f"{suffix} files are not read")
            if not found:
                on_error(ImageFileError(path, "a folder without images"))
        elif os.path.lexists(path):
            yield path, Path(path.name)
        else:
            # A path holds one slash where the address had two.
            is_address = path.parts[:1] in (("http:",), ("https:",))
            on_error(ImageFileError(path, "an address; files are read" if is_address else "no such file or folder"))


def _files_below(
    path: Path, on_error: Callable[[ImageFileError], None], on_left_out: Callable[[Path, str], None]
) -> Iterator[Path]:
    def unsearchable(error: OSError) -> None:
        on_error(ImageFileError(error.filename, f"cannot be searched ({error.strerror})"))

    for folder, folders, names in os.walk(path, onerror=unsearchable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                on_left_out(Path(folder, name), "a link to a folder, which is not followed")
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)
