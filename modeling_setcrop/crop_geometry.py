"""Pure functions on boxes: overlap, suppression, aspect ratios, candidate grids and diversity.

Boxes are float tensors in corner format `x1, y1, x2, y2` unless a name says `cxcywh`. Every function is deterministic
and works on whole tensors of boxes; none looks at a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Two crops that overlap so much are the same to a person. A little above 0.9, the stricter threshold of the paper's
# ACC: crops nine and ten bins of the grid wide overlap by exactly that, and rounding to pixels would decide.
_COVER_IOU = 0.905


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Centre format (..., 4) to corner format (..., 4), in the same units."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corner format (..., 4) to centre format (..., 4), in the same units."""
    upper_left, lower_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(upper_left + lower_right) / 2, lower_right - upper_left], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4); a box turned inside out has none."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Areas (..., N, M) shared by boxes `a` (..., N, 4) and `b` (..., M, 4)."""
    upper_left = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    lower_right = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    size = (lower_right - upper_left).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (..., N, M), in 0..1, of boxes (..., N, 4) and (..., M, 4); 0 when both are empty."""
    shared = box_intersection(a, b)
    union = box_area(a)[..., :, None] + box_area(b)[..., None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), torch.zeros_like(shared))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, count: int | None = None) -> Tensor:
    """Indices of the boxes kept by greedy non-maximum suppression, best score first; the first `count` if given.

    A box (N, 4) is dropped when its overlap with a better kept one exceeds `iou_threshold`. Equal scores keep the
    order of the input, so the result does not depend on the run. "Kept" is solved for as a fixed point over the whole
    overlap matrix, which reaches the greedy answer in as many steps as its longest chain of suppressions; for a few of
    many boxes, `count` steps over one row of it each are less work.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    if count is not None:
        taken = []
        while len(order) > 0 and len(taken) < count:
            taken.append(order[0])
            order = order[box_iou(boxes[order], boxes[order[:1]])[:, 0] <= iou_threshold]
            order = order[order != taken[-1]]
        return torch.stack(taken) if taken else order
    ranked = boxes[order]
    suppresses = torch.triu(box_iou(ranked, ranked) > iou_threshold, diagonal=1)
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    while True:
        update = ~(suppresses & kept[:, None]).any(dim=0)
        if torch.equal(update, kept):
            return order[kept]
        kept = update


def maximal_marginal_relevance(boxes: Tensor, scores: Tensor, diversity: float, count: int) -> Tensor:
    """Indices of up to `count` boxes (N, 4), chosen greedily between score (N,), in 0..1, and overlap.

    Each step takes the box with the highest `(1 - diversity) * score - diversity * overlap`, where overlap is the
    largest IoU with a box already taken (Carbonell and Goldstein, SIGIR 1998). `diversity` 0 is the order of the
    scores; 1 looks at nothing but overlap after the best-scored box. Equal values keep the order of the input.
    """
    count = min(count, len(boxes))
    if count == 0:
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    chosen = [int(scores.argmax())]
    overlap = torch.zeros_like(scores)
    taken = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for _ in range(count - 1):
        taken[chosen[-1]] = True
        overlap = torch.maximum(overlap, box_iou(boxes, boxes[chosen[-1]][None])[:, 0])
        relevance = ((1 - diversity) * scores - diversity * overlap).masked_fill(taken, -torch.inf)
        chosen.append(int(relevance.argmax()))
    return torch.tensor(chosen, device=boxes.device)


def good_crop_probability(scores: Tensor) -> Tensor:
    """Probability, in 0..1, that a crop with predicted human scores (1..5) is rated 4 or more: sigmoid(4 (s - 4))."""
    return torch.sigmoid(4 * (scores - 4))


def hull(boxes: Tensor) -> Tensor:
    """The smallest box (4,) that contains all of `boxes` (N, 4)."""
    return torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)])


def place(
    centres: Tensor, sizes: Tensor, picture_size: tuple[int, int], keep: Tensor | None = None, pixels: bool = False
) -> Tensor:
    """Boxes (N, 4) of the given sizes, as near to the given centres as the picture and `keep` allow.

    Args:
        centres: (N, 2), x and y.
        sizes: (N, 2), width and height, at most the picture's.
        picture_size: height and width.
        keep: A box (4,) inside the picture that every result contains, as far as its size lets it; what does not fit
            is left out evenly on both sides.
        pixels: Put the corners on whole pixels (the sizes must be whole numbers).
    """
    limit = sizes.new_tensor([picture_size[1], picture_size[0]])
    corner = centres - sizes / 2
    if keep is not None:
        low, high = keep[2:] - sizes, keep[:2].expand_as(sizes)
        middle = (low + high) / 2
        corner = torch.where(low <= high, torch.minimum(torch.maximum(corner, low), high), middle)
    if pixels:
        # A whole-pixel `keep` leaves the interval's ends whole, so rounding stays inside it.
        corner = corner.round()
    corner = torch.minimum(corner.clamp(min=0), limit - sizes)
    return torch.cat([corner, corner + sizes], dim=-1)


