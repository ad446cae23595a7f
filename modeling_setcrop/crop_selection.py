"""Which crops to give a caller: from the model's set, or from every place that the caller's constraints allow.

Without constraints the model's own set is ranked. An aspect ratio, bounds or content to keep or avoid turn the
question into a search: a dense set of places and sizes, and the predicted crops fitted to the constraints, are rated
in one call, and the surroundings of the best few in a second one. Everything is ranked on one scale, the predicted
rating, and scored by the probability that belongs to it. Boxes are whole pixels of the image, float64, corner format,
unless a name says `cxcywh`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

from .crop_geometry import (
    box_area,
    box_intersection,
    box_iou,
    candidate_grid,
    covering_order,
    cxcywh_to_xyxy,
    fit_aspect_ratio,
    good_crop_probability,
    hull,
    maximal_marginal_relevance,
    nms,
    pixel_sizes,
    place,
    rank,
    round_to_sizes,
    xyxy_to_cxcywh,
)
from .crop_options import CropOptions, parse_aspect_ratio, turned_with

# What a broken constraint costs for each unit of its share: bounds give way first, kept content last.
_COSTS = {"min_size": 1.0, "min_area": 1.0, "max_area": 1.0, "avoid": 10.0, "keep": 100.0}
_WEIGHTS = np.array(list(_COSTS.values()))
# Sizes that are tried: so many from the largest that the constraints allow anywhere down to this share of its sides.
# The best predicted crops, so many of them, are fitted too, and may be smaller.
_SIZES, _SMALLEST, _FITTED, _SMALLEST_FITTED = 3, 0.65, 20, 0.2
# Places that are tried: so many steps along the image's longer side, fewer where several shapes are.
_STEPS, _STEPS_PER_SHAPE = 12, 8
# The best few are then moved by these shares of a step, or scaled.
_REFINED, _MOVES, _SCALES = 2, (-0.6, -0.3, 0.0, 0.3, 0.6), (0.93, 0.965, 1.035, 1.07)
# Shapes that are tried when the caller bounds a crop but names no aspect ratio.
_FREE_RATIOS = (16 / 9, 3 / 2, 4 / 3, 1.0, 4 / 5, 3 / 4, 2 / 3, 9 / 16)
# Crops that nearly coincide are refined once.
_REFINED_NMS = 0.8
# The set's best few are refined likewise, by so many moves of all four edges, up to this share of the sides.
_REFINED_OF_SET, _EDGE_MOVES, _FARTHEST_MOVE = 8, 32, 0.1
# Nobody cuts so little of a side: such edges go to the image's.
_SLIVER = 0.01
# The best place is not the one box with the highest rating, which is partly chance, but the mean of the boxes that
# overlap it by this, weighted by the rating: by e less for so much. On the editors' validation images that lifts the
# first crop's IoU from 0.885 to 0.888 and the square window's from 0.914 to 0.919; wider or sharper means lift less.
_VOTE_IOU, _VOTE_TEMPERATURE, _SET_VOTE_TEMPERATURE = 0.7, 0.05, 0.03
# The image's best crop is each of a set's with a probability that falls by e for so much less of rating, or of the
# logarithm of validity; beyond so many crops none is probable.
_BEST_TEMPERATURE, _MOST_IN_A_SET = 0.1, 300
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


class ConstraintError(ValueError):
    """With `strict`, no crop satisfies every constraint; `gave_way` names those that had to give."""

    def __init__(self, gave_way: Sequence[str]) -> None:
        super().__init__(f"no crop satisfies every constraint: {', '.join(gave_way)} had to give way")
        self.gave_way = tuple(gave_way)


@dataclass(frozen=True)
class CropConstraints:
    """What the crops of one image must satisfy; the aspect ratio is exact to one pixel, the rest can give way.

    Attributes:
        aspect_ratio: Width over height, or None for any shape.
        min_area, max_area: Bounds on the crop's share of the image, in 0..1.
        min_size: Least width and height in pixels.
        keep: (K, 4) whole-pixel boxes that must not be cut.
        avoid: (A, 4) boxes that must stay outside.
        wishes: (W, 5) boxes that crops had better hold, each with a weight in 0..1, or leave out, with one below 0.
        unmet_size: Width and height at which the crop will be shown, where no crop of this image is so large. That
            is told, and changes nothing else.
    """

    aspect_ratio: float | None
    min_area: float
    max_area: float
    min_size: tuple[float, float]
    keep: np.ndarray
    avoid: np.ndarray
    wishes: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))
    unmet_size: tuple[int, int] | None = None

    @classmethod
    def from_options(cls, options: CropOptions, ratio: Any, image_size: tuple[int, int]) -> CropConstraints:
        """Return the constraints that options set for one of their aspect ratios on one image (height and width).

        Raises:
            ValueError: Content to keep or avoid lies outside the image.
        """
        aspect_ratio = None if ratio is None else parse_aspect_ratio(ratio, image_size)
        least, shown = options.min_size or (1, 1), (options.width or 1, options.height or 1)
        if options.width is not None and options.height is not None:
            aspect_ratio = options.width / options.height
        if options.follow_orientation and aspect_ratio is not None:
            turned = turned_with(aspect_ratio, image_size)
            shown = shown if turned == aspect_ratio else shown[::-1]
            aspect_ratio = turned
        largest = image_size[::-1] if aspect_ratio is None else pixel_sizes(aspect_ratio, image_size)[-1]
        met = shown[0] <= largest[0] and shown[1] <= largest[1]
        return cls(
            aspect_ratio=aspect_ratio,
            min_area=options.min_area or 0.0,
            max_area=1.0 if options.max_area is None else options.max_area,
            min_size=(max(least[0], shown[0]), max(least[1], shown[1])) if met else least,
            keep=_content_boxes([item for item in options.keep if len(item) in (2, 4)], image_size, "keep"),
            avoid=_content_boxes([item for item in options.avoid if len(item) == 4], image_size, "avoid"),
            wishes=np.concatenate(
                [_wishes(options.keep, image_size, "keep"), _wishes(options.avoid, image_size, "avoid") * _AGAINST]
            ),
            unmet_size=None if met else shown,
        )

    @property
    def is_free(self) -> bool:
        """Whether nothing is asked of a crop."""
        content = len(self.keep) + len(self.avoid) + len(self.wishes)
        return self.aspect_ratio is None and not self.has_bounds and content == 0

    @property
    def has_bounds(self) -> bool:
        """Whether a crop's area or size is bounded."""
        return (self.min_area, self.max_area, tuple(self.min_size)) != (0.0, 1.0, (1, 1))

    def wished(self, boxes: np.ndarray) -> np.ndarray:
        """How far (M,) boxes (M, 4) are as it is wished: the sum of weights, each by the share of its box inside."""
        shares = box_intersection(boxes, self.wishes[:, :4]) / box_area(self.wishes[:, :4])
        return shares @ self.wishes[:, 4]


