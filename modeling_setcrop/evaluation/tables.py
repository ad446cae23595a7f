"""An evaluation as a terminal table, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset
from rich.table import Table

from ..coco_annotations import coco_file_name, coco_image_id, coco_prediction
from ..images.atomic import atomic_writer
from ..metrics.catalogue import MEASURES, main_measures
from ..metrics.markdown import markdown_table
from .measures import RESAMPLES, Estimate
from .run import Comparison, Evaluation

EDGES = ("left", "top", "right", "bottom")
# Headers in the terminal are wrapped to so many characters.
_HEADER_WIDTH = 12


def cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the main measures, each over its 95 % interval, and of the spread of first crops."""
    shown = main_measures({name for result in evaluation.methods.values() for name in result.estimates})
    header = ["method", *(MEASURES[name].label for name in shown), "spread of edges l t r b"]
    rows = [
        [method, *(_cell(result.estimates.get(name)) for name in shown), _spread(result.spread)]
        for method, result in evaluation.methods.items()
    ]
    rows.append(["labels' crops", *[""] * len(shown), _spread(evaluation.label_spread)])
    return header, rows


def comparison_cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]] | None:
    """Return header and rows, a row a measure: the best image-independent baseline, and how much each method beats it.

    Each difference stands over its paired 95 % interval; None where there is nothing to compare.
    """
    methods, rows = evaluation.compared(), []
    for name in main_measures(set(MEASURES), with_neutral=False):
        found = [evaluation.against_baselines(method, name) for method in methods]
        if any(found):
            against = next(one.against for one in found if one)
            value = evaluation.methods[against].estimates[name].value
            rows.append([MEASURES[name].label, f"{against}\n{value:.3f}", *(_difference(one) for one in found)])
    return (["", "best image-independent baseline", *methods], rows) if rows else None


def title(evaluation: Evaluation) -> str:
    """Which images of which data set were evaluated."""
    about = evaluation.description
    place = ", ".join(str(about[key]) for key in ("data", "layout", "split") if key in about)
    equals = evaluation.equals
    several = "" if not equals else f", on {equals:.0%} of them several crops share the best score"
    return f"{place + ': ' if place else ''}{len(evaluation.labels)} images{several}"


def terminal_tables(evaluation: Evaluation) -> list[Table]:
    """Return the main measures, and the differences from the best baselines, as tables for the terminal."""
    tables = [_terminal_table(*cells(evaluation), title(evaluation), "95 % bootstrap intervals over images")]
    compared = comparison_cells(evaluation)
    if compared:
        caption = "paired 95 % bootstrap intervals; of BDE less is better"
        tables.append(_terminal_table(*compared, "better than every image-independent baseline?", caption))
    return tables


