"""Pure functions on boxes: overlap, suppression, aspect ratios, places and diversity.

Boxes are float arrays in corner format `x1, y1, x2, y2` unless a name says `cxcywh`. Every function is deterministic
and works on whole arrays of boxes; none looks at an image. The formulas that the model needs too (conversion, area,
overlap, probability) are written once over the functions that NumPy and torch share, so they take arrays of either
kind and return that kind; the rest is NumPy.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

# Two crops that overlap so much are the same to a person. A little above 0.9, the stricter threshold of the paper's
# ACC: crops nine and ten bins of a grid wide overlap by exactly that, and rounding to pixels would decide.
COVER_IOU = 0.905
# A face that loses so much of its area is lost.
_LOST_FACE = 0.25


def _namespace(array: Any) -> ModuleType:
    """Return the module whose functions work on an array: NumPy, or torch for its tensors (which is then imported)."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def cxcywh_to_xyxy(boxes_cxcywh: Any) -> Any:
    """Centre format (..., 4) to corner format (..., 4), in the same units; NumPy or torch."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return _namespace(boxes_cxcywh).concat([centre - size / 2, centre + size / 2], axis=-1)


def xyxy_to_cxcywh(boxes: Any) -> Any:
    """Corner format (..., 4) to centre format (..., 4), in the same units; NumPy or torch."""
    upper_left, lower_right = boxes[..., :2], boxes[..., 2:]
    return _namespace(boxes).concat([(upper_left + lower_right) / 2, lower_right - upper_left], axis=-1)


def box_area(boxes: Any) -> Any:
    """Areas (...,) of boxes (..., 4); a box turned inside out has none. NumPy or torch."""
    size = (boxes[..., 2:] - boxes[..., :2]).clip(min=0)
    return size[..., 0] * size[..., 1]


def box_intersection(a: Any, b: Any) -> Any:
    """Areas (..., N, M) shared by boxes `a` (..., N, 4) and `b` (..., M, 4); NumPy or torch."""
    xp = _namespace(a)
    upper_left = xp.maximum(a[..., :, None, :2], b[..., None, :, :2])
    lower_right = xp.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    size = (lower_right - upper_left).clip(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(a: Any, b: Any) -> Any:
    """Intersection over union (..., N, M), in 0..1, of boxes (..., N, 4) and (..., M, 4); 0 when both are empty.

    NumPy or torch.
    """
    xp = _namespace(a)
    shared = box_intersection(a, b)
    union = box_area(a)[..., :, None] + box_area(b)[..., None, :] - shared
    return xp.where(union > 0, shared / union.clip(min=xp.finfo(union.dtype).tiny), xp.zeros_like(shared))


def kept_shares(subjects: Any, boxes: Any) -> Any:
    """Share (..., S, M) of the area of each subject (..., S, 4) that each box (..., M, 4) keeps; NumPy or torch."""
    return box_intersection(subjects, boxes) / box_area(subjects)[..., :, None].clip(min=1e-6)


def cut_shares(faces: Any, boxes: Any) -> Any:
    """How far (..., F, M), in 0..1, each box cuts each face: 1 if a quarter of it or more is lost; NumPy or torch."""
    return ((1 - kept_shares(faces, boxes)) / _LOST_FACE).clip(0, 1)


class GoodCropProbability(NamedTuple):
    """Says of a predicted rating how probable it is that people call the crop good, by a checkpoint's config.

    The probability is sigmoid(slope e^(-softening c) (rating - middle + lowering c)). Where a crop may have any shape,
    c is 0; where a caller asks for an aspect ratio, it is the share of the image that even the largest crop of that
    shape leaves out ([`cut_off_by`]): a good square is rated lower than a good free crop, and less surely. The
    defaults are those of a model whose ratings nobody has compared with people's yet.

    Attributes:
        slope, middle: of the logistic function.
        softening, lowering: of both, by the share that is left out.
    """

    slope: float = 4.0
    middle: float = 4.0
    softening: float = 0.0
    lowering: float = 0.0

    @classmethod
    def of(cls, config: Any) -> GoodCropProbability:
        """Return that of a checkpoint's config."""
        numbers: dict[str, Any] = dict(cls._field_defaults)
        return cls(**{name: getattr(config, f"probability_{name}", number) for name, number in numbers.items()})

    def at(self, cut_off: Any) -> tuple[Any, Any]:
        """Return slope and middle of crops of an aspect ratio, by the share of the image that it leaves out."""
        return self.slope * np.exp(-self.softening * cut_off), self.middle - self.lowering * cut_off

    def __call__(self, ratings: Any, cut_off: Any = 0.0) -> Any:
        """Return probabilities, in 0..1, of ratings 1..5; NumPy or torch."""
        slope, middle = self.at(cut_off)
        return 1 / (1 + _namespace(ratings).exp(-slope * (ratings - middle)))


