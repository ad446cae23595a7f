"""Matching, validity targets and the set loss of SetCrop (section 3.2 of the paper)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import is_accelerate_available, is_scipy_available

from .configuration_setcrop import SetCropConfig
from .crop_geometry import cxcywh_to_xyxy

# Only training needs these two; as custom code from the Hub this file is loaded where they may be absent.
if is_scipy_available():
    from scipy.optimize import linear_sum_assignment
if is_accelerate_available():
    from accelerate import PartialState
    from accelerate.utils import reduce


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss with soft targets, element by element.

    With p = sigmoid(logit) and target v in [0, 1]: p_t = p v + (1 - p)(1 - v) and the loss is
    (alpha v + (1 - alpha)(1 - v)) (1 - p_t)^gamma BCE(p, v). For v in {0, 1} it is RetinaNet's.

    Args:
        logits: any shape.
        targets: the same shape, in [0, 1].
        alpha: weight of the positive side.
        gamma: focusing exponent.

    Returns:
        Losses of the same shape.
    """
    prob = logits.sigmoid()
    p_t = prob * targets + (1 - prob) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    bce = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return alpha_t * (1 - p_t) ** gamma * bce


def _pairwise_giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of (..., N, 4) with (..., M, 4) corner boxes, (..., N, M)."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    return _giou(a, b)


def _giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of broadcastable corner boxes (..., 4); 1 for equal boxes, above -1 for distant ones."""
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = area_a + area_b - inner
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return inner / union - (hull - union) / hull


@torch.no_grad()
def match_anchors(
    logits: torch.Tensor, boxes: torch.Tensor, targets: torch.Tensor, counts: list[int], config: SetCropConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hungarian matching of every decoder layer's anchors to the good crops of each image.

    The costs of all layers and images are computed at once and cross to the host in one transfer.

    Args:
        logits: (L, B, N) validity logits of L decoder layers.
        boxes: (L, B, N, 4) cxcywh in [0, 1].
        targets: (B, G, 4) good crops, cxcywh in [0, 1], padded to the largest count.
        counts: good crops of each image.
        config: gives class_cost, bbox_cost, giou_cost, focal_alpha and focal_gamma.

    Returns:
        Four index vectors of one entry a match: layer, image, anchor, good crop.
    """
    prob = logits.float().sigmoid()
    alpha, gamma = config.focal_alpha, config.focal_gamma
    positive = alpha * (1 - prob) ** gamma * -(prob + 1e-8).log()
    negative = (1 - alpha) * prob**gamma * -(1 - prob + 1e-8).log()
    cost = config.class_cost * (positive - negative)[..., None]
    cost = cost + config.bbox_cost * torch.cdist(boxes.float(), targets.expand(len(boxes), -1, -1, -1), p=1)
    cost = cost - config.giou_cost * _pairwise_giou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(targets))
    # An anchor with a broken cost is taken only when no other is left.
    worst = torch.finfo(cost.dtype).max
    costs = torch.nan_to_num(cost, nan=worst, posinf=worst, neginf=worst).cpu().numpy()

    matches = [np.empty((4, 0), dtype=np.int64)]
    for layer, layer_cost in enumerate(costs):
        for image, (image_cost, count) in enumerate(zip(layer_cost, counts, strict=True)):
            anchors, crops = linear_sum_assignment(image_cost[:, :count])
            matches.append(np.stack([np.full_like(anchors, layer), np.full_like(anchors, image), anchors, crops]))
    index = torch.from_numpy(np.concatenate(matches, axis=1))
    layer, image, anchor, crop = index.to(logits.device, non_blocking=True)
    return layer, image, anchor, crop


