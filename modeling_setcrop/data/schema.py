"""The one row format of all crop data sets, the problems found while reading, and the writer of the Arrow cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from ..image_reading import ImageFileError, decoding, open_image, orientation, swaps_sides

logger = logging.getLogger(__name__)

FEATURES = Features(
    {
        # Decoded only when the column is read; the file's EXIF orientation is applied then.
        "image": Image(),
        # File name without its ending, unique within a split.
        "image_id": Value("string"),
        # Size in pixels as displayed, that is, after the EXIF orientation.
        "width": Value("int32"),
        "height": Value("int32"),
        # (S, 4) crops as x1, y1, x2, y2 in pixels of the image as displayed; x2 and y2 lie outside the crop.
        "boxes": List(List(Value("float32"), length=4)),
        # (S,) rating of each crop, mapped to 1..5; null where the image has none.
        "scores": List(Value("float32")),
        # (S,) whether the crop is one that a person would keep, the ground truth of the set prediction.
        "good": List(Value("bool")),
        # train, validation or test.
        "split": Value("string"),
        # (2,) lowest and highest rating of the scale on which people gave them; null where there are none.
        "rating_scale": List(Value("float32"), length=2),
    }
)
# What copies from before a column was added may lack.
OPTIONAL = ("rating_scale",)
RATING_SCALE = (1.0, 5.0)
"""The scale of ratings in the schema, of the model and of its thresholds; GAIC's own."""
GOOD_RATING = 4.0
"""A crop with at least this rating on `RATING_SCALE` is good (paper, section 4.3), where nothing else says what is."""
SPLITS = ("train", "validation", "test")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

# Raised whenever a reader's result changes for unchanged files, so that old cache entries are left aside.
_CACHE_VERSION = 3
_ROWS_PER_BATCH = 1000
LARGEST_ANNOTATION = 10_000_000
"""Bytes of one image's annotation, beyond which it is a mistake: GAIC's largest file has 4,000."""
# Annotation tools round: a corner up to this far outside (pixels) is clipped and not reported.
_ROUNDING = 1.0


class DataError(ValueError):
    """A data set that cannot be read, or, with `strict`, its first bad entry."""


@dataclass(frozen=True)
class Problem:
    """One bad entry: `kind` is a short name to count by, `line` is 1-based (None: the whole file)."""

    kind: str
    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


@dataclass
class Problems:
    """Collects the bad entries that a reader leaves out; with `strict`, the first one raises `DataError`."""

    strict: bool = False
    found: list[Problem] = field(default_factory=list)

    def add(self, kind: str, file: str | os.PathLike, message: str, line: int | None = None) -> None:
        # File names may hold bytes that are not text; the report has to be printable all the same.
        name, message = (text.encode("utf-8", "backslashreplace").decode() for text in (os.fspath(file), message))
        problem = Problem(kind, name, line, message)
        if self.strict:
            raise DataError(str(problem))
        self.found.append(problem)

    def counts(self) -> dict[str, int]:
        """Number of problems of each kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.found).most_common())


class Row(NamedTuple):
    """One image with its crops, as a reader yields it (fields as in `FEATURES`, the image as a path).

    Two things differ from the schema: `scores` are on `rating_scale`, or on the data set's where that is None; and
    where `good` is None, the crops rated 4 or more on the scale 1..5 are, or the best-rated ones, or, without ratings,
    all.
    """

    image: str
    image_id: str
    width: int
    height: int
    boxes: np.ndarray
    scores: np.ndarray | None
    good: np.ndarray | None
    split: str
    rating_scale: tuple[float, float] | None = None


def displayed_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of an image after its EXIF orientation, from the header alone.

    Raises ImageFileError when the file is missing or is not an image.
    """
    with open_image(path) as image, decoding(path):
        width, height = image.size
        turned = swaps_sides(orientation(image))
    return (height, width) if turned else (width, height)


def image_size(path: str | os.PathLike, problems: Problems) -> tuple[int, int] | None:
    """`displayed_size`, or None after noting the problem when the file cannot be read."""
    try:
        os.fspath(path).encode("utf-8")  # Arrow's strings cannot hold any other name
        return displayed_size(path)
    except ImageFileError as error:
        problems.add("unreadable image", path, f"not a readable image ({error.reason})")
    except UnicodeEncodeError:
        problems.add("unreadable image", path, "not a readable image (its name is not UTF-8)")
    return None


