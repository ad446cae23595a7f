"""Evaluations of a checkpoint as tables and as a card's `model-index`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from modeling_setcrop.metrics.catalogue import MEASURES, main_measures
from modeling_setcrop.metrics.markdown import markdown_table

# What `setcrop evaluate --out` writes: an evaluation, and what it is of.
EVALUATION, PREDICTIONS = "evaluation.json", "predictions.json"
# What files written by earlier versions call what is now called otherwise.
_OLD_KEYS = {"pictures": "images", "less_best_blind": "less_best_baseline"}
# What the Hub knows that is nearest: boxes in an image.
TASK = "object-detection"


class CardError(ValueError):
    """A file that a card is made from cannot be used; the message names it."""


def read_evaluations(folder: str | Path) -> list[dict[str, Any]]:
    """Return the evaluations under `folder/evaluation`, sorted by file name.

    Raises:
        CardError: a file is not one that `setcrop evaluate --out` writes, naming file and key.
    """
    paths = sorted(Path(folder, "evaluation").rglob("*.json"))
    return [read_evaluation(path) for path in paths if path.name != PREDICTIONS]


def read_evaluation(path: Path) -> dict[str, Any]:
    """Return one evaluation.

    Raises:
        CardError: the file is not one that `setcrop evaluate --out` writes, naming file and key.
    """
    evaluation = read_json(path)
    for key, kind in {"data": str, "split": str, "model": str, "images": int, "methods": dict}.items():
        if not isinstance(evaluation.get(key), kind):
            raise CardError(f"{path}: {key!r} is missing or no {kind.__name__}")
    if evaluation["model"] not in evaluation["methods"]:
        raise CardError(f"{path}: 'methods' has no {evaluation['model']!r}")
    for method, result in evaluation["methods"].items():
        if not isinstance(result, dict) or not isinstance(result.get("measures"), dict):
            raise CardError(f"{path}: method {method!r} has no 'measures'")
    return evaluation


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        CardError: unreadable or something else; the message names file and line.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=_current_keys)
    except json.JSONDecodeError as error:
        raise CardError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: not a JSON object")
    return content


def _current_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the keys that are written today in the place of those that older files have."""
    return {_OLD_KEYS.get(key, key): value for key, value in values.items()}


def _is_of_model(method: str, model: str) -> bool:
    """Whether a method is the model, or the model in one of its ways: "NAME, NMS 0.9" and the like."""
    return method == model or method.startswith(f"{model}, ")


def results_table(evaluation: dict[str, Any]) -> str:
    """Markdown: a row a method, the model first and with 95 % intervals in brackets."""
    methods = evaluation["methods"]
    shown = main_measures({name for result in methods.values() for name in result["measures"]}, with_neutral=False)
    order = sorted(methods, key=lambda name: not _is_of_model(name, evaluation["model"]))
    rows = {}
    for method in order:
        own = _is_of_model(method, evaluation["model"])
        rows[f"**{method}**" if own else method] = [
            _cell(methods[method]["measures"].get(name), interval=own) for name in shown
        ]
    return _table("", shown, rows)


def comparison_table(evaluation: dict[str, Any]) -> str | None:
    """Markdown: the model's measures less those of the best image-independent baseline, with paired 95 % intervals."""
    compared = {
        method: result["less_best_baseline"]
        for method, result in evaluation["methods"].items()
        if result.get("less_best_baseline") and _is_of_model(method, evaluation["model"])
    }
    shown = main_measures({name for found in compared.values() for name in found}, with_neutral=False)
    if not shown:
        return None
    rows = {
        method: [_cell(found.get(name), interval=True, signed=True) for name in shown]
        for method, found in compared.items()
    }
    return _table("less the best image-independent baseline", shown, rows)


def spread_table(evaluation: dict[str, Any]) -> str | None:
    """Markdown: how far the first crop's edges move from image to image, beside the labels' best crops."""
    spread = evaluation["methods"][evaluation["model"]].get("spread")
    if spread is None or "label_spread" not in evaluation:
        return None
    rows = {
        f"the first crop's edges ({evaluation['model']})": spread,
        "the labels' best crops' edges": evaluation["label_spread"],
    }
    cells = {name: [f"{row[edge]:.3f}" for edge in spread] for name, row in rows.items()}
    return markdown_table(["standard deviation of", *spread], [[name, *row] for name, row in cells.items()])


def identifier(name: str) -> str:
    """Return a name as the Hub takes identifiers: `ACC 1/5@0.85` is `acc_1_5_0.85`."""
    return re.sub(r"[^a-z0-9.-]+", "_", name.lower()).strip("_")


def model_index(evaluations: list[dict[str, Any]]) -> list[EvalResult]:
    """Return the model's measures for the card's metadata."""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image cropping",
            dataset_type=identifier(evaluation["data"]),
            dataset_name=f"{evaluation['data']} ({evaluation['images']} images)",
            dataset_split=evaluation["split"],
            metric_type=identifier(name),
            metric_name=MEASURES[name].label,
            metric_value=round(value, 4),
        )
        for evaluation in evaluations
        for name, value in _model_values(evaluation).items()
    ]


def _model_values(evaluation: dict[str, Any]) -> dict[str, float]:
    measures = evaluation["methods"][evaluation["model"]]["measures"]
    shown = main_measures(set(measures), with_neutral=False)
    return {name: measures[name]["value"] for name in shown if (measures[name] or {}).get("value") is not None}


def _table(corner: str, measures: list[str], rows: dict[str, list[str]]) -> str:
    header = [corner, *(MEASURES[name].label for name in measures)]
    return markdown_table(header, [[name, *cells] for name, cells in rows.items()])


def _cell(found: dict[str, float | None] | None, interval: bool, signed: bool = False) -> str:
    if not found or found["value"] is None:
        return "–"  # noqa: RUF001
    form = "+.3f" if signed else ".3f"
    if not interval or found.get("low") is None or found.get("high") is None:
        return f"{found['value']:{form}}"
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"
