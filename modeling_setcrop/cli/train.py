"""`setcrop train`."""

from __future__ import annotations

import typer

from .data_options import needs_extra


def train(context: typer.Context) -> None:
    """Train a model on a crop data set; `setcrop train --help` lists the options."""
    with needs_extra("train", "train"):
        from ..training.engine import run

    raise typer.Exit(run(context.args, prog="setcrop train"))
