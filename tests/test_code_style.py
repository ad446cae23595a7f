"""The code is ruff clean, and has one word for each thing: those of `docs/README.md`, in messages and docs too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# What is not said, and what is said instead.
FORBIDDEN = {
    r"pictures?": "image",
    r"photographs?": "image",
    r"blind(ly)?": "image-independent",
    r"(in parts of|told into|near repeats?|it is right for|pixels across)": "plain words, as in docs/README.md",
    r"human scores?": "rating",
    r"whose eye": "whose ratings",
}
WHOLE_FILES = {
    "CHANGELOG.md": "history",
    "LICENSES.md": "licences are of photographs",
    "NOTICE": "licences are of photographs",
    "tests/test_code_style.py": "this list",
}
# What stays in a file, by its name or the end of it.
EXCEPTIONS = {
    ".py": ["picture_width", "picture_height"],  # columns of the manifest
    "docs/folder-run.md": ["picture_width", "picture_height"],
    "README.md": ["photograph"],  # a file that a person gives
    # What a comparison is called whose judge does not know the methods.
    "benchmarks/README.md": ["blind_pairs"],
    "benchmarks/blind_pairs.py": ["blind_pairs"],
    "docs/quality.md": ["blind_pairs"],
    "cli/report.py": ['"--pictures"'],  # an option's older name
    "hub_card/results.py": ['"pictures"', '"less_best_blind"'],  # keys of older files
    "tests/test_hub_card.py": ['"pictures"', "less_best_blind"],
}
TEXT = {".py", ".md", ".js", ".html", ".toml", ".yaml", ".json", ".cff", ".txt", ""}


def tracked_text_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a Git checkout")
    names = [name for name in listed.stdout.split("\0") if name and name not in WHOLE_FILES]
    return [name for name in names if Path(name).suffix in TEXT and (ROOT / name).is_file()]


def unwanted(name: str, text: str) -> list[str]:
    """Every forbidden word of a file, with its place and what to write instead."""
    for end, kept in EXCEPTIONS.items():
        # Of a README, the one at the root alone.
        if name == end or (end != "README.md" and name.endswith(end)):
            for words in kept:
                text = text.replace(words, "")
    found = []
    for words, instead in FORBIDDEN.items():
        # In identifiers too: `_` and digits bound a word there.
        for match in re.finditer(rf"(?<![a-zA-Z])(?:{words})(?![a-zA-Z])", text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{name}:{line}: {match[0]!r}: {instead}")
    return found


def test_ruff_finds_nothing():
    result = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_one_word_for_each_thing():
    files = tracked_text_files()
    assert len(files) > 200
    found = [line for name in files for line in unwanted(name, (ROOT / name).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text", ["A picture.", "def whole_picture():", "Pictures", "blind_baselines", "in parts of it"]
)
def test_a_forbidden_word_is_found(text):
    assert unwanted("modeling_setcrop/example.py", text)


@pytest.mark.parametrize("text", ["photographer", "row['picture_width']", "photometric", "imagine"])
def test_other_words_are_left_alone(text):
    assert not unwanted("modeling_setcrop/example.py", text)
