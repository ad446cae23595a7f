"""Which crops to give a caller, and what to say of an image.

Without constraints the model's own set is ranked; under constraints what a search finds. Boxes are whole pixels of the
image, float64, corner format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .crop_constraints import ConstraintError, CropConstraints, broken_by, names_of
from .crop_geometry import covering_order, maximal_marginal_relevance, nms, rank
from .crop_judging import Prediction, Search, best_probabilities, in_step, judged, verdict, wish_worth
from .crop_options import CropOptions
from .crop_search import refined_set, search

# Beyond so many crops of a set none is probable to be the image's best.
_MOST_IN_A_SET = 300


@dataclass(frozen=True)
class Selection:
    """Crops of one image, best first.

    Attributes:
        boxes: (K, 4) whole pixels inside the image.
        scores: (K,) probabilities in 0..1.
        gave_way: For each crop the constraints it breaks, of "keep", "avoid", "min_size", "min_area", "max_area".
        ranking: (K,) what they are ordered by: their merits, with what wishes add.
    """

    boxes: np.ndarray
    scores: np.ndarray
    gave_way: list[tuple[str, ...]]
    ranking: np.ndarray

    def as_dicts(self) -> list[dict[str, Any]]:
        """One dict a crop: `score`, `box` with `xmin`, `ymin`, `xmax`, `ymax`, and `gave_way` where something did."""
        crops = []
        for box, score, gave_way in zip(self.boxes.tolist(), self.scores.tolist(), self.gave_way, strict=True):
            crop: dict[str, Any] = {
                "score": score,
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(int, box), strict=True)),
            }
            if gave_way:
                crop["gave_way"] = list(gave_way)
            crops.append(crop)
        return crops


def suggest(prediction: Prediction, options: CropOptions, label: str = "crop") -> Any:
    """Return the answer to one call: crops of every aspect ratio asked for, and with `details` a verdict on the image.

    Returns:
        A list of dicts, see [`Selection.as_dicts`], each with the `label` and, where the caller gave a list,
        `aspect_ratio`; with `details` a dict of these `crops` and what [`verdict`] says.

    Raises:
        ConstraintError: With `strict`, when nothing satisfies everything.
        ValueError: Content to keep or avoid lies outside the image.
    """
    asked = [CropConstraints.from_options(options, ratio, prediction.image_size) for ratio in options.aspect_ratios]
    searches = [_places(prediction, constraints) for constraints in asked]
    if options.details:
        searches.append(judged(prediction))
    found = in_step(prediction, searches)
    crops, ranking = [], []
    for ratio, constraints, places in zip(options.aspect_ratios, asked, found, strict=False):
        selection = _selected(prediction, constraints, options, *places)
        of_ratio = {"aspect_ratio": ratio} if options.several_ratios else {}
        crops += [{"score": crop.pop("score"), "label": label, **crop, **of_ratio} for crop in selection.as_dicts()]
        ranking += selection.ranking.tolist()
    if options.best_of:
        crops = _best_of(prediction, crops, np.array(ranking), options)
    if not options.details:
        return crops
    best = max((crop["score"] for crop in crops), default=None)
    return {"crops": crops, **verdict(prediction, found[-1][1], best)}


def _best_of(
    prediction: Prediction, crops: list[dict[str, Any]], ranking: np.ndarray, options: CropOptions
) -> list[dict[str, Any]]:
    """Return the best of several aspect ratios' crops, those that break nothing first."""
    boxes = np.array([list(crop["box"].values()) for crop in crops], dtype=np.float64).reshape(-1, 4)
    merit = ranking - np.where([bool(crop.get("gave_way")) for crop in crops], 1e3, 0)
    return [crops[index] for index in _chosen(prediction, boxes, merit, options)]


def select_crops(prediction: Prediction, constraints: CropConstraints, options: CropOptions) -> Selection:
    """Return the best crops of an image under constraints.

    Raises:
        ConstraintError: With `options.strict`, when nothing satisfies everything.
    """
    (places,) = in_step(prediction, [_places(prediction, constraints)])
    return _selected(prediction, constraints, options, *places)


def _places(prediction: Prediction, constraints: CropConstraints) -> Search:
    """Return the search for the crops of one image under constraints."""
    return refined_set(prediction) if constraints.is_free else search(prediction, constraints)


def _selected(
    prediction: Prediction, constraints: CropConstraints, options: CropOptions, boxes: np.ndarray, merit: np.ndarray
) -> Selection:
    """Return the crops that a caller gets, of boxes (M, 4) with their merits (M,)."""
    broken = broken_by(boxes, constraints, prediction.image_size)
    if options.strict and broken.any():
        raise ConstraintError(names_of(broken[broken.sum(axis=-1).argmin()]))
    scores = prediction.score(merit, constraints.aspect_ratio)
    if len(constraints.wishes):
        merit = merit + wish_worth(prediction) * constraints.wished(boxes)
    kept = np.flatnonzero(scores > options.threshold) if options.threshold > 0 else np.arange(len(boxes))
    kept = kept[_chosen(prediction, boxes[kept], merit[kept], options)]
    return Selection(boxes[kept], scores[kept], [names_of(row) for row in broken[kept]], merit[kept])


def _chosen(prediction: Prediction, boxes: np.ndarray, merit: np.ndarray, options: CropOptions) -> np.ndarray:
    """Return the indices (K,) of the boxes (M, 4) that a caller gets, by their merits (M,) and as apart as asked."""
    kept = rank(merit)
    count = len(kept) if options.top_k is None else options.top_k
    if options.as_set or options.diversity is not None:
        # Refined crops may meet in one place, which suppression alone would see.
        kept = kept[np.sort(np.unique(boxes[kept].round(), axis=0, return_index=True)[1])]
    if options.as_set:
        kept = kept[:_MOST_IN_A_SET]
        logits = merit[kept] if prediction.rate is not None else np.log(merit[kept].clip(min=1e-9))
        kept = kept[covering_order(boxes[kept], best_probabilities(logits), count)]
    elif options.diversity is not None:
        relevance = prediction.relevance(merit[kept])
        kept = kept[maximal_marginal_relevance(boxes[kept], relevance, options.diversity, count)]
    elif options.nms_iou is not None:
        kept = kept[nms(boxes[kept], merit[kept], options.nms_iou, count)]
    return kept[:count]
