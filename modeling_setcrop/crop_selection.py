"""Which crops to give a caller: from the model's set, or from every place that the caller's constraints allow.

Without constraints the model's own set is ranked. An aspect ratio, bounds or content to keep or avoid turn the
question into a search: candidates are the predicted crops fitted to the constraints and a grid of places and sizes,
and each is judged on one scale, the probability that people call it good. Boxes are whole pixels of the picture,
float64, corner format, unless a name says `cxcywh`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .content_profile import ContentProfile, familiarity
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
    round_to_sizes,
    xyxy_to_cxcywh,
)

# What a broken constraint costs for each unit of its share: bounds give way first, kept content last.
_COSTS = {"min_size": 1.0, "min_area": 1.0, "max_area": 1.0, "avoid": 10.0, "keep": 100.0}
# Sizes that are tried: so many from the largest that the constraints allow anywhere down to this share of its sides.
# Like the crops that people rated, they hold at least half of the largest area. Predicted crops may be smaller.
_SIZES, _SMALLEST, _SMALLEST_FITTED = 6, 0.5**0.5, 0.2
# Places that are tried: so many steps along the picture's longer side; the best few are then moved and scaled.
_STEPS, _REFINED, _REFINED_SCALES = 20, 5, (0.96, 1.0, 1.04)
# So many candidates are judged at most; the rest are the farthest from anything the model proposed.
_MOST_CANDIDATES = 4000
# The part that content has in the score of a crop unlike any that people rated. Over narrow crops of photographs with
# detected objects, more keeps more of the main object, but beyond a half it cuts heads; nothing cuts both.
_CONTENT_WEIGHT = 0.45
# Shapes that are tried when the caller bounds a crop but names no aspect ratio.
_FREE_RATIOS = (16 / 9, 3 / 2, 4 / 3, 1.0, 4 / 5, 3 / 4, 2 / 3, 9 / 16)
# A focus point is no more exact than this.
_FOCUS_DIGITS = 4
# A grid is dense: of crops that nearly coincide only the best is worth showing.
_GRID_NMS = 0.8


class ConstraintError(ValueError):
    """With `strict`, no crop satisfies every constraint; `gave_way` names those that had to give."""

    def __init__(self, gave_way: Sequence[str]) -> None:
        super().__init__(f"no crop satisfies every constraint: {', '.join(gave_way)} had to give way")
        self.gave_way = tuple(gave_way)


def parse_aspect_ratio(value: float | str, picture_size: tuple[int, int]) -> float | None:
    """Width over height from a number, "16:9", "16/9", "1.91", "square" or "original"; None for "free".

    Raises:
        ValueError: The value is none of these, or not a positive ratio.
    """
    if isinstance(value, str):
        text = value.strip().lower()
        if text == "free":
            return None
        if text == "original":
            return picture_size[1] / picture_size[0]
        if text == "square":
            return 1.0
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\s*[:/x]\s*(\d+(?:\.\d+)?))?", text)
        number = float(match[1]) / (float(match[2] or 1) or math.nan) if match else math.nan
    else:
        number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f'aspect ratio {value!r}: give a positive number, "W:H", "square", "original" or "free"')
    return number


@dataclass(frozen=True)
class CropConstraints:
    """What a crop must satisfy; the aspect ratio is exact to one pixel, the rest can give way (see `gave_way`).

    Attributes:
        aspect_ratio: Width over height, or None for any shape.
        min_area, max_area: Bounds on the crop's share of the picture, in 0..1.
        min_size: Least width and height in pixels.
        keep: (K, 4) boxes that must not be cut, x1, y1, x2, y2 in pixels.
        avoid: (A, 4) boxes that must stay outside.

    Raises:
        ValueError: A bound is out of its range, naming it.
    """

    aspect_ratio: float | None = None
    min_area: float = 0.0
    max_area: float = 1.0
    min_size: tuple[int, int] = (1, 1)
    keep: Tensor = field(default_factory=lambda: torch.zeros(0, 4, dtype=torch.float64))
    avoid: Tensor = field(default_factory=lambda: torch.zeros(0, 4, dtype=torch.float64))

    def __post_init__(self) -> None:
        for name in ("min_area", "max_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the picture in 0..1, not {getattr(self, name)}")
        if self.min_area > self.max_area:
            raise ValueError(f"min_area ({self.min_area}) is larger than max_area ({self.max_area})")
        if min(self.min_size) < 1:
            raise ValueError(f"min_size must be at least one pixel, not {self.min_size}")

    @classmethod
    def from_options(
        cls,
        picture_size: tuple[int, int],
        *,
        aspect_ratio: float | str | None = None,
        width: int | None = None,
        height: int | None = None,
        min_area: float | None = None,
        max_area: float | None = None,
        min_size: int | tuple[int, int] | None = None,
        keep: Sequence[Sequence[float]] = (),
        avoid: Sequence[Sequence[float]] = (),
    ) -> CropConstraints:
        """Constraints from what callers write.

        Args:
            picture_size: Height and width in pixels.
            aspect_ratio: As `parse_aspect_ratio` reads it.
            width, height: Size in pixels at which the crop will be shown. Both together say the ratio (and then no
                other may be given); a crop smaller than this would have to be enlarged, so it is also a `min_size`.
            min_size: One number for both sides, or width and height.
            keep, avoid: Boxes x1, y1, x2, y2 or, to keep, points x, y, in pixels.

        Raises:
            ValueError: Something is out of range, naming it.
        """
        ratio = None if aspect_ratio is None else parse_aspect_ratio(aspect_ratio, picture_size)
        for name, side in (("width", width), ("height", height)):
            if side is not None and side < 1:
                raise ValueError(f"{name} must be at least one pixel, not {side}")
        if width is not None and height is not None:
            if ratio is not None and abs(width - ratio * height) >= 1 and abs(height - width / ratio) >= 1:
                raise ValueError(f"width {width} and height {height} contradict the aspect ratio {aspect_ratio}")
            ratio = width / height
        least = (min_size, min_size) if isinstance(min_size, int) else (1, 1) if min_size is None else tuple(min_size)
        return cls(
            aspect_ratio=ratio,
            min_area=0.0 if min_area is None else min_area,
            max_area=1.0 if max_area is None else max_area,
            min_size=(max(least[0], width or least[0]), max(least[1], height or least[1])),
            keep=_content_boxes(keep, picture_size, "keep", points=True),
            avoid=_content_boxes(avoid, picture_size, "avoid", points=False),
        )

    @property
    def is_free(self) -> bool:
        """Whether nothing is asked of a crop."""
        bounds = (self.min_area, self.max_area, self.min_size) == (0.0, 1.0, (1, 1))
        return self.aspect_ratio is None and bounds and len(self.keep) == 0 and len(self.avoid) == 0


def _content_boxes(items: Sequence[Sequence[float]], picture_size: tuple[int, int], name: str, points: bool) -> Tensor:
    """Whole-pixel boxes (K, 4) inside the picture that cover the given boxes or points."""
    height, width = picture_size
    boxes = []
    for item in items:
        values = [float(value) for value in item]
        if len(values) == 2 and points:
            x, y = (min(max(math.floor(v), 0), side - 1) for v, side in zip(values, (width, height), strict=True))
            boxes.append([x, y, x + 1, y + 1])
            continue
        if len(values) != 4:
            raise ValueError(f"{name}: expected x1,y1,x2,y2{' or x,y' if points else ''}, not {list(item)}")
        x1, y1, x2, y2 = values
        if not (x1 < x2 and y1 < y2):
            raise ValueError(f"{name}: box {list(item)} needs x1 < x2 and y1 < y2")
        clipped = [
            max(math.floor(x1), 0),
            max(math.floor(y1), 0),
            min(math.ceil(x2), width),
            min(math.ceil(y2), height),
        ]
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            raise ValueError(f"{name}: box {list(item)} lies outside the picture ({width} x {height})")
        boxes.append(clipped)
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


@dataclass(frozen=True)
class CropJudge:
    """Probability that people call a box a good crop, for one picture.

    With a scoring function it is the predicted score's, as in the ranking of the model's own set; without one, a box
    inherits the validity of a predicted crop in proportion to their IoU, best pair first.

    People have rated crops of more than half of a picture that are neither narrow nor flat, so of others the scoring
    head knows little. Far from the rated ones a part of a box's score is what the scores of the picture's larger crops
    say of the content that the box keeps ([`ContentProfile`]); the rest is the head's, which knows better which part
    to keep of something that does not fit.

    Attributes:
        boxes: (N, 4) predicted crops in pixels, not rounded.
        validity: (N,) their probabilities, by which the set is ranked.
        picture_size: Height and width in pixels.
        score: Maps (M, 4) cxcywh in 0..1 to (M,) human scores 1..5.
        choices: (90,) for each crop of `choice_grid` the probability that it is the picture's best.
    """

    boxes: Tensor
    validity: Tensor
    picture_size: tuple[int, int]
    score: Callable[[Tensor], Tensor] | None = None
    choices: Tensor | None = None

    @classmethod
    def from_prediction(
        cls,
        pred_boxes: Tensor,
        validity: Tensor,
        picture_size: tuple[int, int],
        score: Callable[[Tensor], Tensor] | None = None,
        choices: Tensor | None = None,
    ) -> CropJudge:
        """From the model's output for one picture: boxes (N, 4) cxcywh in 0..1 and validity (N,)."""
        height, width = picture_size
        boxes = cxcywh_to_xyxy(pred_boxes.detach().double().cpu()).clamp(0, 1)
        boxes = boxes * boxes.new_tensor([width, height, width, height])
        choices = None if choices is None else choices.detach().double().cpu()
        return cls(boxes, validity.detach().double().cpu(), picture_size, score, choices)

    @cached_property
    def content(self) -> ContentProfile:
        """Where the picture holds what people miss when it is cut."""
        return ContentProfile.measure(self._predicted, self.picture_size)

    def merit(self, boxes: Tensor) -> Tensor:
        """What boxes (M, 4) in pixels are ordered by (M,): the score, 1..5, or without one the probability itself.

        Probabilities of small crops lie so near to 0 that they would no longer tell better from worse.
        """
        if len(boxes) == 0:
            return boxes.new_zeros(0)
        height, width = self.picture_size
        shares = boxes / boxes.new_tensor([width, height, width, height])
        merit = self._predicted(xyxy_to_cxcywh(shares))
        if self.score is not None:
            unknown = 1 - familiarity(shares, self.picture_size)
            if bool((unknown > 0).any()):
                merit = merit + _CONTENT_WEIGHT * unknown * (self.content(shares) - merit)
        return _settled(merit)

    def probability(self, merit: Tensor) -> Tensor:
        """Probabilities (M,) in 0..1 that belong to what [`merit`] gives."""
        return merit if self.score is None else _settled(good_crop_probability(merit))

    def __call__(self, boxes: Tensor) -> Tensor:
        """Probabilities (M,) of boxes (M, 4) in pixels."""
        return self.probability(self.merit(boxes))

    def _predicted(self, boxes_cxcywh: Tensor) -> Tensor:
        """The head's scores, or the inherited validity, (M,) of boxes (M, 4) cxcywh in 0..1."""
        if self.score is not None:
            return self.score(boxes_cxcywh.float()).detach().double().cpu()
        height, width = self.picture_size
        boxes = cxcywh_to_xyxy(boxes_cxcywh) * boxes_cxcywh.new_tensor([width, height, width, height])
        return (box_iou(boxes, self.boxes) * self.validity).amax(dim=-1)


