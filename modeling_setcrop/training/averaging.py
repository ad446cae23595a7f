"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class AveragedModel:
    """A copy of a model whose weights follow the original's: average = theta * current + (1 - theta) * average.

    Args:
        model: the model to follow; its present weights are the first average.
        theta: weight of the current weights in (0, 1].
    """

    def __init__(self, model: nn.Module, theta: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.theta = theta

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average one step towards `model`; what does not train is left alone."""
        pairs = [
            (mean, current)
            for mean, current in zip(self.model.parameters(), model.parameters(), strict=True)
            if current.requires_grad
        ]
        torch._foreach_lerp_([mean for mean, _ in pairs], [current for _, current in pairs], self.theta)
