"""`setcrop train`."""

from __future__ import annotations

import sys

import typer


def train(context: typer.Context) -> None:
    """Train a model on a crop data set; `setcrop train --help` lists the options."""
    from modeling_setcrop.training.arguments import parse_arguments
    from modeling_setcrop.training.engine import CropTraining, TrainingError

    try:
        CropTraining(parse_arguments(context.args, prog="setcrop train")).train()
    except (ValueError, OSError, TrainingError) as error:
        print(f"setcrop train: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