def _settled(values: Tensor) -> Tensor:
    """Values without their last bits, which differ between batch sizes: equal crops then rank equally in every run."""
    return (values * 2**14).round() / 2**14


@dataclass(frozen=True)
class Selection:
    """Crops of one picture, best first.

    Attributes:
        boxes: (K, 4) whole pixels inside the picture.
        scores: (K,) probabilities in 0..1.
        gave_way: For each crop the constraints it breaks, of "keep", "avoid", "min_size", "min_area", "max_area".
    """

    boxes: Tensor
    scores: Tensor
    gave_way: list[tuple[str, ...]]

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


def select_crops(
    judge: CropJudge,
    constraints: CropConstraints,
    *,
    top_k: int | None = 5,
    threshold: float = 0.0,
    nms_iou: float | None = None,
    diversity: float | None = None,
    as_set: bool = False,
    strict: bool = False,
) -> Selection:
    """The best crops of a picture under constraints.

    Args:
        judge: The picture's prediction and scale of judgement.
        constraints: What to satisfy.
        top_k: At most so many crops; None for all.
        threshold: Crops judged no better than this are dropped; under constraints the best one always stays.
        nms_iou: Of crops that overlap by more than this the better one stays.
        diversity: 0..1, instead of suppression: maximal marginal relevance between score and overlap.
        as_set: Instead of both, after the best crop each next one makes it most probable that the crop that a person
            would choose is among them (`covering_order`).
        strict: Raise instead of letting a constraint give way.

    Raises:
        ConstraintError: With `strict`, when nothing satisfies everything.
        ValueError: `diversity` is out of range; `as_set` with constraints, or with a model that cannot.
    """
    if as_set and judge.choices is None:
        raise ValueError("as_set needs a model that was made with crop_choice=True")
    if as_set and not constraints.is_free:
        raise ValueError("as_set chooses among crops of any shape: leave out aspect ratio, bounds, keep and avoid")
    if diversity is not None and not 0 <= diversity <= 1:
        raise ValueError(f"diversity lies in 0..1, not {diversity}")
    if constraints.is_free:
        boxes, merit = _whole_pixels(judge.boxes, judge.picture_size), _settled(judge.validity)
        scores = merit
        broken = torch.zeros(len(boxes), len(_COSTS), dtype=torch.bool)
    else:
        boxes, broken = _search(judge, constraints)
        if strict and bool(broken.any()):
            raise ConstraintError(_names(broken[broken.sum(dim=-1).argmin()]))
        merit = judge.merit(boxes)
        if constraints.aspect_ratio is not None and not bool(broken.any()):
            closer = _refinements(judge, boxes[nms(boxes, merit, _GRID_NMS, _REFINED)], constraints)
            boxes, merit = torch.cat([boxes, closer]), torch.cat([merit, judge.merit(closer)])
            broken = torch.zeros(len(boxes), len(_COSTS), dtype=torch.bool)
        scores = judge.probability(merit)
        nms_iou = _GRID_NMS if nms_iou is None else nms_iou
    order = torch.argsort(merit, descending=True, stable=True)
    kept = order[scores[order] > threshold]
    if len(kept) == 0 and not constraints.is_free:
        kept = order[:1]
    if as_set:
        height, width = judge.picture_size
        kept = kept[covering_order(boxes[kept] / boxes.new_tensor([width, height] * 2), judge.choices, top_k)]
    elif diversity is not None:
        relevance = scores[kept] / scores[kept].max().clamp(min=1e-12) if len(kept) else scores[kept]
        kept = kept[
            maximal_marginal_relevance(boxes[kept], relevance, diversity, len(kept) if top_k is None else top_k)
        ]
    elif nms_iou is not None:
        kept = kept[nms(boxes[kept], merit[kept], nms_iou, top_k)]
    kept = kept[:top_k]
    return Selection(boxes[kept], scores[kept], [_names(row) for row in broken[kept]])


