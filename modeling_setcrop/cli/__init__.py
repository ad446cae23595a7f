"""The `setcrop` command: one module a subcommand, each importing what is heavy only when it runs."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from .. import __version__
from .crop import crop
from .data import data
from .demo import demo
from .evaluate import evaluate
from .export import export
from .init import init
from .publish import publish
from .report import report
from .score import score
from .serve import serve
from .suggest import suggest
from .train import train

app = typer.Typer(
    name="setcrop",
    help="Diverse, well-composed crops of images, each with the probability that a person would call it good.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Help in plain text: drawing it with Rich takes longer than all else that `--help` does.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"setcrop {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Diverse, well-composed crops of images, each with the probability that a person would call it good."""
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        # Names of files need not be text in the terminal's encoding.
        with suppress(AttributeError, OSError):
            stream.reconfigure(errors="backslashreplace")


# The training options come from `CropTrainingArguments`, which parses them itself.
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)(train)
app.command()(suggest)
app.command()(crop)
app.command()(demo)
app.command()(evaluate)
app.command()(report)
app.add_typer(data, name="data")
app.add_typer(export, name="export")
app.command()(publish)
app.command()(init)
app.command()(score)
app.command()(serve)
