"""What the subcommands on data sets share: options, and what they say where an extra is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from ..training.arguments import LAYOUT_NAMES
from . import options as shared

# Packages of the extras, by the name under which they are imported.
_OPTIONAL = frozenset({"accelerate", "datasets", "evaluate", "matplotlib", "pyarrow", "yaml"})

LAYOUTS_HELP = f"How the data set lies in its folder: {', '.join(LAYOUT_NAMES[:-1])} or {LAYOUT_NAMES[-1]}."
RatingScale = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Lowest and highest rating that people could give, where that is not 1,5 and the data does not say it.",
    ),
]


@contextmanager
def needs_extra(command: str, extra: str) -> Iterator[None]:
    """End the command with one line where a package is missing that an extra installs; hold the imports inside."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _OPTIONAL:
            raise
        raise shared.fail(f"setcrop {command}: needs {error.name}: pip install 'setcrop[{extra}]'") from None


def parse_rating_scale(text: str | None) -> tuple[float, float] | None:
    """Two numbers with a comma between them, or None for None.

    Raises:
        ValueError: It is something else.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--rating-scale {text!r}: expected two numbers with a comma between them, such as 0,100"
        ) from None
    return low, high
