"""From one image's labelled crops to a rating of any bounding box.

Labels name a few crops; training asks about boxes of every place, size and shape. The rating here is the labels'
continuation to all of them: the more a box agrees with what the editors (or other people) chose, the higher it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..crop_geometry import box_iou, cut_shares, kept_shares

# The share of agreement with all crops together; the rest is agreement with the one that is nearest. Chosen on FCDB's
# training images: the box that is rated highest by the editors' crops alone then overlaps people's crops most, while
# the editors' first crop stays near the top.
_CONSENSUS = 0.65
# A crop whose rating is this much lower counts for 1/e in the consensus.
_RATING_SPREAD = 0.5
# Near a crop that is rated lower by one point, agreement is worth this much less.
_LOWER_CROP, _LOWER_WHOLE = 0.2, 0.5
# Cutting away everything important that the first crop keeps.
_LOST_SUBJECTS = 0.15
# Cutting a face through or off.
_LOST_FACES = 0.4
# One person's crop says more of that person's taste than the editors' five, but is noisier.
_PEOPLE = 0.7


@dataclass(frozen=True)
class CropLabels:
    """What is known about one image; boxes are corners x1, y1, x2, y2 in [0, 1] of its width and height.

    Attributes:
        crops: (K, 4) crops that editors chose, best first.
        ratings: (K,) their ratings, 1..5.
        whole: rating of the uncropped image, or None.
        subjects: (S, 4) what people look at first.
        importance: (S,) of each subject, in [0, 1].
        square: centre of the best full-length square window, in [0, 1] of the long side, or None.
        slim: the same for a 9:16 window (of a landscape image) or a 16:9 window (of a portrait one).
        people: (4,) a crop that people made and preferred, or None.
        faces: (F, 4) faces, which no crop should cut.
    """

    crops: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    ratings: np.ndarray = field(default_factory=lambda: np.zeros(0))
    whole: float | None = None
    subjects: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    importance: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: float | None = None
    slim: float | None = None
    people: np.ndarray | None = None
    faces: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as lists and numbers: the column `crop_labels` of the shared schema."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CropLabels:
        """Return the labels of [`to_dict`]'s form."""
        arrays = {k: np.asarray(v, dtype=np.float64) for k, v in values.items() if isinstance(v, list)}
        for name in ("crops", "subjects", "faces"):
            arrays[name] = arrays[name].reshape(-1, 4)
        return cls(**{**values, **arrays})


def rate_boxes(boxes: np.ndarray, labels: CropLabels, source: str = "editors") -> np.ndarray:
    """Rate boxes by an image's labels.

    Args:
        boxes: (M, 4) corners in [0, 1] of the image.
        labels: the image's.
        source: "editors" for their crops alone; "people" for the crop that people preferred, steadied by the editors'.

    Returns:
        (M,) ratings, 1..5: 1 for a box that has nothing in common with any crop, 5 for one that agrees with all.

    Raises:
        ValueError: the labels have no crop of that source.
    """
    agreement = None
    if len(labels.crops):
        agreement = _editors_agreement(boxes, labels)
    if source == "people":
        if labels.people is None:
            raise ValueError("these labels have no crop made by people")
        own = box_iou(labels.people[None], boxes)[0]
        agreement = own if agreement is None else _PEOPLE * own + (1 - _PEOPLE) * agreement
    if agreement is None:
        raise ValueError("these labels have no crops")
    if len(labels.faces):
        agreement = agreement - _LOST_FACES * cut_shares(labels.faces, boxes).max(0)
    return 1 + 4 * agreement.clip(0, 1)


def _editors_agreement(boxes: np.ndarray, labels: CropLabels) -> np.ndarray:
    ious = box_iou(labels.crops, boxes)
    behind = (labels.ratings.max() - labels.ratings)[:, None]
    weights = np.exp(-behind / _RATING_SPREAD)
    consensus = (weights * ious).sum(0) / weights.sum()
    nearest = (ious - _LOWER_CROP * behind).max(0)
    if labels.whole is not None:
        below = max(labels.ratings.max() - labels.whole, 0)
        whole = box_iou(np.array([[0.0, 0.0, 1.0, 1.0]]), boxes)[0]
        nearest = np.maximum(nearest, whole - _LOWER_WHOLE * below)
    agreement = _CONSENSUS * consensus + (1 - _CONSENSUS) * nearest
    if len(labels.subjects):
        kept = kept_shares(labels.subjects, boxes)
        lost = (kept_shares(labels.subjects, labels.crops[:1]) - kept).clip(0, 1)
        total = max(labels.importance.sum(), 1)
        agreement = agreement - _LOST_SUBJECTS * (labels.importance[:, None] * lost).sum(0) / total
    return agreement


def window_centre(length: float, image_ratio: float, labels: CropLabels) -> float:
    """Say where a window belongs that spans the image's short side.

    Between the two labelled lengths the centre moves linearly; a shorter window keeps the slim one's centre, and a
    longer one tends to the middle, where a window as long as the image must lie.

    Args:
        length: the window's length along the long side, in [0, 1] of it.
        image_ratio: width over height of the image.
        labels: with `square` and `slim`.

    Returns:
        The centre along the long side, in [0, 1] of it, so that the window lies inside the image.
    """
    long = max(image_ratio, 1 / image_ratio)
    known = sorted([(9 / 16 / long, labels.slim), (1 / long, labels.square), (1.0001, 0.5)])
    lengths, centres = zip(*known, strict=True)
    inside = [min(max(c, s / 2), 1 - s / 2) if s < 1 else c for s, c in zip(lengths, centres, strict=True)]
    centre = float(np.interp(length, lengths, inside))
    return min(max(centre, length / 2), 1 - length / 2)


def labelled_window(length: float, image_ratio: float, labels: CropLabels) -> np.ndarray:
    """Return the window (4,), corners in [0, 1], of [`window_centre`]."""
    low = window_centre(length, image_ratio, labels) - length / 2
    return windows_at(np.array([low]), length, int(image_ratio < 1))[0]


def windows_at(low: np.ndarray, length: float, axis: int) -> np.ndarray:
    """Return windows (W, 4) of one length from `low` (W,) along an axis, 0 for x; they span the other."""
    windows = np.tile(np.array([0.0, 0.0, 1.0, 1.0]), (len(low), 1))
    windows[:, axis], windows[:, 2 + axis] = low, low + length
    return windows


def mirror_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes (..., 4), corners in [0, 1], of the image mirrored left to right."""
    return np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], axis=-1)
