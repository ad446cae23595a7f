"""All measures of one method on one data set, with bootstrap intervals over its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .. import metrics
from ..metrics.catalogue import (
    EPS,
    accuracy_key,
    average_precision_key,
    candidate_accuracy_key,
    recall_key,
    transposed_accuracy_key,
)
from .labels import Labels, Predictions

RESAMPLES = 1000

# A measure before averaging: a value for each image (NaN: undefined there), or matches to be pooled.
Measured = np.ndarray | metrics.Matches


class Estimate(NamedTuple):
    """A measure over all images, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Resampled(NamedTuple):
    """A measure over all images, and (RESAMPLES,) over each bootstrap resample; NaN where it is undefined."""

    value: float
    samples: np.ndarray

    def estimate(self) -> Estimate:
        """Return the measure with its 95 % interval."""
        if np.isnan(self.samples).all():
            return Estimate(self.value, np.nan, np.nan)
        low, high = np.nanpercentile(self.samples, [2.5, 97.5])
        return Estimate(self.value, float(low), float(high))

    def less(self, other: Resampled) -> Estimate:
        """Return this measure less the same of another method on the same images, with its paired interval.

        Narrower than the two intervals apart from each other, because both methods meet the same easy and hard
        images.
        """
        return Resampled(self.value - other.value, self.samples - other.samples).estimate()


def measure(labels: Labels, predictions: Predictions) -> dict[str, Measured]:
    """Return every measure of `metrics.catalogue` that the labels allow, by key.

    `iou` is that with the best-rated crop where there are ratings (GAIC, CPC), and with the nearest annotator's where
    there are none (FLMS, FCDB). `*_any` counts any of the crops that share the highest rating.
    """
    crops = (predictions.boxes, predictions.scores)
    against = _against_annotators if labels.scores is None else _against_scores
    found = against(labels, predictions)
    for eps in EPS:
        for k in (5, 10):
            found[recall_key(k, eps)] = metrics.recall(*crops, labels.boxes, labels.good, eps, k)
    found["pairwise_iou_5"] = metrics.mean_pairwise_iou(*crops, k=5)
    return found


def measure_ranking(labels: Labels, candidate_scores: list[np.ndarray]) -> dict[str, Measured]:
    """`srcc` and `acc_K/N` of a method's scores of the labelled crops (which need ratings)."""
    found: dict[str, Measured] = {"srcc": metrics.spearman(candidate_scores, labels.ratings())}
    for n in (5, 10):
        for k in (1, 2, 3, 4):
            found[candidate_accuracy_key(k, n)] = metrics.candidate_accuracy(candidate_scores, labels.ratings(), k, n)
    return found


def measure_human_agreement(labels: Labels) -> dict[str, Measured]:
    """One annotator's crop against the other annotators' of the same image, averaged over its annotators.

    The measures without scores that are about one crop; images with a single crop are undefined.
    """
    pairs = [(i, j) for i, crops in enumerate(labels.boxes) if len(crops) > 1 for j in range(len(crops))]
    names = ("iou", "iou_mean", "bde", "bde_mean")
    if not pairs:
        return {name: np.full(len(labels), np.nan) for name in names}
    image = np.array([i for i, _ in pairs])
    own = [labels.boxes[i][j : j + 1] for i, j in pairs]
    others = [np.delete(labels.boxes[i], j, axis=0) for i, j in pairs]
    scores = [np.ones(1)] * len(pairs)
    values = (
        *metrics.iou_with_annotators(own, scores, others),
        *metrics.boundary_displacement(own, scores, others, np.ones((len(pairs), 2))),
    )
    counts = np.bincount(image, minlength=len(labels))
    return {
        name: np.divide(
            np.bincount(image, weights=value, minlength=len(labels)),
            counts,
            out=np.full(len(labels), np.nan),
            where=counts > 0,
        )
        for name, value in zip(names, values, strict=True)
    }


