"""`setcrop crop`: write the best crops of images, one or ten thousand, into a folder."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import options as shared

if TYPE_CHECKING:
    from rich.progress import Progress

    from .. import Cropper
    from ..crop_options import CropOptions
    from ..image_reading import ImageFileError
    from ..runs.content import Content
    from ..runs.cropping import SourceReport
    from ..runs.journal import Journal
    from ..runs.naming import CropPlan
    from ..runs.sources import Source


@shared.asks_for_crops(top_k=1)
def crop(
    context: typer.Context,
    sources: shared.Paths,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the crops go; folders are mirrored there.")],
    enlarge: Annotated[
        bool, typer.Option("--enlarge", help="Bring crops up to --width and --height too where they are smaller.")
    ] = False,
    format: Annotated[
        str | None, typer.Option(help="jpg, png, webp, avif, tif, ...; by default each image's own.")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG, WebP and AVIF.")] = 92,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="File names without suffix, from {stem}, {rank}, {ratio}, {width}, {height} and {score}; by default "
            "{stem}, with {ratio} and {rank} where there are several.",
        ),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also list every crop in a .jsonl or .csv file.")
    ] = None,
    manifest_format: Annotated[
        Literal["sanity", "imgix", "thumbor", "css", "azure", "label-studio"] | None,
        typer.Option(help="Write the manifest as another system's JSON instead, a line per image."),
    ] = None,
    strip: Annotated[
        Literal["nothing", "location", "all"],
        typer.Option(help="Metadata that crops lose: where an image was taken, or all but the colour profile."),
    ] = "nothing",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo images that are done, and replace other files.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then remove earlier crops of images that are gone, after listing them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    model: shared.Model = None,
    device: shared.Device = None,
    runtime: shared.Runtime = None,
    trust_remote_code: shared.TrustRemoteCode = False,
    batch_size: shared.BatchSize = None,
    workers: shared.Workers = None,
    **asked: Any,
) -> None:
    """Crop images: the best crops of each, cut from the full file, into a folder; the originals stay as they are.

    What is done already is skipped, so an interrupted run goes on where it stopped.
    """
    from ..image_reading import ImageFileError
    from ..runs.naming import CropPlan, default_name
    from ..runs.output import check_output
    from ..runs.sources import list_sources

    with shared.failing("crop", shared.UsageError, ValueError):
        options, wishes = shared.selection_options(context.params), shared.content_options(context.params)
        ratios = [ratio for ratio in options.aspect_ratios if ratio is not None]
        plan = CropPlan(
            out,
            name or default_name(asked["top_k"], ratios),
            format,
            quality,
            options.width,
            options.height,
            strip,
            ratios[0] if len(ratios) == 1 else None,
            enlarge,
            options.follow_orientation,
        )
        if enlarge and options.width is None and options.height is None:
            raise ValueError("--enlarge needs --width or --height")
        _check_manifest(manifest, manifest_format)
        check_output(out, sources)
    run = _Run()
    found = list_sources(sources, run.fail, exclude=out, on_left_out=run.leave_out)
    run.report_left_out()
    if found:
        # In the end another run may hold the folder, or it cannot be written.
        with shared.failing("crop", shared.UsageError, ValueError):
            shared.report_unmatched(wishes, found)
            plan.check_names(found, ratios, asked["top_k"], options.best_of)
            cropper = shared.load_cropper(model, device, runtime, trust_remote_code, len(found))
            cropper.source(options)
            run.crop(cropper, found, plan, options, wishes, overwrite, dry_run, batch_size, workers)
            if prune and not run.interrupted:
                run.prune([path for path in sources if path.is_dir()], found, dry_run)
    if manifest is not None and not dry_run:
        with shared.failing("crop", ImageFileError):
            run.write_manifest(manifest, found, manifest_format)
    run.summarise(out, dry_run)
    if run.interrupted:
        raise typer.Exit(130)
    if run.errors:
        raise typer.Exit(1)


def _check_manifest(manifest: Path | None, format: str | None) -> None:
    """Raise ValueError where the manifest's file and its format do not go together, or it cannot be written."""
    from ..runs.output import nearest_folder

    if format is not None and (manifest is None or manifest.suffix.lower() == ".csv"):
        raise ValueError("--manifest-format needs --manifest FILE, in JSON")
    if manifest is not None and format is None and manifest.suffix.lower() not in (".jsonl", ".csv"):
        raise ValueError(f"--manifest {manifest}: use .jsonl or .csv")
    # Said before hours of work, not after them.
    if manifest is not None and (manifest.is_dir() or not nearest_folder(manifest.parent)[1]):
        raise ValueError(f"--manifest {manifest}: no file can be written there")