_AGAINST = np.array([1, 1, 1, 1, -1])


def _wishes(items: Sequence[Sequence[float]], image_size: tuple[int, int], name: str) -> np.ndarray:
    """Whole-pixel boxes with their weights (W, 5), of the items that have one."""
    weighted = [item for item in items if len(item) in (3, 5)]
    boxes = _content_boxes([item[:-1] for item in weighted], image_size, name)
    return np.concatenate([boxes, np.array([item[-1:] for item in weighted]).reshape(-1, 1)], axis=1)


def _content_boxes(items: Sequence[Sequence[float]], image_size: tuple[int, int], name: str) -> np.ndarray:
    """Whole-pixel boxes (K, 4) inside the image that cover the given boxes or points."""
    height, width = image_size
    outside = f"lies outside the image ({width} x {height})"
    boxes = []
    for item in items:
        if len(item) == 2:
            if not (0 <= item[0] <= width and 0 <= item[1] <= height):
                raise ValueError(f"{name}: point {list(item)} {outside}")
            x, y = (min(math.floor(v), side - 1) for v, side in zip(item, (width, height), strict=True))
            boxes.append((x, y, x + 1, y + 1))
            continue
        x1, y1 = max(math.floor(item[0]), 0), max(math.floor(item[1]), 0)
        x2, y2 = min(math.ceil(item[2]), width), min(math.ceil(item[3]), height)
        if x1 >= x2 or y1 >= y2:
            raise ValueError(f"{name}: box {list(item)} {outside}")
        boxes.append((x1, y1, x2, y2))
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


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
    """

    boxes: np.ndarray
    validity: np.ndarray
    image_size: tuple[int, int]
    rate: Callable[[np.ndarray], np.ndarray] | None = None
    ratings: np.ndarray | None = None
    importance: np.ndarray | None = None

    @classmethod
    def from_output(
        cls,
        pred_boxes: np.ndarray,
        validity: np.ndarray,
        image_size: tuple[int, int],
        rate: Callable[[np.ndarray], np.ndarray] | None = None,
        ratings: np.ndarray | None = None,
        importance: np.ndarray | None = None,
    ) -> Prediction:
        """From the model's output for one image: boxes (N, 4) cxcywh in 0..1 and the rest as above."""
        height, width = image_size
        boxes = cxcywh_to_xyxy(np.asarray(pred_boxes, np.float64)).clip(0, 1) * [width, height, width, height]
        return cls(boxes, np.asarray(validity, np.float64), image_size, rate, ratings, importance)

    @cached_property
    def set_merit(self) -> np.ndarray:
        """What the predicted set is ranked by, see [`merit`]."""
        if self.rate is None:
            return _settled(self.validity)
        return self.merit(self.boxes) if self.ratings is None else _settled(self.ratings)

    def merit(self, boxes: np.ndarray) -> np.ndarray:
        """Return what boxes (M, 4) in pixels are ranked by (M,): the rating, 1..5, or without one the probability.

        Probabilities of poor crops lie so near to 0 that they would no longer tell better from worse.
        """
        if len(boxes) == 0:
            return np.zeros(0)
        if self.rate is None:
            return _settled((box_iou(boxes, self.boxes) * self.validity).max(axis=-1))
        height, width = self.image_size
        shares = xyxy_to_cxcywh(boxes / [width, height, width, height])
        return _settled(self.rate(shares.astype(np.float32)))

    def score(self, merit: np.ndarray) -> np.ndarray:
        """Probabilities (M,) in 0..1 that people call crops with such merits good."""
        return merit if self.rate is None else _settled(good_crop_probability(merit))


