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
from typing import Any

import torch
from torch import Tensor

from .crop_geometry import (
    box_area,
    box_intersection,
    box_iou,
    candidate_grid,
    cxcywh_to_xyxy,
    fit_aspect_ratio,
    focus_point,
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
# Sizes that are tried: so many from the largest that is allowed down to this share of its sides. Like the crops that
# people rated, they hold at least half of the largest area, where the model's judgement is sound; far smaller ones are
# tried only when none of these satisfies the constraints.
_SIZES, _SMALLEST, _LAST_RESORT = 6, 0.5**0.5, 0.2
# Places that are tried: so many steps along the picture's longer side; the best few are then moved and scaled.
_STEPS, _REFINED, _REFINED_SCALES = 20, 5, (0.96, 1.0, 1.04)
# So many candidates are judged at most; the rest are the farthest from anything the model proposed.
_MOST_CANDIDATES = 4000
# Shapes that are tried when the caller bounds a crop but names no aspect ratio.
_FREE_RATIOS = (16 / 9, 3 / 2, 4 / 3, 1.0, 4 / 5, 3 / 4, 2 / 3, 9 / 16)
# A grid is dense: of crops that nearly coincide only the best is worth showing.
_GRID_NMS = 0.8
# Widths (heights) of the upright (lying) strips that the focus point is read from, as shares of the picture.
_STRIPS = (0.6, 0.7, 0.8)


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

    Attributes:
        boxes: (N, 4) predicted crops in pixels, not rounded.
        validity: (N,) their probabilities, by which the set is ranked.
        picture_size: Height and width in pixels.
        score: Maps (M, 4) cxcywh in 0..1 to (M,) human scores 1..5.
    """

    boxes: Tensor
    validity: Tensor
    picture_size: tuple[int, int]
    score: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def from_prediction(
        cls,
        pred_boxes: Tensor,
        validity: Tensor,
        picture_size: tuple[int, int],
        score: Callable[[Tensor], Tensor] | None = None,
    ) -> CropJudge:
        """From the model's output for one picture: boxes (N, 4) cxcywh in 0..1 and validity (N,)."""
        height, width = picture_size
        boxes = cxcywh_to_xyxy(pred_boxes.detach().double().cpu()).clamp(0, 1)
        boxes = boxes * boxes.new_tensor([width, height, width, height])
        return cls(boxes, validity.detach().double().cpu(), picture_size, score)

    def __call__(self, boxes: Tensor) -> Tensor:
        """Probabilities (M,) of boxes (M, 4) in pixels."""
        if len(boxes) == 0:
            return boxes.new_zeros(0)
        if self.score is None:
            values = (box_iou(boxes, self.boxes) * self.validity).amax(dim=-1)
        else:
            height, width = self.picture_size
            normalised = xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height])).float()
            values = good_crop_probability(self.score(normalised).detach().double().cpu())
        return _settled(values)