class _Run:
    """One run of the command: counts, errors and what the terminal shows of them."""

    def __init__(self) -> None:
        self.errors: list[ImageFileError] = []
        self.left_out: list[tuple[Path, str]] = []
        self.images = self.crops = self.skipped = 0
        self.interrupted = False
        self.seconds = 0.0
        self.journal: Journal
        self._progress: Progress | None = None

    def fail(self, error: ImageFileError) -> None:
        self.errors.append(error)
        self._say(str(error))

    def _say(self, line: str) -> None:
        if self._progress is None:
            print(f"setcrop: {line}", file=sys.stderr)
        else:
            self._progress.console.print(f"setcrop: {line}", soft_wrap=True, markup=False, highlight=False)

    def leave_out(self, path: Path, reason: str) -> None:
        self.left_out.append((path, reason))

    def report_left_out(self) -> None:
        """Say which files are left out, a line a reason."""
        names = defaultdict(list)
        for path, reason in self.left_out:
            names[reason].append(path.name)
        for reason, files in names.items():
            self._say(f"{len(files)} left out: {reason} ({shared.first_few(files)})")

    def crop(
        self,
        cropper: Cropper,
        sources: list[Source],
        plan: CropPlan,
        options: CropOptions,
        content: Content,
        overwrite: bool,
        dry_run: bool,
        batch_size: int | None,
        workers: int | None,
    ) -> None:
        from ..runs.cropping import crop_sources
        from ..runs.journal import Journal

        self.journal = Journal(plan.out, plan.signature(cropper.name, options.changed() | content.signature()))
        reports: Any = crop_sources(
            cropper,
            sources,
            plan,
            options,
            self.journal,
            overwrite=overwrite,
            dry_run=dry_run,
            batch_size=batch_size,
            workers=workers,
            content=content,
        )
        start = time.perf_counter()
        # A run that is told to end closes its files as one that is interrupted at the keyboard.
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with closing(reports), _progress_bar() as self._progress:
                task = self._progress.add_task("Cropping", total=len(sources))
                for report in reports:
                    self._count(report, dry_run)
                    self._progress.advance(task)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._progress = None
            self.seconds = time.perf_counter() - start

    def _count(self, report: SourceReport, dry_run: bool) -> None:
        if report.error is not None:
            self.fail(report.error)
            return
        self.skipped += report.skipped
        self.images += not report.skipped
        if report.image is None:
            return
        crops = report.image.crops
        self.crops += len(crops)
        if crops and report.image.note is not None:
            self._say(f"{report.source.path}: {report.image.note}")
        if dry_run:
            for crop in crops:
                box = ",".join(map(str, crop.box))
                print(f"{report.source.path.as_posix()} -> {crop.file}  {box}  {crop.score:.3f}")

    def write_manifest(self, path: Path, sources: list[Source], format: str | None) -> None:
        from ..integrations.formats import write_formatted
        from ..runs.manifest import write_manifest

        failed = {error.path for error in self.errors}
        rows = self.journal.rows(source for source in sources if source.path not in failed) if sources else iter(())
        if format is None:
            left_out = ({"source": path.as_posix(), "note": f"left out: {why}"} for path, why in self.left_out)
            write_manifest(path, itertools.chain(rows, left_out), self.errors)
        else:
            write_formatted(path, (row for row in rows if row["file"] is not None), format)

    def prune(self, roots: list[Path], found: list[Source], dry_run: bool) -> None:
        """List crops whose image is gone, and remove them."""
        from ..runs.output import lock_folder
        from ..runs.pruning import remove_crops, stale_crops

        # A folder without any image may be a disk that is not there today.
        searched = [root for root in roots if any(root in source.path.parents for source in found)]
        stale = list(stale_crops(self.journal, searched))
        for key, files in stale:
            for file in files:
                print(f"{'would remove' if dry_run else 'removing'} {self.journal.folder / file} ({key} is gone)")
        if stale and not dry_run:
            with lock_folder(self.journal.folder):
                remove_crops(self.journal, stale)

    def summarise(self, out: Path, dry_run: bool) -> None:
        """Tell of the run in one line, and where it stopped if it did."""
        rate = f", {self.images / self.seconds:.1f} images a second" if self.images and self.seconds else ""
        verb = "would go" if dry_run else "went"
        print(
            f"{_counted(self.crops, 'crop')} of {_counted(self.images, 'image')} {verb} to {out}; "
            f"{self.skipped} were done before, {len(self.errors)} failed{rate}"
        )
        if self.interrupted:
            print("Interrupted: run the same command again to go on.")


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Images a second."""

        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
