"""An evaluation as a terminal table, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
from rich.table import Table

from modeling_setcrop.evaluation.measures import RESAMPLES, Estimate
from modeling_setcrop.evaluation.run import Evaluation

EDGES = ("left", "top", "right", "bottom")
# What a reader looks at first; the files hold every measure.
_SHOWN = {
    "iou": "IoU",
    "iou_mean": "IoU, mean",
    "bde": "BDE",
    "bde_mean": "BDE, mean",
    "iou_best_of_5": "best of 5",
    "acc_1/1@0.90": "ACC 1/1\n0.90",
    "acc_1/5@0.85": "ACC 1/5\n0.85",
    "acc_1/10@0.85": "ACC 1/10\n0.85",
    "acc_1/5@0.90": "ACC 1/5\n0.90",
    "acc_1/10@0.90": "ACC 1/10\n0.90",
    "ap_10@0.85": "AP 10\n0.85",
    "ap_10@0.90": "AP 10\n0.90",
    "srcc": "SRCC",
    "pairwise_iou_5": "IoU among\nthe first 5",
}


def cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main measures, each over its 95 % interval, and of the spread of first crops."""
    shown = [name for name in _SHOWN if any(name in result.estimates for result in evaluation.methods.values())]
    header = ["method", *(_SHOWN[name] for name in shown), "spread of edges\nl t r b"]
    rows = [
        [method, *(_cell(result.estimates.get(name)) for name in shown), _spread(result.spread)]
        for method, result in evaluation.methods.items()
    ]
    rows.append(["labels' crops", *[""] * len(shown), _spread(evaluation.label_spread)])
    return header, rows


def title(evaluation: Evaluation) -> str:
    """Which pictures of which data set were evaluated."""
    about = evaluation.description
    place = ", ".join(str(about[key]) for key in ("data", "layout", "split") if key in about)
    return f"{place + ': ' if place else ''}{len(evaluation.labels)} pictures"


def terminal_table(evaluation: Evaluation) -> Table:
    """The main measures as a table for the terminal."""
    header, rows = cells(evaluation)
    table = Table(title=title(evaluation), caption="95 % bootstrap intervals over pictures", title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(evaluation: Evaluation) -> str:
    """The main measures as a Markdown table."""
    header, rows = cells(evaluation)
    lines = [
        f"{title(evaluation)}. In brackets: 95 % bootstrap intervals over pictures ({RESAMPLES} resamples).",
        "",
        f"| {' | '.join(name.replace(chr(10), ' ') for name in header)} |",
        f"|---|{'---:|' * (len(header) - 1)}",
    ]
    for row in rows:
        parts = [text.partition("\n") for text in row]
        texts = [f"{value} ({interval})" if interval else value for value, _, interval in parts]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def csv_text(evaluation: Evaluation) -> str:
    """One line for each method and measure, every measure included."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "measure", "value", "low", "high", "pictures"])
    pictures = len(evaluation.labels)
    for method, result in evaluation.methods.items():
        for name, found in result.estimates.items():
            writer.writerow([method, name, *(f"{value:.6f}" for value in found), pictures])
        if result.spread is not None:
            for edge, value in zip(EDGES, result.spread, strict=True):
                writer.writerow([method, f"spread_{edge}", f"{value:.6f}", "", "", pictures])
    for edge, value in zip(EDGES, evaluation.label_spread, strict=True):
        writer.writerow(["labels' crops", f"spread_{edge}", f"{value:.6f}", "", "", pictures])
    return text.getvalue()


def json_text(evaluation: Evaluation) -> str:
    """Every measure of every method with its interval; what is undefined is null."""

    def entry(found: Estimate) -> dict[str, float | None]:
        return {key: None if math.isnan(value) else value for key, value in found._asdict().items()}

    def edges(spread: np.ndarray) -> dict[str, float]:
        return dict(zip(EDGES, map(float, spread), strict=True))

    content = {
        **evaluation.description,
        "pictures": len(evaluation.labels),
        "resamples": RESAMPLES,
        "label_spread": edges(evaluation.label_spread),
        "methods": {
            method: {
                "measures": {name: entry(found) for name, found in result.estimates.items()},
                "spread": None if result.spread is None else edges(result.spread),
            }
            for method, result in evaluation.methods.items()
        },
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write(evaluation: Evaluation, folder: str | os.PathLike) -> list[Path]:
    """Writes `evaluation.json`, `.csv` and `.md` into `folder`, which is made if need be."""
    texts = {"json": json_text(evaluation), "csv": csv_text(evaluation), "md": markdown(evaluation)}
    return [write_text(Path(folder) / f"evaluation.{ending}", text) for ending, text in texts.items()]


def write_text(path: Path, text: str) -> Path:
    """Writes a text file whole or not at all."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def _cell(found: Estimate | None) -> str:
    if found is None or math.isnan(found.value):
        return "-"
    return f"{found.value:.3f}\n{found.low:.3f}-{found.high:.3f}"


def _spread(spread: np.ndarray | None) -> str:
    return "-" if spread is None else " ".join(f"{value:.3f}" for value in spread)
