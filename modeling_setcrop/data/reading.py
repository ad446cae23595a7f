"""What the readers of data sets share: folders, annotation files, sizes of images, and boxes that are checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..image_reading import ImageFileError, decoding, open_image, orientation, swaps_sides
from .schema import DataError, Problems

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
LARGEST_ANNOTATION = 10_000_000
"""Bytes of one image's annotation, beyond which it is a mistake: GAIC's largest file has 4,000."""
# Annotation tools round: a corner up to this far outside (pixels) is clipped and not reported.
_ROUNDING = 1.0


def displayed_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of an image after its EXIF orientation, from the header alone.

    Raises ImageFileError when the file is missing or is not an image.
    """
    with open_image(path) as image, decoding(path):
        width, height = image.size
        turned = swaps_sides(orientation(image))
    return (height, width) if turned else (width, height)


def image_size(
    path: str | os.PathLike, problems: Problems, named_in: tuple[str | os.PathLike, int] | None = None
) -> tuple[int, int] | None:
    """`displayed_size`, or None after noting the problem when the file cannot be read.

    Args:
        path: the image.
        problems: receives the problem.
        named_in: the file and line that name the image, where the problem then is.
    """
    try:
        os.fspath(path).encode("utf-8")  # Arrow's strings cannot hold any other name
        return displayed_size(path)
    except ImageFileError as error:
        reason = error.reason
    except UnicodeEncodeError:
        reason = "its name is not UTF-8"
    if named_in is None:
        problems.add("unreadable image", path, f"not a readable image ({reason})")
    else:
        problems.add(
            "unreadable image", named_in[0], f"{os.fspath(path)} is not a readable image ({reason})", named_in[1]
        )
    return None


def boxes_inside(
    boxes: np.ndarray,
    size: tuple[int, int],
    file: str | os.PathLike,
    lines: Iterable[int | None],
    problems: Problems,
    draw_in: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Clip corners that rounding put up to a pixel outside and note the boxes that are wrong.

    Args:
        boxes: (S, 4) corners x1, y1, x2, y2 in pixels.
        size: (width, height) of the image.
        lines: the line of each box, for the message.
        draw_in: keep the part inside of a box that lies outside further than that (and note it all the same).

    Returns:
        (S, 4) clipped boxes and (S,) flags, True for the boxes to keep.
    """
    width, height = size
    clipped = np.clip(boxes, 0, (width, height, width, height))
    finite = np.isfinite(boxes).all(axis=1)
    inside = (np.abs(clipped - boxes) <= _ROUNDING).all(axis=1)
    proper = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    right = finite & inside & proper
    if not right.all():
        for box, line, is_finite, is_inside, is_right in zip(boxes, lines, finite, inside, right, strict=True):
            if is_right:
                continue
            shown = ", ".join(f"{value:g}" for value in box)
            if not is_finite:
                problems.add("not a number", file, f"box [{shown}] has a value that is not a finite number", line)
            elif not is_inside:
                message = f"box [{shown}] lies outside the image of {width} x {height} pixels"
                problems.add("box outside the image", file, message, line)
            else:
                problems.add("empty box", file, f"box [{shown}] has no area", line)
    return clipped, finite & proper if draw_in else right


@contextmanager
def reading_entry(problems: Problems, file: str | os.PathLike, what: str, line: int | None = None) -> Iterator[None]:
    """Note an entry of a label file whose parts are of another kind than they must be; the next one goes on.

    Args:
        problems: receives the problem.
        file: the label file.
        what: the entry's name in the message.
        line: of the entry.
    """
    try:
        yield
    except DataError:
        raise
    except (AttributeError, IndexError, KeyError, OSError, OverflowError, TypeError, ValueError) as error:
        reason = f"{what} cannot be read ({type(error).__name__}: {error})"
        problems.add("undecodable annotation", file, reason, line)


def held_out(names: Iterable[str], share: float, seed: int) -> set[str]:
    """Return a seeded sample of round(share * n) names, the same whatever order they come in."""
    ordered = sorted(names)
    picked = np.random.default_rng(seed).permutation(len(ordered))[: round(share * len(ordered))]
    return {ordered[index] for index in picked}


def files_in(folder: Path) -> dict[str, os.DirEntry]:
    """Return the visible files of a folder by name; empty when there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry for entry in sorted(entries, key=lambda e: e.name) if _is_visible_file(entry)}


def images_by_stem(folder: Path, problems: Problems) -> dict[str, str]:
    """Paths of a folder's images by file name without ending; of several with one name the first stays."""
    found: dict[str, str] = {}
    for name, entry in files_in(folder).items():
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if stem in found:
            problems.add("several images of one name", entry.path, f"left out beside {os.path.basename(found[stem])}")
        else:
            found[stem] = entry.path
    return found


def read_annotation_text(path: str | os.PathLike) -> str:
    """Return the text of one image's annotation file, without the byte-order mark that some editors put in front.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read, or is not UTF-8.
        ValueError: it is larger than an annotation can be.
    """
    size = os.stat(path).st_size
    if size > LARGEST_ANNOTATION:
        raise ValueError(f"{size / 1e6:.0f} MB are more than the annotation of an image")
    return Path(path).read_text(encoding="utf-8-sig")


def _is_visible_file(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".") and entry.is_file()
