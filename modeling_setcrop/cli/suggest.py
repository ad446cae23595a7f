"""`setcrop suggest`: boxes and scores of the best crops, as a table, as JSON or drawn on the image."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as shared

if TYPE_CHECKING:
    from rich.table import Table

    from ..image_reading import ImageFileError
    from ..runs.scheduling import Suggestion


@shared.asks_for_crops()
def suggest(
    context: typer.Context,
    sources: shared.Paths,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per image instead of tables.")] = False,
    format: shared.CropFormat = None,
    annotate: Annotated[
        Path | None,
        typer.Option(metavar="FILE|FOLDER", help="Also write the image with its crops drawn on it."),
    ] = None,
    write_metadata: Annotated[
        str | None,
        typer.Option(
            metavar="sidecars|FOLDER",
            help="Also write the crops as metadata: into XMP files beside the images, or into copies in FOLDER.",
        ),
    ] = None,
    model: shared.Model = None,
    device: shared.Device = None,
    runtime: shared.Runtime = None,
    trust_remote_code: shared.TrustRemoteCode = False,
    batch_size: shared.BatchSize = None,
    workers: shared.Workers = None,
    **asked: Any,
) -> None:
    """Suggest crops of images: ranked boxes with the probability that a person would call each one good."""
    from ..images.formats import format_of

    try:
        options, wishes = shared.selection_options(context.params), shared.content_options(context.params)
        if annotate is not None and annotate.suffix:
            format_of(annotate)
    except (shared.UsageError, ValueError) as error:
        raise shared.fail(f"setcrop suggest: {error}") from None
    from ..image_reading import RAW_SUFFIXES
    from ..images.finding import IMAGE_SUFFIXES
    from ..runs.scheduling import in_order, suggest_crops
    from ..runs.sources import list_sources

    failed: list[ImageFileError] = []

    def note(error: ImageFileError) -> None:
        failed.append(error)
        shared.report(error)

    suffixes = IMAGE_SUFFIXES if write_metadata is None else IMAGE_SUFFIXES | RAW_SUFFIXES
    found = list_sources(sources, note, suffixes=suffixes)
    if annotate is not None and annotate.suffix and len(found) > 1:
        raise shared.fail(f"setcrop suggest: --annotate {annotate}: name a folder for {len(found)} images")
    if found:
        shared.report_unmatched(wishes, found)
        try:
            cropper = shared.load_cropper(model, device, runtime, trust_remote_code, len(found))
            cropper.source(options)
        except (shared.UsageError, ValueError) as error:
            raise shared.fail(f"setcrop suggest: {error}") from None
        suggestions = suggest_crops(cropper, found, options, batch_size=batch_size, workers=workers, content=wishes)
        inputs = frozenset(os.path.realpath(source.path) for source in found)
        shown = answered(in_order(suggestions, found), annotate, inputs, note)
        if write_metadata is not None:
            shown = with_metadata(shown, write_metadata, note)
        if format is not None:
            from ..integrations.formats import format_lines

            for line in format_lines(format, rows_with_crops(shown, note)):
                print(line, flush=True)
        for suggestion, drawn in shown:
            show(suggestion, as_json, drawn)
    if failed:
        raise typer.Exit(1)


def answered(
    suggestions: Iterable[Suggestion],
    annotate: Path | None,
    inputs: frozenset[str],
    note: Callable[[ImageFileError], None],
) -> Iterator[tuple[Suggestion, Path | None]]:
    """Yield the suggestions that are no errors, and the file that each is drawn to, which is none of the `inputs`."""
    from ..image_reading import ImageFileError

    for suggestion in suggestions:
        try:
            if suggestion.error is not None:
                raise suggestion.error
            drawn = None if annotate is None else annotate_image(suggestion, annotate, inputs)
        except ImageFileError as error:
            note(error)
        else:
            yield suggestion, drawn


def with_metadata(
    shown: Iterable[tuple[Suggestion, Path | None]], where: str, note: Callable[[ImageFileError], None]
) -> Iterator[tuple[Suggestion, Path | None]]:
    """Yield what comes after its crops have been written as metadata."""
    from ..image_reading import ImageFileError
    from ..integrations.crop_metadata import MetadataWriter
    from ..integrations.formats import crop_rows

    writer = MetadataWriter(None if where == "sidecars" else Path(where))
    for suggestion, drawn in shown:
        source = suggestion.source
        rows = crop_rows(source.path.as_posix(), suggestion.size, suggestion.result)
        try:
            if rows:
                writer.write(source.path, source.folder, rows)
        except ImageFileError as error:
            note(error)
        else:
            yield suggestion, drawn


def rows_with_crops(
    shown: Iterable[tuple[Suggestion, Path | None]], note: Callable[[ImageFileError], None]
) -> Iterator[list[dict[str, Any]]]:
    """Yield each image's rows; one without a crop is an error, since other systems have no form for it."""
    from ..image_reading import ImageFileError
    from ..integrations.formats import crop_rows

    for suggestion, _ in shown:
        path = suggestion.source.path
        rows = crop_rows(path.as_posix(), suggestion.size, suggestion.result)
        if rows:
            yield rows
        else:
            note(ImageFileError(path, "no crop is above the threshold"))