def judge_picture(judge: CropJudge, crop: Tensor | None = None) -> dict[str, Any]:
    """Whether to crop at all, and where the picture's weight lies.

    Args:
        judge: The picture's prediction.
        crop: (4,) the crop to compare with the whole picture; by default the model's best.

    Returns:
        `keep_original`, the probability that the whole picture is a good crop; `improves`, the crop's probability
        minus it; `focus_point`, {"x", "y"} in 0..1: the point about which the content lies that costs most to cut, for
        focal points and CSS `object-position`.
    """
    height, width = judge.picture_size
    whole = torch.tensor([0, 0, width, height], dtype=torch.float64)
    if crop is None:
        crop = _whole_pixels(judge.boxes, judge.picture_size)[judge.validity.argmax()]
    best, original = judge(torch.stack([crop, whole])).tolist()
    x, y = judge.content.focus
    focus = {"x": round(x, _FOCUS_DIGITS), "y": round(y, _FOCUS_DIGITS)}
    return {"keep_original": original, "improves": best - original, "focus_point": focus}


def _names(row: Tensor) -> tuple[str, ...]:
    return tuple(name for name, is_broken in zip(_COSTS, row.tolist(), strict=True) if is_broken)


def _whole_pixels(boxes: Tensor, picture_size: tuple[int, int]) -> Tensor:
    """Boxes with corners on the nearest whole pixels, at least one pixel large, inside the picture."""
    height, width = picture_size
    limit = boxes.new_tensor([width, height])
    low = torch.minimum(boxes[:, :2].round().clamp(min=0), limit - 1)
    high = torch.minimum(torch.maximum(boxes[:, 2:].round(), low + 1), limit)
    return torch.cat([low, high], dim=-1)


