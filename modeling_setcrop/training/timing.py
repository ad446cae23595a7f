"""Where a training step's time goes."""

from __future__ import annotations

import time

import torch

PARTS = ("data", "forward", "loss", "backward", "optimizer")


class StepTimer:
    """Adds up the seconds between marks; does nothing unless `enabled`.

    Args:
        enabled: measure. On a GPU every mark then waits for the device, which costs a little speed.
        device: where the model runs.
    """

    def __init__(self, enabled: bool, device: torch.device) -> None:
        self.enabled = enabled
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.last = time.perf_counter()

    def mark(self, part: str | None) -> None:
        """End a part: the time since the last mark is its own (nobody's for None)."""
        if not self.enabled:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if part is not None:
            self.seconds[part] += now - self.last
        self.last = now

    def watch(self, transformer: torch.nn.Module) -> None:
        """Count what a model does after `transformer`'s forward (heads, matching, losses) as the loss."""
        if self.enabled:
            # Copies of the model (averages, teachers) carry the hook too, but never train.
            transformer.register_forward_hook(lambda module, *_: self.mark("forward") if module.training else None)

    def shares(self) -> dict[str, float]:
        """Share of the measured time by part, adding up to 1."""
        total = max(1e-9, sum(self.seconds.values()))
        return {f"share_{part}": seconds / total for part, seconds in self.seconds.items()}