@torch.no_grad()
def quality_targets(
    boxes: torch.Tensor, scored_boxes: torch.Tensor, scores: torch.Tensor, rated: torch.Tensor, config: SetCropConfig
) -> torch.Tensor:
    """Soft validity of anchors by quality guidance (section 3.2, equation 4).

    An anchor takes the score s of the rated crop that it overlaps most; when that IoU reaches
    `quality_iou_threshold` its label is clamp(mu (s - s_l) / (s_u - s_l), 0, mu), otherwise 0.

    Args:
        boxes: (L, B, N, 4) anchors' boxes, cxcywh in [0, 1].
        scored_boxes: (B, S, 4) rated crops, cxcywh in [0, 1].
        scores: (B, S) their ratings.
        rated: (B, S) False where the entry is padding.
        config: gives mu, s_l, s_u and the IoU threshold.

    Returns:
        (L, B, N) labels in [0, mu].
    """
    if scored_boxes.shape[1] == 0:
        return boxes.new_zeros(boxes.shape[:-1])
    layers, batch, anchors, _ = boxes.shape
    # One (L N) x S table per image, in place, because the passes over it are most of the loss. With r = intersection /
    # (sum of both areas), IoU = r / (1 - r), so the largest r is the largest IoU.
    by_image = boxes.detach().float().transpose(0, 1).reshape(batch, layers * anchors, 4)
    left, top, right, bottom = cxcywh_to_xyxy(by_image)[:, :, None].unbind(-1)
    x1, y1, x2, y2 = cxcywh_to_xyxy(scored_boxes)[:, None].unbind(-1)
    width = torch.minimum(right, x2).sub_(torch.maximum(left, x1)).clamp_(min=0)
    height = torch.minimum(bottom, y2).sub_(torch.maximum(top, y1)).clamp_(min=0)
    areas = (scored_boxes[..., 2] * scored_boxes[..., 3]).masked_fill(~rated, torch.inf)
    both = (by_image[..., 2] * by_image[..., 3])[:, :, None] + areas[:, None]
    best, nearest = width.mul_(height).div_(both).max(-1)
    label = _soft_validity(scores.gather(1, nearest), config)
    reached = (best / (1 - best) >= config.quality_iou_threshold) & rated.any(1, keepdim=True)
    label = torch.where(reached, label, 0.0)
    return label.reshape(batch, layers, anchors).transpose(0, 1)


@torch.no_grad()
def rated_targets(boxes: torch.Tensor, rate_boxes: list[Any], config: SetCropConfig) -> torch.Tensor:
    """Soft validity of anchors by quality guidance, where the rating of any box is known (equation 4, no neighbours).

    Args:
        boxes: (L, B, N, 4) anchors' boxes, cxcywh in [0, 1].
        rate_boxes: for each image a function from boxes (M, 4), corners in [0, 1], to their ratings (M,), both NumPy.
        config: gives mu, s_l and s_u.

    Returns:
        (L, B, N) labels in [0, mu].
    """
    layers, _, anchors, _ = boxes.shape
    corners = cxcywh_to_xyxy(boxes.detach().cpu().double()).clamp(0, 1).transpose(0, 1).flatten(1, 2).numpy()
    ratings = np.stack([rate(each) for rate, each in zip(rate_boxes, corners, strict=True)])
    scores = torch.from_numpy(ratings).to(boxes).reshape(-1, layers, anchors).transpose(0, 1)
    return _soft_validity(scores, config).contiguous()


def _soft_validity(scores: torch.Tensor, config: SetCropConfig) -> torch.Tensor:
    """Labels in [0, mu] of ratings, any shape: clamp(mu (s - s_l) / (s_u - s_l), 0, mu)."""
    mu, low, high = config.smoothing_upper_bound, config.quality_lower, config.quality_upper
    return (mu * (scores - low) / (high - low)).clamp(0, mu)


def crops_per_process(count: int, device: torch.device) -> torch.Tensor:
    """Good crops of a process's batch, averaged over processes, at least 1: what the losses are divided by."""
    total = torch.tensor([count], dtype=torch.float, device=device)
    if is_accelerate_available() and PartialState._shared_state != {}:
        total = reduce(total) / PartialState().num_processes
    return total.clamp(min=1)