def _violations(boxes: Tensor, constraints: CropConstraints, picture_size: tuple[int, int]) -> Tensor:
    """By what share (M, 5) each box breaks each constraint, in the order of `_COSTS`; 0 where it holds."""
    height, width = picture_size
    size, share = boxes[:, 2:] - boxes[:, :2], box_area(boxes) / (height * width)
    least = size.new_tensor(constraints.min_size)
    kept = box_intersection(boxes, constraints.keep) / box_area(constraints.keep)
    touched = box_intersection(boxes, constraints.avoid) / box_area(constraints.avoid)
    # Areas are compared in whole pixels' terms, so that a bound met exactly is met.
    slack = 1e-9
    columns = {
        "min_size": ((least - size) / least).clamp(min=0).amax(dim=-1),
        "min_area": ((constraints.min_area - share - slack) / max(constraints.min_area, slack)).clamp(min=0),
        "max_area": ((share - constraints.max_area - slack) / max(constraints.max_area, slack)).clamp(min=0),
        "avoid": touched.sum(dim=-1),
        "keep": (1 - kept).sum(dim=-1),
    }
    return torch.stack([columns[name] for name in _COSTS], dim=-1)


def _search(judge: CropJudge, constraints: CropConstraints) -> tuple[Tensor, Tensor]:
    """Candidate boxes (M, 4) that break least, and which constraints (M, 5) each of them breaks."""
    picture_size = judge.picture_size
    whole = torch.tensor([0, 0, picture_size[1], picture_size[0]], dtype=torch.float64)
    regions = free = _free_regions(whole, constraints.avoid)
    kept = hull(constraints.keep) if len(constraints.keep) else None
    if kept is not None:
        regions = regions[((regions[:, :2] <= kept[:2]) & (regions[:, 2:] >= kept[2:])).all(dim=-1)]
    rooms = [
        (region, sizes) for region in regions for sizes in _allowed_sizes(region, constraints, picture_size, kept)
    ]
    # What is a fair size is measured by the largest crop that the constraints allow anywhere.
    largest = max((float(sizes[-1].prod()) for _, sizes in rooms), default=0.0)
    pools = [_candidates(judge, region, sizes, largest, kept) for region, sizes in rooms]
    if constraints.aspect_ratio is None:
        pools += [_free_shapes(judge, region, constraints, kept) for region in regions]
    pool = _distinct(torch.cat([whole.new_zeros(0, 4), *pools]), picture_size)
    pool = pool[(_violations(pool, constraints, picture_size) == 0).all(dim=-1)]
    if len(pool):
        pool = _shortlist(judge, pool)
        return pool, torch.zeros(len(pool), len(_COSTS), dtype=torch.bool)
    pools = [_relaxed_candidates(region, constraints, picture_size, kept) for region in torch.cat([whole[None], free])]
    if constraints.aspect_ratio is None:
        pools += [_free_shapes(judge, whole, constraints, kept)]
    pool = _distinct(torch.cat(pools), picture_size)
    violations = _violations(pool, constraints, picture_size)
    cost = (violations * violations.new_tensor(list(_COSTS.values()))).sum(dim=-1)
    least = cost <= cost.min() * (1 + 1e-9)
    return pool[least], violations[least] > 0