def _terminal_table(header: list[str], rows: list[list[str]], title: str, caption: str) -> Table:
    table = Table(title=title, caption=caption, title_justify="left")
    for number, name in enumerate(header):
        wrapped = "\n".join(textwrap.wrap(name, _HEADER_WIDTH))
        table.add_column(wrapped, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(evaluation: Evaluation) -> str:
    """Return the main measures, and the differences from the best image-independent baselines, as Markdown tables."""
    intervals = f"In brackets: 95 % bootstrap intervals over images ({RESAMPLES} resamples)"
    header, rows = cells(evaluation)
    parts = [f"{title(evaluation)}. {intervals}.", "", markdown_table(header, _in_brackets(rows))]
    compared = comparison_cells(evaluation)
    if compared:
        header, rows = compared
        parts += ["", f"{intervals}, paired; of BDE less is better.", "", markdown_table(header, _in_brackets(rows))]
    return "\n".join(parts) + "\n"


def _in_brackets(rows: list[list[str]]) -> Iterator[list[str]]:
    """Yield rows whose intervals, below the values, are behind them in brackets."""
    for row in rows:
        parts = [text.partition("\n") for text in row]
        yield [f"{value} ({interval})" if interval else value for value, _, interval in parts]


def csv_text(evaluation: Evaluation) -> str:
    """One line for each method and measure, every measure included."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "measure", "value", "low", "high", "images"])
    images = len(evaluation.labels)
    for method, result in evaluation.methods.items():
        for name, found in result.estimates.items():
            writer.writerow([method, name, *(f"{value:.6f}" for value in found), images])
        if result.spread is not None:
            for edge, value in zip(EDGES, result.spread, strict=True):
                writer.writerow([method, f"spread_{edge}", f"{value:.6f}", "", "", images])
    for edge, value in zip(EDGES, evaluation.label_spread, strict=True):
        writer.writerow(["labels' crops", f"spread_{edge}", f"{value:.6f}", "", "", images])
    return text.getvalue()


def json_text(evaluation: Evaluation) -> str:
    """Every measure of every method with its interval; what is undefined is null."""

    def entry(found: Estimate) -> dict[str, float | None]:
        return {key: None if math.isnan(value) else value for key, value in found._asdict().items()}

    def edges(spread: np.ndarray) -> dict[str, float]:
        return dict(zip(EDGES, map(float, spread), strict=True))

    def against(method: str) -> dict[str, dict]:
        found = {
            name: evaluation.against_baselines(method, name)
            for name in main_measures(set(MEASURES), with_neutral=False)
        }
        return {name: entry(one.difference) | {"against": one.against} for name, one in found.items() if one}

    compared = evaluation.compared()
    content = {
        **evaluation.description,
        "images": len(evaluation.labels),
        "share_with_equal_best": evaluation.equals,
        "resamples": RESAMPLES,
        "label_spread": edges(evaluation.label_spread),
        "methods": {
            method: {
                "measures": {name: entry(found) for name, found in result.estimates.items()},
                "spread": None if result.spread is None else edges(result.spread),
                **({"less_best_baseline": against(method)} if method in compared else {}),
            }
            for method, result in evaluation.methods.items()
        },
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write(evaluation: Evaluation, folder: str | os.PathLike) -> list[Path]:
    """Write `evaluation.json`, `.csv` and `.md` into `folder`, which is made if need be."""
    texts = {"json": json_text(evaluation), "csv": csv_text(evaluation), "md": markdown(evaluation)}
    return [write_text(Path(folder) / f"evaluation.{ending}", text) for ending, text in texts.items()]


def write_predictions(evaluation: Evaluation, folder: str | os.PathLike) -> list[Path]:
    """Write the model's crops as COCO results to `predictions.json`, where there was a model; return the files."""
    if evaluation.predictions is None:
        return []
    results = [
        coco_prediction(number, box * np.tile(size, 2), score)
        for number, size, boxes, scores in zip(
            _coco_ids(evaluation.dataset),
            evaluation.labels.sizes,
            evaluation.predictions.boxes,
            evaluation.predictions.scores,
            strict=True,
        )
        for box, score in zip(boxes, scores, strict=True)
    ]
    return [write_text(Path(folder) / "predictions.json", json.dumps(results))]


def _coco_ids(dataset: Dataset) -> list[int]:
    """Return the images' numbers: of the COCO file that they come from, or as `data convert --to coco` gives them."""
    known = dataset["coco_id"] if "coco_id" in dataset.column_names else [None] * len(dataset)
    names = dataset["image_id"]
    return [
        coco_image_id(coco_file_name(name, "")) if number is None else number
        for name, number in zip(names, known, strict=True)
    ]


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    with atomic_writer(path) as file:
        file.write(content)
    return path


def _cell(found: Estimate | None) -> str:
    if found is None or math.isnan(found.value):
        return "-"
    return f"{found.value:.3f}\n{found.low:.3f}-{found.high:.3f}"


def _difference(found: Comparison | None) -> str:
    if found is None or math.isnan(found.difference.value):
        return "-"
    value, low, high = found.difference
    return f"{value:+.3f}\n{low:+.3f} to {high:+.3f}"


def _spread(spread: np.ndarray | None) -> str:
    return "-" if spread is None else " ".join(f"{value:.3f}" for value in spread)
