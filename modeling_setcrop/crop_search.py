"""Where to look for crops: from the model's set, or in every place that the caller's constraints allow.

An aspect ratio, bounds or content to keep or avoid turn the question into a search: a dense set of places and sizes,
and the predicted crops fitted to the constraints, are rated in one call, and the surroundings of the best few in a
second one. Boxes are whole pixels of the image, float64, corner format.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .crop_constraints import CropConstraints, breach_cost, violations
from .crop_geometry import (
    box_area,
    box_intersection,
    box_iou,
    candidate_grid,
    cut_off_by,
    fit_aspect_ratio,
    hull,
    nms,
    pixel_sizes,
    place,
    rank,
    round_to_sizes,
)
from .crop_judging import Prediction, Search, wish_worth

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

# Among many small places one is rated too high by chance more often than among the few largest. What a crop leaves of
# the largest one counts against it by so many ratings, times the share of the image that the aspect ratio cuts off
# anyway: an image's own shape may be cropped freely, a narrow one has little to spare. By the labels of the editors'
# validation images the chosen crops are then worth 0.012 more ratings in 16:9, 4:5 and 9:16, 0.011 in 1:1, 0.008 in
# 2:1 and 0.004 in 3:1; in the ratio of the editors' own crop they overlap it as before (0.906).
_SMALL_IN_A_NARROW_SHAPE = 1.0


def _whole_pixels(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Boxes with corners on the nearest whole pixels, at least one pixel large, inside the image."""
    limit = np.array(image_size[::-1], dtype=np.float64)
    low = np.minimum(boxes[:, :2].round().clip(min=0), limit - 1)
    high = np.minimum(np.maximum(boxes[:, 2:].round(), low + 1), limit)
    return np.concatenate([low, high], axis=-1)


def search(prediction: Prediction, constraints: CropConstraints) -> Search:
    """Candidate boxes (M, 4) that break least, and their merits (M,), of small ones less [`_less_for_size`]."""
    image_size = prediction.image_size
    kept = hull(constraints.keep) if len(constraints.keep) else None
    pool = _satisfying(prediction, constraints, kept)
    if len(pool) == 0:
        pool = _relaxed(prediction, constraints, kept)
    cost = breach_cost(pool, constraints, image_size)
    least = cost.min() * (1 + 1e-9)
    pool = pool[cost <= least]
    largest = box_area(pool).max()
    merit = (yield pool) - _less_for_size(pool, prediction, constraints.aspect_ratio, largest)
    steps = _STEPS if constraints.aspect_ratio is not None else _STEPS_PER_SHAPE
    wanted = merit + wish_worth(prediction) * constraints.wished(pool) if len(constraints.wishes) else merit
    best = pool[nms(pool, wanted, _REFINED_NMS, _REFINED)]
    closer = _surroundings(best, constraints.aspect_ratio, image_size, max(image_size) / steps, kept)
    closer = closer[breach_cost(closer, constraints, image_size) <= least]
    closer_merit = (yield closer) - _less_for_size(closer, prediction, constraints.aspect_ratio, largest)
    boxes, merit = np.concatenate([pool, closer]), np.concatenate([merit, closer_merit])
    if prediction.rate is None or len(constraints.wishes):
        # The mean of places around one that holds what is wished need not hold it.
        return boxes, merit
    best = boxes[nms(boxes, merit, _REFINED_NMS, _REFINED)]
    voted, voted_merit = _voted(best, boxes, merit, _VOTE_TEMPERATURE)
    centres, sizes = (voted[:, :2] + voted[:, 2:]) / 2, best[:, 2:] - best[:, :2]
    voted = place(centres, sizes, image_size, kept, pixels=True)
    fits = breach_cost(voted, constraints, image_size) <= least
    return np.concatenate([voted[fits], boxes]), np.concatenate([voted_merit[fits], merit])


def _less_for_size(
    boxes: np.ndarray, prediction: Prediction, aspect_ratio: float | None, largest: float
) -> np.ndarray | float:
    """By how much less (M,) boxes (M, 4) of an aspect ratio are worth for being smaller than `largest`, pixels."""
    if aspect_ratio is None or prediction.rate is None:
        return 0.0
    cut_off = cut_off_by(aspect_ratio, prediction.image_size)
    return _SMALL_IN_A_NARROW_SHAPE * cut_off * (1 - box_area(boxes) / largest)


def refined_set(prediction: Prediction) -> Search:
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
    return pool[breach_cost(pool, constraints, image_size) == 0]


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
    return violations(boxes, constraints, image_size)[:, :3] @ np.ones(3)


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