def _distinct(boxes: Tensor, picture_size: tuple[int, int]) -> Tensor:
    """The whole-pixel boxes (M, 4) without repeats, sorted; by one number a box, as sorting rows is slow."""
    height, width = picture_size
    radices = (width + 1, height + 1, width + 1, height + 1)
    keys = torch.zeros(len(boxes), dtype=torch.int64)
    for column, radix in zip(boxes.long().unbind(dim=-1), radices, strict=True):
        keys = keys * radix + column
    keys, columns = keys.unique(), []
    for radix in reversed(radices):
        columns.append(keys % radix)
        keys = keys // radix
    return torch.stack(columns[::-1], dim=-1).to(boxes)


def _shortlist(judge: CropJudge, pool: Tensor) -> Tensor:
    """At most `_MOST_CANDIDATES` of the boxes (M, 4): those nearest to what the model proposed."""
    if len(pool) <= _MOST_CANDIDATES:
        return pool
    nearness = _settled((box_iou(pool, judge.boxes) * judge.validity).amax(dim=-1))
    return pool[torch.argsort(nearness, descending=True, stable=True)[:_MOST_CANDIDATES]]


def _free_regions(whole: Tensor, avoid: Tensor) -> Tensor:
    """The maximal boxes (R, 4) inside `whole` that touch none of the `avoid` boxes.

    As in packing by maximal rectangles (Jylanki, 2010): every region that a box touches is replaced by its parts
    left, right, above and below the box, and regions inside another one are dropped.
    """
    regions = whole[None]
    for x1, y1, x2, y2 in avoid.tolist():
        touches = box_intersection(regions, regions.new_tensor([[x1, y1, x2, y2]]))[:, 0] > 0
        hit, parts = regions[touches], [regions[~touches]]
        for edge, value in ((2, x1), (0, x2), (3, y1), (1, y2)):
            part = hit.clone()
            part[:, edge] = value
            parts.append(part[(part[:, 2:] > part[:, :2]).all(dim=-1)])
        regions = torch.cat(parts).unique(dim=0)
        inside = (regions[:, None, :2] >= regions[None, :, :2]) & (regions[:, None, 2:] <= regions[None, :, 2:])
        inside = inside.all(dim=-1) & ~torch.eye(len(regions), dtype=torch.bool)
        regions = regions[~inside.any(dim=-1)]
    return regions


