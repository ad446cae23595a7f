"""`setcrop report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as shared
from .data_options import RatingScale
from .evaluate import (
    BatchSize,
    CentreScale,
    Data,
    Device,
    Layout,
    Model,
    Split,
    TrainData,
    TrainLayout,
    run_evaluation,
)


def report(
    data: Data,
    layout: Layout,
    out: Annotated[Path, typer.Option(help="Folder for index.html, the figures and the tables.")],
    model: Model = None,
    split: Split = "test",
    train_data: TrainData = None,
    train_layout: TrainLayout = None,
    centre_scale: CentreScale = 0.9,
    batch_size: BatchSize = 8,
    device: Device = None,
    rating_scale: RatingScale = None,
    images: Annotated[int, typer.Option("--images", "--pictures", min=1, help="Images on the contact sheet.")] = 12,
) -> None:
    """Evaluate and write one self-contained HTML page: tables, curves and a contact sheet."""
    try:
        from ..evaluation.page import write_report
    except ModuleNotFoundError as error:
        print(f"setcrop report: needs {error.name}: pip install 'setcrop[evaluate]'", file=sys.stderr)
        raise typer.Exit(1) from error

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
        command="report",
        out=out,
        rating_scale=rating_scale,
    )
    with shared.failing("report", OSError):
        page = write_report(found.evaluation, out, found.config, found.train, images)
    print(page)