def best_probabilities(logits: np.ndarray) -> np.ndarray:
    """Probabilities (M,), summing to 1, that each of several crops is the image's best.

    Args:
        logits: (M,) their ratings, or the logarithms of their validities.
    """
    weights = np.exp((logits - logits.max(initial=-np.inf)) / _BEST_TEMPERATURE)
    return weights / weights.sum()


def _settled(values: np.ndarray) -> np.ndarray:
    """Values without their last bits, in which one way of computing differs from another: equal crops rank equally."""
    return np.round(np.asarray(values, np.float64) * 2**14) / 2**14


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
        `aspect_ratio`; with `details` a dict of these `crops` and what [`judge_image`] says.

    Raises:
        ConstraintError: With `strict`, when nothing satisfies everything.
        ValueError: Content to keep or avoid lies outside the image.
    """
    asked = [CropConstraints.from_options(options, ratio, prediction.image_size) for ratio in options.aspect_ratios]
    searches = [_places(prediction, constraints) for constraints in asked]
    if options.details:
        searches.append(_judged(prediction))
    found = _side_by_side(prediction, searches)
    crops, ranking = [], []
    for ratio, constraints, places in zip(options.aspect_ratios, asked, found, strict=False):
        selection = _selected(prediction, constraints, options, *places)
        of_ratio = {"aspect_ratio": ratio} if options.several_ratios else {}
        crops += [{"score": crop.pop("score"), "label": label, **crop, **of_ratio} for crop in selection.as_dicts()]
        ranking += selection.ranking.tolist()
    if options.best_of:
        crops = _best_of(crops, np.array(ranking), options)
    if not options.details:
        return crops
    best = max((crop["score"] for crop in crops), default=None)
    return {"crops": crops, **_verdict(prediction, found[-1][1], best)}


def _best_of(crops: list[dict[str, Any]], ranking: np.ndarray, options: CropOptions) -> list[dict[str, Any]]:
    """Return the best of several aspect ratios' crops, those that break nothing first."""
    merit = ranking - np.where([bool(crop.get("gave_way")) for crop in crops], 1e3, 0)
    boxes = np.array([list(crop["box"].values()) for crop in crops], dtype=np.float64).reshape(-1, 4)
    count = len(crops) if options.top_k is None else options.top_k
    kept = rank(merit) if options.nms_iou is None else nms(boxes, merit, options.nms_iou, count)
    return [crops[index] for index in kept[:count]]


def select_crops(prediction: Prediction, constraints: CropConstraints, options: CropOptions) -> Selection:
    """Return the best crops of an image under constraints.

    Raises:
        ConstraintError: With `options.strict`, when nothing satisfies everything.
    """
    (places,) = _side_by_side(prediction, [_places(prediction, constraints)])
    return _selected(prediction, constraints, options, *places)


def _places(prediction: Prediction, constraints: CropConstraints) -> Search:
    """Return the search for the crops of one image under constraints."""
    return _refined_set(prediction) if constraints.is_free else _search(prediction, constraints)


def _side_by_side(prediction: Prediction, searches: Sequence[Search]) -> list[tuple[np.ndarray, np.ndarray]]:
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


