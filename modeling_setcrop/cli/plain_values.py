"""Commands whose defaults, and the texts and paths that they are given, are taken as they are.

Typer makes a pydantic validator for every parameter of a command, given or not: importing pydantic and making those of
`setcrop suggest` takes a fifth of its time. Other values, as numbers and choices, are validated by Typer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

# What becomes of the words that a parameter is given, by its type.
_PLAIN: dict[Any, Callable[[Any], Any]] = {
    str: str,
    list[str]: list,
    Path: Path,
    list[Path]: lambda words: [Path(word) for word in words],
}


class Command(TyperCommand):
    """A command with one function."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [_plain(parameter) for parameter in super().get_params(ctx)]


class Group(TyperGroup):
    """A command with subcommands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [_plain(parameter) for parameter in super().get_params(ctx)]


def _plain(parameter: Any) -> Any:
    """Return a parameter, which from now on validates only what has to be."""
    described = getattr(parameter, "type_descriptor", None)
    # A Typer that does without pydantic has no descriptions.
    if described is not None and "process_value" not in vars(parameter):
        parameter.process_value = _processor(parameter, described, parameter.process_value)
    return parameter


def _processor(parameter: Any, described: Any, validate: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return what makes a parameter's value of its words, in a context."""
    asked = described.parameter_info
    checked = asked.exists or asked.resolve_path or asked.parser or not (asked.file_okay and asked.dir_okay)
    convert = None if checked else _PLAIN.get(described.annotation)

    def process(context: Any, value: Any) -> Any:
        source = context.get_parameter_source(parameter.name)
        given = value is not None and (source is None or source.name != "DEFAULT")
        if (given and convert is None) or (value is None and parameter.required):
            return validate(context, value)
        value = convert(value) if given and convert else value
        return value if parameter.callback is None else parameter.callback(context, parameter, value)

    return process
