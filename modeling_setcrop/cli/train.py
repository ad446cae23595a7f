"""`setcrop train`."""

from __future__ import annotations

import typer


def train(context: typer.Context) -> None:
    """Train a model on a crop data set; `setcrop train --help` lists the options."""
    from modeling_setcrop.training.engine import run

    raise typer.Exit(run(context.args, prog="setcrop train"))
