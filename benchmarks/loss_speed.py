"""Time the set loss against upstream's own Conditional DETR loss on the same predictions.

    python benchmarks/loss_speed.py [--device cuda] [--rounds 10]

Batch 16, 90 anchors, six decoder layers, 90 rated crops per image of which 8 are good. Ours is timed with quality
guidance, which upstream's has not; forward and backward separately, the median of the rounds, taken in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

from modeling_setcrop import SetCropConfig
from modeling_setcrop.loss_setcrop import set_crop_loss

BATCH, ANCHORS, CROPS, GOOD, LAYERS = 16, 90, 90, 8, 6


def _boxes(*shape: int) -> torch.Tensor:
    """Random boxes that cover the middle, cxcywh in [0, 1]."""
    near, far = torch.rand(*shape, 2) * 0.35, 1 - torch.rand(*shape, 2) * 0.35
    return torch.cat([(near + far) / 2, far - near], dim=-1)


def _time(function: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    start = now()
    loss = function()
    forward = now()
    loss.backward()
    return forward - start, now() - forward


def measure(device: torch.device, rounds: int) -> dict[str, tuple[float, float]]:
    """Median (forward, backward) seconds of both losses."""
    torch.manual_seed(0)
    config = SetCropConfig(label_smoothing="quality", decoder_layers=LAYERS)
    logits = torch.randn(LAYERS, BATCH, ANCHORS, 1).to(device).requires_grad_()
    boxes = _boxes(LAYERS, BATCH, ANCHORS).to(device).requires_grad_()
    labels = [
        {
            "boxes": crops[:GOOD],
            "class_labels": torch.zeros(GOOD, dtype=torch.long, device=device),
            "scored_boxes": crops,
            "scores": 1 + 4 * torch.rand(CROPS, device=device),
        }
        for crops in _boxes(BATCH, CROPS).to(device)
    ]

    def of(loss: Callable) -> Callable[[], torch.Tensor]:
        return lambda: loss(logits[-1], labels, device, boxes[-1], config, logits, boxes)[0]

    losses = {"upstream": of(DeformableDetrForObjectDetectionLoss), "setcrop": of(set_crop_loss)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in losses}
    for _ in range(rounds + 2):
        for name, loss in losses.items():
            times[name].append(_time(loss, device))
    # The first two rounds warm up.
    return {name: tuple(statistics.median(part) for part in zip(*t[2:], strict=True)) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the set loss against upstream's.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    times = measure(torch.device(options.device), options.rounds)
    for name, (forward, backward) in times.items():
        print(f"{name:9} forward {forward * 1e3:7.1f} ms  backward {backward * 1e3:7.1f} ms")
    print(
        f"ratio     forward {times['setcrop'][0] / times['upstream'][0]:.2f}, "
        f"with backward {sum(times['setcrop']) / sum(times['upstream']):.2f}"
    )


if __name__ == "__main__":
    main()