def _selected(
    prediction: Prediction, constraints: CropConstraints, options: CropOptions, boxes: np.ndarray, merit: np.ndarray
) -> Selection:
    """Return the crops that a caller gets, of boxes (M, 4) with their merits (M,)."""
    broken = _broken(boxes, constraints, prediction.image_size)
    if options.strict and broken.any():
        raise ConstraintError(_names(broken[broken.sum(axis=-1).argmin()]))
    scores = prediction.score(merit)
    if len(constraints.wishes):
        merit = merit + _wish_worth(prediction) * constraints.wished(boxes)
    kept = rank(merit)
    if options.threshold > 0:
        kept = kept[scores[kept] > options.threshold]
    count = len(kept) if options.top_k is None else options.top_k
    if options.as_set:
        kept = kept[:_MOST_IN_A_SET]
        logits = merit[kept] if prediction.rate is not None else np.log(merit[kept].clip(min=1e-9))
        kept = kept[covering_order(boxes[kept], best_probabilities(logits), count)]
    elif options.diversity is not None:
        relevance = scores[kept] / scores[kept].max(initial=1e-12)
        kept = kept[maximal_marginal_relevance(boxes[kept], relevance, options.diversity, count)]
    elif options.nms_iou is not None:
        kept = kept[nms(boxes[kept], merit[kept], options.nms_iou, count)]
    kept = kept[:count]
    return Selection(boxes[kept], scores[kept], [_names(row) for row in broken[kept]], merit[kept])


def _wish_worth(prediction: Prediction) -> float:
    """Return what a whole wish adds to a crop's merit: more than crops of one image differ by."""
    return _WISH if prediction.rate is not None else 1.0


def judge_image(prediction: Prediction, best_score: float | None = None) -> dict[str, Any]:
    """Whether to crop at all, and where the image's weight lies.

    Args:
        prediction: Of the image.
        best_score: Of the crop to compare with the whole image; by default the model's best.

    Returns:
        `keep_original`, the probability that the whole image is a good crop; `improves`, the crop's probability minus
        it; `focus_point`, {"x", "y"} in 0..1: the centre of what matters most, for focal points and CSS
        `object-position`.
    """
    ((_, merit),) = _side_by_side(prediction, [_judged(prediction)])
    return _verdict(prediction, merit, best_score)


def _judged(prediction: Prediction) -> Search:
    """Return the boxes by which an image is judged: the whole, and windows that say where its content is."""
    height, width = prediction.image_size
    whole = np.array([[0, 0, width, height]], dtype=np.float64)
    windows = np.zeros((0, 4)) if prediction.importance is not None else _windows(prediction.image_size)
    boxes = np.concatenate([whole, windows])
    return boxes, (yield boxes)


def _verdict(prediction: Prediction, merit: np.ndarray, best_score: float | None) -> dict[str, Any]:
    """Return what [`judge_image`] says, from the merits of the boxes of [`_judged`]."""
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


def _names(row: np.ndarray) -> tuple[str, ...]:
    return tuple(name for name, is_broken in zip(_COSTS, row.tolist(), strict=True) if is_broken)


