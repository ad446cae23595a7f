"""IoU and boundary displacement of the first crop, for `evaluate.load("<this folder>")`."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from modeling_setcrop.metrics import functional

_DESCRIPTION = """\
IoU and boundary displacement error of the first crop with the annotators' crops: the nearest one (what is printed
for FLMS; Fang et al., ACM MM 2014) and the mean over annotators. With one crop per image (FCDB; Chen et al., WACV
2017) both are the same.
"""
_CITATION = """\
@inproceedings{fang2014automatic,
  title={Automatic Image Cropping using Visual Composition, Boundary Simplicity and Content Preservation Models},
  author={Fang, Chen and Lin, Zhe and Mech, Radomir and Shen, Xiaohui},
  booktitle={ACM Multimedia},
  year={2014}
}
"""
_INPUTS = """\
predictions: one dict per image: "boxes" (corners x1, y1, x2, y2), "scores" (of each).
references: one dict per image: "boxes" of its annotators in the same unit, "size" [width, height] of the image.
"""


class CropOverlap(evaluate.Metric):
    """Means over images: `iou`, `iou_mean`, `bde` and `bde_mean` (`_mean`: over annotators)."""

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64"), length=4))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {"boxes": boxes, "scores": datasets.List(datasets.Value("float64"))},
                    "references": {"boxes": boxes, "size": datasets.List(datasets.Value("float64"), length=2)},
                }
            ),
        )

    def _compute(self, predictions: list[dict], references: list[dict]) -> dict[str, float]:
        pred_boxes = [np.array(row["boxes"]) for row in predictions]
        pred_scores = [np.array(row["scores"]) for row in predictions]
        boxes = [np.array(row["boxes"]) for row in references]
        sizes = np.array([row["size"] for row in references])
        iou, iou_mean = functional.iou_with_annotators(pred_boxes, pred_scores, boxes)
        bde, bde_mean = functional.boundary_displacement(pred_boxes, pred_scores, boxes, sizes)
        values = {"iou": iou, "iou_mean": iou_mean, "bde": bde, "bde_mean": bde_mean}
        return {name: float(value.mean()) for name, value in values.items()}
