"""What the documentation names is there: links, anchors, files, layouts, formats and the options of commands."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import ROOT
from typer.main import get_command

from modeling_setcrop.cli import app

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def named(path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith("http"):
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def options_of(words: list[str]) -> set[str] | None:
    """Return the options of the command that a command line calls; None where it calls none."""
    command = get_command(app)
    for word in words:
        if not hasattr(command, "get_command"):
            break
        if (command := command.get_command(None, word)) is None:
            return None
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_have_the_options_that_are_given_to_them(page):
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"\bsetcrop ((?:[a-z]+ )[^\n`|&;]*)", text.replace("\\\n", " ")):
        words = shlex.split(line.replace("'", ""), comments=True)
        known = options_of(words)
        if known is None or words[0] == "train":
            continue
        given = {word for word in words if re.fullmatch(r"--[a-z][a-z-]+", word)}
        assert given <= known | {"--help"}, f"setcrop {line}"


def test_every_layout_and_format_is_described():
    from modeling_setcrop.data import LAYOUTS
    from modeling_setcrop.integrations.formats import FORMATS

    described = set(re.findall(r"^\|(.*?)\|", (ROOT / "docs" / "evaluation.md").read_text("utf-8"), re.MULTILINE))
    assert {f"`{name}`" for name in LAYOUTS} <= {name for cell in described for name in re.findall("`.*?`", cell)}
    described = set(re.findall(r"^\| `([a-z-]+)`", (ROOT / "docs" / "formats.md").read_text("utf-8"), re.MULTILINE))
    assert set(FORMATS) <= described