def _whole_pixels(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Boxes with corners on the nearest whole pixels, at least one pixel large, inside the image."""
    limit = np.array(image_size[::-1], dtype=np.float64)
    low = np.minimum(boxes[:, :2].round().clip(min=0), limit - 1)
    high = np.minimum(np.maximum(boxes[:, 2:].round(), low + 1), limit)
    return np.concatenate([low, high], axis=-1)


def _violations(boxes: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int]) -> np.ndarray:
    """By what share (M, 5) each box breaks each constraint, in the order of `_COSTS`; 0 where it holds."""
    shares = np.zeros((len(boxes), len(_COSTS)))
    column = {name: shares[:, index] for index, name in enumerate(_COSTS)}
    # Only what can be broken is looked at: mostly that is nothing.
    if tuple(constraints.min_size) != (1, 1):
        least, size = np.array(constraints.min_size, dtype=np.float64), boxes[:, 2:] - boxes[:, :2]
        column["min_size"][:] = np.maximum((least - size) / least, 0).max(axis=-1)
    # Areas are compared in whole pixels' terms, so that a bound met exactly is met.
    slack = 1e-9
    whole = image_size[0] * image_size[1]
    if constraints.min_area > 0:
        short = constraints.min_area - box_area(boxes) / whole - slack
        column["min_area"][:] = np.maximum(short, 0) / max(constraints.min_area, slack)
    if constraints.max_area < 1:
        over = box_area(boxes) / whole - constraints.max_area - slack
        column["max_area"][:] = np.maximum(over, 0) / max(constraints.max_area, slack)
    if len(constraints.avoid):
        column["avoid"][:] = (box_intersection(boxes, constraints.avoid) / box_area(constraints.avoid)).sum(axis=-1)
    if len(constraints.keep):
        column["keep"][:] = (1 - box_intersection(boxes, constraints.keep) / box_area(constraints.keep)).sum(axis=-1)
    return shares


def _broken(boxes: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int]) -> np.ndarray:
    """Which constraints (M, 5) each box breaks."""
    broken = _violations(boxes, constraints, image_size) > 0
    if constraints.unmet_size is not None:
        broken[:, list(_COSTS).index("min_size")] = True
    return broken


def _cost(boxes: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int]) -> np.ndarray:
    """Return what (M,) boxes cost for the constraints they break."""
    return _violations(boxes, constraints, image_size) @ _WEIGHTS


def _search(prediction: Prediction, constraints: CropConstraints) -> Search:
    """Candidate boxes (M, 4) that break least, and their merits (M,)."""
    image_size = prediction.image_size
    kept = hull(constraints.keep) if len(constraints.keep) else None
    pool = _satisfying(prediction, constraints, kept)
    if len(pool) == 0:
        pool = _relaxed(prediction, constraints, kept)
    cost = _cost(pool, constraints, image_size)
    least = cost.min() * (1 + 1e-9)
    pool = pool[cost <= least]
    merit = yield pool
    steps = _STEPS if constraints.aspect_ratio is not None else _STEPS_PER_SHAPE
    wanted = merit + _wish_worth(prediction) * constraints.wished(pool) if len(constraints.wishes) else merit
    best = pool[nms(pool, wanted, _REFINED_NMS, _REFINED)]
    closer = _surroundings(best, constraints.aspect_ratio, image_size, max(image_size) / steps, kept)
    closer = closer[_cost(closer, constraints, image_size) <= least]
    boxes, merit = np.concatenate([pool, closer]), np.concatenate([merit, (yield closer)])
    if prediction.rate is None or len(constraints.wishes):
        # The mean of places around one that holds what is wished need not hold it.
        return boxes, merit
    best = boxes[nms(boxes, merit, _REFINED_NMS, _REFINED)]
    voted, voted_merit = _voted(best, boxes, merit, _VOTE_TEMPERATURE)
    centres, sizes = (voted[:, :2] + voted[:, 2:]) / 2, best[:, 2:] - best[:, :2]
    voted = place(centres, sizes, image_size, kept, pixels=True)
    fits = _cost(voted, constraints, image_size) <= least
    return np.concatenate([voted[fits], boxes]), np.concatenate([voted_merit[fits], merit])


def _refined_set(prediction: Prediction) -> Search:
    """Return the model's set in whole pixels, its best crops moved to where the ratings around them are highest."""
    image_size = prediction.image_size
    boxes, merit = prediction.boxes, prediction.set_merit
    if prediction.rate is None:
        return _whole_pixels(boxes, image_size), merit
    sides = np.tile(image_size[::-1], 2)
    best = nms(boxes, merit, _REFINED_NMS, _REFINED_OF_SET)
    moved = boxes[best][:, None] + _edge_moves() * sides
    moved = moved.clip(0, sides).reshape(-1, 4)
    moved = moved[(moved[:, 2:] - moved[:, :2] > 0.1 * sides[2:]).all(axis=-1)]
    rated, ratings = np.concatenate([boxes, moved]), np.concatenate([merit, (yield moved)])
    # Each of the best, and then each of the places around it, by its rating.
    centres = rated[nms(rated, ratings, _REFINED_NMS, _REFINED_OF_SET)]
    voted, voted_merit = _voted(centres, rated, ratings, _SET_VOTE_TEMPERATURE)
    voted = np.where(voted < _SLIVER * sides, 0.0, np.where(voted > (1 - _SLIVER) * sides, sides, voted))
    rest = np.ones(len(boxes), dtype=bool)
    rest[best] = False
    return (
        _whole_pixels(np.concatenate([voted, boxes[rest]]), image_size),
        np.concatenate([voted_merit, merit[rest]]),
    )


@cache
def _edge_moves() -> np.ndarray:
    """Return moves (32, 4) of the four edges, in shares of the sides, spread evenly (Halton's sequence)."""
    numbers = np.arange(1, _EDGE_MOVES + 1)
    columns = []
    for base in (2, 3, 5, 7):
        value, left, scale = np.zeros(len(numbers)), numbers.copy(), 1.0
        while left.any():
            scale /= base
            value += scale * (left % base)
            left //= base
        columns.append(value)
    return (2 * np.stack(columns, axis=1) - 1) * _FARTHEST_MOVE


def _voted(
    centres: np.ndarray, boxes: np.ndarray, merit: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each of `centres` (K, 4) the mean, by merit, of the boxes (M, 4) around it, and the best merit there.

    Box voting (Gidaris and Komodakis, ICCV 2015): neighbours are noisy measurements of one place.
    """
    overlap = box_iou(centres, boxes)
    near = overlap >= _VOTE_IOU
    # For all but the best centre those vote that are nearest to it: they would drift to the best and repeat it.
    near[1:] &= (overlap == overlap.max(axis=0))[1:]
    best = np.where(near, merit, -np.inf).max(axis=1)
    weights = np.where(near, np.exp((merit - best[:, None]) / temperature), 0.0)
    return weights @ boxes / weights.sum(axis=1, keepdims=True), best


def _satisfying(prediction: Prediction, constraints: CropConstraints, kept: np.ndarray | None) -> np.ndarray:
    """Candidates (M, 4), perhaps none, that satisfy everything."""
    image_size = prediction.image_size
    regions = _free_regions(image_size, constraints.avoid)
    if kept is not None:
        regions = regions[((regions[:, :2] <= kept[:2]) & (regions[:, 2:] >= kept[2:])).all(axis=-1)]
    rooms = [(region, sizes) for region in regions for sizes in _allowed_sizes(region, constraints, image_size, kept)]
    # What is a fair size is measured by the largest crop that the constraints allow anywhere.
    largest = max((float(sizes[-1].prod()) for _, sizes in rooms), default=0.0)
    steps = _STEPS if constraints.aspect_ratio is not None else _STEPS_PER_SHAPE
    predicted = prediction.boxes[rank(prediction.set_merit)[:_FITTED]]
    pools = [_candidates(predicted, region, sizes, largest, kept, max(image_size) / steps) for region, sizes in rooms]
    if constraints.aspect_ratio is None:
        pools += [_free_shapes(prediction, region, constraints, kept) for region in regions]
    pool = _distinct(np.concatenate([np.zeros((0, 4)), *pools]), image_size)
    return pool[_cost(pool, constraints, image_size) == 0]


def _relaxed(prediction: Prediction, constraints: CropConstraints, kept: np.ndarray | None) -> np.ndarray:
    """Candidates (M, 4) where no crop satisfies everything."""
    image_size = prediction.image_size
    whole = np.array([0, 0, image_size[1], image_size[0]], dtype=np.float64)
    regions = np.concatenate([whole[None], _free_regions(image_size, constraints.avoid)])
    pools = [_relaxed_candidates(region, constraints, image_size, kept) for region in regions]
    if constraints.aspect_ratio is None:
        pools += [_free_shapes(prediction, whole, constraints, kept)]
    return _distinct(np.concatenate(pools), image_size)


def _distinct(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Return whole-pixel boxes (M, 4) without repeats, sorted by place, by one number each (sorting rows is slow)."""
    height, width = image_size
    radices = (width + 1, height + 1, width + 1, height + 1)
    keys = np.zeros(len(boxes), dtype=np.int64)
    for column, radix in zip(boxes.astype(np.int64).T, radices, strict=True):
        keys = keys * radix + column
    keys, columns = _unique(keys), []
    for radix in reversed(radices):
        columns.append(keys % radix)
        keys = keys // radix
    return np.stack(columns[::-1], axis=-1).astype(np.float64)


def _unique(numbers: np.ndarray) -> np.ndarray:
    """`np.unique`, which imports masked arrays, a seventh of what a command's imports take."""
    rising = np.sort(numbers)
    first = np.ones(len(rising), dtype=bool)
    first[1:] = rising[1:] != rising[:-1]
    return rising[first]


def _free_regions(image_size: tuple[int, int], avoid: np.ndarray) -> np.ndarray:
    """Return the maximal boxes (R, 4) inside the image that touch none of the `avoid` boxes.

    As in packing by maximal rectangles (Jylanki, 2010): every region that a box touches is replaced by its parts
    left, right, above and below the box, and regions inside another one are dropped.
    """
    regions = np.array([[0, 0, image_size[1], image_size[0]]], dtype=np.float64)
    for box in avoid:
        touches = box_intersection(regions, box[None])[:, 0] > 0
        hit, parts = regions[touches], [regions[~touches]]
        for edge, value in ((2, box[0]), (0, box[2]), (3, box[1]), (1, box[3])):
            part = hit.copy()
            part[:, edge] = value
            parts.append(part[(part[:, 2:] > part[:, :2]).all(axis=-1)])
        regions = np.unique(np.concatenate(parts), axis=0)
        inside = (regions[:, None, :2] >= regions[None, :, :2]) & (regions[:, None, 2:] <= regions[None, :, 2:])
        inside = inside.all(axis=-1) & ~np.eye(len(regions), dtype=bool)
        regions = regions[~inside.any(axis=-1)]
    return regions


def _candidates(
    predicted: np.ndarray,
    region: np.ndarray,
    sizes: np.ndarray,
    largest: float,
    keep: np.ndarray | None,
    stride: float,
) -> np.ndarray:
    """Candidates (M, 4) of the sizes (S, 2, rising) in a region: the predictions fitted to them, and a grid of places.

    `largest` is the area in pixels by which a size is fair: the grid is held to fair ones.
    """
    corner, region_size = region[[0, 1, 0, 1]], _region_size(region)
    if keep is not None:
        keep = keep - corner
    # There are thousands of sizes: looking for a limit among them costs least.
    areas = sizes[:, 0] * sizes[:, 1]
    boxes = [np.zeros((0, 4))]
    usable = sizes[np.searchsorted(areas, _SMALLEST_FITTED**2 * largest) :]
    if len(usable):
        ratio = float(usable[-1, 0] / usable[-1, 1])
        clipped = _clipped(predicted - corner, region_size)
        fitted = fit_aspect_ratio(clipped, ratio, region_size, float(usable[0, 1]), float(usable[-1, 1]), keep)
        boxes.append(round_to_sizes(fitted, usable, region_size, keep))
    fair = sizes[np.searchsorted(areas, _SMALLEST**2 * largest) :]
    if len(fair):
        boxes.append(candidate_grid(_ladder(fair), region_size, stride, keep))
    return np.concatenate(boxes) + corner


def _clipped(boxes: np.ndarray, region_size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) cut to the region; one that lies outside becomes the pixel next to it."""
    limit = np.array(region_size[::-1], dtype=np.float64)
    low = np.minimum(boxes[:, :2].clip(min=0), limit - 1)
    return np.concatenate([low, np.minimum(np.maximum(boxes[:, 2:], low + 1), limit)], axis=-1)


def _region_size(region: np.ndarray) -> tuple[int, int]:
    """Height and width of a whole-pixel box (4,)."""
    return int(region[3] - region[1]), int(region[2] - region[0])


def _shapes(region: np.ndarray, constraints: CropConstraints, keep: np.ndarray | None) -> list[float]:
    """Aspect ratios to try in a region: the caller's, or common ones, the region's and that of what is kept."""
    if constraints.aspect_ratio is not None:
        return [constraints.aspect_ratio]
    height, width = _region_size(region)
    shapes = {width / height, *_FREE_RATIOS}
    if keep is not None:
        shapes.add(float((keep[2] - keep[0]) / (keep[3] - keep[1])))
    return sorted(shapes)


def _sizes_inside(region: np.ndarray, shape: float, image_size: tuple[int, int]) -> np.ndarray:
    """Return the image's sizes (S, 2, rising) of a shape that a region has room for; perhaps none."""
    sizes = pixel_sizes(shape, image_size)
    height, width = _region_size(region)
    if (height, width) == image_size:
        return sizes
    return sizes[(sizes[:, 0] <= width) & (sizes[:, 1] <= height)]


def _allowed_sizes(
    region: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int], keep: np.ndarray | None
) -> list[np.ndarray]:
    """For each shape that can, the sizes (S, 2, rising) inside a region that satisfy the bounds and hold `keep`."""
    allowed = []
    for shape in _shapes(region, constraints, keep):
        sizes = _sizes_inside(region, shape, image_size)
        if constraints.has_bounds:
            sizes = sizes[_broken_bounds(sizes, constraints, image_size) == 0]
        if keep is not None:
            across, down = keep[2:] - keep[:2]
            sizes = sizes[(sizes[:, 0] >= across) & (sizes[:, 1] >= down)]
        if len(sizes):
            allowed.append(sizes)
    return allowed


def _broken_bounds(sizes: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int]) -> np.ndarray:
    """By what share (S,) the sizes (S, 2) break `min_size`, `min_area` and `max_area`, in sum."""
    boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=-1)
    return _violations(boxes, constraints, image_size)[:, :3] @ np.ones(3)


