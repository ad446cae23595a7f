"""Validation during training: losses and the metrics that choose the best model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..crop_geometry import cxcywh_to_xyxy
from ..metrics import functional as measures
from ..metrics.catalogue import EPS, MEASURES, OLD_KEYS, accuracy_key, average_precision_key

Record = dict[str, Any]

_PRECISIONS = {average_precision_key(10, eps): eps for eps in EPS}
_ACCURACIES = {accuracy_key(n, eps): (n, eps) for n, eps in ((1, 0.90), (5, 0.85), (5, 0.90), (10, 0.90))}
# What is measured on rated crops, and all, by the keys of `metrics.catalogue`.
RATED_FIGURES = ("iou", *_ACCURACIES, "srcc")
FIGURES = ("loss", *_PRECISIONS, *RATED_FIGURES)


def figure_key(name: str) -> str:
    """Return the key of a validation figure, which recipes of earlier versions may call otherwise.

    Raises:
        ValueError: There is no such figure.
    """
    key = OLD_KEYS.get(name, name)
    if key not in FIGURES:
        raise ValueError(f"metric_for_best_model is {name!r}; there are {', '.join(FIGURES)}")
    return key


def is_better(key: str, value: float, best: float | None) -> bool:
    """Whether a validation figure is better than the best so far, which is None or NaN where there is none."""
    if best is None or math.isnan(best):
        return True
    higher = key != "loss" and bool(MEASURES[key].higher_is_better)
    return value > best if higher else value < best


@torch.no_grad()
def validation_records(model: Any, batch: dict[str, Any], indices: torch.Tensor, processor: Any) -> list[Record]:
    """Predictions and loss of one batch, a record per image, boxes normalised to [0, 1].

    The records hold the losses' sums and what these are divided by, so that the mean over the split does not depend on
    the batches.

    Args:
        model: in eval mode; not wrapped for several processes, which may have different numbers of batches.
        batch: `pixel_values`, `pixel_mask` and `labels` on the model's device.
        indices: (B,) the images' rows in the validation split.
        processor: decodes the predictions.
    """
    labels = batch["labels"]
    outputs = model(**batch, num_good_crops=1.0)
    scoring = float(model.scoring_loss(outputs.loss_dict))
    set_loss = float(outputs.loss) - scoring
    rated = sum(len(label["scores"]) > 0 for label in labels)
    predictions = processor.post_process_image_cropping(outputs, threshold=-1.0)
    ratings: list[np.ndarray | None] = [None] * len(labels)
    if model.config.crop_scoring:
        boxes = torch.nn.utils.rnn.pad_sequence([label["scored_boxes"] for label in labels], batch_first=True)
        predicted = model.score_crops(boxes, outputs.encoder_outputs, source=batch.get("source"))
        predicted = predicted.float().cpu().numpy()
        ratings = [row[: len(label["scores"])] for row, label in zip(predicted, labels, strict=True)]
    return [
        {
            "index": int(index),
            "boxes": prediction["boxes"].cpu().numpy(),
            "scores": prediction["scores"].cpu().numpy(),
            "scored_boxes": cxcywh_to_xyxy(label["scored_boxes"]).cpu().numpy(),
            "wanted_ratings": label["scores"].cpu().numpy(),
            "ratings": rating,
            "set_loss": set_loss / len(labels),
            "crops": len(label["boxes"]),
            "scoring_loss": scoring * rated / len(labels),
            "rated": len(label["scores"]) > 0,
        }
        for index, prediction, label, rating in zip(indices, predictions, labels, ratings, strict=True)
    ]


def validation_figures(records: list[Record], rows: Dataset) -> dict[str, float]:
    """Means over the validation split.

    Args:
        records: of all processes, each image once.
        rows: the validation split, in the shared schema.

    Returns:
        `images` (their number), `loss` (the set's, a mean over good crops, and the scoring head's, a mean over rated
        images) and the rest of `FIGURES`; `RATED_FIGURES` over the images whose crops are rated, if there are any,
        with `srcc` of the scoring head where there is one (of images whose labels rate any box: over drawn boxes).
    """
    records = sorted(records, key=lambda record: record["index"])
    labels = rows.select_columns(["boxes", "scores", "good", "width", "height"])
    labels = [labels[record["index"]] for record in records]
    boxes = [
        np.asarray(row["boxes"]) / np.array([row["width"], row["height"]] * 2, dtype=np.float64) for row in labels
    ]
    good = [np.asarray(row["good"]) for row in labels]
    predicted = [record["boxes"] for record in records], [record["scores"] for record in records]
    figures = {"images": len(records), "loss": _mean(records, "set_loss", "crops")}
    figures["loss"] += _mean(records, "scoring_loss", "rated")
    for key, eps in _PRECISIONS.items():
        figures[key] = measures.average_precision(*predicted, boxes, good, eps, k=10)
    rated = [index for index, row in enumerate(labels) if row["scores"] is not None]
    if not rated:
        return figures
    scores = [np.asarray(labels[index]["scores"]) for index in rated]
    boxes = [boxes[index] for index in rated]
    predicted = [predicted[0][index] for index in rated], [predicted[1][index] for index in rated]
    figures["iou"] = float(measures.first_crop_iou(*predicted, boxes, scores).mean())
    for key, (n, eps) in _ACCURACIES.items():
        figures[key] = float(measures.accuracy(*predicted, boxes, scores, n, eps).mean())
    ratings = [records[index]["ratings"] for index in rated]
    if ratings[0] is None:
        ratings = measures.overlap_scores(*predicted, [records[index]["scored_boxes"] for index in rated])
    wanted = [records[index]["wanted_ratings"] for index in rated]
    figures["srcc"] = measures.mean_where_defined(measures.spearman(ratings, wanted))
    return figures


def _mean(records: list[Record], total: str, count: str) -> float:
    return sum(record[total] for record in records) / max(1, sum(record[count] for record in records))
