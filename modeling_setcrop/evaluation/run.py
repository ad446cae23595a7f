"""Evaluate a model, the baselines and the annotators on one data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from ..data.schema import DataError, Problems
from ..metrics import has_equals
from ..metrics.catalogue import EPS, MEASURES
from . import baselines
from .labels import Labels, Predictions
from .measures import (
    Estimate,
    Resampled,
    first_crop_spread,
    label_spread,
    measure,
    measure_human_agreement,
    measure_ranking,
    resample,
)
from .predict import predict, suppress

# The model's crops are measured as ranked, and again with crops left out that nearly repeat a better one: crops that
# overlap by more than this serve as one another's substitute in every measure.
DIVERSE_NMS = 0.9


@dataclass(frozen=True)
class MethodResult:
    """A method's measures, and the spread (4,) of its first crop's edges where it answers with crops.

    image_independent: the method never looks at the image.
    """

    resampled: dict[str, Resampled]
    spread: np.ndarray | None = None
    image_independent: bool = False

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The measures with their intervals."""
        return {name: found.estimate() for name, found in self.resampled.items()}


class Comparison(NamedTuple):
    """A method's measure less that of `against`, the best of the image-independent baselines by this measure."""

    difference: Estimate
    against: str


@dataclass
class Evaluation:
    """Everything that was measured on one data set, and the answers it was measured from.

    dataset: the rows that were evaluated; methods: results by method name, in the order they are shown; label_spread:
    (4,) spread of the labels' crops; predictions: the model's answers, None without a model.
    """

    dataset: Dataset
    labels: Labels
    methods: dict[str, MethodResult]
    label_spread: np.ndarray
    predictions: Predictions | None = None
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def equals(self) -> float | None:
        """The share of the images on which several crops share the best score; None without scores."""
        return None if self.labels.scores is None else float(has_equals(self.labels.scores).mean())

    def compared(self) -> list[str]:
        """Return the methods that look at the image, which are to be better than those that do not."""
        baselines = any(result.image_independent for result in self.methods.values())
        return [name for name, result in self.methods.items() if baselines and not result.image_independent]

    def against_baselines(self, method: str, measure: str) -> Comparison | None:
        """Return how much better a method is than every image-independent baseline, by one measure.

        None for a method without this measure, or where no image-independent baseline has it. A boundary displacement
        is better when it is smaller: there a negative difference says that the method is better.
        """
        own = self.methods[method].resampled.get(measure)
        baseline = {
            name: result.resampled[measure]
            for name, result in self.methods.items()
            if result.image_independent
            and measure in result.resampled
            and not np.isnan(result.resampled[measure].value)
        }
        if own is None or not baseline:
            return None
        best = (max if MEASURES[measure].higher_is_better else min)(baseline, key=lambda name: baseline[name].value)
        return Comparison(own.less(baseline[best]), best)


def run(
    dataset: Dataset,
    model: Any = None,
    processor: Any = None,
    model_name: str = "model",
    train: Labels | None = None,
    centre_scale: float = 0.9,
    batch_size: int = 8,
    device: str = "cpu",
    problems: Problems | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure a model beside the baselines on the same images.

    Args:
        dataset: rows as in `modeling_setcrop.data.FEATURES`.
        model, processor: a `SetCropForImageCropping` and its processor; None: the baselines alone.
        train: labels that the constant baselines are fitted on; without them these are left out.
        centre_scale: side of the centre crop and of the saliency croppers' crops, as a fraction of the image's.
        problems, progress: see `predict`.

    Raises:
        DataError: no image could be decoded.
    """
    labels = Labels.from_dataset(dataset)
    predictions = None
    methods: dict[str, MethodResult] = {}
    if model is not None:
        predictions, done = predict(model, processor, dataset, labels, batch_size, device, problems, progress)
        if not done:
            raise DataError("none of the images can be decoded")
        if len(done) < len(labels):
            dataset, labels = dataset.select(done), labels.select(done)
        methods[model_name] = _result(labels, predictions)
        methods[f"{model_name}, NMS {DIVERSE_NMS:g}"] = _result(labels, suppress(predictions, DIVERSE_NMS))
        if predictions.as_set is not None:
            methods[f"{model_name}, as a set"] = _result(labels, predictions.as_set)
        if predictions.by_validity is not None:
            methods[f"{model_name}, by validity"] = _result(labels, predictions.by_validity)
        if predictions.candidate_scores is not None and labels.scores is not None:
            ranking = resample(measure_ranking(labels, predictions.candidate_scores), len(labels))
            methods[f"{model_name}, scoring head"] = MethodResult(ranking)
    if labels.scores is None:
        methods["human agreement"] = MethodResult(resample(measure_human_agreement(labels), len(labels)))
    for name, answer in _image_independent_baselines(len(labels), train, centre_scale).items():
        methods[name] = _result(labels, answer, image_independent=True)
    for name, crop in baselines.saliency_croppers().items():
        methods[f"{name} {centre_scale:g}"] = _result(labels, crop(dataset, centre_scale))
    return Evaluation(dataset, labels, methods, label_spread(labels), predictions)


def _image_independent_baselines(images: int, train: Labels | None, scale: float) -> dict[str, Predictions]:
    found = {
        "whole image": baselines.whole_image(images),
        f"centre crop {scale:g}": baselines.centre_crop(images, scale),
    }
    if train is not None:
        best = baselines.best_box(train)[None]
        found["constant: best box"] = baselines.constant(best, np.ones(1), images)
        for eps in EPS:
            boxes, scores = baselines.cover_set(train, eps)
            found[f"constant: cover at {eps:.2f}"] = baselines.constant(boxes, scores, images)
        found["constant: frequency"] = baselines.constant(*baselines.frequent_set(train), images)
        if train.scores is not None:
            found["constant: mean score"] = baselines.constant(*baselines.mean_score_set(train), images)
    return found


def _result(labels: Labels, answer: Predictions, image_independent: bool = False) -> MethodResult:
    return MethodResult(resample(measure(labels, answer), len(labels)), first_crop_spread(answer), image_independent)