def _relaxed_candidates(
    region: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int], keep: np.ndarray | None
) -> np.ndarray:
    """Candidates (M, 4) in a region where no crop satisfies everything: all fair sizes, `keep` centred if cut."""
    corner, region_size = region[[0, 1, 0, 1]], _region_size(region)
    if keep is not None:
        keep = _clipped((keep - corner)[None], region_size)[0]
    boxes = [np.zeros((0, 4))]
    for shape in _shapes(region, constraints, keep):
        sizes = _sizes_inside(region, shape, image_size)
        if len(sizes) == 0:
            continue
        areas = sizes.prod(axis=-1)
        fair = sizes[areas >= _SMALLEST_FITTED**2 * areas[-1]]
        sizes = np.concatenate([_ladder(fair), _least_broken_sizes(sizes, constraints, image_size, keep)])
        boxes.append(candidate_grid(sizes, region_size, max(image_size) / _STEPS, keep))
        if keep is not None:
            centres = np.broadcast_to((keep[:2] + keep[2:]) / 2, sizes.shape)
            boxes.append(place(centres, sizes, region_size, keep, pixels=True))
    return np.concatenate(boxes) + corner


def _least_broken_sizes(
    sizes: np.ndarray, constraints: CropConstraints, image_size: tuple[int, int], keep: np.ndarray | None
) -> np.ndarray:
    """Return the size that breaks the bounds least, and the smallest that leaves room for `keep` (1 or 2, 2)."""
    chosen = sizes[_broken_bounds(sizes, constraints, image_size).argmin()][None]
    if keep is not None:
        roomy = sizes[(sizes >= keep[2:] - keep[:2]).all(axis=-1)]
        chosen = np.concatenate([chosen, roomy[:1]])
    return chosen


