"""The map of the house, read from the code's imports: the root travels to the Hub, folders stay, arrows point down."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

from modeling_setcrop.hub_code import code_files

PACKAGE = ROOT / "modeling_setcrop"
# At the root, but not of what travels: what makes the folder a package, and the command `python -m modeling_setcrop`.
OF_THE_PACKAGE = {"__init__", "__main__", "_registration", "_light_installation"}
# A folder imports only from floors below its own, or from neighbours on it.
FLOORS = (
    {"cli"},
    {"runs", "training", "evaluation", "export", "integrations", "hub_card"},
    {"runtime", "data", "images", "metrics"},
    {"root"},
)
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py")))


def modules(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "space" not in path.parts]


def imports(path: Path) -> list[tuple[str, int]]:
    """The modules of this repository that a file imports, in full, and the lines; inside functions too."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            inside = [f"{module}.{alias.name}" for alias in node.names]
            # `from . import name` imports a module of the folder, or a name of its `__init__`.
            found += [(name if _is_module(name) else module, node.lineno) for name in inside]
    return [(name, line) for name, line in found if name.split(".")[0] in ("modeling_setcrop", "hub_card")]


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def room(module: str) -> str:
    """The folder that a module is in, or "root"."""
    first, *rest = module.split(".")
    if first == "hub_card":
        return first
    return rest[0] if rest and rest[0] in FOLDERS else "root"


def rooms() -> dict[str, set[tuple[str, str]]]:
    """For every folder the folders that it imports from, each with a place."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in modules(PACKAGE) + modules(ROOT / "hub_card"):
        if path.parent == PACKAGE and path.stem in OF_THE_PACKAGE:
            continue
        here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name, line in imports(path):
            if room(name) != here:
                found[here].add((room(name), f"{path.relative_to(ROOT)}:{line}"))
    return found


def test_every_folder_has_its_floor():
    assert set(FOLDERS) | {"root", "hub_card"} == set().union(*FLOORS)


def test_the_root_holds_what_travels_and_nothing_else():
    travelling = {path.stem for path in code_files()}
    assert {path.stem for path in PACKAGE.glob("*.py")} == travelling | OF_THE_PACKAGE


@pytest.mark.parametrize("path", code_files(), ids=lambda path: path.stem)
def test_what_travels_imports_only_what_travels_with_it(path):
    travelling = {f"modeling_setcrop.{file.stem}" for file in code_files()}
    assert {name for name, _ in imports(path)} <= travelling


def test_arrows_point_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{place}: {here} imports from {there}"
        for here, targets in rooms().items()
        for there, place in sorted(targets)
        if floor[there] < floor[here]
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_no_circles():
    # Raises CycleError, which names the circle.
    order = TopologicalSorter({here: {there for there, _ in targets} for here, targets in rooms().items()})
    assert next(iter(order.static_order())) == "root"


def test_imports_inside_the_package_are_relative():
    absolute = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules(PACKAGE)
        # `evaluate` runs a metric from a copy of its file.
        if path.parent.parent != PACKAGE / "metrics"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("modeling_setcrop")
    ]
    assert not absolute, "\n".join(absolute)


def test_files_take_their_names_in_one_place():
    replacing = {
        path.relative_to(ROOT).as_posix()
        for path in modules(PACKAGE) + modules(ROOT / "hub_card")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("replace", "rename", "renames")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert replacing == {"modeling_setcrop/images/atomic.py"}


def test_functions_fit_on_a_screen():
    """Their bodies, that is: a command's signature lists its options."""
    long = []
    for folder in ("modeling_setcrop", "hub_card", "examples", "benchmarks"):
        for path in modules(ROOT / folder):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    body = node.body[ast.get_docstring(node) is not None :]
                    if body and body[-1].end_lineno - body[0].lineno >= 45:
                        long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}")
    assert not long, "\n".join(long)


def test_tables_have_one_writer():
    ruled = {
        path.relative_to(ROOT).as_posix()
        for folder in ("modeling_setcrop", "hub_card", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if "---:|" in path.read_text(encoding="utf-8")
    }
    assert ruled == {"modeling_setcrop/metrics/markdown.py"}