def _candidates(judge: CropJudge, region: Tensor, sizes: Tensor, largest: float, keep: Tensor | None) -> Tensor:
    """Candidates (M, 4) of the sizes (S, 2, rising) in a region: the predictions fitted to them, and a grid of places.

    `largest` is the area in pixels by which a size is fair: the grid is held to fair ones.
    """
    corner = region[:2].repeat(2)
    region_size = _region_size(region)
    if keep is not None:
        keep = keep - corner
    areas = sizes.prod(dim=-1)
    boxes = []
    usable = sizes[areas >= _SMALLEST_FITTED**2 * largest]
    if len(usable):
        ratio = float(usable[-1, 0] / usable[-1, 1])
        low, high = float(usable[0, 1]), float(usable[-1, 1])
        predicted = _clipped(judge.boxes - corner, region_size)
        fitted = fit_aspect_ratio(predicted, ratio, region_size, low, high, keep)
        boxes.append(round_to_sizes(fitted, usable, region_size, keep))
    fair = sizes[areas >= _SMALLEST**2 * largest]
    if len(fair):
        boxes.append(candidate_grid(_ladder(fair), region_size, max(judge.picture_size) / _STEPS, keep))
    return torch.cat(boxes) + corner if boxes else region.new_zeros(0, 4)


