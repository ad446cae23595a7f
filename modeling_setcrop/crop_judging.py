"""What a model says of one image, and of any box in it: one scale for everything that is ranked.

Everything is ranked by the predicted rating and scored by the probability that belongs to it. Boxes are pixels of the
image, float64, corner format, unless a name says `cxcywh`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .crop_geometry import GoodCropProbability, box_iou, cut_off_by, cxcywh_to_xyxy, xyxy_to_cxcywh

# The image's best crop is each of a set's with a probability that falls by e for so much less of rating, or of the
# logarithm of validity.
_BEST_TEMPERATURE = 0.1
# A map of importance counts with this power, so that what matters most decides; where a model has none, its ratings
# of windows this large at so many places along each axis stand in.
_FOCUS_POWER, _WINDOW, _WINDOWS = 3, 1 / 3, 9
# A focus point is no more exact than this.
_FOCUS_DIGITS = 4
# Ratings by which a whole wish of weight 1 lifts a crop.
_WISH = 2.0

# A search gives boxes (M, 4) that it wants rated, is sent their merits (M,), perhaps a few times, and returns what it
# found: boxes and their merits.
Search = Generator[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image, and of any box in it.

    Attributes:
        boxes: (N, 4) predicted crops in pixels, not rounded.
        validity: (N,) their validities, 0..1.
        image_size: Height and width in pixels.
        rate: Maps (M, 4) cxcywh in 0..1, float32, to (M,) predicted ratings 1..5; None for models without a scoring
            head, where a box inherits the validity of a predicted crop in proportion to their IoU, best pair first.
        ratings: (N,) predicted ratings of `boxes`, if known already.
        importance: (H, W) how much each part of the image matters, 0..1, from models that predict it.
        probability: By which a rating becomes a probability.
    """

    boxes: np.ndarray
    validity: np.ndarray
    image_size: tuple[int, int]
    rate: Callable[[np.ndarray], np.ndarray] | None = None
    ratings: np.ndarray | None = None
    importance: np.ndarray | None = None
    probability: GoodCropProbability = field(default_factory=GoodCropProbability)

    @classmethod
    def from_output(
        cls,
        pred_boxes: np.ndarray,
        validity: np.ndarray,
        image_size: tuple[int, int],
        rate: Callable[[np.ndarray], np.ndarray] | None = None,
        ratings: np.ndarray | None = None,
        importance: np.ndarray | None = None,
        config: Any = None,
    ) -> Prediction:
        """From the model's output for one image: boxes (N, 4) cxcywh in 0..1, the rest as above, and its config."""
        height, width = image_size
        boxes = cxcywh_to_xyxy(np.asarray(pred_boxes, np.float64)).clip(0, 1) * [width, height, width, height]
        probability = GoodCropProbability.of(config)
        return cls(boxes, np.asarray(validity, np.float64), image_size, rate, ratings, importance, probability)

    @cached_property
    def set_merit(self) -> np.ndarray:
        """What the predicted set is ranked by, see [`merit`]."""
        if self.rate is None:
            return settled(self.validity)
        return self.merit(self.boxes) if self.ratings is None else settled(self.ratings)

    def merit(self, boxes: np.ndarray) -> np.ndarray:
        """Return what boxes (M, 4) in pixels are ranked by (M,): the rating, 1..5, or without one the probability.

        Probabilities of poor crops lie so near to 0 that they would no longer tell better from worse.
        """
        if len(boxes) == 0:
            return np.zeros(0)
        if self.rate is None:
            return settled((box_iou(boxes, self.boxes) * self.validity).max(axis=-1))
        height, width = self.image_size
        shares = xyxy_to_cxcywh(boxes / [width, height, width, height])
        return settled(self.rate(shares.astype(np.float32)))

    def score(self, merit: np.ndarray, aspect_ratio: float | None = None) -> np.ndarray:
        """Probabilities (M,) in 0..1 that people call crops with such merits good, of those of an aspect ratio."""
        cut_off = 0.0 if aspect_ratio is None else cut_off_by(aspect_ratio, self.image_size)
        return merit if self.rate is None else settled(self.probability(merit, cut_off))

    def relevance(self, merit: np.ndarray) -> np.ndarray:
        """Return how much crops with such merits are worth beside the best one (M,), 0..1, for a diverse choice.

        By the function before any calibration, whose slope is such that diversity has something to choose from.
        """
        worth = merit if self.rate is None else GoodCropProbability()(merit)
        return worth / worth.max(initial=1e-12)


