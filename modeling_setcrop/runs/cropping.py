"""Crop many images into an output folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..image_reading import ImageFileError, open_regular_file
from ..images.writing import write_crops
from .content import Content
from .crops import CroppedImage
from .identity import FileState
from .journal import Journal
from .naming import CropPlan
from .output import lock_folder
from .scheduling import MemoryBudget, Suggestion, suggest_crops, unexpected
from .sources import Source

if TYPE_CHECKING:
    from ..crop_options import CropOptions
    from ..cropping import CroppingBase


@dataclass(frozen=True)
class SourceReport:
    """What was done with one image.

    Attributes:
        source: The image file.
        image: The image and its crops; None with an error, and where it was done before.
        state: The file as it was cropped; None where nothing was written.
        sizes: Bytes of the crops' files.
        error: Why there are no crops.
        skipped: It was done before.
    """

    source: Source
    image: CroppedImage | None = None
    state: FileState | None = None
    sizes: Sequence[int] = ()
    error: ImageFileError | None = None
    skipped: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The manifest's rows of the image; none with an error, and where it was done before."""
        return [] if self.image is None else self.image.rows(self.source.path.as_posix())


def crop_sources(
    cropper: CroppingBase,
    sources: Sequence[Source],
    plan: CropPlan,
    options: CropOptions,
    journal: Journal,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    content: Content | None = None,
) -> Iterator[SourceReport]:
    """Crop images into an output folder; each is reported when it is done, and no image's error is raised.

    Images that an earlier run has done with the same options are skipped. When the caller stops early, crops that
    are being written are finished and recorded, so the next run goes on from there.

    Args:
        cropper: A `Cropper`, or the "image-cropping" pipeline.
        sources: As `list_sources` gives them.
        plan: Names and formats.
        options: What to ask of crops.
        journal: The output folder's record.
        overwrite: Do everything again, and replace files that no earlier run has written.
        dry_run: Write nothing.
        batch_size: Images of one shape in one forward pass; by default 8 on an accelerator and 1 on the CPU,
            where more gain little speed and cost memory.
        workers: Threads for reading and judging, and again for writing; by default as many as there are processors.
        content: What single images' crops must or had better keep and avoid.

    Raises:
        FolderInUse: Another run writes into the folder.
        FileWriteError: The folder cannot be written.
    """
    writes = not dry_run and not journal.read_only
    with lock_folder(plan.out) if writes else nullcontext():
        if writes:
            # Another run may have ended since the record was read.
            journal.load()
            journal.sweep()
        todo = []
        for source in sources:
            if not overwrite and journal.is_done(source, record=writes):
                yield SourceReport(source, skipped=True)
            else:
                todo.append(source)
        workers = workers or os.cpu_count() or 1
        run = _Run(plan, journal, overwrite, workers)
        suggestions = suggest_crops(
            cropper, todo, options, batch_size=batch_size, workers=workers, budget=run.budget, content=content
        )
        yield from run.planned(suggestions) if dry_run else run.written(suggestions)


class _Run:
    """Crops of a run, from the model's answers to their files."""

    def __init__(self, plan: CropPlan, journal: Journal, overwrite: bool, workers: int) -> None:
        self.plan, self.journal, self.overwrite, self.workers = plan, journal, overwrite, workers
        self.budget = MemoryBudget()
        # The image whose crop a file of this run is.
        self._taken: dict[str, Source] = {}
        self._writing: dict[Future[tuple[FileState, list[int]]], tuple[Source, CroppedImage]] = {}

    def planned(self, suggestions: Iterable[Suggestion]) -> Iterator[SourceReport]:
        """Report what would be written."""
        for suggestion in suggestions:
            yield self._plan(suggestion)

    def written(self, suggestions: Iterable[Suggestion]) -> Iterator[SourceReport]:
        """Write crops in threads, and report each image when its crops are written."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="write")
        try:
            for suggestion in suggestions:
                report = self._plan(suggestion)
                if report.image is not None:
                    report = self._begin(report, report.image)
                image = report.image
                if report.error is not None or image is None:
                    yield report
                    continue
                future = pool.submit(_write, suggestion, image, self.plan, self.budget)
                self._writing[future] = (report.source, image)
                if len(self._writing) > 2 * self.workers:
                    wait(self._writing, return_when=FIRST_COMPLETED)
                yield from self._finished([future for future in self._writing if future.done()])
            while self._writing:
                done, _ = wait(self._writing, return_when=FIRST_COMPLETED)
                yield from self._finished(done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for _ in self._finished([f for f in self._writing if f.done() and not f.cancelled()]):
                pass

    def _plan(self, suggestion: Suggestion) -> SourceReport:
        source = suggestion.source
        try:
            if suggestion.error is not None:
                raise suggestion.error
            image = self.plan.crops(suggestion)
            self._check_free(source, image)
        except ImageFileError as error:
            return SourceReport(source, error=error)
        except Exception as error:
            return SourceReport(source, error=unexpected(source, error))
        return SourceReport(source, image)

    def _check_free(self, source: Source, image: CroppedImage) -> None:
        """Only files that an earlier run made of the same image are replaced unasked, and none of this run."""
        for crop in image.crops:
            other = self._taken.setdefault(crop.file, source)
            if other is not source:
                raise ImageFileError(source.path, f"its crop would have the name of one of {other.path}: {crop.file}")
            target = self.plan.out / crop.file
            if self.overwrite or not os.path.lexists(target):
                continue
            if not self.journal.is_crop_of(crop.file, source):
                raise ImageFileError(source.path, f"{target} exists and is not a crop of it (--overwrite replaces it)")
            if self.journal.is_retouched(crop.file):
                raise ImageFileError(source.path, f"{target} was changed since (--overwrite replaces it)")

    def _begin(self, report: SourceReport, image: CroppedImage) -> SourceReport:
        try:
            self.journal.begin(report.source, image)
        except ImageFileError as error:
            return SourceReport(report.source, error=ImageFileError(report.source.path, str(error)))
        return report

    def _finished(self, futures: Iterable[Future[tuple[FileState, list[int]]]]) -> Iterator[SourceReport]:
        for future in futures:
            source, image = self._writing.pop(future)
            try:
                state, sizes = future.result()
                self.journal.add(source, image, state, sizes)
            except ImageFileError as error:
                reason = error.reason if error.path == source.path else str(error)
                yield SourceReport(source, error=ImageFileError(source.path, reason))
            except Exception as error:
                yield SourceReport(source, error=unexpected(source, error))
            else:
                yield SourceReport(source, image, state, sizes)


def _write(
    suggestion: Suggestion, image: CroppedImage, plan: CropPlan, budget: MemoryBudget
) -> tuple[FileState, list[int]]:
    """Cut and write an image's crops; return the file as it was and the bytes of each crop."""
    path = suggestion.source.path
    crops = [crop.to_write(plan.out) for crop in image.crops]
    with open_regular_file(path) as file:
        state = FileState.of(file, with_content=True)
        if suggestion.state is not None and not state.same_stat(suggestion.state):
            raise ImageFileError(path, "changed while it was being cropped")
        if crops:
            write_crops(path, crops, plan.quality, budget, plan.strip, file)
    return state, [crop.target.stat().st_size for crop in crops]
