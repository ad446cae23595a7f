"""Figures of an evaluation, as matplotlib figures and as one image of crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from PIL import Image

from .. import metrics
from ..image_reading import LoadedImage
from ..images import drawing
from ..loss_setcrop import quality_targets
from ..metrics.catalogue import EPS
from ..metrics.functional import RECALL_LEVELS
from .labels import Labels, Predictions

_QUALITY_IOU = 0.85
_SCORE_BIN = 0.25
_TILES_A_ROW = 4


def quality_validity(labels: Labels, predictions: Predictions) -> Figure:
    """Return validity of each predicted crop against the rating of the labelled crop it overlaps most (paper, Fig. 7).

    Predictions that overlap no labelled crop by 0.85 IoU have no known quality and are left out.
    """
    found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for pred, scores, boxes, rated in zip(
        predictions.boxes, predictions.scores, labels.boxes, labels.ratings(), strict=True
    ):
        iou = metrics.pairwise_iou(pred, boxes)
        known = iou.max(axis=1) >= _QUALITY_IOU
        found[0].append(rated[iou.argmax(axis=1)][known])
        found[1].append(scores[known])
    quality, validity = np.concatenate(found[0]), np.concatenate(found[1])
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(quality, validity, s=6, alpha=0.3, linewidths=0, color="#0072b2", rasterized=True)
    bins = np.digitize(quality, np.arange(1, 5.01, 0.25))
    centres = [(quality[bins == b].mean(), validity[bins == b].mean()) for b in np.unique(bins)]
    if centres:
        axes.plot(*zip(*centres, strict=True), color="#d55e00", marker="o", markersize=4, label="mean")
        axes.legend(frameon=False)
    axes.set(xlabel="rating of the nearest labelled crop", ylabel="predicted validity")
    axes.set_title(f"Quality and validity, {len(quality)} predictions")
    return figure


def score_calibration(labels: Labels, predictions: Predictions) -> Figure:
    """Mean labelled score of the crops that a model gives about the same score, and how many there are.

    Args:
        labels: with ratings.
        predictions: with `candidate_scores`.
    """
    predicted, rated = np.concatenate(predictions.candidate_scores or []), np.concatenate(labels.ratings())
    bins = np.floor(predicted / _SCORE_BIN).astype(int)
    found, inverse, counts = np.unique(bins, return_inverse=True, return_counts=True)
    means = [np.bincount(inverse, weights=values) / counts for values in (predicted, rated)]
    error = np.abs(means[0] - means[1]) @ counts / counts.sum()
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    ends = [min(means[0].min(), means[1].min()), max(means[0].max(), means[1].max())]
    top.plot(ends, ends, color="grey", linestyle=":", label="equal")
    top.plot(*means, color="#0072b2", marker="o", markersize=4, label=f"bins of {_SCORE_BIN}")
    top.set(ylabel="mean labelled score", title=f"Scoring head, {len(rated)} crops: mean distance {error:.2f}")
    top.legend(frameon=False)
    bottom.bar((found + 0.5) * _SCORE_BIN, counts, width=0.9 * _SCORE_BIN, color="#0072b2")
    bottom.set(xlabel="predicted score", ylabel="crops")
    return figure


def smoothing_map(config: Any) -> Figure:
    """Return the map M of quality guidance (paper, Fig. 6a): soft label by rating and IoU of the nearest rated crop.

    Args:
        config: gives `smoothing_upper_bound`, `quality_lower`, `quality_upper` and `quality_iou_threshold`.
    """
    scores, overlaps = np.linspace(1, 5, 161), np.linspace(0.7, 1, 121)
    # A predicted box that is the left part of a rated whole image overlaps it by its width.
    boxes = torch.tensor([[width / 2, 0.5, width, 1.0] for width in overlaps], dtype=torch.float32)
    whole = torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]).expand(len(scores), 1, 4)
    rated = torch.ones(len(scores), 1, dtype=torch.bool)
    values = torch.as_tensor(scores, dtype=torch.float32)[:, None]
    labels = quality_targets(boxes.expand(1, len(scores), -1, -1), whole, values, rated, config)[0].numpy()
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curve, area = figure.subplots(1, 2)
    curve.plot(scores, labels[:, -1], color="#0072b2")
    curve.set(xlabel="rating", ylabel="soft label", ylim=(-0.02, 1), title="where the crops coincide")
    extent = (overlaps[0], overlaps[-1], scores[0], scores[-1])
    shown = area.imshow(labels, origin="lower", aspect="auto", extent=extent, vmin=0, vmax=1)
    area.set(xlabel="IoU with the nearest rated crop", ylabel="rating", title="by overlap")
    figure.colorbar(shown, ax=area, label="soft label")
    return figure


def precision_recall(labels: Labels, answers: dict[str, Predictions], k: int = 40) -> Figure:
    """Interpolated precision over recall of the first K crops, one panel an eps, one line a method."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, eps in zip(figure.subplots(1, len(EPS), sharey=True), EPS, strict=True):
        for name, answer in answers.items():
            curve = metrics.precision_at_recall(
                metrics.match(answer.boxes, answer.scores, labels.boxes, labels.good, eps, k)
            )
            axes.plot(RECALL_LEVELS, curve, label=f"{name}: AP {curve.mean():.3f}")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1), title=f"IoU {eps:.2f}, K = {k}")
        axes.legend(frameon=False, fontsize=8)
    return figure


def contact_sheet(
    dataset: Dataset, labels: Labels, predictions: Predictions | None, images: Sequence[int], crops: int = 3
) -> Image.Image:
    """Return chosen images, each with the labels' best crops, and beside it with the model's first ones.

    Without predictions there are the labels' alone.
    """
    tiles = []
    for index in images:
        image = dataset[int(index)]["image"].convert("RGB")
        loaded = LoadedImage(image, (image.height, image.width))
        rated = None if labels.scores is None else labels.scores[index]
        best = np.arange(len(labels.boxes[index])) if rated is None else np.argsort(-rated, kind="stable")[:crops]
        tiles.append(_drawn("labels", loaded, labels.boxes[index][best], None if rated is None else rated[best]))
        if predictions is not None:
            top, scores = metrics.ranked([predictions.boxes[index]], [predictions.scores[index]], crops)
            tiles.append(_drawn("model", loaded, top[0], scores[0]))
    rows = [tiles[start : start + _TILES_A_ROW] for start in range(0, len(tiles), _TILES_A_ROW)]
    return drawing.contact_sheet(rows)


def _drawn(caption: str, loaded: LoadedImage, boxes: np.ndarray, scores: np.ndarray | None) -> tuple[str, Image.Image]:
    """Return a tile with (K, 4) crops, normalised to [0, 1], and (K,) scores or none."""
    height, width = loaded.size
    edges = ("xmin", "ymin", "xmax", "ymax")
    crops: list[dict[str, Any]] = [
        {"box": dict(zip(edges, box, strict=True))} for box in (boxes * (width, height, width, height)).tolist()
    ]
    if scores is not None:
        for crop, score in zip(crops, scores.tolist(), strict=True):
            crop["score"] = score
    return caption, drawing.draw_crops(loaded, crops)
