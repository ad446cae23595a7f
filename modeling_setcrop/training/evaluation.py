"""Validation during training: losses and the metrics that choose the best model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import BaseImageProcessor

from ..crop_geometry import cxcywh_to_xyxy
from ..metrics import functional as measures

Record = dict[str, Any]

FIGURES = (
    "loss",
    "ap_k10_085",
    "ap_k10_090",
    "first_iou",
    "acc1_090",
    "acc5_085",
    "acc5_090",
    "acc10_090",
    "srcc",
)


@torch.no_grad()
def validation_records(
    model: torch.nn.Module, batch: dict[str, Any], indices: torch.Tensor, processor: BaseImageProcessor
) -> list[Record]:
    """Predictions and loss of one batch, a record a picture, everything in shares of the picture's sides.

    Args:
        model: in eval mode; not wrapped for several processes, which may have different numbers of batches.
        batch: `pixel_values`, `pixel_mask` and `labels` on the model's device.
        indices: (B,) the pictures' rows in the validation split.
        processor: decodes the predictions.
    """
    labels = batch["labels"]
    crops = sum(len(label["boxes"]) for label in labels)
    outputs = model(**batch, num_good_crops=float(max(1, crops)))
    predictions = processor.post_process_image_cropping(outputs, threshold=-1.0)
    ratings: list[np.ndarray | None] = [None] * len(labels)
    if model.config.crop_scoring:
        boxes = torch.nn.utils.rnn.pad_sequence([label["scored_boxes"] for label in labels], batch_first=True)
        predicted = model.score_crops(boxes, outputs.encoder_outputs).float().cpu().numpy()
        ratings = [row[: len(label["scores"])] for row, label in zip(predicted, labels, strict=True)]
    return [
        {
            "index": int(index),
            "boxes": prediction["boxes"].cpu().numpy(),
            "scores": prediction["scores"].cpu().numpy(),
            "scored_boxes": cxcywh_to_xyxy(label["scored_boxes"]).cpu().numpy(),
            "ratings": rating,
            "loss": float(outputs.loss) * crops / len(labels),
            "crops": crops / len(labels),
        }
        for index, prediction, label, rating in zip(indices, predictions, labels, ratings, strict=True)
    ]


def validation_figures(records: list[Record], rows: Dataset) -> dict[str, float]:
    """Means over the validation split.

    Args:
        records: of all processes, each picture once.
        rows: the validation split, in the shared schema.

    Returns:
        `pictures` (their number), `loss` (the mean over good crops), `ap_k10_085`, `ap_k10_090`, and, where crops are
        rated, `first_iou`, `acc1_090`, `acc5_085`, `acc5_090`, `acc10_090` and `srcc` (of the scoring head where there
        is one).
    """
    records = sorted(records, key=lambda record: record["index"])
    labels = rows.select_columns(["boxes", "scores", "good", "width", "height"])
    labels = [labels[record["index"]] for record in records]
    boxes = [
        np.asarray(row["boxes"]) / np.array([row["width"], row["height"]] * 2, dtype=np.float64) for row in labels
    ]
    good = [np.asarray(row["good"]) for row in labels]
    predicted = [record["boxes"] for record in records], [record["scores"] for record in records]
    figures = {
        "pictures": len(records),
        "loss": sum(record["loss"] for record in records) / max(1e-9, sum(record["crops"] for record in records)),
    }
    for eps, name in ((0.85, "085"), (0.90, "090")):
        figures[f"ap_k10_{name}"] = measures.average_precision(*predicted, boxes, good, eps, k=10)
    if any(row["scores"] is None for row in labels):
        return figures
    scores = [np.asarray(row["scores"]) for row in labels]
    figures["first_iou"] = float(measures.first_crop_iou(*predicted, boxes, scores).mean())
    for n, eps, name in ((1, 0.90, "090"), (5, 0.85, "085"), (5, 0.90, "090"), (10, 0.90, "090")):
        figures[f"acc{n}_{name}"] = float(measures.accuracy(*predicted, boxes, scores, n, eps).mean())
    ratings = [record["ratings"] for record in records]
    if ratings[0] is None:
        ratings = measures.overlap_scores(*predicted, boxes)
    figures["srcc"] = measures.mean_where_defined(measures.spearman(ratings, scores))
    return figures