def _ladder(sizes: np.ndarray) -> np.ndarray:
    """`_SIZES` of the sizes (S, 2, rising), in even steps from the smallest to the largest."""
    short = np.minimum(sizes[:, 0], sizes[:, 1])
    wanted = short[0] * (short[-1] / short[0]) ** np.linspace(0, 1, _SIZES)
    return sizes[_unique(np.searchsorted(short, np.minimum(wanted, short[-1])))]


def _surroundings(
    boxes: np.ndarray,
    aspect_ratio: float | None,
    image_size: tuple[int, int],
    step: float,
    keep: np.ndarray | None,
) -> np.ndarray:
    """Whole-pixel boxes (M, 4) between the grid's places and sizes, around the given ones (N, 4)."""
    moves = np.array([*((x, y) for x in _MOVES for y in _MOVES), *([(0.0, 0.0)] * len(_SCALES))]) * step
    scales = np.array([1.0] * len(_MOVES) ** 2 + list(_SCALES))[:, None]
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centres = (centres[:, None] + moves).reshape(-1, 2)
    scaled = (sizes[:, None] * scales).reshape(-1, 2)
    if aspect_ratio is None:
        scaled = np.minimum(scaled.round().clip(min=1), image_size[::-1])
        return _distinct(place(centres, scaled, image_size, keep, pixels=True), image_size)
    moved = np.concatenate([centres - scaled / 2, centres + scaled / 2], axis=-1)
    return _distinct(round_to_sizes(moved, pixel_sizes(aspect_ratio, image_size), image_size, keep), image_size)


