"""What a package index, a citation manager and an installer read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import modeling_setcrop

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_index_page_says_whose_where_and_for_what():
    project = PROJECT["project"]
    assert project["authors"][0]["name"]
    assert all(url.startswith("https://") for url in project["urls"].values())
    least = project["requires-python"].removeprefix(">=")
    classifiers = project["classifiers"]
    assert f"Programming Language :: Python :: {least}" in classifiers
    assert sum(entry.startswith("Operating System ::") for entry in classifiers) == 3


def test_one_version_everywhere():
    version = PROJECT["project"]["version"]
    assert modeling_setcrop.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_paper_is_what_one_cites():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paper = citation["preferred-citation"]
    assert paper["title"] in " ".join(readme.split())
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert names in readme


def test_what_is_no_module_is_in_the_wheel():
    """Every file of the packages is a module or matches a pattern of the package data."""
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        folder = ROOT / package
        listed = {path for pattern in patterns for path in folder.glob(pattern)}
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
                assert path in listed, path.relative_to(ROOT)


def test_the_hooks_check_with_the_version_that_ci_has():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    (ruff,) = [entry for entry in hooks if "ruff" in entry["repo"]]
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in constraints
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_map_of_the_house_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for folder in ("cli", "runs", "images", "training", "evaluation", "metrics", "data", "integrations", "runtime"):
        assert f"`{folder}/`" in text
        assert (ROOT / "modeling_setcrop" / folder).is_dir()
    for name in re.findall(r"`((?:modeling_setcrop|tests|hub_card|data|metrics|evaluation|cli)/[\w/]+\.\w+)`", text):
        assert (ROOT / name).is_file() or (ROOT / "modeling_setcrop" / name).is_file() or "NAME" in name, name
