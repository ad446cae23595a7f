"""`setcrop data inspect` and `setcrop data convert`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .data_options import LAYOUTS_HELP, RatingScale, needs_extra, parse_rating_scale

if TYPE_CHECKING:
    from datasets import DatasetDict

    from ..data import Problems
    from ..data.inspect import SplitSummary

data = typer.Typer(help="Look at crop data sets and convert them.", no_args_is_help=True)

# Problems of one kind that are shown; the rest are counted.
_SHOWN = 5
_BAR = 40

Folder = Annotated[Path, typer.Argument(help="Folder of the data set.")]
Layout = Annotated[str, typer.Option(help=LAYOUTS_HELP)]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad entry.")]


class Form(StrEnum):
    """What `convert` writes."""

    disk = "disk"
    parquet = "parquet"
    coco = "coco"


@data.command()
def inspect(
    folder: Folder,
    layout: Layout,
    rating_scale: RatingScale = None,
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="Decode all images and compare their entries.")
    ] = True,
    show_all: Annotated[
        bool, typer.Option("--all", help=f"Name every problem, not the first {_SHOWN} of each kind.")
    ] = False,
    strict: Strict = False,
) -> None:
    """Show counts, histogram of ratings, good crops per image, and every kind of problem found."""
    with needs_extra("data inspect", "train"):
        from ..data import DataError
        from ..data.inspect import check, summarise

    splits, problems = _load("inspect", folder, layout, rating_scale, strict)
    for name, summary in summarise(splits).items():
        _print_summary(name, summary)
    if decode:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("images", total=sum(len(rows) for rows in splits.values()))
            try:
                check(splits, problems, lambda done: progress.advance(task, done))
            except DataError as error:
                _fail("inspect", error)
    for kind, count in problems.counts().items():
        print(f"problem: {kind}: {count}")
        of_kind = [problem for problem in problems.found if problem.kind == kind]
        for problem in of_kind if show_all else of_kind[:_SHOWN]:
            print(f"  {problem}")
        if count > _SHOWN and not show_all:
            print(f"  ... and {count - _SHOWN} more (--all names them)")
    print(f"{len(problems.found) or 'no'} problems found")


@data.command()
def convert(
    folder: Folder,
    layout: Layout,
    out: Annotated[Path | None, typer.Option(help="New folder to write.")] = None,
    to: Annotated[Form, typer.Option(help="save_to_disk folder, Parquet files or COCO files.")] = Form.parquet,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPOSITORY", help="Upload to this data set repository instead of --out.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push-to-hub: a private repository.")] = False,
    rating_scale: RatingScale = None,
    strict: Strict = False,
) -> None:
    """Write a self-contained copy, images included, that loads with layout 'saved' or 'coco' or from the Hub."""
    with needs_extra("data convert", "train"):
        from ..data import DataError
        from ..data.coco import save_coco
        from ..data.saved import save

    if (out is None) == (push_to_hub is None):
        _fail("convert", ValueError("give either --out FOLDER or --push-to-hub REPOSITORY"))
    splits, problems = _load("convert", folder, layout, rating_scale, strict)
    for problem in problems.found:
        print(f"setcrop data convert: {problem}", file=sys.stderr)
    try:
        if push_to_hub is not None:
            splits.push_to_hub(push_to_hub, private=private)
        elif out is not None:
            save_coco(splits, out) if to is Form.coco else save(splits, out, to.value)
    except (DataError, OSError, ValueError) as error:
        _fail("convert", error)
    rows = ", ".join(f"{name} {len(dataset)}" for name, dataset in splits.items())
    print(f"{out or push_to_hub}: {rows} images, {len(problems.found)} problems")


def _load(
    command: str, folder: Path, layout: str, rating_scale: str | None, strict: bool
) -> tuple[DatasetDict, Problems]:
    from ..data import Problems, load

    problems = Problems(strict=strict)
    try:
        return load(layout, folder, problems=problems, rating_scale=parse_rating_scale(rating_scale)), problems
    except (ValueError, OSError) as error:
        _fail(command, error)


def _fail(command: str, error: Exception) -> NoReturn:
    print(f"setcrop data {command}: {error}", file=sys.stderr)
    raise typer.Exit(1) from error


def _print_summary(name: str, summary: SplitSummary) -> None:
    from ..data.schema import RATING_SCALE

    print(f"{name}: {summary.images} images, {summary.rated_images} with ratings")
    print("  long side {:d} to {:d} pixels, median {:g}".format(*(summary.sizes[i] for i in (0, 2, 1))))
    print("  crops per image {:d} to {:d}, mean {:.1f}".format(*(summary.crops[i] for i in (0, 2, 1))))
    print("  good crops per image {:d} to {:d}, mean {:.1f}".format(*(summary.good[i] for i in (0, 2, 1))))
    if summary.labelled:
        counts = ", ".join(f"{name} {count}" for name, count in summary.labelled.items() if count)
        print(f"  labels that rate any crop, and images that have them: {counts}")
    if summary.histogram is not None and summary.edges is not None:
        for low, high in summary.scales:
            mapped = "" if (low, high) == RATING_SCALE else ", mapped to 1..5"
            print(f"  ratings given on the scale {low:g}..{high:g}{mapped}")
        highest = summary.histogram.max()
        for count, low, high in zip(summary.histogram, summary.edges, summary.edges[1:], strict=False):
            print(f"  rating {low:5.2f} to {high:5.2f} {'#' * round(_BAR * count / highest):{_BAR}} {count}")
