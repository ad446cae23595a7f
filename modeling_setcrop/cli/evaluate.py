"""`setcrop evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

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
    )
    # Piped output has no width of its own: leave the table whole.
    console = Console() if sys.stdout.isatty() else Console(width=220)
    for table in tables.terminal_tables(found.evaluation):
        console.print(table)
    if out is not None:
        for file in [*tables.write(found.evaluation, out), *tables.write_predictions(found.evaluation, out)]:
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
) -> Evaluated:
    """Load what the options name and evaluate it, with a progress bar; errors end the command with one line."""
    from rich.console import Console
    from rich.progress import Progress

    with needs_extra(command, "evaluate"):
        from ..data import DataError, Problems
        from ..evaluation.run import run

    problems = Problems()
    try:
        scale = parse_rating_scale(rating_scale)
        dataset = rows_of(data, layout, split, problems, scale)
        train = _train_labels(data, layout, split, train_data, train_layout, scale)
        loaded, processor, name = _load_model(model)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("images", total=None if loaded is None else len(dataset))
            found = run(
                dataset,
                loaded,
                processor,
                name,
                train,
                centre_scale,
                batch_size,
                device or _default_device(),
                problems,
                lambda done: progress.advance(task, done),
            )
    except (DataError, OSError, ValueError, RuntimeError) as error:
        print(f"setcrop {command}: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from error
    for problem in problems.found:
        print(f"setcrop {command}: {problem}", file=sys.stderr)
    found.description = {"data": data.resolve().name, "layout": layout, "split": split, "model": name}
    return Evaluated(found, None if loaded is None else loaded.config, train)


def rows_of(data: Path, layout: str, split: str, problems: Problems, scale: tuple[float, float] | None) -> Dataset:
    from datasets import concatenate_datasets

    from ..data import DataError, load

    splits = load(layout, data, problems=problems, rating_scale=scale)
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


def _load_model(model: str | None) -> tuple[Any, Any, str]:
    if model == "none":
        return None, None, "none"
    from transformers import AutoImageProcessor, AutoModelForObjectDetection
    from transformers.utils import logging

    from .. import DEFAULT_CHECKPOINT

    logging.disable_progress_bar()
    checkpoint = model or DEFAULT_CHECKPOINT
    # "." and ".." are folders with a name too.
    name = (Path(checkpoint).resolve() if Path(checkpoint).is_dir() else Path(checkpoint)).name
    return (
        AutoModelForObjectDetection.from_pretrained(checkpoint, trust_remote_code=False),
        AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False),
        name,
    )


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