def _settled(values: Tensor) -> Tensor:
    """Values without their last bits, which differ between batch sizes: equal crops then rank equally in every run."""
    return (values * 2**16).round() / 2**16


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
        strict: Raise instead of letting a constraint give way.

    Raises:
        ConstraintError: With `strict`, when nothing satisfies everything.
        ValueError: `diversity` is out of range.
    """
    if diversity is not None and not 0 <= diversity <= 1:
        raise ValueError(f"diversity lies in 0..1, not {diversity}")
    if constraints.is_free:
        boxes, scores = _whole_pixels(judge.boxes, judge.picture_size), _settled(judge.validity)
        broken = torch.zeros(len(boxes), len(_COSTS), dtype=torch.bool)
    else:
        boxes, broken = _search(judge, constraints)
        if strict and bool(broken.any()):
            raise ConstraintError(_names(broken[broken.sum(dim=-1).argmin()]))
        scores = judge(boxes)
        if constraints.aspect_ratio is not None and not bool(broken.any()):
            closer = _refinements(judge, boxes[nms(boxes, scores, _GRID_NMS, _REFINED)], constraints)
            boxes, scores = torch.cat([boxes, closer]), torch.cat([scores, judge(closer)])
            broken = torch.zeros(len(boxes), len(_COSTS), dtype=torch.bool)
        nms_iou = _GRID_NMS if nms_iou is None else nms_iou
    order = torch.argsort(scores, descending=True, stable=True)
    kept = order[scores[order] > threshold]
    if len(kept) == 0 and not constraints.is_free:
        kept = order[:1]
    if diversity is not None:
        relevance = scores[kept] / scores[kept].max().clamp(min=1e-12) if len(kept) else scores[kept]
        kept = kept[
            maximal_marginal_relevance(boxes[kept], relevance, diversity, len(kept) if top_k is None else top_k)
        ]
    elif nms_iou is not None:
        kept = kept[nms(boxes[kept], scores[kept], nms_iou, top_k)]
    kept = kept[:top_k]
    return Selection(boxes[kept], scores[kept], [_names(row) for row in broken[kept]])


def judge_picture(judge: CropJudge, crop: Tensor | None = None) -> dict[str, Any]:
    """Whether to crop at all, and where the picture's weight lies.

    Args:
        judge: The picture's prediction.
        crop: (4,) the crop to compare with the whole picture; by default the model's best.

    Returns:
        `keep_original`, the probability that the whole picture is a good crop; `improves`, the crop's probability
        minus it; `focus_point`, {"x", "y"} in 0..1 for CSS `object-position` and focal points.
    """
    height, width = judge.picture_size
    whole = torch.tensor([0, 0, width, height], dtype=torch.float64)
    if crop is None:
        crop = _whole_pixels(judge.boxes, judge.picture_size)[judge.validity.argmax()]
    best, original = judge(torch.stack([crop, whole])).tolist()
    strips = torch.cat([_strips(judge.picture_size, share, axis) for share in _STRIPS for axis in (0, 1)])
    # Each size of strip has its own level of scores; what counts is how they fall off from the best place.
    weights = judge(strips).reshape(2 * len(_STRIPS), -1)
    weights = (weights / weights.amax(dim=-1, keepdim=True).clamp(min=1e-12)) ** 2
    x, y = focus_point(strips, weights.flatten(), judge.picture_size)
    return {"keep_original": original, "improves": best - original, "focus_point": {"x": x, "y": y}}


def _strips(picture_size: tuple[int, int], share: float, axis: int, places: int = 17) -> Tensor:
    """Boxes (17, 4) that cut the picture along one axis (0: x) only, to a share of its length."""
    size = torch.tensor([picture_size[1], picture_size[0]], dtype=torch.float64)
    boxes = torch.cat([torch.zeros(2, dtype=torch.float64), size]).repeat(places, 1)
    starts = torch.linspace(0, 1, places, dtype=torch.float64) * size[axis] * (1 - share)
    boxes[:, axis], boxes[:, axis + 2] = starts, starts + share * size[axis]
    return boxes


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
    for smallest in (_SMALLEST, _LAST_RESORT):
        pools = [_candidates(judge, region, constraints, kept, smallest) for region in regions]
        pool = torch.cat(pools) if pools else whole.new_zeros(0, 4)
        satisfied = (_violations(pool, constraints, picture_size) == 0).all(dim=-1)
        if bool(satisfied.any()):
            pool = _shortlist(judge, pool[satisfied].unique(dim=0))
            return pool, torch.zeros(len(pool), len(_COSTS), dtype=torch.bool)
    everywhere = torch.cat([whole[None], free])
    pool = torch.cat([_candidates(judge, region, constraints, kept, relaxed=True) for region in everywhere])
    pool = pool.unique(dim=0)
    violations = _violations(pool, constraints, picture_size)
    cost = (violations * violations.new_tensor(list(_COSTS.values()))).sum(dim=-1)
    least = cost <= cost.min() * (1 + 1e-9)
    return pool[least], violations[least] > 0


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


def _candidates(
    judge: CropJudge,
    region: Tensor,
    constraints: CropConstraints,
    keep: Tensor | None,
    smallest: float = _LAST_RESORT,
    relaxed: bool = False,
) -> Tensor:
    """Candidates (M, 4) inside a region: the predictions fitted to the constraints, and a grid of places and sizes.

    Sizes go down to the share `smallest` of the largest sides. With `relaxed`, sizes that break the bounds are tried
    too, and content that does not fit is centred.
    """
    corner = region[:2].repeat(2)
    region_size = height, width = int(region[3] - region[1]), int(region[2] - region[0])
    predicted = _clipped(judge.boxes - corner, region_size)
    if keep is not None:
        keep = _clipped((keep - corner)[None], region_size)[0]
    ratio = constraints.aspect_ratio
    stride = max(1.0, max(judge.picture_size) / (_STEPS if ratio is not None else _STEPS / 2))
    boxes = []
    for shape in [ratio] if ratio is not None else _shapes(region_size, keep):
        every = pixel_sizes(shape, region_size)
        # Predictions are of a sound size by themselves; the grid is held to one.
        allowed = _allowed_sizes(every, shape, constraints, judge.picture_size, keep, _LAST_RESORT)
        if len(allowed) and ratio is not None:
            low, high = float(allowed[0, 1]), float(allowed[-1, 1])
            fitted = fit_aspect_ratio(predicted, shape, region_size, low, high, keep)
            boxes.append(round_to_sizes(fitted, allowed, region_size, keep))
        allowed = _allowed_sizes(every, shape, constraints, judge.picture_size, keep, smallest)
        if len(allowed):
            boxes.append(candidate_grid(_ladder(allowed), region_size, stride, keep))
        if relaxed:
            sizes = torch.cat([_ladder(every), _least_broken_sizes(every, constraints, judge.picture_size, keep)])
            boxes.append(candidate_grid(sizes, region_size, stride, keep))
            if keep is not None:
                centres = ((keep[:2] + keep[2:]) / 2).expand_as(sizes)
                boxes.append(place(centres, sizes, region_size, keep, pixels=True))
    if ratio is None:
        starts = [predicted, predicted.new_tensor([[0, 0, width, height]])] + ([] if keep is None else [keep[None]])
        boxes.append(_adjusted(torch.cat(starts), constraints, region_size, judge.picture_size, keep))
    return torch.cat(boxes) + corner if boxes else region.new_zeros(0, 4)


def _clipped(boxes: Tensor, region_size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) cut to the region; one that lies outside becomes the pixel next to it."""
    limit = boxes.new_tensor([region_size[1], region_size[0]])
    low = torch.minimum(boxes[:, :2].clamp(min=0), limit - 1)
    return torch.cat([low, torch.minimum(torch.maximum(boxes[:, 2:], low + 1), limit)], dim=-1)


