"""Recall and diversity of the set of crops returned, for `evaluate.load("<this folder>")`."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from modeling_setcrop.metrics import catalogue, functional

_DESCRIPTION = """\
What the first K crops are worth as a set: the share of an image's good crops that one of them meets with IoU >=
eps, and the mean IoU between them (the lower, the more diverse). Means over images.
"""
_INPUTS = """\
predictions: one dict per image: "boxes" (corners x1, y1, x2, y2), "scores" (of each).
references: one dict per image: "boxes" of its good crops, in the same unit.
k: numbers of crops looked at. eps: IoU at which a crop is met.
"""


class CropSet(evaluate.Metric):
    """`recall_{k}@{eps}` and `pairwise_iou_{k}` (over the images where they are defined)."""

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64"), length=4))
        predictions = {"boxes": boxes, "scores": datasets.List(datasets.Value("float64"))}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": predictions, "references": {"boxes": boxes}}),
        )

    def _compute(
        self,
        predictions: list[dict],
        references: list[dict],
        k: tuple[int, ...] = (5, 10),
        eps: tuple[float, ...] = catalogue.EPS,
    ) -> dict[str, float]:
        pred_boxes = [np.array(row["boxes"]) for row in predictions]
        pred_scores = [np.array(row["scores"]) for row in predictions]
        boxes = [np.array(row["boxes"]) for row in references]
        good = [np.ones(len(row), bool) for row in boxes]
        results = {}
        for count in k:
            for threshold in eps:
                values = functional.recall(pred_boxes, pred_scores, boxes, good, eps=threshold, k=count)
                results[catalogue.recall_key(count, threshold)] = functional.mean_where_defined(values)
            values = functional.mean_pairwise_iou(pred_boxes, pred_scores, k=count)
            results[f"pairwise_iou_{count}"] = functional.mean_where_defined(values)
        return results
