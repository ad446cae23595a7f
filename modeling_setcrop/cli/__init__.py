"""The `setcrop` command: one module a subcommand, imported when it is asked for."""

from __future__ import annotations

import atexit
import gc
import sys
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_group

from .. import __version__
from .._light_installation import how_to_get
from .plain_values import Command, Group

# Modules of this package, in each a function or a `typer.Typer` of the same name.
COMMANDS = (
    "train", "suggest", "crop", "demo", "evaluate", "report", "publish", "init", "score", "serve", "data", "export",
    "calibrate",
)  # fmt: skip
# The training options come from `CropTrainingArguments`, which parses them itself.
_PARSES_ITSELF = {"train"}

# Help in plain text: drawing it with Rich takes longer than all else that `--help` does.
_LOOK: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class _Commands(Group):
    """Subcommands that are imported when they are asked for."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # Most of what a command's imports make stays: looking for garbage in it, as Python does on the way and once
        # more at its end, takes a sixth of a cold start.
        gc.set_threshold(50_000)
        atexit.register(gc.freeze)
        try:
            return super().main(*args, **kwargs)
        except ModuleNotFoundError as error:
            if (reason := how_to_get(error)) is None:
                raise
            print(f"setcrop: this command {reason}", file=sys.stderr)
            sys.exit(1)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _command(cmd_name)
        return self.commands.get(cmd_name)


def _command(name: str) -> Any:
    """Return a subcommand with its options."""
    found, alone = getattr(import_module(f".{name}", __name__), name), typer.Typer(**_LOOK)
    if isinstance(found, typer.Typer):
        for command in found.registered_commands:
            command.cls = Command
        alone.add_typer(found, name=name, cls=Group)
    elif name in _PARSES_ITSELF:
        settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
        alone.command(name, cls=Command, context_settings=settings, add_help_option=False)(found)
    else:
        alone.command(name, cls=Command)(found)
    return get_group(alone).commands[name]


app = typer.Typer(name="setcrop", cls=_Commands, no_args_is_help=True, **_LOOK)


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