def _clipped(boxes: Tensor, region_size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) cut to the region; one that lies outside becomes the pixel next to it."""
    limit = boxes.new_tensor([region_size[1], region_size[0]])
    low = torch.minimum(boxes[:, :2].clamp(min=0), limit - 1)
    return torch.cat([low, torch.minimum(torch.maximum(boxes[:, 2:], low + 1), limit)], dim=-1)


def _region_size(region: Tensor) -> tuple[int, int]:
    """Height and width of a whole-pixel box (4,)."""
    return int(region[3] - region[1]), int(region[2] - region[0])


def _shapes(region: Tensor, constraints: CropConstraints, keep: Tensor | None) -> list[float]:
    """Aspect ratios to try in a region: the caller's, or common ones, the region's and that of what is kept."""
    if constraints.aspect_ratio is not None:
        return [constraints.aspect_ratio]
    height, width = _region_size(region)
    shapes = {width / height, *_FREE_RATIOS}
    if keep is not None:
        shapes.add(float((keep[2] - keep[0]) / (keep[3] - keep[1])))
    return sorted(shapes)


def _sizes_inside(region: Tensor, shape: float, picture_size: tuple[int, int]) -> Tensor:
    """The picture's sizes (S, 2, rising) of a shape that a region has room for; perhaps none."""
    sizes = pixel_sizes(shape, picture_size)
    return sizes[(sizes <= region[2:] - region[:2]).all(dim=-1)]


def _allowed_sizes(
    region: Tensor, constraints: CropConstraints, picture_size: tuple[int, int], keep: Tensor | None
) -> list[Tensor]:
    """For each shape that can, the sizes (S, 2, rising) inside a region that satisfy the bounds and hold `keep`."""
    allowed = []
    for shape in _shapes(region, constraints, keep):
        sizes = _sizes_inside(region, shape, picture_size)
        fits = (_broken_bounds(sizes, constraints, picture_size) == 0).all(dim=-1)
        if keep is not None:
            fits &= (sizes >= keep[2:] - keep[:2]).all(dim=-1)
        if bool(fits.any()):
            allowed.append(sizes[fits])
    return allowed


def _broken_bounds(sizes: Tensor, constraints: CropConstraints, picture_size: tuple[int, int]) -> Tensor:
    """By what share (S, 3) each of the sizes (S, 2) breaks `min_size`, `min_area` and `max_area`."""
    boxes = torch.cat([torch.zeros_like(sizes), sizes], dim=-1)
    return _violations(boxes, constraints, picture_size)[:, :3]


def _relaxed_candidates(
    region: Tensor, constraints: CropConstraints, picture_size: tuple[int, int], keep: Tensor | None
) -> Tensor:
    """Candidates (M, 4) in a region where no crop satisfies everything: all fair sizes, `keep` centred if cut."""
    corner, region_size = region[:2].repeat(2), _region_size(region)
    if keep is not None:
        keep = _clipped((keep - corner)[None], region_size)[0]
    stride = max(picture_size) / _STEPS
    boxes = [region.new_zeros(0, 4)]
    for shape in _shapes(region, constraints, keep):
        sizes = _sizes_inside(region, shape, picture_size)
        if len(sizes) == 0:
            continue
        areas = sizes.prod(dim=-1)
        fair = sizes[areas >= _SMALLEST_FITTED**2 * float(areas[-1])]
        sizes = torch.cat([_ladder(fair), _least_broken_sizes(sizes, constraints, picture_size, keep)])
        boxes.append(candidate_grid(sizes, region_size, stride, keep))
        if keep is not None:
            centres = ((keep[:2] + keep[2:]) / 2).expand_as(sizes)
            boxes.append(place(centres, sizes, region_size, keep, pixels=True))
    return torch.cat(boxes) + corner


def _least_broken_sizes(
    sizes: Tensor, constraints: CropConstraints, picture_size: tuple[int, int], keep: Tensor | None
) -> Tensor:
    """The size that breaks the bounds least, and the smallest that leaves room for `keep` (1 or 2, 2)."""
    chosen = sizes[_broken_bounds(sizes, constraints, picture_size).sum(dim=-1).argmin()][None]
    if keep is not None:
        roomy = sizes[(sizes >= keep[2:] - keep[:2]).all(dim=-1)]
        chosen = torch.cat([chosen, roomy[:1]])
    return chosen


