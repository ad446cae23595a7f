"""SRCC and Acc_{K/N} over fixed candidates, for `evaluate.load("<this folder>")`."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from modeling_setcrop.metrics import catalogue, functional

_DESCRIPTION = """\
Spearman's rank correlation and Acc_{K/N} of predicted with ratings of an image's candidate crops, means over
images (Zeng et al., CVPR 2019).
"""
_CITATION = """\
@inproceedings{zeng2019reliable,
  title={Reliable and Efficient Image Cropping: A Grid Anchor Based Approach},
  author={Zeng, Hui and Li, Lida and Cao, Zisheng and Zhang, Lei},
  booktitle={CVPR},
  year={2019}
}
"""
_INPUTS = """\
predictions: one list per image, the predicted score of each candidate.
references: one list per image, its rating.
"""


class CropRanking(evaluate.Metric):
    """`srcc` (over the images whose ratings differ) and `acc_{k}/{n}`."""

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": scores, "references": scores}),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        k: tuple[int, ...] = (1, 2, 3, 4),
        n: tuple[int, ...] = (5, 10),
    ) -> dict[str, float]:
        predicted, rated = [np.array(row) for row in predictions], [np.array(row) for row in references]
        results = {"srcc": functional.mean_where_defined(functional.spearman(predicted, rated))}
        for best in n:
            for count in k:
                values = functional.candidate_accuracy(predicted, rated, k=count, n=best)
                results[catalogue.candidate_accuracy_key(count, best)] = float(values.mean())
        return results