def show(suggestion: Suggestion, as_json: bool, drawn: Path | None = None) -> None:
    """Print one image's crops."""
    height, width = suggestion.size
    if as_json:
        line = {"photo": suggestion.source.path.as_posix(), "width": width, "height": height, **suggestion.result}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    from rich.console import Console

    # A table that is piped away keeps all its columns.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(crop_table(suggestion))
    if drawn is not None:
        console.print(f"Drawn: {drawn}", soft_wrap=True, markup=False, highlight=False)


def crop_table(suggestion: Suggestion) -> Table:
    """Return an image's crops, and what the model thinks of the whole image."""
    from rich.markup import escape
    from rich.table import Table

    result, (height, width) = suggestion.result, suggestion.size
    focus = result["focus_point"]
    caption = (
        f"whole image {result['keep_original']:.2f}, best crop {result['improves']:+.2f}, "
        f"focus point {focus['x']:.2f} {focus['y']:.2f}"
    )
    title = escape(f"{suggestion.source.path} ({width} x {height})")
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    several = any("aspect_ratio" in crop for crop in result["crops"])
    gave_way = any("gave_way" in crop for crop in result["crops"])
    for column in ("rank", *(["ratio"] if several else []), "score", "left", "top", "right", "bottom", "size", "area"):
        table.add_column(column, justify="right")
    if gave_way:
        table.add_column("gave way")
    ranks: Counter[str] = Counter()
    for crop in result["crops"]:
        ratio = str(crop.get("aspect_ratio"))
        ranks[ratio] += 1
        table.add_row(*_cells(crop, ranks[ratio], width * height, several, gave_way))
    return table


def _cells(crop: dict[str, Any], rank: int, image_area: int, several: bool, gave_way: bool) -> list[str]:
    box = crop["box"]
    across, down = box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]
    cells = [str(rank), *([str(crop["aspect_ratio"])] if several else []), f"{crop['score']:.3f}"]
    cells += [str(box[edge]) for edge in ("xmin", "ymin", "xmax", "ymax")]
    cells += [f"{across} x {down}", f"{across * down / image_area:.0%}"]
    return cells + ([", ".join(crop.get("gave_way", []))] if gave_way else [])


def annotate_image(suggestion: Suggestion, target: Path, inputs: frozenset[str] = frozenset()) -> Path:
    """Write the image with its crops drawn on it, to a file or into a folder, and return where.

    Args:
        suggestion: Of the image.
        target: The file or folder.
        inputs: Real paths of all images of the run.

    Raises:
        ImageFileError: The file cannot be written, or would replace the image or another one.
    """
    from ..image_reading import ImageFileError, load_image_file
    from ..images.atomic import atomic_writer
    from ..images.drawing import DRAWING_SIDE, draw_crops
    from ..images.formats import format_of, save_options

    source = suggestion.source
    if not target.suffix:
        target = target / source.folder / f"{source.stem}_crops.jpg"
    if target.exists() and target.samefile(source.path):
        raise ImageFileError(source.path, "the drawing would overwrite the image itself")
    if os.path.realpath(target) in inputs:
        raise ImageFileError(source.path, f"the drawing would overwrite {target}")
    loaded = load_image_file(source.path, DRAWING_SIDE)
    format = format_of(target)
    with atomic_writer(target) as file:
        drawn = draw_crops(loaded, suggestion.result["crops"])
        drawn.save(file, format=format, **save_options(drawn, format, 90))
    return target
