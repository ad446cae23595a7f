"""Crop many images into an output folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..image_reading import ImageFileError
from ..images.writing import CropFile, write_crops
from .journal import Journal
from .naming import CropPlan
from .scheduling import PixelBudget, suggest_crops
from .sources import Source

if TYPE_CHECKING:
    from ..pipeline_image_cropping import ImageCroppingPipeline


@dataclass(frozen=True)
class SourceReport:
    """What was done with one photograph: rows of the manifest, and errors."""

    photo: Source
    rows: list[dict[str, Any]]
    error: ImageFileError | None = None
    skipped: bool = False


def crop_sources(
    cropper: ImageCroppingPipeline,
    photos: Sequence[Source],
    plan: CropPlan,
    options: dict[str, Any],
    journal: Journal,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Iterator[SourceReport]:
    """Crop photographs into an output folder; each is reported when it is done.

    Photographs that an earlier run has done with the same options are skipped. When the caller stops early, crops that
    are being written are finished and recorded, so the next run goes on from there.

    Args:
        cropper: The "image-cropping" pipeline.
        photos: As `list_sources` gives them.
        plan: Names and formats.
        options: Of the pipeline's call.
        journal: The output folder's record.
        overwrite: Do everything again, and replace files that no earlier run has written.
        dry_run: Write nothing.
        batch_size: Photographs of one shape in one forward pass; by default 8 on an accelerator and 1 on the CPU,
            where more gain little speed and cost memory.
        workers: Threads for reading and judging, and again for writing; by default as many as there are processors.
    """
    workers = workers or os.cpu_count() or 1
    budget = PixelBudget()
    todo = []
    for photo in photos:
        if not overwrite and not dry_run and journal.is_done(photo):
            yield SourceReport(photo, [], skipped=True)
        else:
            todo.append(photo)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="write")
    writing: dict[Future[None], tuple[Source, list[dict[str, Any]]]] = {}

    def finished(futures: Iterable[Future[None]]) -> Iterator[SourceReport]:
        for future in futures:
            photo, rows = writing.pop(future)
            try:
                future.result()
            except ImageFileError as error:
                yield SourceReport(photo, [], error)
            else:
                journal.add(photo, rows)
                yield SourceReport(photo, rows)

    try:
        for suggestion in suggest_crops(cropper, todo, options, batch_size=batch_size, workers=workers, budget=budget):
            photo = suggestion.photo
            try:
                if suggestion.error is not None:
                    raise suggestion.error
                rows = plan.rows(suggestion)
                if not overwrite:
                    _refuse_to_overwrite(photo, rows, plan, journal)
            except ImageFileError as error:
                yield SourceReport(photo, [], error)
                continue
            if dry_run:
                yield SourceReport(photo, rows)
                continue
            journal.begin(photo, rows)
            writing[pool.submit(_write, photo, rows, plan, budget)] = (photo, rows)
            if len(writing) > 2 * workers:
                wait(writing, return_when=FIRST_COMPLETED)
            yield from finished([future for future in writing if future.done()])
        while writing:
            done, _ = wait(writing, return_when=FIRST_COMPLETED)
            yield from finished(done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for _ in finished([future for future in writing if future.done() and not future.cancelled()]):
            pass


def _refuse_to_overwrite(photo: Source, rows: list[dict[str, Any]], plan: CropPlan, journal: Journal) -> None:
    """Only files that an earlier run made of the same photograph are replaced unasked."""
    for row in rows:
        target = plan.out / row["file"]
        if target.exists() and journal.writer(row["file"]) != row["source"]:
            raise ImageFileError(photo.path, f"{target} exists and is not a crop of it (--overwrite replaces it)")


def _write(photo: Source, rows: list[dict[str, Any]], plan: CropPlan, budget: PixelBudget) -> None:
    crops = []
    for row in rows:
        box = (row["xmin"], row["ymin"], row["xmax"], row["ymax"])
        size = (row["width"], row["height"])
        unchanged = size == (box[2] - box[0], box[3] - box[1])
        crops.append(CropFile(box, plan.out / row["file"], None if unchanged else size))
    if rows:
        with budget(rows[0]["picture_width"] * rows[0]["picture_height"]):
            write_crops(photo.path, crops, plan.quality, strip=plan.strip)
