"""Pure functions on boxes: overlap, suppression, aspect ratios, candidate grids, diversity and focal points.

Boxes are float tensors in corner format `x1, y1, x2, y2` unless a name says `cxcywh`. Every function is deterministic
and works on whole tensors of boxes; none looks at a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Areas (N, M) shared by boxes `a` (N, 4) and `b` (M, 4)."""
    upper_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    lower_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    size = (lower_right - upper_left).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N, M), in 0..1, of boxes `a` (N, 4) and `b` (M, 4); 0 where both have no area."""
    shared = box_intersection(a, b)
    union = box_area(a)[:, None] + box_area(b)[None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), torch.zeros_like(shared))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes kept by greedy non-maximum suppression, best score first.

    A box (N, 4) is dropped when its overlap with a better kept one exceeds `iou_threshold`. Equal scores keep the
    order of the input, so the result does not depend on the run. "Kept" is solved for as a fixed point over the whole
    overlap matrix, which reaches the greedy answer in as many steps as its longest chain of suppressions.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    ranked = boxes[order]
    suppresses = torch.triu(box_iou(ranked, ranked) > iou_threshold, diagonal=1)
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    while True:
        update = ~(suppresses & kept[:, None]).any(dim=0)
        if torch.equal(update, kept):
            return order[kept]
        kept = update