def fit_aspect_ratio(
    boxes: Tensor,
    aspect_ratio: float | Tensor,
    picture_size: tuple[int, int],
    min_height: float = 0.0,
    max_height: float = float("inf"),
    keep: Tensor | None = None,
) -> Tensor:
    """For every box, the box of an aspect ratio inside the picture that overlaps it most (largest IoU).

    For a height h and width r h, the most of a box (w_b, h_b) that can be covered is `clamp(r h - d_x, 0, w_b)` times
    `clamp(h - d_y, 0, h_b)`, where d is how far `keep` sticks out of the box on the worse side. Between the corners of
    that function IoU has at most one inner maximum, at `d + sqrt(d^2 + w_b h_b / r)`, so the best of a handful of
    heights is the optimum. Without `keep` it is the box of equal area, shrunk to the picture.

    Args:
        boxes: (N, 4), inside the picture, any units.
        aspect_ratio: Width over height, in the same units; one number, or one a box (N,).
        picture_size: Height and width of the picture.
        min_height, max_height: Bounds on the result's height.
        keep: A box (4,) inside the picture that the result must contain. Where that is impossible in this ratio, the
            result is as large as the bounds allow and contains as much of the middle of `keep` as it can.

    Returns:
        (N, 4) boxes.
    """
    height, width = picture_size
    ratio = torch.as_tensor(aspect_ratio, dtype=boxes.dtype, device=boxes.device).expand(len(boxes))
    low = torch.full_like(ratio, min_height)
    high = torch.minimum(width / ratio, torch.full_like(ratio, min(height, max_height)))
    box_width, box_height = (boxes[:, 2:] - boxes[:, :2]).unbind(dim=-1)
    if keep is None:
        out_x = out_y = torch.zeros_like(ratio)
    else:
        out_x, out_y = torch.maximum(boxes[:, :2] - keep[:2], keep[2:] - boxes[:, 2:]).clamp(min=0).unbind(dim=-1)
        keep_width, keep_height = keep[2:] - keep[:2]
        low = torch.maximum(low, torch.maximum(keep_width / ratio, keep_height))
    area = box_width * box_height
    inner_x, inner_y = out_x / ratio, out_y
    heights = torch.stack(
        [
            inner_y + (inner_y**2 + area / ratio).sqrt(),
            inner_x + (inner_x**2 + area / ratio).sqrt(),
            (out_x + box_width) / ratio,
            out_y + box_height,
            low,
            high,
        ],
        dim=-1,
    )
    heights = torch.minimum(torch.maximum(heights, low[:, None]), high[:, None])
    widths = heights * ratio[:, None]
    covered_x = torch.minimum((widths - out_x[:, None]).clamp(min=0), box_width[:, None])
    covered_y = torch.minimum((heights - out_y[:, None]).clamp(min=0), box_height[:, None])
    shared = covered_x * covered_y
    iou = shared / (widths * heights + area[:, None] - shared)
    best = iou.argmax(dim=-1, keepdim=True)
    sizes = torch.cat([widths.gather(1, best), heights.gather(1, best)], dim=-1)
    # Rounding may have made a side a hair longer than the picture.
    sizes = torch.minimum(sizes, sizes.new_tensor([width, height]))
    return place((boxes[:, :2] + boxes[:, 2:]) / 2, sizes, picture_size, keep)


def pixel_sizes(aspect_ratio: float, picture_size: tuple[int, int]) -> Tensor:
    """All whole-pixel sizes (S, 2), width and height, of an aspect ratio inside the picture, smallest first.

    The longer side is the shorter one times the ratio, rounded, so the ratio is exact to half a pixel. A picture too
    thin for one pixel in this ratio gives a single size: one pixel by as many as there are.
    """
    height, width = picture_size
    wide = aspect_ratio >= 1
    stretch = aspect_ratio if wide else 1 / aspect_ratio
    short_limit, long_limit = (height, width) if wide else (width, height)
    count = min(short_limit, int((long_limit + 0.5) / stretch) + 1)
    short = torch.arange(1, count + 1, dtype=torch.float64)
    long = (short * stretch).round()
    fits = long <= long_limit
    short, long = short[fits], long[fits]
    if len(short) == 0:
        short, long = torch.ones(1, dtype=torch.float64), torch.full((1,), float(long_limit), dtype=torch.float64)
    return torch.stack([long, short] if wide else [short, long], dim=-1)


