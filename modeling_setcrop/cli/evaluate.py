"""`setcrop evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from . import options as shared
from .data_options import LAYOUTS_HELP, RatingScale, needs_extra, parse_rating_scale

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data import Problems
    from ..evaluation.labels import Labels
    from ..evaluation.run import Evaluation

Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or Hub name (the packaged one), or 'none': baselines alone.")
]
Data = Annotated[Path, typer.Option(help="Folder of the data set.")]
Layout = Annotated[str, typer.Option(help=LAYOUTS_HELP)]
Split = Annotated[str, typer.Option(help="train, validation, test or all.")]
TrainData = Annotated[
    Path | None,
    typer.Option(help="Data set whose train split the constant baselines are fitted on (that of --data)."),
]
TrainLayout = Annotated[str | None, typer.Option(help="Its layout (--layout's).")]
CentreScale = Annotated[
    float,
    typer.Option(min=0.1, max=1.0, help="Side of the centre and the saliency crops, as a fraction of the image's."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Device = Annotated[str | None, typer.Option(help="Where the model runs (the GPU if there is one).")]


class Evaluated(NamedTuple):
    """An evaluation, its model's configuration and the labels that the constant baselines were fitted on."""

    evaluation: Evaluation
    config: Any
    train: Labels | None


def evaluate(
    data: Data,
    layout: Layout,
    model: Model = None,
    split: Split = "test",
    train_data: TrainData = None,
    train_layout: TrainLayout = None,
    centre_scale: CentreScale = 0.9,
    batch_size: BatchSize = 8,
    device: Device = None,
    rating_scale: RatingScale = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.json, .csv, .md and predictions.json (COCO results)."),
    ] = None,
) -> None:
    """Measure a model beside image-independent baselines and, where there are several annotators, their agreement."""
    from rich.console import Console

    with needs_extra("evaluate", "evaluate"):
        from ..evaluation import tables

    found = run_evaluation(
        data,
        layout,
        model,
        split,
        train_data,
        train_layout,
        centre_scale,
        batch_size,
        device,
        command="evaluate",
        rating_scale=rating_scale,
        out=out,
    )
    # Piped output has no width of its own: leave the table whole.
    console = Console() if sys.stdout.isatty() else Console(width=220)
    for table in tables.terminal_tables(found.evaluation):
        console.print(table)
    if out is not None:
        with shared.failing("evaluate", OSError):
            files = [*tables.write(found.evaluation, out), *tables.write_predictions(found.evaluation, out)]
        for file in files:
            print(file)


def run_evaluation(
    data: Path,
    layout: str,
    model: str | None,
    split: str,
    train_data: Path | None,
    train_layout: str | None,
    centre_scale: float,
    batch_size: int,
    device: str | None,
    command: str,
    rating_scale: str | None = None,
    out: Path | None = None,
) -> Evaluated:
    """Load what the options name and evaluate it, with a progress bar; errors end the command with one line.

    Where the evaluation of something else lies in `out` already, nothing is measured.
    """
    with needs_extra(command, "evaluate"):
        from ..data import DataError, Problems
        from ..evaluation.run import run

    problems = Problems()
    description = {"data": data.resolve().name, "layout": layout, "split": split, "model": _name(model)}
    try:
        if out is not None:
            _check_folder(out, description)
        device = _checked_device(device)
        scale = parse_rating_scale(rating_scale)
        dataset = rows_of(data, layout, split, problems, scale)
        train = _train_labels(data, layout, split, train_data, train_layout, scale)
        loaded, processor = _load_model(model)
        with _progress(None if loaded is None else len(dataset)) as advance:
            name = description["model"]
            found = run(dataset, loaded, processor, name, train, centre_scale, batch_size, device, problems, advance)
    except (DataError, OSError, ValueError, RuntimeError) as error:
        print(f"setcrop {command}: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from error
    for problem in problems.found:
        print(f"setcrop {command}: {problem}", file=sys.stderr)
    found.description = description
    return Evaluated(found, None if loaded is None else loaded.config, train)


@contextmanager
def _progress(images: int | None) -> Iterator[Callable[[int], None]]:
    """Show how many images are done, and give the function that says so."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=images)
        yield lambda done: progress.advance(task, done)


def _check_folder(out: Path, description: dict[str, str]) -> None:
    """Make a folder before anything is measured.

    Raises:
        ValueError: it has the evaluation of another model or other data, which would be lost.
        OSError: it cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "evaluation.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        of = {name: str(found[name]) for name in description}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: not an evaluation, which it would replace; choose another folder") from None
    if of != description:
        raise ValueError(
            f"{out}: has the evaluation of {of['model']} on {of['data']} ({of['layout']}, {of['split']}); "
            "choose another folder"
        )


def rows_of(
    data: Path,
    layout: str,
    split: str,
    problems: Problems,
    scale: tuple[float, float] | None,
    hold_out: bool = False,
) -> Dataset:
    """Load a split, or all of them.

    Args:
        hold_out: where there is no validation split, take the images that training leaves out.
    """
    from datasets import concatenate_datasets

    from ..data import DataError, load, with_validation

    splits = load(layout, data, problems=problems, rating_scale=scale)
    if hold_out and split != "all":
        splits = with_validation(splits)
    if split == "all":
        return concatenate_datasets(list(splits.values()))
    if split not in splits:
        raise DataError(f"{data}: has no split {split!r}, only {', '.join(splits)} (or all)")
    return splits[split]


def _train_labels(
    data: Path,
    layout: str,
    split: str,
    train_data: Path | None,
    train_layout: str | None,
    scale: tuple[float, float] | None,
) -> Labels | None:
    from ..data import DataError, Problems, load
    from ..evaluation.labels import Labels

    if train_data is None and split not in ("validation", "test"):
        return None  # the data set's own train split is among what is evaluated
    folder = train_data or data
    # Other data has a scale of its own.
    scale = scale if train_data is None else None
    splits = load(train_layout or layout, folder, problems=Problems(), rating_scale=scale)
    if "train" in splits:
        return Labels.from_dataset(splits["train"])
    if train_data is not None:
        raise DataError(f"{folder}: has no train split to fit the constant baselines on")
    return None


def _name(model: str | None) -> str:
    """Return what a model is called in tables."""
    from .. import DEFAULT_CHECKPOINT

    path = Path(model or DEFAULT_CHECKPOINT)
    # "." and ".." are folders with a name too.
    return (path.resolve() if path.is_dir() and model != "none" else path).name


def _load_model(model: str | None) -> tuple[Any, Any]:
    if model == "none":
        return None, None
    from transformers import AutoImageProcessor, AutoModelForObjectDetection
    from transformers.utils import logging

    from .. import DEFAULT_CHECKPOINT
    from ..runtime.checkpoint import check_name

    logging.disable_progress_bar()
    checkpoint = str(model or DEFAULT_CHECKPOINT)
    check_name(checkpoint)
    return (
        AutoModelForObjectDetection.from_pretrained(checkpoint, trust_remote_code=False),
        AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False),
    )


def _checked_device(device: str | None) -> str:
    """Return the device, the GPU by default if there is one.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    return device