def resample(measured: Mapping[str, Measured], images: int, seed: int = 0) -> dict[str, Resampled]:
    """Means (or pooled average precisions) over the images and over bootstrap resamples of them.

    Images are drawn with replacement, the same draws for every method, so that methods can be compared.
    """
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    return {name: _resampled(values, weights) for name, values in measured.items()}


def estimate(measured: Mapping[str, Measured], images: int, seed: int = 0) -> dict[str, Estimate]:
    """Return the measures over the images with their bootstrap intervals, see [`resample`]."""
    return {name: found.estimate() for name, found in resample(measured, images, seed).items()}


def first_crop_spread(predictions: Predictions) -> np.ndarray:
    """(4,) standard deviation over images of the first crop's left, top, right and bottom edge."""
    first = metrics.ranked(predictions.boxes, predictions.scores, 1)[0][:, 0]
    return metrics.edge_spread(first, np.ones((len(first), 2)))


def label_spread(labels: Labels) -> np.ndarray:
    """(4,) the same of the best-rated crop, or, without scores, of the mean of each image's good crops."""
    if labels.scores is not None:
        best = metrics.best_rated(labels.boxes, labels.scores)
    else:
        best = np.array([crops[good].mean(axis=0) for crops, good in zip(labels.boxes, labels.good, strict=True)])
    return metrics.edge_spread(best, np.ones((len(best), 2)))


def _against_scores(labels: Labels, predictions: Predictions) -> dict[str, Measured]:
    crops, ratings = (predictions.boxes, predictions.scores), labels.ratings()
    found: dict[str, Measured] = {}
    for equals in (False, True):
        found["iou_any" if equals else "iou"] = metrics.first_crop_iou(*crops, labels.boxes, ratings, equals)
        for eps in EPS:
            for n in (1, 5, 10):
                found[accuracy_key(n, eps, equals)] = metrics.accuracy(*crops, labels.boxes, ratings, n, eps, equals)
    for eps in EPS:
        for n in (5, 10):
            found[transposed_accuracy_key(n, eps)] = metrics.transposed_accuracy(*crops, labels.boxes, ratings, n, eps)
        for k in (5, 10, 40):
            found[average_precision_key(k, eps)] = metrics.match(*crops, labels.boxes, labels.good, eps, k)
            found[average_precision_key(k, eps, as_released=True)] = metrics.match(
                *crops, labels.boxes, labels.good, eps, k, ratings
            )
    return found | measure_ranking(labels, metrics.overlap_scores(*crops, labels.boxes))


def _against_annotators(labels: Labels, predictions: Predictions) -> dict[str, Measured]:
    crops = (predictions.boxes, predictions.scores)
    wanted = [boxes[good] for boxes, good in zip(labels.boxes, labels.good, strict=True)]
    iou, iou_mean = metrics.iou_with_annotators(*crops, wanted)
    bde, bde_mean = metrics.boundary_displacement(*crops, wanted, np.ones((len(labels), 2)))
    five = metrics.ranked(*crops, 5)[0]
    best_of_5 = [metrics.pairwise_iou(top, boxes).max() for top, boxes in zip(five, wanted, strict=True)]
    return {
        "iou": iou,
        "iou_mean": iou_mean,
        "bde": bde,
        "bde_mean": bde_mean,
        "iou_best_of_5": np.array(best_of_5),
    }


def _resampled(values: Measured, weights: np.ndarray) -> Resampled:
    """`weights` (RESAMPLES, I): how often each image is in each resample."""
    if isinstance(values, metrics.Matches):
        samples = metrics.precision_at_recall(values, weights).mean(axis=1)
        return Resampled(float(metrics.precision_at_recall(values).mean()), samples)
    values = np.asarray(values, np.float64)
    defined = np.isfinite(values)
    counts = weights[:, defined].sum(axis=1)
    sums = weights[:, defined] @ values[defined]
    samples = np.divide(sums, counts, out=np.full(len(weights), np.nan), where=counts > 0)
    return Resampled(float(values[defined].mean()) if defined.any() else np.nan, samples)
