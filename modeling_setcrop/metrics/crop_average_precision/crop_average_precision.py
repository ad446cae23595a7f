"""AP(eps, K) of a set of crops, for `evaluate.load("<this folder>")`."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from modeling_setcrop.metrics import catalogue, functional

_DESCRIPTION = """\
101-point average precision of the first K crops of each image against its good crops, pooled over images (Jia
et al., CVPR 2022): COCO's average precision at one IoU threshold, with maxDets = K.
"""
_CITATION = """\
@inproceedings{jia2022rethinking,
  title={Rethinking Image Cropping: Exploring Diverse Compositions from Global Views},
  author={Jia, Gengyun and Huang, Huaibo and Fu, Chaoyou and He, Ran},
  booktitle={CVPR},
  year={2022}
}
"""
_INPUTS = """\
predictions: one dict per image: "boxes" (corners x1, y1, x2, y2), "scores" (of each).
references: one dict per image: "boxes" of its good crops, in the same unit.
k: numbers of crops looked at. eps: IoU at which a crop is met.
"""


class CropAveragePrecision(evaluate.Metric):
    """`ap_{k}@{eps}` for every K and eps."""

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64"), length=4))
        predictions = {"boxes": boxes, "scores": datasets.List(datasets.Value("float64"))}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": predictions, "references": {"boxes": boxes}}),
        )

    def _compute(
        self,
        predictions: list[dict],
        references: list[dict],
        k: tuple[int, ...] = (5, 10, 40),
        eps: tuple[float, ...] = catalogue.EPS,
    ) -> dict[str, float]:
        arguments = (
            [np.array(row["boxes"]) for row in predictions],
            [np.array(row["scores"]) for row in predictions],
            [np.array(row["boxes"]) for row in references],
            [np.ones(len(row["boxes"]), bool) for row in references],
        )
        return {
            catalogue.average_precision_key(count, threshold): functional.average_precision(
                *arguments, eps=threshold, k=count
            )
            for count in k
            for threshold in eps
        }
