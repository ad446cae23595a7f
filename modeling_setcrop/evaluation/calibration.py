"""From predicted ratings to the probability that a crop is good: fitted and measured on labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from ..crop_geometry import box_iou, good_crop_probability
from ..data.any_box_rating import CropLabels, rate_boxes
from ..data.schema import GOOD_RATING

# A crop is good that overlaps a good one by this, where the labels rate none but their own (paper, section 4.3).
_GOOD_OVERLAP = 0.85
# Crops that are about equally probable, by which predicted and true shares are compared.
BINS = 10


class Logistic(NamedTuple):
    """A crop with the rating r is good with the probability sigmoid(slope (r - middle))."""

    slope: float
    middle: float


class Reliability(NamedTuple):
    """How well probabilities say what is so.

    Attributes:
        predicted, found: (`BINS`,) mean probability, and share of good crops, of crops about equally probable, from
            the least to the most; each bin has as many crops.
        calibration_error: mean distance of the two over all crops (Naeini et al., 2015, with bins of equal counts).
        brier: mean squared difference of probability and outcome (Brier, 1950).
    """

    predicted: np.ndarray
    found: np.ndarray
    calibration_error: float
    brier: float


def are_good(boxes: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    """Say of boxes (M, 4), corners in pixels, whether people would call them good, by the labels of their image.

    They would where the labels rate any box and rate it 4 or more; else where it overlaps one of the good crops.

    Args:
        boxes: of the image.
        row: of a data set in the shared schema.
    """
    if row.get("crop_labels") is not None:
        labels = CropLabels.from_dict(row["crop_labels"])
        source = "editors" if len(labels.crops) else "people"
        sides = np.tile([row["width"], row["height"]], 2)
        return rate_boxes(boxes / sides, labels, source) >= GOOD_RATING
    good = np.array(row["boxes"], np.float64).reshape(-1, 4)[np.array(row["good"], bool)]
    return (box_iou(boxes, good) >= _GOOD_OVERLAP).any(axis=1)


def fit_logistic(ratings: np.ndarray, good: np.ndarray) -> Logistic:
    """Fit the probability that crops are good by maximum likelihood (Platt scaling).

    The targets are Platt's, (n + 1) / (n + 2) for the n good crops and 1 / (m + 2) for the m others, so that there is
    an end also where a rating separates the two (Platt, "Probabilistic outputs for support vector machines", 1999).

    Args:
        ratings: (M,) predicted.
        good: (M,) whether people call the crops good.

    Raises:
        ValueError: all of the crops are good, or none, or higher ratings are not better.
    """
    count = int(good.sum())
    if count in (0, len(good)):
        raise ValueError(f"{count} of {len(good)} crops are good: a probability needs good ones and others")
    targets = np.where(good, (count + 1) / (count + 2), 1 / (len(good) - count + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * ratings + parameters[1]
        error = 1 / (1 + np.exp(-logits)) - targets
        losses = np.logaddexp(0, logits) - targets * logits
        return float(losses.mean()), np.array([(error * ratings).mean(), error.mean()])

    slope, offset = minimize(loss, np.array([4.0, -16.0]), jac=True, method="BFGS").x
    if slope <= 0:
        raise ValueError("the model rates crops that are good no higher than others")
    return Logistic(float(slope), float(-offset / slope))


def cross_fitted(ratings: np.ndarray, good: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return probabilities (M,) of crops, each by what was fitted on the other half of the images.

    Args:
        ratings, good: see [`fit_logistic`].
        image: (M,) number of each crop's image.

    Raises:
        ValueError: nothing can be fitted on one of the halves.
    """
    probabilities, even = np.zeros(len(ratings)), image % 2 == 0
    for half in (even, ~even):
        probabilities[half] = good_crop_probability(ratings[half], *fit_logistic(ratings[~half], good[~half]))
    return probabilities


def reliability(probabilities: np.ndarray, good: np.ndarray) -> Reliability:
    """Compare probabilities (M,) with whether crops are good (M,)."""
    bins = np.array_split(np.argsort(probabilities, kind="stable"), min(BINS, len(good)))
    predicted = np.array([probabilities[members].mean() for members in bins])
    found = np.array([good[members].mean() for members in bins])
    weights = np.array([len(members) for members in bins]) / len(good)
    error = float(weights @ np.abs(predicted - found))
    return Reliability(predicted, found, error, float(((probabilities - good) ** 2).mean()))