def _pad(labels: list[dict[str, torch.Tensor]], key: str, width: int, device: torch.device) -> torch.Tensor:
    rows = [label[key].to(device, torch.float) for label in labels]
    padded = rows[0].new_zeros((len(rows), width, *rows[0].shape[1:]))
    for row, out in zip(rows, padded, strict=True):
        out[: len(row)] = row
    return padded


def _rated_scores(
    labels: list[dict[str, torch.Tensor]], predicted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (B, S) padded to the shape of `predicted`, which of them are rated crops', and how many, (B,)."""
    width, device = predicted.shape[1], predicted.device
    counts = torch.tensor([len(label["scores"]) for label in labels], device=device)
    rated = torch.arange(width, device=device) < counts[:, None]
    return _pad(labels, "scores", width, device), rated, counts


def set_crop_loss(
    logits: torch.Tensor,
    labels: list[dict[str, torch.Tensor]],
    device: torch.device,
    pred_boxes: torch.Tensor,
    config: SetCropConfig,
    outputs_class: torch.Tensor | None = None,
    outputs_coord: torch.Tensor | None = None,
    num_good_crops: torch.Tensor | float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[dict[str, torch.Tensor]] | None]:
    """Return the set loss: validity (focal), L1 and GIoU, over all decoder layers (section 3.2, equations 1 to 6).

    Same arguments and results as upstream's `ForObjectDetectionLoss` of Conditional DETR, and the same value with
    `label_smoothing="none"`.

    Args:
        logits: (B, N, 1) of the last decoder layer.
        labels: a dict per image: `boxes` (G, 4) good crops cxcywh in [0, 1]; for quality guidance, which nothing has
            without, `scored_boxes` (S, 4) and `scores` (S,), or `rate_boxes`, a function that rates any box; for
            distillation, once there is a teacher, `teacher_validity` (N,) in [0, 1].
        device: where to compute.
        pred_boxes: (B, N, 4) cxcywh in [0, 1] of the last decoder layer.
        config: weights and label smoothing.
        outputs_class: (L, B, N, 1) of all decoder layers, for the auxiliary losses.
        outputs_coord: (L, B, N, 4) of all decoder layers.
        num_good_crops: what the sums are divided by; by default the good crops of this batch, averaged over
            processes. Gradient accumulation passes the count of the whole accumulated batch.

    Returns:
        The weighted sum, the separate losses (auxiliary layer i's end in `_i`), and the auxiliary layers' outputs.

    Raises:
        ValueError: as many labels as images are needed.
    """
    if len(labels) != len(logits):
        raise ValueError(f"{len(logits)} images, but labels of {len(labels)}")
    all_logits, all_boxes, auxiliary = logits[None, ..., 0], pred_boxes[None], None
    if outputs_class is not None and outputs_coord is not None:
        # The last layer comes first, the auxiliary ones behind it.
        all_logits = torch.cat([all_logits, outputs_class[:-1, ..., 0]])
        all_boxes = torch.cat([all_boxes, outputs_coord[:-1]])
        auxiliary = [
            {"logits": a, "pred_boxes": b} for a, b in zip(outputs_class[:-1], outputs_coord[:-1], strict=True)
        ]
    all_logits, all_boxes = all_logits.float(), all_boxes.float()

    counts = [len(label["boxes"]) for label in labels]
    targets = _pad(labels, "boxes", max(counts), device)
    if num_good_crops is None:
        num_good_crops = crops_per_process(sum(counts), device)
    layer, image, anchor, crop = match_anchors(all_logits, all_boxes, targets, counts, config)

    validity = _unmatched_validity(all_boxes, labels, config)
    validity[layer, image, anchor] = 1.0
    focal = _validity_loss(all_logits, validity, labels, config)

    matched, wanted = all_boxes[layer, image, anchor], targets[image, crop]
    l1 = (matched - wanted).abs().sum(-1)
    giou = 1 - _giou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(wanted))
    zeros = all_logits.new_zeros(len(all_logits))
    wanted_counts = torch.tensor(counts, dtype=torch.float, device=device)
    with torch.no_grad():
        cardinality = ((all_logits > 0).sum(-1) - wanted_counts).abs().mean(-1)
    terms = {
        "loss_ce": focal.sum((1, 2)) / num_good_crops,
        "cardinality_error": cardinality,
        "loss_bbox": zeros.index_add(0, layer, l1) / num_good_crops,
        "loss_giou": zeros.index_add(0, layer, giou) / num_good_crops,
    }
    loss = (
        config.cls_loss_coefficient * terms["loss_ce"]
        + config.bbox_loss_coefficient * terms["loss_bbox"]
        + config.giou_loss_coefficient * terms["loss_giou"]
    ).sum()
    suffixes = ["", *(f"_{i}" for i in range(len(all_logits) - 1))]
    loss_dict = {name + end: values[i] for i, end in enumerate(suffixes) for name, values in terms.items()}
    return loss, loss_dict, auxiliary


