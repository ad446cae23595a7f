"""Moving averages of a model's weights, by torch's `AveragedModel`."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(model: nn.Module, theta: float) -> AveragedModel:
    """Return a frozen copy of a model, in evaluation mode, whose weights follow the original's.

    Each `update_parameters(model)` makes average = theta * current + (1 - theta) * average.

    Args:
        model: The model to follow; its present weights are the first average.
        theta: Weight of the current weights in (0, 1].
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - theta)).eval().requires_grad_(False)
    # The first update of torch's class copies the weights instead of averaging them.
    average.update_parameters(model)
    return average
