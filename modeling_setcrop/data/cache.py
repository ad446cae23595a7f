"""Data sets that are read once: rows in memory-mapped Arrow files, kept until a file of the data set changes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict

from ..images.atomic import atomic_folder
from .schema import FEATURES, GOOD_RATING, RATING_SCALE, SPLITS, DataError, Problem, Problems, Row, good_or_best

logger = logging.getLogger(__name__)

# Raised whenever a reader's result changes for unchanged files, so that old cache entries are left aside.
_CACHE_VERSION = 7
_ROWS_PER_BATCH = 1000


def build(
    layout: str,
    path: Path,
    folders: Iterable[Path],
    rows: Callable[[Problems], Iterator[Row]],
    problems: Problems | None,
    options: dict | None = None,
    rating_scale: Sequence[float] = RATING_SCALE,
) -> DatasetDict:
    """Read a data set once into memory-mapped Arrow files and open them.

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
    scale = _checked_scale(rating_scale)
    options = {**(options or {}), "rating_scale": scale}
    report = Problems() if problems is None else problems
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "setcrop"
    target = cache / f"{layout}-{_fingerprint(layout, path, folders, options)}"
    known = _cached_problems(target)
    if known is None or (known and report.strict):
        known = _write_cache(target, lambda found: _on_one_scale(rows(found), path, scale, found), report)
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


def _on_one_scale(rows: Iterator[Row], path: Path, default: tuple[float, float], problems: Problems) -> Iterator[Row]:
    """Map the ratings to 1..5, and say which crops are good where the reader has not."""
    for row in rows:
        scores, scale = row.scores, None
        if scores is not None:
            if not np.isfinite(scores).all():
                problems.add("not a number", path, f"a rating of {row.image_id!r} is not a finite number")
                continue
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
        elif not good.any():
            if scores is None:
                problems.add("no usable crop", path, f"no crop of {row.image_id!r} is good, and none is rated")
                continue
            good = good_or_best(scores, good)
        yield row._replace(scores=scores, good=good, rating_scale=scale)


def _fingerprint(layout: str, path: Path, folders: Iterable[Path], options: dict | None) -> str:
    digest = hashlib.sha256(repr((_CACHE_VERSION, layout, str(path), sorted((options or {}).items()))).encode())
    for folder in folders:
        if folder.is_file():
            stat = folder.stat()
            digest.update(f"{folder}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        for file in _files_below(folder):
            stat = os.stat(file)
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
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
    found = Problems(strict=report.strict)
    # Another process may finish the same reading first.
    with atomic_folder(target, keep_existing=True) as work:
        _write_splits(work, rows(found))
        with open(work / "problems.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(problem)) + "\n" for problem in found.found)
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
        pa.array([row.crop_labels and row.crop_labels.to_dict() for row in rows], schema.field("crop_labels").type),
        pa.array([row.coco_id for row in rows], pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(
        [column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema
    )