def _unmatched_validity(
    boxes: torch.Tensor, labels: list[dict[str, torch.Tensor]], config: SetCropConfig
) -> torch.Tensor:
    """Return the labels (L, B, N) of unmatched anchors: 0, or more by quality guidance."""
    if config.label_smoothing != "quality" or not any("scores" in label or "rate_boxes" in label for label in labels):
        return torch.zeros_like(boxes[..., 0])
    if "rate_boxes" in labels[0]:
        return rated_targets(boxes, [label["rate_boxes"] for label in labels], config)
    rated, device = [len(label["scores"]) for label in labels], boxes.device
    return quality_targets(
        boxes,
        _pad(labels, "scored_boxes", max(rated), device),
        _pad(labels, "scores", max(rated), device),
        torch.arange(max(rated), device=device) < torch.tensor(rated, device=device)[:, None],
        config,
    ).contiguous()


def _validity_loss(
    logits: torch.Tensor, validity: torch.Tensor, labels: list[dict[str, torch.Tensor]], config: SetCropConfig
) -> torch.Tensor:
    """Return the focal loss (L, B, N) against the labels, and against a teacher's probabilities where there is one."""
    focal = focal_loss(logits, validity, config.focal_alpha, config.focal_gamma)
    if config.label_smoothing != "distillation" or "teacher_validity" not in labels[0]:
        return focal
    teacher = torch.stack([label["teacher_validity"].to(logits) for label in labels])
    focal = focal + focal_loss(logits, teacher.expand_as(logits), config.focal_alpha, config.focal_gamma)
    return focal / 2 if config.distillation_halved else focal


def crop_scoring_loss(
    predicted: torch.Tensor, labels: list[dict[str, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Regression and ranking losses of the scoring head on all rated crops.

    The regression is the mean over images of the mean squared error. The ranking term is the logistic loss of every
    pair of crops of one image (RankNet, Burges et al., 2005), weighted by the difference of their ratings, so
    that ties weigh nothing.

    Args:
        predicted: (B, S) predicted scores, in the order of `scored_boxes`, padded.
        labels: a dict per image with `scores` (S_i,).

    Returns:
        The two scalars; 0 where no image has a rated crop.
    """
    predicted = predicted.float()
    scores, rated, counts = _rated_scores(labels, predicted)
    images = (counts > 0).sum().clamp(min=1)
    squared = ((predicted - scores) ** 2 * rated).sum(1) / counts.clamp(min=1)
    weight = (scores[:, :, None] - scores[:, None, :]).clamp(min=0) * (rated[:, :, None] & rated[:, None, :])
    gap = predicted[:, :, None] - predicted[:, None, :]
    ranking = (nn.functional.softplus(-gap) * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)
    return squared.sum() / images, ranking.sum() / images
