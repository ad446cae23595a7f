"""The momentum teacher of self distillation (paper, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch

from .averaging import AveragedModel


class MomentumTeacher(AveragedModel):
    """An average of the model's weights whose validities become soft labels for sparsely rated data.

    Once a step, average = theta * current + (1 - theta) * average, with the config's `distillation_momentum` as theta:
    the recursive form of equation 5, which the authors' release computes (the equation itself has the previous step's
    weights for the previous average).
    """

    @torch.no_grad()
    def label(self, batch: dict[str, Any]) -> None:
        """Adds `teacher_validity` (N,), probabilities in [0, 1], to the labels of every picture of a batch.

        The teacher sees the same pixels (or, frozen before, the same `encoder_outputs`) as the model, in eval mode and
        without gradient.
        """
        outputs = self.model(**{name: value for name, value in batch.items() if name != "labels"})
        for label, logits in zip(batch["labels"], outputs.logits[..., 0], strict=True):
            label["teacher_validity"] = logits.float().sigmoid()
