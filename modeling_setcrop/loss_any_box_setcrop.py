"""Losses of the scoring head and the subject map where the rating of any box is known: on boxes drawn afresh."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# What IoU with the wanted window is worth, in ratings.
RATINGS_PER_IOU = 4.0
# How sharply the best of the boxes, and of the windows of one size, are told from the rest (in ratings).
_CHOICE_SCALE, _WINDOW_SCALE = 0.15, 0.3
_CHOICE_WEIGHT = 0.3


def any_box_losses(
    predicted: torch.Tensor, ratings: torch.Tensor, weight: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Losses of predicted ratings of boxes whose ratings are known; means over the images that have any.

    Args:
        predicted: (B, M).
        ratings: (B, M), 1..5.
        weight: (B, M) of each box, 1, or 0 for padding and unknown ratings; 1 for all when left out.

    Returns:
        Three scalars: `score` (smooth L1), `order` (squared error of ratings from which the image's mean is taken)
        and `choice` (cross-entropy of which box is the best one, 0.3 of it).
    """
    weight = torch.ones_like(ratings) if weight is None else weight
    known = weight.any(1)
    total = weight.sum(1, keepdim=True).clamp(min=1)
    centred = predicted - (predicted * weight).sum(1, keepdim=True) / total
    ratings_centred = ratings - (ratings * weight).sum(1, keepdim=True) / total
    absent = weight == 0
    choice = torch.softmax((ratings / _CHOICE_SCALE).masked_fill(absent, -1e4), dim=1)
    log_choice = torch.log_softmax((predicted / _CHOICE_SCALE).masked_fill(absent, -1e4), dim=1)
    error = nn.functional.smooth_l1_loss(predicted, ratings, reduction="none")
    return {
        "score": (error * weight).sum() / weight.sum().clamp(min=1),
        "order": ((centred - ratings_centred).square() * weight).sum() / weight.sum().clamp(min=1),
        "choice": -(choice * log_choice.masked_fill(absent, 0)).sum() / known.sum().clamp(min=1) * _CHOICE_WEIGHT,
    }


def window_losses(predicted: torch.Tensor, fit: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (...,) of which of the windows of one size is the best one.

    Args:
        predicted: (..., W) ratings of the windows.
        fit: (..., W) IoU of each with the window that the labels want.
    """
    wanted = torch.softmax(fit * RATINGS_PER_IOU / _WINDOW_SCALE, dim=-1)
    return -(wanted * torch.log_softmax(predicted / _WINDOW_SCALE, dim=-1)).sum(-1)


def subject_map_loss(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of maps of importance in [0, 1], cell by cell, of the same shape."""
    # On a GPU the loss itself would stop at what is not a number, without a word.
    predicted = predicted.float().nan_to_num().clamp(0, 1)
    with torch.autocast(predicted.device.type, enabled=False):
        return nn.functional.binary_cross_entropy(predicted, wanted, reduction="none")


def view_scoring_losses(
    predicted: torch.Tensor, predicted_windows: torch.Tensor, labels: list[dict[str, Any]]
) -> dict[str, torch.Tensor]:
    """Return the scoring head's losses on views, means over images.

    Args:
        predicted: (B, M) ratings of the labels' `scored_boxes`.
        predicted_windows: (B, F, W) ratings of their `windows`.
        labels: a dict per view with `scores` (M,), `window_fit` (F, W) and `window_weight` (F,).

    Returns:
        `loss_crop_score`, `loss_crop_rank` and `loss_crop_windows`.
    """
    predicted, windows = predicted.float(), predicted_windows.float()
    ratings, fit, weight = (
        torch.stack([label[name] for label in labels]).to(predicted)
        for name in ("scores", "window_fit", "window_weight")
    )
    losses = any_box_losses(predicted, ratings)
    # By image, not by batch, so that the mean over all images does not depend on the batches.
    slide = (window_losses(windows, fit) * weight).sum(1) / weight.sum(1).clamp(min=1)
    return {
        "loss_crop_score": losses["score"],
        "loss_crop_rank": losses["order"] + losses["choice"],
        "loss_crop_windows": slide.mean(),
    }


def view_subject_map_loss(predicted: torch.Tensor, mask: torch.Tensor, labels: list[dict[str, Any]]) -> torch.Tensor:
    """Return the loss of the map of subjects on views, a mean over the cells of an image and over images.

    Args:
        predicted: (B, H, W) importance in [0, 1].
        mask: (B, H, W) True where the map is image, False where it is padding.
        labels: a dict per view with `importance_map`, a function from (rows, columns) to that map, a NumPy array.
    """
    wanted = torch.zeros(predicted.shape)
    rows, columns = mask[:, :, 0].sum(1).tolist(), mask[:, 0].sum(1).tolist()
    for target, label, height, width in zip(wanted, labels, rows, columns, strict=True):
        target[:height, :width] = torch.from_numpy(label["importance_map"]((height, width)).copy())
    losses = subject_map_loss(predicted, wanted.to(predicted.device)) * mask
    return (losses.sum((1, 2)) / mask.sum((1, 2))).mean()