def _ladder(sizes: Tensor) -> Tensor:
    """`_SIZES` of the sizes (S, 2, rising), in even steps from the smallest to the largest."""
    short = sizes.amin(dim=-1)
    shares = torch.linspace(0, 1, _SIZES, dtype=sizes.dtype)
    wanted = (short[0] * (short[-1] / short[0]) ** shares).clamp(max=float(short[-1]))
    return sizes[torch.searchsorted(short, wanted.contiguous()).unique()]


def _refinements(judge: CropJudge, boxes: Tensor, constraints: CropConstraints) -> Tensor:
    """Boxes (M, 4) between the grid's places and sizes, around the given ones (N, 4), that satisfy everything."""
    picture_size = judge.picture_size
    whole = boxes.new_tensor([0, 0, picture_size[1], picture_size[0]])
    kept = hull(constraints.keep) if len(constraints.keep) else None
    (sizes,) = _allowed_sizes(whole, constraints, picture_size, kept)
    step = max(picture_size) / _STEPS / 2
    moves = torch.cartesian_prod(*[torch.tensor([-step, 0.0, step], dtype=boxes.dtype)] * 2).repeat(1, 2)
    scales = boxes.new_tensor(_REFINED_SCALES)
    centres = (boxes[:, :2] + boxes[:, 2:]).repeat(1, 2) / 2
    scaled = (centres[:, None] + (boxes - centres)[:, None] * scales[:, None]).reshape(-1, 4)
    moved = (scaled[:, None] + moves).reshape(-1, 4)
    moved = _distinct(round_to_sizes(moved, sizes, picture_size, kept), picture_size)
    return moved[(_violations(moved, constraints, picture_size) == 0).all(dim=-1)]


def _free_shapes(judge: CropJudge, region: Tensor, constraints: CropConstraints, keep: Tensor | None) -> Tensor:
    """Boxes (M, 4) in a region, from the predictions, the region and `keep`, adjusted to the bounds in any shape."""
    corner, region_size = region[:2].repeat(2), _region_size(region)
    height, width = region_size
    starts = [_clipped(judge.boxes - corner, region_size), region.new_tensor([[0, 0, width, height]])]
    if keep is not None:
        keep = keep - corner
        starts.append(keep[None])
    return _adjusted(torch.cat(starts), constraints, region_size, judge.picture_size, keep) + corner


def _adjusted(
    boxes: Tensor,
    constraints: CropConstraints,
    region_size: tuple[int, int],
    picture_size: tuple[int, int],
    keep: Tensor | None,
) -> Tensor:
    """Boxes (N, 4) of any shape, widened to hold `keep` and scaled about their centres to meet the bounds."""
    limit = boxes.new_tensor([region_size[1], region_size[0]])
    least = torch.minimum(boxes.new_tensor(constraints.min_size), limit)
    if keep is not None:
        boxes = torch.cat([torch.minimum(boxes[:, :2], keep[:2]), torch.maximum(boxes[:, 2:], keep[2:])], dim=-1)
        least = torch.maximum(least, keep[2:] - keep[:2])
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    picture_area = picture_size[0] * picture_size[1]
    low, high = constraints.min_area * picture_area, constraints.max_area * picture_area
    area = sizes.prod(dim=-1, keepdim=True)
    larger = torch.minimum((sizes * (low / area).sqrt().clamp(min=1)).ceil(), limit)
    # Where one side ran into the edge the other makes up for it.
    larger = torch.minimum(torch.maximum(larger, (low / larger.flip(-1)).ceil()), limit)
    smaller = torch.maximum((larger * (high / larger.prod(dim=-1, keepdim=True)).sqrt().clamp(max=1)).floor(), least)
    smaller = torch.maximum(torch.minimum(smaller, (high / smaller.flip(-1)).floor()), least)
    return place(centres, torch.minimum(smaller, limit), region_size, keep, pixels=True)
