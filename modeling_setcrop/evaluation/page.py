"""An evaluation with its figures as PNG files and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import baselines, plots, tables
from .labels import Labels, Predictions
from .run import Evaluation

_HEADINGS = {
    "contact_sheet": "Images",
    "quality_validity": "Quality and validity",
    "score_calibration": "Calibration of the scoring head",
    "precision_recall": "Precision and recall",
    "smoothing_map": "Smoothing map",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 12px; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
td small { color: #777; white-space: nowrap; }
div.wide { overflow-x: auto; }
img { max-width: 100%; }
figcaption { color: #555; font-size: 13px; max-width: 50rem; }
figure { margin: 1.5rem 0; }
"""


def write_report(
    evaluation: Evaluation,
    folder: str | os.PathLike,
    config: Any = None,
    train: Labels | None = None,
    images: int = 12,
) -> Path:
    """Write `index.html`, the figures as PNG and the evaluation's tables into `folder`.

    Args:
        config: the model's configuration, for the smoothing map; None leaves it out.
        train: labels that the constant set's curve in the precision-recall figure is fitted on.
        images: number of images on the contact sheet, evenly spaced over the data set.

    Returns:
        The path of the page, which needs no other file.
    """
    target = Path(folder)
    tables.write(evaluation, target)
    figures = _figures(evaluation, config, train, images)
    for name, (content, _) in figures.items():
        tables.write_bytes(target / f"{name}.png", content)
    return tables.write_text(target / "index.html", _page(evaluation, figures))


def _figures(evaluation: Evaluation, config: Any, train: Labels | None, images: int) -> dict[str, tuple[bytes, str]]:
    """PNG content and caption of each figure, by file name."""
    labels, predictions = evaluation.labels, evaluation.predictions
    found = {}
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(images, len(labels))).round().astype(int))
    sheet = plots.contact_sheet(evaluation.dataset, labels, predictions, chosen.tolist())
    model = "" if predictions is None else " Model: its first three crops with their scores."
    rated = "the three best-rated crops with their scores" if labels.scores is not None else "the annotators' crops"
    found["contact_sheet"] = (_png(sheet), f"Labels: {rated}.{model} The first one is drawn on top.")
    if predictions is not None and labels.scores is not None:
        found["quality_validity"] = (
            _png(plots.quality_validity(labels, predictions.by_validity or predictions)),
            "Every predicted crop that overlaps a labelled one by at least 0.85 IoU.",
        )
        if predictions.candidate_scores is not None:
            found["score_calibration"] = (
                _png(plots.score_calibration(labels, predictions)),
                "The scoring head on every labelled crop: above the dotted line the labels are higher.",
            )
    answers: dict[str, Predictions] = {}
    if predictions is not None:
        answers[str(evaluation.description.get("model", "model"))] = predictions
    if train is not None:
        answers["constant: frequency"] = baselines.constant(*baselines.frequent_set(train), len(labels))
    if answers:
        found["precision_recall"] = (
            _png(plots.precision_recall(labels, answers)),
            "Against the good crops, all images pooled.",
        )
    if config is not None:
        found["smoothing_map"] = (
            _png(plots.smoothing_map(config)),
            "The soft label that quality guidance gives an unmatched prediction in training, with this model's "
            "settings.",
        )
    return found


def _page(evaluation: Evaluation, figures: dict[str, tuple[bytes, str]]) -> str:
    title = html.escape(tables.title(evaluation))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        "<p>Each figure stands beside answers that do not look at the image. Small: 95&nbsp;% bootstrap intervals "
        "over images. Spread: standard deviation over images of the first crop's left, top, right and bottom "
        "edge, normalised to [0, 1].</p>",
        _table(*tables.cells(evaluation)),
    ]
    compared = tables.comparison_cells(evaluation)
    if compared:
        parts += [
            "<h2>Better than every image-independent baseline?</h2>",
            "<p>By how much each method differs from the image-independent baseline that is best by a measure, "
            "with paired 95&nbsp;% intervals; of BDE less is better.</p>",
            _table(*compared),
        ]
    for name, (content, caption) in figures.items():
        heading = _HEADINGS[name]
        data = base64.b64encode(content).decode("ascii")
        parts.append(
            f'<figure><h2>{heading}</h2><img alt="{heading}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</body></html>", ""])


def _table(header: list[str], rows: list[list[str]]) -> str:
    def cell(text: str) -> str:
        value, _, interval = text.partition("\n")
        return html.escape(value) + (f"<br><small>{html.escape(interval)}</small>" if interval else "")

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    if isinstance(figure, Image.Image):
        figure.save(content, "PNG", optimize=True)
    else:
        figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