def cut_off_by(aspect_ratio: float, image_size: tuple[int, int]) -> float:
    """Return which share of an image (height, width) even the largest crop of an aspect ratio leaves out."""
    height, width = image_size
    return 1 - min(aspect_ratio * height / width, width / (aspect_ratio * height))


def largest_area(aspect_ratio: float, image_size: tuple[int, int]) -> float:
    """Return the share of an image, in 0..1, that the largest crop of an aspect ratio has, less a pixel a side.

    As `min_area` it asks for no smaller crop than that.

    Args:
        aspect_ratio: Width over height.
        image_size: Height and width in pixels.
    """
    height, width = image_size
    across, down = min(width, round(height * aspect_ratio)), min(height, round(width / aspect_ratio))
    return max(across - 1, 0) * max(down - 1, 0) / (width * height)


def rank(scores: np.ndarray) -> np.ndarray:
    """Return the indices of scores (N,) from the highest to the lowest; equal ones keep the order of the input."""
    return np.argsort(-np.asarray(scores), kind="stable")


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, count: int | None = None) -> np.ndarray:
    """Return indices of boxes kept by greedy non-maximum suppression, best score first; the first `count` if given.

    A box (N, 4) is dropped when its overlap with a better kept one exceeds `iou_threshold`. Equal scores keep the
    order of the input, so the result does not depend on the run.
    """
    order = rank(scores)
    taken: list[int] = []
    while len(order) > 0 and count != 0:
        best, order = order[0], order[1:]
        taken.append(int(best))
        if len(taken) == count:
            break
        order = order[box_iou(boxes[order], boxes[best : best + 1])[:, 0] <= iou_threshold]
    return np.array(taken, dtype=np.int64)


def maximal_marginal_relevance(boxes: np.ndarray, scores: np.ndarray, diversity: float, count: int) -> np.ndarray:
    """Return the indices of up to `count` boxes (N, 4), chosen greedily between scores (N,), in 0..1, and overlap.

    Each step takes the box with the highest `(1 - diversity) * score - diversity * overlap`, where overlap is the
    largest IoU with a box already taken (Carbonell and Goldstein, SIGIR 1998). `diversity` 0 is the order of the
    scores; 1 looks at nothing but overlap after the best-scored box. Equal values keep the order of the input.
    """
    chosen: list[int] = []
    overlap = np.zeros(len(boxes))
    relevance = np.array(scores, dtype=np.float64)
    while len(chosen) < min(count, len(boxes)):
        chosen.append(int(relevance.argmax()))
        overlap = np.maximum(overlap, box_iou(boxes, boxes[chosen[-1] :][:1])[:, 0])
        relevance = (1 - diversity) * scores - diversity * overlap
        relevance[chosen] = -np.inf
    return np.array(chosen, dtype=np.int64)