def best_probabilities(logits: np.ndarray) -> np.ndarray:
    """Probabilities (M,), summing to 1, that each of several crops is the image's best.

    Args:
        logits: (M,) their ratings, or the logarithms of their validities.
    """
    weights = np.exp((logits - logits.max(initial=-np.inf)) / _BEST_TEMPERATURE)
    return weights / weights.sum()


def settled(values: np.ndarray) -> np.ndarray:
    """Values without their last bits, in which one way of computing differs from another: equal crops rank equally."""
    return np.round(np.asarray(values, np.float64) * 2**14) / 2**14


def wish_worth(prediction: Prediction) -> float:
    """Return what a whole wish adds to a crop's merit: more than crops of one image differ by."""
    return _WISH if prediction.rate is not None else 1.0


def in_step(prediction: Prediction, searches: Sequence[Search]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what searches find, all of them in step: what they want rated at one time is rated in one call."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    merits: dict[int, Any] = dict.fromkeys(range(len(searches)))
    while merits:
        wanted = {}
        for number, merit in merits.items():
            try:
                wanted[number] = searches[number].send(merit)
            except StopIteration as end:
                found[number] = end.value
        rated = prediction.merit(np.concatenate([np.zeros((0, 4)), *wanted.values()]))
        ends = np.cumsum([len(boxes) for boxes in wanted.values()])
        merits = dict(zip(wanted, np.split(rated, ends[:-1]), strict=True)) if wanted else {}
    return [found[number] for number in range(len(searches))]


def judged(prediction: Prediction) -> Search:
    """Return the boxes by which an image is judged: the whole, and windows that say where its content is."""
    height, width = prediction.image_size
    whole = np.array([[0, 0, width, height]], dtype=np.float64)
    windows = np.zeros((0, 4)) if prediction.importance is not None else _windows(prediction.image_size)
    boxes = np.concatenate([whole, windows])
    return boxes, (yield boxes)


def verdict(prediction: Prediction, merit: np.ndarray, best_score: float | None) -> dict[str, Any]:
    """Say whether to crop an image at all, and where its weight lies.

    Args:
        prediction: Of the image.
        merit: (M,) of the boxes of [`judged`].
        best_score: Of the crop to compare with the whole image; by default the best of the model's set.

    Returns:
        `keep_original`, the probability that the whole image is a good crop; `improves`, the crop's probability minus
        it; `focus_point`, {"x", "y"} in 0..1: the centre of what matters most, for focal points and CSS
        `object-position`.
    """
    if best_score is None:
        best_score = float(prediction.score(prediction.set_merit.max(keepdims=True))[0])
    original = float(prediction.score(merit[:1])[0])
    if prediction.importance is None:
        # The middle of a window that rates high is where the image's content is.
        span = merit[1:].max() - merit[1:].min()
        level = (merit[1:] - merit[1:].min()) / span if span > 0 else np.ones(len(merit) - 1)
        x, y = centre_of_mass(level.reshape(_WINDOWS, _WINDOWS), margin=_WINDOW / 2)
    else:
        x, y = centre_of_mass(prediction.importance)
    focus = {"x": round(x, _FOCUS_DIGITS), "y": round(y, _FOCUS_DIGITS)}
    return {"keep_original": original, "improves": best_score - original, "focus_point": focus}


def centre_of_mass(importance: np.ndarray, margin: float | None = None) -> tuple[float, float]:
    """Return the centre (x, y), in 0..1, of the weights of a map (H, W), to a power; the middle of an empty one.

    Args:
        importance: 0..1.
        margin: How far the centres of the outermost cells lie from the image's edges, in 0..1; by default the cells
            fill the image.
    """
    weights = np.asarray(importance, np.float64) ** _FOCUS_POWER
    if weights.sum() <= 0:
        return 0.5, 0.5
    point = []
    for mass in (weights.sum(axis=0), weights.sum(axis=1)):
        edge = 0.5 / len(mass) if margin is None else margin
        point.append(float(mass @ np.linspace(edge, 1 - edge, len(mass)) / mass.sum()))
    return point[0], point[1]


def _windows(image_size: tuple[int, int]) -> np.ndarray:
    """Boxes (`_WINDOWS` squared, 4), row by row, that slide over the image."""
    starts = np.linspace(0, 1 - _WINDOW, _WINDOWS)
    y, x = np.meshgrid(starts, starts, indexing="ij")
    corners = np.stack([x.ravel(), y.ravel()], axis=-1)
    height, width = image_size
    return np.concatenate([corners, corners + _WINDOW], axis=-1) * [width, height, width, height]