def good_or_best(scores: np.ndarray, good: np.ndarray) -> np.ndarray:
    """The good flags, or, where no crop is good, flags of the best-scored ones (as the authors' release)."""
    return good if good.any() else scores == scores.max()


def boxes_inside(
    boxes: np.ndarray,
    size: tuple[int, int],
    file: str | os.PathLike,
    lines: Iterable[int | None],
    problems: Problems,
    draw_in: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Clips corners that rounding put up to a pixel outside and notes the boxes that are wrong.

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


def held_out(names: Iterable[str], share: float, seed: int) -> set[str]:
    """A seeded sample of round(share * n) names, the same whatever order they come in."""
    ordered = sorted(names)
    picked = np.random.default_rng(seed).permutation(len(ordered))[: round(share * len(ordered))]
    return {ordered[index] for index in picked}


def files_in(folder: Path) -> dict[str, os.DirEntry]:
    """The visible files of a folder by name; empty when there is no such folder."""
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
    """The text of one image's annotation file, without the byte-order mark that some editors put in front.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read, or is not UTF-8.
        ValueError: it is larger than an annotation can be.
    """
    size = os.stat(path).st_size
    if size > LARGEST_ANNOTATION:
        raise ValueError(f"{size / 1e6:.0f} MB are more than the annotation of an image")
    return Path(path).read_text(encoding="utf-8-sig")


def build(
    layout: str,
    path: Path,
    folders: Iterable[Path],
    rows: Callable[[Problems], Iterator[Row]],
    problems: Problems | None,
    options: dict | None = None,
    rating_scale: tuple[float, float] = RATING_SCALE,
) -> DatasetDict:
    """Reads a data set once into memory-mapped Arrow files and opens them.

    The files are kept in the `datasets` cache, under a name that depends on the size and time of every file below
    `folders`, so an unchanged data set opens at once and a changed one is read anew. Images are not decoded and not
    copied: rows refer to them by path.

    Args:
        layout: name of the format, for the cache's name and for messages.
        path: the data set's folder.
        folders: folders (or files) whose entries decide whether a cached result still holds.
        rows: yields the images, and notes bad entries in the `Problems` that it is given.
        problems: receives the bad entries; None logs a summary instead.
        options: what else the result depends on.
        rating_scale: lowest and highest rating of the scale on which the rows' scores are.

    Raises:
        DataError: nothing readable was found, a rating is not on its scale, or, with `problems.strict`, at the first
            bad entry.
    """
    rating_scale = _checked_scale(rating_scale)
    options = {**(options or {}), "rating_scale": rating_scale}
    report = Problems() if problems is None else problems
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "setcrop"
    target = cache / f"{layout}-{_fingerprint(layout, path, folders, options)}"
    known = _cached_problems(target)
    if known is None or (known and report.strict):
        known = _write_cache(target, lambda found: _on_one_scale(rows(found), path, rating_scale), report)
    report.found.extend(known)
    if problems is None and report.found:
        counts = ", ".join(f"{kind}: {count}" for kind, count in report.counts().items())
        logger.warning("%s: %d bad entries (%s); first: %s", path, len(known), counts, known[0])
    parts = {split: target / f"{split}.arrow" for split in SPLITS if (target / f"{split}.arrow").is_file()}
    if not parts:
        first = f"; first problem: {known[0]}" if known else ""
        raise DataError(f"{path}: no usable image with crops in layout {layout!r}{first}")
    return DatasetDict({split: Dataset.from_file(str(file)) for split, file in parts.items()})


def _checked_scale(scale: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in scale)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (np.isfinite([low, high]).all() and low < high):
        raise DataError(f"rating_scale is {scale!r}; it must be the lowest and the highest rating, such as 1,5")
    return low, high


def _on_one_scale(rows: Iterator[Row], path: Path, default: tuple[float, float]) -> Iterator[Row]:
    """Map the ratings to 1..5, and say which crops are good where the reader has not."""
    for row in rows:
        scores, scale = row.scores, None
        if scores is not None:
            scale = low, high = _checked_scale(row.rating_scale or default)
            if scores.min() < low or scores.max() > high:
                raise DataError(
                    f"{path}: ratings of {row.image_id!r} run from {scores.min():g} to {scores.max():g}, which is not "
                    f"within {low:g}..{high:g}: say on which scale the ratings are (rating_scale LOW,HIGH)"
                )
            if scale != RATING_SCALE:
                scores = RATING_SCALE[0] + (scores - low) * ((RATING_SCALE[1] - RATING_SCALE[0]) / (high - low))
        good = row.good
        if good is None:
            # A rating of exactly 4 may have lost its last bit on the way here.
            is_good = np.ones(len(row.boxes), bool) if scores is None else scores >= GOOD_RATING - 1e-9
            good = is_good if scores is None else good_or_best(scores, is_good)
        yield row._replace(scores=scores, good=good, rating_scale=scale)


def _is_visible_file(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".") and entry.is_file()


def _fingerprint(layout: str, path: Path, folders: Iterable[Path], options: dict | None) -> str:
    digest = hashlib.sha256(repr((_CACHE_VERSION, layout, str(path), sorted((options or {}).items()))).encode())
    for folder in folders:
        if folder.is_file():
            stat = folder.stat()
            digest.update(f"{folder}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        for path in _files_below(folder):
            stat = os.stat(path)
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:20]


def _files_below(folder: Path) -> Iterator[str]:
    """Paths of the visible files in a folder and in the folders below it, in a fixed order."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A link may lead back up.
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        seen.add(real)
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield path


def _cached_problems(target: Path) -> list[Problem] | None:
    try:
        with open(target / "problems.jsonl", encoding="utf-8") as file:
            return [Problem(**json.loads(line)) for line in file]
    except FileNotFoundError:
        return None


def _write_cache(target: Path, rows: Callable[[Problems], Iterator[Row]], report: Problems) -> list[Problem]:
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    found = Problems(strict=report.strict)
    try:
        _write_splits(work, rows(found))
        with open(work / "problems.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(problem)) + "\n" for problem in found.found)
        try:
            os.replace(work, target)
        except OSError:  # another process finished the same reading first
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return found.found


def _write_splits(folder: Path, rows: Iterator[Row]) -> None:
    schema = FEATURES.arrow_schema
    writers: dict[str, pa.ipc.RecordBatchStreamWriter] = {}
    waiting: dict[str, list[Row]] = {split: [] for split in SPLITS}

    def flush(split: str) -> None:
        if waiting[split]:
            if split not in writers:
                writers[split] = pa.ipc.new_stream(str(folder / f"{split}.arrow"), schema)
            writers[split].write_batch(_record_batch(waiting[split], schema))
            waiting[split] = []

    try:
        for row in rows:
            waiting[row.split].append(row)
            if len(waiting[row.split]) == _ROWS_PER_BATCH:
                flush(row.split)
        for split in SPLITS:
            flush(split)
    finally:
        for writer in writers.values():
            writer.close()


def _record_batch(rows: list[Row], schema: pa.Schema) -> pa.RecordBatch:
    counts = np.array([len(row.boxes) for row in rows])
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    corners = np.concatenate([row.boxes for row in rows]).astype(np.float32).reshape(-1)
    boxes = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(pa.array(corners), 4))
    scored = np.array([row.scores is not None for row in rows])
    score_offsets = np.concatenate([[0], np.cumsum(np.where(scored, counts, 0))]).astype(np.int32)
    score_values = [row.scores for row in rows if row.scores is not None]
    scores = pa.ListArray.from_arrays(
        pa.array(score_offsets),
        pa.array(np.concatenate(score_values).astype(np.float32) if score_values else np.zeros(0, np.float32)),
        mask=pa.array(~scored),
    )
    good = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([row.good for row in rows]).astype(bool)))
    paths = pa.array([row.image for row in rows])
    image = pa.StructArray.from_arrays([pa.nulls(len(rows), pa.binary()), paths], names=["bytes", "path"])
    columns = [
        image,
        pa.array([row.image_id for row in rows]),
        pa.array([row.width for row in rows], pa.int32()),
        pa.array([row.height for row in rows], pa.int32()),
        boxes,
        scores,
        good,
        pa.array([row.split for row in rows]),
        pa.array([row.rating_scale for row in rows], pa.list_(pa.float32(), 2)),
    ]
    return pa.RecordBatch.from_arrays(
        [column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema
    )