def covering_order(boxes: np.ndarray, probabilities: np.ndarray, count: int | None = None) -> np.ndarray:
    """Return the indices of boxes chosen so that the image's best crop is among them as probably as possible.

    A box covers those that it overlaps by an IoU of more than 0.9. The first box stays first; each next one covers
    most of the probability that is left (greedy, within 1 - 1/e of the best such set: Nemhauser et al., 1978). Of
    boxes that cover equally much the one given earlier comes first.

    Args:
        boxes: (N, 4), better ones first.
        probabilities: (N,) of each box being the image's best crop.
        count: How many to choose; all if left out.
    """
    count = len(boxes) if count is None else min(count, len(boxes))
    covers = box_iou(boxes, boxes) >= COVER_IOU
    left = np.array(probabilities, dtype=np.float64)
    taken = np.zeros(len(boxes), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < count:
        gain = np.where(taken, -1.0, covers @ left)
        # With a tolerance, so that rounding decides nothing.
        index = int((gain >= gain.max() - 1e-9).argmax()) if chosen else 0
        chosen.append(index)
        taken[index] = True
        left[covers[index]] = 0
    return np.array(chosen, dtype=np.int64)


def hull(boxes: np.ndarray) -> np.ndarray:
    """Return the smallest box (4,) that contains all of `boxes` (N, 4)."""
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def place(
    centres: np.ndarray,
    sizes: np.ndarray,
    image_size: tuple[int, int],
    keep: np.ndarray | None = None,
    pixels: bool = False,
) -> np.ndarray:
    """Boxes (N, 4) of the given sizes, as near to the given centres as the image and `keep` allow.

    Args:
        centres: (N, 2), x and y.
        sizes: (N, 2), width and height, at most the image's.
        image_size: Height and width.
        keep: A box (4,) inside the image that every result contains, as far as its size lets it; what does not fit is
            left out evenly on both sides.
        pixels: Put the corners on whole pixels (the sizes must be whole numbers).
    """
    limit = np.array([image_size[1], image_size[0]], dtype=np.float64)
    corner = centres - sizes / 2
    if keep is not None:
        low, high = keep[2:] - sizes, np.broadcast_to(keep[:2], sizes.shape)
        corner = np.where(low <= high, np.minimum(np.maximum(corner, low), high), (low + high) / 2)
    if pixels:
        # A whole-pixel `keep` leaves the interval's ends whole, so rounding stays inside it.
        corner = corner.round()
    corner = np.minimum(corner.clip(min=0), limit - sizes)
    return np.concatenate([corner, corner + sizes], axis=-1)


def fit_aspect_ratio(
    boxes: np.ndarray,
    aspect_ratio: float,
    image_size: tuple[int, int],
    min_height: float = 0.0,
    max_height: float = float("inf"),
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """For every box, the box of an aspect ratio inside the image that overlaps it most (largest IoU).

    For a height h and width r h, the most of a box (w_b, h_b) that can be covered is `clip(r h - d_x, 0, w_b)` times
    `clip(h - d_y, 0, h_b)`, where d is how far `keep` sticks out of the box on the worse side. Between the corners of
    that function IoU has at most one inner maximum, at `d + sqrt(d^2 + w_b h_b / r)`, so the best of a handful of
    heights is the optimum. Without `keep` it is the box of equal area, shrunk to the image.

    Args:
        boxes: (N, 4), inside the image, any units.
        aspect_ratio: Width over height, in the same units.
        image_size: Height and width of the image.
        min_height, max_height: Bounds on the result's height.
        keep: A box (4,) inside the image that the result must contain. Where that is impossible in this ratio, the
            result is as large as the bounds allow and contains as much of the middle of `keep` as it can.

    Returns:
        (N, 4) boxes.
    """
    height, width = image_size
    ratio = float(aspect_ratio)
    low, high = min_height, min(width / ratio, height, max_height)
    box_width, box_height = (boxes[:, 2:] - boxes[:, :2]).T
    out_x = out_y = np.zeros(len(boxes))
    if keep is not None:
        out_x, out_y = np.maximum(boxes[:, :2] - keep[:2], keep[2:] - boxes[:, 2:]).clip(min=0).T
        keep_width, keep_height = keep[2:] - keep[:2]
        low = max(low, keep_width / ratio, keep_height)
    area = box_width * box_height
    inner_x, inner_y = out_x / ratio, out_y
    heights = np.stack(
        [
            inner_y + np.sqrt(inner_y**2 + area / ratio),
            inner_x + np.sqrt(inner_x**2 + area / ratio),
            (out_x + box_width) / ratio,
            out_y + box_height,
            np.full(len(boxes), low),
            np.full(len(boxes), high),
        ],
        axis=-1,
    )
    heights = np.minimum(heights.clip(min=low), high)
    widths = heights * ratio
    covered_x = np.minimum((widths - out_x[:, None]).clip(min=0), box_width[:, None])
    covered_y = np.minimum((heights - out_y[:, None]).clip(min=0), box_height[:, None])
    shared = covered_x * covered_y
    iou = shared / (widths * heights + area[:, None] - shared)
    best = iou.argmax(axis=-1)[:, None]
    sizes = np.concatenate([np.take_along_axis(widths, best, 1), np.take_along_axis(heights, best, 1)], axis=-1)
    # Rounding may have made a side a hair longer than the image.
    sizes = np.minimum(sizes, [width, height])
    return place((boxes[:, :2] + boxes[:, 2:]) / 2, sizes, image_size, keep)


def pixel_sizes(aspect_ratio: float, image_size: tuple[int, int]) -> np.ndarray:
    """All whole-pixel sizes (S, 2), width and height, of an aspect ratio inside the image, smallest first.

    The longer side is the shorter one times the ratio, rounded, so the ratio is exact to half a pixel. An image too
    thin for one pixel in this ratio gives a single size: one pixel by as many as there are.
    """
    height, width = image_size
    wide = aspect_ratio >= 1
    stretch = aspect_ratio if wide else 1 / aspect_ratio
    short_limit, long_limit = (height, width) if wide else (width, height)
    count = min(short_limit, int((long_limit + 0.5) / stretch) + 1)
    short = np.arange(1, count + 1, dtype=np.float64)
    long = (short * stretch).round()
    fits = long <= long_limit
    short, long = short[fits], long[fits]
    if len(short) == 0:
        short, long = np.ones(1), np.full(1, float(long_limit))
    return np.stack([long, short] if wide else [short, long], axis=-1)


def round_to_sizes(
    boxes: np.ndarray, sizes: np.ndarray, image_size: tuple[int, int], keep: np.ndarray | None = None
) -> np.ndarray:
    """Boxes (N, 4) moved to whole pixels, each with the nearest of the allowed `sizes` (S, 2), sorted by size.

    `sizes` come from `pixel_sizes`, less those a caller does not want; `keep` (whole pixels) as in `place`.
    """
    perimeters = sizes[:, 0] + sizes[:, 1]
    wanted = (boxes[:, 2:] - boxes[:, :2]).sum(axis=-1)
    above = np.searchsorted(perimeters, wanted).clip(max=len(sizes) - 1)
    below = (above - 1).clip(min=0)
    nearest = np.where((wanted - perimeters[below]) < (perimeters[above] - wanted), below, above)
    return place((boxes[:, :2] + boxes[:, 2:]) / 2, sizes[nearest], image_size, keep, pixels=True)


def candidate_grid(
    sizes: np.ndarray, image_size: tuple[int, int], stride: float, keep: np.ndarray | None = None
) -> np.ndarray:
    """Boxes (K, 4) of each of the `sizes` (S, 2), width and height, at evenly spaced whole-pixel places.

    Places run from edge to edge of the image, or of the range in which the box contains `keep`, at most `stride`
    pixels apart in each direction.
    """
    limit = np.array([image_size[1], image_size[0]], dtype=np.float64)
    low, high = np.zeros_like(sizes), limit - sizes
    if keep is not None:
        low = np.minimum((keep[2:] - sizes).clip(min=0), high)
        high = np.maximum(np.minimum(high, keep[:2]), low)
    steps = np.ceil((high - low) / stride).astype(int) + 1
    grids = [np.zeros((0, 4))]
    for size, start, stop, (across, down) in zip(sizes, low, high, steps.tolist(), strict=True):
        boxes = np.empty((across, down, 4))
        boxes[..., 0] = _evenly(start[0], stop[0], across).round()[:, None]
        boxes[..., 1] = _evenly(start[1], stop[1], down).round()
        boxes[..., 2:] = boxes[..., :2] + size
        grids.append(boxes.reshape(-1, 4))
    return np.concatenate(grids)


def _evenly(start: float, stop: float, count: int) -> np.ndarray:
    """`np.linspace`, which takes longer for few numbers than all else that a grid needs."""
    places = start + np.arange(count) * ((stop - start) / max(count - 1, 1))
    places[1:][-1:] = stop
    return places


def gaic_grid() -> np.ndarray:
    """Return the grid anchors of GAIC (Zeng et al., 2019), the crops that its raters judged.

    Corners lie at the centres of 12 x 12 bins, the upper left one in the first four bins of each axis and the lower
    right one in the last four, and a crop covers at least half of the image.

    Returns:
        (90, 4) corners in [0, 1] of the image, float64.
    """
    near, far = range(4), range(8, 12)
    corners = [(x1, y1, x2, y2) for x1 in near for y1 in near for x2 in far for y2 in far]
    bins = [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners if 2 * (x2 - x1) * (y2 - y1) >= 12 * 12]
    return (np.array(bins, dtype=np.float64) + 0.5) / 12
