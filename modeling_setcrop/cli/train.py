"""`setcrop train`."""

from __future__ import annotations

import typer

from ..training.arguments import option_parser
from .data_options import needs_extra


def train(context: typer.Context) -> None:
    """Train a model on a crop data set; `setcrop train --help` lists the options."""
    if {"-h", "--help"} & set(context.args):
        # Before torch is imported.
        option_parser("setcrop train").print_help()
        return
    with needs_extra("train", "train"):
        from ..training.engine import run

    raise typer.Exit(run(context.args, prog="setcrop train"))
