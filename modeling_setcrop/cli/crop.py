"""`setcrop crop`: write the best crops of photographs, one or ten thousand, into a folder."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import options as shared

if TYPE_CHECKING:
    from rich.progress import Progress

    from modeling_setcrop import ImageCroppingPipeline
    from modeling_setcrop.image_reading import ImageFileError
    from modeling_setcrop.runs.cropping import SourceReport
    from modeling_setcrop.runs.journal import Journal
    from modeling_setcrop.runs.naming import CropPlan
    from modeling_setcrop.runs.sources import Source


def crop(
    photos: shared.Paths,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the crops go; folders are mirrored there.")],
    top_k: shared.TopK = 1,
    aspect_ratio: shared.AspectRatio = None,
    width: Annotated[int | None, typer.Option(min=1, help="Bring crops down to so many pixels across.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels down; with --width the aspect ratio.")] = None,
    format: Annotated[
        str | None, typer.Option(help="jpg, png, webp, avif, tif, ...; by default each photograph's own.")
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
        typer.Option(help="Write the manifest as another system's JSON instead, a line a photograph."),
    ] = None,
    strip: Annotated[
        Literal["nothing", "location", "all"],
        typer.Option(help="Metadata that crops lose: where a photograph was taken, or all but the colour profile."),
    ] = "nothing",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo photographs that are done, and replace other files.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    threshold: shared.Threshold = 0.0,
    nms_iou: shared.NmsIou = 0.8,
    diversity: shared.Diversity = None,
    as_set: shared.AsSet = False,
    min_area: shared.MinArea = None,
    max_area: shared.MaxArea = None,
    min_size: shared.MinSize = None,
    keep: shared.Keep = None,
    avoid: shared.Avoid = None,
    strict: shared.Strict = False,
    model: shared.Model = None,
    device: shared.Device = None,
    runtime: shared.Runtime = "torch",
    batch_size: shared.BatchSize = None,
    workers: shared.Workers = None,
) -> None:
    """Crop photographs: the best crops of each, cut from the full file, into a folder; the originals stay as they are.

    What is done already is skipped, so an interrupted run goes on where it stopped.
    """
    from modeling_setcrop.image_reading import ImageFileError
    from modeling_setcrop.runs.naming import CropPlan
    from modeling_setcrop.runs.sources import list_sources

    try:
        options = shared.selection_options(
            top_k=top_k,
            aspect_ratio=aspect_ratio,
            threshold=threshold,
            nms_iou=nms_iou,
            diversity=diversity,
            as_set=as_set,
            min_area=min_area,
            max_area=max_area,
            min_size=min_size,
            keep=keep,
            avoid=avoid,
            strict=strict,
            width=width,
            height=height,
        )
        template = name or default_name(top_k, isinstance(options.get("aspect_ratio"), list))
        plan = CropPlan(out, template, format, quality, width, height, strip)
        if manifest_format is not None and (manifest is None or manifest.suffix.lower() == ".csv"):
            raise ValueError("--manifest-format needs --manifest FILE, in JSON")
        if manifest is not None and manifest_format is None and manifest.suffix.lower() not in (".jsonl", ".csv"):
            raise ValueError(f"--manifest {manifest}: use .jsonl or .csv")
        if any(path.is_dir() and path.resolve() == out.resolve() for path in photos):
            raise ValueError(f"--out {out}: give another folder than the photographs'")
    except (shared.UsageError, ValueError) as error:
        raise shared.fail(f"setcrop crop: {error}") from None

    run = _Run()
    found = list_sources(photos, run.fail, exclude=out)
    if found:
        try:
            cropper = shared.load_cropper(model, device, runtime)
        except shared.UsageError as error:
            raise shared.fail(f"setcrop crop: {error}") from None
        run.crop(cropper, found, plan, options, overwrite, dry_run, batch_size, workers)
    if manifest is not None and not dry_run and found:
        try:
            run.write_manifest(manifest, found, manifest_format)
        except ImageFileError as error:
            raise shared.fail(f"setcrop crop: {error}") from None
    run.summarise(out, dry_run)
    if run.interrupted:
        raise typer.Exit(130)
    if run.errors:
        raise typer.Exit(1)


def default_name(top_k: int, several_ratios: bool) -> str:
    """The shortest template under which the crops of one photograph have different names."""
    return "{stem}" + ("_{ratio}" if several_ratios else "") + ("_{rank}" if top_k > 1 else "")


class _Run:
    """One run of the command: counts, errors and what the terminal shows of them."""

    def __init__(self) -> None:
        self.errors: list[ImageFileError] = []
        self.photos = self.crops = self.skipped = 0
        self.interrupted = False
        self.seconds = 0.0
        self.journal: Journal
        self._progress: Progress | None = None

    def fail(self, error: ImageFileError) -> None:
        self.errors.append(error)
        if self._progress is None:
            shared.report(error)
        else:
            self._progress.console.print(f"setcrop: {error}", soft_wrap=True, markup=False, highlight=False)

    def crop(
        self,
        cropper: ImageCroppingPipeline,
        photos: list[Source],
        plan: CropPlan,
        options: dict[str, Any],
        overwrite: bool,
        dry_run: bool,
        batch_size: int | None,
        workers: int | None,
    ) -> None:
        from modeling_setcrop.runs.cropping import crop_sources
        from modeling_setcrop.runs.journal import Journal

        self.journal = Journal(plan.out, plan.signature(cropper.model.name_or_path, options))
        reports = crop_sources(
            cropper,
            photos,
            plan,
            options,
            self.journal,
            overwrite=overwrite,
            dry_run=dry_run,
            batch_size=batch_size,
            workers=workers,
        )
        start = time.perf_counter()
        # A run that is told to end closes its files as one that is interrupted at the keyboard.
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with closing(reports), _progress_bar() as self._progress:
                task = self._progress.add_task("Cropping", total=len(photos))
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
        self.photos += not report.skipped
        self.crops += len(report.rows)
        if dry_run:
            for row in report.rows:
                box = ",".join(str(row[edge]) for edge in ("xmin", "ymin", "xmax", "ymax"))
                print(f"{row['source']} -> {row['file']}  {box}  {row['score']:.3f}")

    def write_manifest(self, path: Path, photos: list[Source], format: str | None) -> None:
        from modeling_setcrop.integrations.formats import write_formatted
        from modeling_setcrop.runs.manifest import write_manifest

        failed = {error.path for error in self.errors}
        rows = self.journal.rows(photo for photo in photos if photo.path not in failed)
        if format is None:
            write_manifest(path, rows, self.errors)
        else:
            write_formatted(path, rows, format)

    def summarise(self, out: Path, dry_run: bool) -> None:
        """The run in one line, and where it stopped if it did."""
        rate = f", {self.photos / self.seconds:.1f} photographs a second" if self.photos and self.seconds else ""
        verb = "would go" if dry_run else "went"
        print(
            f"{self.crops} crops of {self.photos} photographs {verb} to {out}; "
            f"{self.skipped} were done before, {len(self.errors)} failed{rate}"
        )
        if self.interrupted:
            print("Interrupted: run the same command again to go on.")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Photographs a second."""

        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
