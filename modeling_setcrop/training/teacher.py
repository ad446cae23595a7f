"""The momentum teacher of self distillation (paper, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def label_with_teacher(teacher: torch.nn.Module, batch: dict[str, Any]) -> None:
    """Add `teacher_validity` (N,), probabilities in [0, 1], to the labels of every image of a batch.

    The teacher sees the same pixels (or, frozen before, the same `encoder_outputs`) as the model, in evaluation mode
    and without gradient. It is a moving average of the model's weights, with the config's `distillation_momentum` as
    theta: the recursive form of equation 5, which the authors' release computes (the equation itself has the previous
    step's weights for the previous average).

    Args:
        teacher: Of [`moving_average`].
        batch: The model's arguments.
    """
    outputs = teacher(**{name: value for name, value in batch.items() if name != "labels"})
    for label, logits in zip(batch["labels"], outputs.logits[..., 0], strict=True):
        label["teacher_validity"] = logits.float().sigmoid()
