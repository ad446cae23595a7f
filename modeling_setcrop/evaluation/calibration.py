"""From predicted ratings to the probability that a crop is good: fitted and measured on labelled images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from ..crop_constraints import CropConstraints
from ..crop_geometry import GoodCropProbability, box_iou, cut_off_by, largest_area
from ..crop_options import CropOptions
from ..crop_selection import Selection, select_crops
from ..data.any_box_rating import CropLabels, labelled_window, rate_boxes
from ..data.schema import GOOD_RATING
from ..image_sources import read_any_image

if TYPE_CHECKING:
    from ..crop_judging import Prediction
    from ..runtime.cropper import Cropper

# A crop is good that overlaps a good one by this, where the labels rate none but their own (paper, section 4.3).
GOOD_OVERLAP = 0.85
# A window longer than this, in the image's long side, has nowhere to go.
_LONGEST_WINDOW = 0.97
# Windows across the image's short side, by their other side: 1:1, 4:5, 2:3 and 9:16, or 5:4, 3:2 and 16:9.
_SHAPES = (1.0, 4 / 5, 2 / 3, 9 / 16)
# Crops that are about equally probable, by which predicted and true shares are compared.
BINS = 10


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
    return (box_iou(boxes, good) >= GOOD_OVERLAP).any(axis=1)


def window_of(shape: float, row: Mapping[str, Any]) -> np.ndarray | None:
    """Return where people want a window that spans the image's short side, or None where the labels do not say.

    Args:
        shape: the window's other side, in that side's length, 0..1.
        row: of a data set in the shared schema.

    Returns:
        (4,) corners in pixels; None too where the window would be nearly as long as the image.
    """
    labels = row.get("crop_labels")
    ratio = row["width"] / row["height"]
    length = shape * min(ratio, 1 / ratio)
    if labels is None or labels["square"] is None or labels["slim"] is None or length > _LONGEST_WINDOW:
        return None
    window = labelled_window(length, ratio, CropLabels.from_dict(labels))
    return window * np.tile([row["width"], row["height"]], 2)


class JudgedCrops(NamedTuple):
    """Crops as a caller gets them, and what people think of them.

    Attributes:
        ratings: (M,) predicted.
        cut_off: (M,) 0, or of a crop of an aspect ratio what [`cut_off_by`] says of it.
        good: (M,) whether people call it good.
        image: (M,) number of its image.
    """

    ratings: np.ndarray
    cut_off: np.ndarray
    good: np.ndarray
    image: np.ndarray

    def some(self, which: np.ndarray) -> JudgedCrops:
        """Return those that a mask (M,) names."""
        return JudgedCrops(*(values[which] for values in self))


def crops_of(cropper: Cropper, row: Mapping[str, Any], top_k: int) -> Iterator[tuple[float, float, bool]]:
    """Yield what a [`JudgedCrops`] has of one image: its best crops, and the best of the largest ones of each shape.

    Args:
        cropper: a [`Cropper`].
        row: of a data set in the shared schema, its image not decoded.
        top_k: so many of the best crops.

    Raises:
        ImageFileError: the image cannot be decoded.
    """
    loaded = read_any_image(row["image"], cropper.short_side)
    (encoded,) = cropper.encode([cropper.prepare(loaded)])
    prediction = encoded.prediction(loaded.size)
    best = _selected(prediction, CropOptions(top_k=top_k))
    for rating, good in zip(best.ranking.tolist(), are_good(best.boxes, row).tolist(), strict=True):
        yield rating, 0.0, good
    portrait = row["width"] < row["height"]
    for shape in _SHAPES:
        if (wanted := window_of(shape, row)) is None:
            continue
        ratio = 1 / shape if portrait else shape
        least = largest_area(ratio, loaded.size)
        best = _selected(prediction, CropOptions.from_kwargs(top_k=1, aspect_ratio=ratio, min_area=least))
        overlap = box_iou(best.boxes, wanted[None])[0, 0]
        yield float(best.ranking[0]), cut_off_by(ratio, loaded.size), bool(overlap >= GOOD_OVERLAP)


def _selected(prediction: Prediction, options: CropOptions) -> Selection:
    ratio = options.aspect_ratios[0]
    return select_crops(prediction, CropConstraints.from_options(options, ratio, prediction.image_size), options)


def fit_probability(crops: JudgedCrops, kept: GoodCropProbability | None = None) -> GoodCropProbability:
    """Fit the probability that crops are good by maximum likelihood (Platt scaling).

    Crops of any shape and those of a given one count alike, however many they are. The targets are Platt's, (n + 1) /
    (n + 2) for the n good crops and 1 / (m + 2) for the m others, so that there is an end also where a rating
    separates the two (Platt, "Probabilistic outputs for support vector machines", 1999).

    Args:
        crops: with some of any shape among them.
        kept: has the numbers for given shapes, where there are no crops of one.

    Raises:
        ValueError: all of the crops are good, or none, or higher ratings are not better.
    """
    kept = kept or GoodCropProbability()
    groups = [part for part in (crops.some(crops.cut_off == 0), crops.some(crops.cut_off > 0)) if len(part.good)]
    targets = []
    for part in groups:
        good, others = int(part.good.sum()), int((~part.good).sum())
        if not good or not others:
            raise ValueError(f"{good} of {good + others} crops are good: a probability needs good ones and others")
        targets.append(np.where(part.good, (good + 1) / (good + 2), 1 / (others + 2)))

    def model(numbers: np.ndarray) -> GoodCropProbability:
        # As logarithm the slope stays above 0 on the way.
        found = (float(np.exp(numbers[0])), float(numbers[1]), *map(float, numbers[2:]))
        return GoodCropProbability(*found, *kept[len(found) :])

    def loss(numbers: np.ndarray) -> float:
        total = 0.0
        for part, wanted in zip(groups, targets, strict=True):
            found = model(numbers)(part.ratings, part.cut_off).clip(1e-12, 1 - 1e-12)
            total -= (wanted * np.log(found) + (1 - wanted) * np.log(1 - found)).mean()
        return total

    for part in groups:
        if part.ratings[part.good].mean() <= part.ratings[~part.good].mean():
            raise ValueError("the model rates crops that are good no higher than others")
    numbers = [np.log(4.0), 4.0, 0.0, 0.0][: 2 if len(groups) == 1 else 4]
    options = {"maxiter": 5000, "xatol": 1e-6, "fatol": 1e-9}
    return model(minimize(loss, numbers, method="Nelder-Mead", options=options).x)


def cross_fitted(crops: JudgedCrops) -> np.ndarray:
    """Return probabilities (M,) of crops, each by what was fitted on the other half of the images.

    Raises:
        ValueError: there is one image alone, or nothing can be fitted on one of the halves.
    """
    images, place = np.unique(crops.image, return_inverse=True)
    if len(images) < 2:
        raise ValueError("all of the crops are of one image: a fit is measured on images that it was not made for")
    probabilities, even = np.zeros(len(crops.good)), place % 2 == 0
    for half in (even, ~even):
        probabilities[half] = fit_probability(crops.some(~half))(crops.ratings[half], crops.cut_off[half])
    return probabilities


def reliability(probabilities: np.ndarray, good: np.ndarray) -> Reliability:
    """Compare probabilities (M,) with whether crops are good (M,)."""
    bins = np.array_split(np.argsort(probabilities, kind="stable"), min(BINS, len(good)))
    predicted = np.array([probabilities[members].mean() for members in bins])
    found = np.array([good[members].mean() for members in bins])
    weights = np.array([len(members) for members in bins]) / len(good)
    error = float(weights @ np.abs(predicted - found))
    return Reliability(predicted, found, error, float(((probabilities - good) ** 2).mean()))