def _free_shapes(
    prediction: Prediction, region: np.ndarray, constraints: CropConstraints, keep: np.ndarray | None
) -> np.ndarray:
    """Boxes (M, 4) in a region, from the predictions, the region and `keep`, adjusted to the bounds in any shape."""
    corner, region_size = region[[0, 1, 0, 1]], _region_size(region)
    starts = [_clipped(prediction.boxes - corner, region_size), np.array([[0.0, 0.0, *region_size[::-1]]])]
    if keep is not None:
        keep = keep - corner
        starts.append(keep[None])
    return _adjusted(np.concatenate(starts), constraints, region_size, prediction.image_size, keep) + corner


def _adjusted(
    boxes: np.ndarray,
    constraints: CropConstraints,
    region_size: tuple[int, int],
    image_size: tuple[int, int],
    keep: np.ndarray | None,
) -> np.ndarray:
    """Boxes (N, 4) of any shape, widened to hold `keep` and scaled about their centres to meet the bounds."""
    limit = np.array(region_size[::-1], dtype=np.float64)
    least = np.minimum(np.ceil(constraints.min_size), limit)
    if keep is not None:
        boxes = np.concatenate([np.minimum(boxes[:, :2], keep[:2]), np.maximum(boxes[:, 2:], keep[2:])], axis=-1)
        least = np.maximum(least, keep[2:] - keep[:2])
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    image_area = image_size[0] * image_size[1]
    low, high = constraints.min_area * image_area, constraints.max_area * image_area
    area = sizes.prod(axis=-1, keepdims=True)
    larger = np.minimum(np.ceil(sizes * np.sqrt(low / area).clip(min=1)), limit)
    # Where one side ran into the edge the other makes up for it.
    larger = np.minimum(np.maximum(larger, np.ceil(low / larger[:, ::-1])), limit)
    shrink = np.sqrt(high / larger.prod(axis=-1, keepdims=True)).clip(max=1)
    smaller = np.maximum(np.floor(larger * shrink), least)
    smaller = np.maximum(np.minimum(smaller, np.floor(high / smaller[:, ::-1])), least)
    return place(centres, np.minimum(smaller, limit), region_size, keep, pixels=True)
