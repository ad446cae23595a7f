"""ACC_{1/N}(eps), its transpose and the first crop's IoU, for `evaluate.load("<this folder>")`."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from modeling_setcrop.metrics import catalogue, functional

_DESCRIPTION = """\
Whether one of the first N crops meets the best-rated crop (Jia et al., CVPR 2022), whether the first crop
meets one of the N best-rated ones (later papers' use of the same name), and the former's IoU with the best-rated.
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
references: one dict per image: "boxes" in the same unit, "scores" (rating of each).
n: numbers of crops looked at. eps: IoU at which a crop is met. equals: of crops that share the highest rating,
count each as the best one, not the first alone (the transpose stays as it is).
"""


class CropAccuracy(evaluate.Metric):
    """Means over images: `acc_1/{n}@{eps}`, `acc_{n}/1@{eps}` and `iou`."""

    def _info(self) -> evaluate.MetricInfo:
        crops = {
            "boxes": datasets.List(datasets.List(datasets.Value("float64"), length=4)),
            "scores": datasets.List(datasets.Value("float64")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": crops, "references": crops}),
        )

    def _compute(
        self,
        predictions: list[dict],
        references: list[dict],
        n: tuple[int, ...] = (1, 5, 10),
        eps: tuple[float, ...] = catalogue.EPS,
        equals: bool = False,
    ) -> dict[str, float]:
        arguments = (
            [np.array(row["boxes"]) for row in predictions],
            [np.array(row["scores"]) for row in predictions],
            [np.array(row["boxes"]) for row in references],
            [np.array(row["scores"]) for row in references],
        )
        results = {"iou_any" if equals else "iou": float(functional.first_crop_iou(*arguments, equals=equals).mean())}
        for count in n:
            for threshold in eps:
                results[catalogue.accuracy_key(count, threshold, equals)] = float(
                    functional.accuracy(*arguments, n=count, eps=threshold, equals=equals).mean()
                )
                results[catalogue.transposed_accuracy_key(count, threshold)] = float(
                    functional.transposed_accuracy(*arguments, n=count, eps=threshold).mean()
                )
        return results
