"""Evaluates a model, the baselines and the annotators on one data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from modeling_setcrop.data.schema import DataError, Problems
from modeling_setcrop.evaluation import baselines
from modeling_setcrop.evaluation.labels import Labels, Predictions
from modeling_setcrop.evaluation.measures import (
    EPS,
    Estimate,
    estimate,
    first_crop_spread,
    label_spread,
    measure,
    measure_human_agreement,
    measure_ranking,
)
from modeling_setcrop.evaluation.predict import predict, suppress

# The model's crops are measured as ranked, and again with crops left out that nearly repeat a better one: crops that
# overlap by more than this serve as one another's substitute in every measure.
DIVERSE_NMS = 0.9


@dataclass(frozen=True)
class MethodResult:
    """A method's measures, and the spread (4,) of its first crop's edges where it answers with crops."""

    estimates: dict[str, Estimate]
    spread: np.ndarray | None = None


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
    """Measures a model beside the baselines on the same pictures.

    Args:
        dataset: rows as in `modeling_setcrop.data.FEATURES`.
        model, processor: a `SetCropForImageCropping` and its processor; None: the baselines alone.
        train: labels that the constant baselines are fitted on; without them these are left out.
        centre_scale: side of the centre crop and of the saliency croppers' crops, in parts of the picture's.
        problems, progress: see `predict`.

    Raises:
        DataError: no picture could be decoded.
    """
    labels = Labels.from_dataset(dataset)
    predictions = None
    methods: dict[str, MethodResult] = {}
    if model is not None:
        predictions, done = predict(model, processor, dataset, labels, batch_size, device, problems, progress)
        if not done:
            raise DataError("none of the pictures can be decoded")
        if len(done) < len(labels):
            dataset, labels = dataset.select(done), labels.select(done)
        methods[model_name] = _result(labels, predictions)
        methods[f"{model_name}, NMS {DIVERSE_NMS:g}"] = _result(labels, suppress(predictions, DIVERSE_NMS))
        if predictions.as_set is not None:
            methods[f"{model_name}, as a set"] = _result(labels, predictions.as_set)
        if predictions.by_validity is not None:
            methods[f"{model_name}, by validity"] = _result(labels, predictions.by_validity)
        if predictions.candidate_scores is not None and labels.scores is not None:
            ranking = estimate(measure_ranking(labels, predictions.candidate_scores), len(labels))
            methods[f"{model_name}, scoring head"] = MethodResult(ranking)
    if labels.scores is None:
        methods["human agreement"] = MethodResult(estimate(measure_human_agreement(labels), len(labels)))
    for name, answer in _baselines(dataset, len(labels), train, centre_scale).items():
        methods[name] = _result(labels, answer)
    return Evaluation(dataset, labels, methods, label_spread(labels), predictions)


def _baselines(dataset: Dataset, pictures: int, train: Labels | None, scale: float) -> dict[str, Predictions]:
    found = {
        "whole picture": baselines.whole_picture(pictures),
        f"centre crop {scale:g}": baselines.centre_crop(pictures, scale),
    }
    if train is not None:
        best = baselines.best_box(train)[None]
        found["constant: best box"] = baselines.constant(best, np.ones(1), pictures)
        for eps in EPS:
            boxes, scores = baselines.cover_set(train, eps)
            found[f"constant: cover at {eps:.2f}"] = baselines.constant(boxes, scores, pictures)
        found["constant: frequency"] = baselines.constant(*baselines.frequent_set(train), pictures)
        if train.scores is not None:
            found["constant: mean score"] = baselines.constant(*baselines.mean_score_set(train), pictures)
    for name, crop in baselines.saliency_croppers().items():
        found[f"{name} {scale:g}"] = crop(dataset, scale)
    return found


def _result(labels: Labels, answer: Predictions) -> MethodResult:
    return MethodResult(estimate(measure(labels, answer), len(labels)), first_crop_spread(answer))
