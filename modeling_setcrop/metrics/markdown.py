"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is aligned left and whose others, numbers, are aligned right.

    Args:
        header: Names of the columns; the first may be empty.
        rows: As many cells each.

    Raises:
        ValueError: A row has another number of cells.
    """
    lines = [_line(header), f"|---|{'---:|' * (len(header) - 1)}"]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(header)} columns: {list(row)}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"