def round_to_sizes(boxes: Tensor, sizes: Tensor, picture_size: tuple[int, int], keep: Tensor | None = None) -> Tensor:
    """Boxes (N, 4) moved to whole pixels, each with the nearest of the allowed `sizes` (S, 2), sorted by size.

    `sizes` come from `pixel_sizes`, less those a caller does not want; `keep` (whole pixels) as in `place`.
    """
    perimeters = sizes.sum(dim=-1)
    wanted = (boxes[:, 2:] - boxes[:, :2]).sum(dim=-1).to(perimeters)
    above = torch.searchsorted(perimeters, wanted.contiguous()).clamp(max=len(sizes) - 1)
    below = (above - 1).clamp(min=0)
    nearest = torch.where((wanted - perimeters[below]) < (perimeters[above] - wanted), below, above)
    centres = (boxes[:, :2] + boxes[:, 2:]).to(sizes) / 2
    return place(centres, sizes[nearest], picture_size, None if keep is None else keep.to(sizes), pixels=True)


def candidate_grid(sizes: Tensor, picture_size: tuple[int, int], stride: float, keep: Tensor | None = None) -> Tensor:
    """Boxes (K, 4) of each of the `sizes` (S, 2), width and height, at evenly spaced whole-pixel places.

    Places run from edge to edge of the picture, or of the range in which the box contains `keep`, at most `stride`
    pixels apart in each direction.
    """
    limit = sizes.new_tensor([picture_size[1], picture_size[0]])
    low, high = torch.zeros_like(sizes), limit - sizes
    if keep is not None:
        low = torch.minimum(torch.maximum(low, keep[2:].to(sizes) - sizes), high)
        high = torch.maximum(torch.minimum(high, keep[:2].to(sizes)), low)
    steps = ((high - low) / stride).ceil().long() + 1
    grids = []
    for size, start, stop, (across, down) in zip(sizes, low, high, steps.tolist(), strict=True):
        x = torch.linspace(float(start[0]), float(stop[0]), across, dtype=sizes.dtype).round()
        y = torch.linspace(float(start[1]), float(stop[1]), down, dtype=sizes.dtype).round()
        corners = torch.cartesian_prod(x, y)
        grids.append(torch.cat([corners, corners + size], dim=-1))
    return torch.cat(grids) if grids else sizes.new_zeros(0, 4)


def choice_grid() -> Tensor:
    """The crops that a picture's best one is looked for among: the grid anchors of GAIC (Zeng et al., 2019).

    Corners lie at the centres of 12 x 12 bins, the upper left one in the first four bins of each axis and the lower
    right one in the last four, and a crop covers at least half of the picture.

    Returns:
        (90, 4) corners in [0, 1] of the picture.
    """
    near, far = range(4), range(8, 12)
    corners = [(x1, y1, x2, y2) for x1 in near for y1 in near for x2 in far for y2 in far]
    bins = [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners if 2 * (x2 - x1) * (y2 - y1) >= 12 * 12]
    return (torch.tensor(bins, dtype=torch.float32) + 0.5) / 12


def covering_order(boxes: Tensor, probabilities: Tensor, count: int | None = None) -> Tensor:
    """Chooses boxes so that the picture's best crop is among them as probably as possible.

    A box covers the crops of [`choice_grid`] that it overlaps by more than 0.9. The first box stays first; each next
    one covers most of the probability that is left (greedy, within 1 - 1/e of the best such set: Nemhauser et al.,
    1978). Of boxes that cover equally much the one given earlier comes first.

    Args:
        boxes: (N, 4) corners in [0, 1], better ones first.
        probabilities: (90,) of each crop of the grid being the best.
        count: how many to choose; all if left out.

    Returns:
        (min(count, N),) indices.
    """
    count = len(boxes) if count is None else min(count, len(boxes))
    covers = box_iou(boxes, choice_grid().to(boxes)) >= _COVER_IOU
    left = probabilities.to(boxes)
    taken = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    chosen: list[int] = []
    while len(chosen) < count:
        gain = (covers * left).sum(dim=1).masked_fill(taken, -1)
        # With a tolerance, so that rounding decides nothing.
        index = int((gain >= gain.max() - 1e-6).int().argmax()) if chosen else 0
        chosen.append(index)
        taken[index] = True
        left = torch.where(covers[index], 0.0, left)
    return torch.tensor(chosen, dtype=torch.long, device=boxes.device)