def _shapes(region_size: tuple[int, int], keep: Tensor | None) -> list[float]:
    """Aspect ratios to try where the caller named none."""
    shapes = {region_size[1] / region_size[0], *_FREE_RATIOS}
    if keep is not None:
        shapes.add(float((keep[2] - keep[0]) / (keep[3] - keep[1])))
    return sorted(shapes)


def _allowed_sizes(
    sizes: Tensor,
    ratio: float,
    constraints: CropConstraints,
    picture_size: tuple[int, int],
    keep: Tensor | None,
    smallest: float,
) -> Tensor:
    """Those of the sizes (S, 2) that satisfy the bounds, leave room for `keep` and are not too small."""
    height, width = picture_size
    largest = min(constraints.max_area * height * width, min(width, ratio * height) ** 2 / ratio)
    bounds = _violations(torch.cat([torch.zeros_like(sizes), sizes], dim=-1), constraints, picture_size)[:, :3]
    fits = (bounds == 0).all(dim=-1) & (sizes.prod(dim=-1) >= smallest**2 * largest)
    if keep is not None:
        fits &= (sizes >= keep[2:] - keep[:2]).all(dim=-1)
    return sizes[fits]


def _least_broken_sizes(
    sizes: Tensor, constraints: CropConstraints, picture_size: tuple[int, int], keep: Tensor | None
) -> Tensor:
    """The size that breaks the bounds least, and the smallest that leaves room for `keep` (1 or 2, 2)."""
    bounds = _violations(torch.cat([torch.zeros_like(sizes), sizes], dim=-1), constraints, picture_size)[:, :3]
    chosen = sizes[bounds.sum(dim=-1).argmin()][None]
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
    ratio, picture_size = constraints.aspect_ratio, judge.picture_size
    kept = hull(constraints.keep) if len(constraints.keep) else None
    sizes = pixel_sizes(ratio, picture_size)
    allowed = _allowed_sizes(sizes, ratio, constraints, picture_size, kept, _LAST_RESORT)
    step = max(picture_size) / _STEPS / 2
    moves = torch.cartesian_prod(*[torch.tensor([-step, 0.0, step], dtype=boxes.dtype)] * 2).repeat(1, 2)
    scales = boxes.new_tensor(_REFINED_SCALES)
    centres = (boxes[:, :2] + boxes[:, 2:]).repeat(1, 2) / 2
    scaled = (centres[:, None] + (boxes - centres)[:, None] * scales[:, None]).reshape(-1, 4)
    moved = (scaled[:, None] + moves).reshape(-1, 4)
    moved = round_to_sizes(moved, allowed, picture_size, kept).unique(dim=0)
    return moved[(_violations(moved, constraints, picture_size) == 0).all(dim=-1)]


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
