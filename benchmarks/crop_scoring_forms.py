"""Which form should the scoring head have? Trains each on the frozen encoder of a checkpoint and compares them.

    python benchmarks/crop_scoring_forms.py --model CHECKPOINT --data DIR --layout gaic

Every form gets the same images, steps and learning rate, from the same seeds. The encoder's memory is computed once.
Printed and written as JSON: mean rank correlation within an image on the validation split (mean and range over the
seeds), the mean squared error, the parameters, and the time of 1,000 candidates beside that of the whole forward pass,
both in this run.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from torch import nn
from tqdm import tqdm
from transformers import AutoImageProcessor

from modeling_setcrop import SetCropConfig, SetCropForImageCropping
from modeling_setcrop.crop_geometry import cxcywh_to_xyxy, xyxy_to_cxcywh
from modeling_setcrop.crop_scoring_setcrop import SetCropScorer, _geometry
from modeling_setcrop.data import load
from modeling_setcrop.data.augmentation import jitter
from modeling_setcrop.data.collation import AspectRatioBatchSampler, CropCollator, CropDataset
from modeling_setcrop.loss_setcrop import crop_scoring_loss

BATCH = 32


class GeometryForm(nn.Module):
    """The crop's geometry alone: what can be had without looking at the image."""

    def __init__(self, config: SetCropConfig) -> None:
        super().__init__()
        width = config.crop_scoring_dim
        self.network = nn.Sequential(
            nn.Linear(11, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, boxes, memory, mask, sizes, shares):
        return 3 + self.network(_geometry(boxes, sizes))[..., 0]


class AttentionForm(nn.Module):
    """(a) Queries made of the box attend to the encoder's memory, without self-attention between boxes."""

    def __init__(self, config: SetCropConfig, layers: int = 2) -> None:
        super().__init__()
        width = config.d_model
        self.embed = nn.Sequential(nn.Linear(11 + 4 * 16, width), nn.GELU(), nn.Linear(width, width))
        self.position = nn.Linear(4 * 8, width)
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 8, batch_first=True) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(layers)
        )
        self.score = nn.Linear(width, 1)

    def hidden(self, boxes, memory, mask, sizes, shares):
        centre, size = boxes[..., :2], boxes[..., 2:]
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
        query = self.embed(torch.cat([_geometry(boxes, sizes), _waves(corners, 8)], dim=-1))
        keys = (memory + self.position(_waves(_cell_centres(mask, shares), 8))).flatten(1, 2)
        padding = ~mask.flatten(1)
        for i, attention in enumerate(self.attention):
            seen = attention(query, keys, keys, key_padding_mask=padding, need_weights=False)[0]
            query = self.norms[2 * i](query + seen)
            query = self.norms[2 * i + 1](query + self.mlps[i](query))
        return query

    def forward(self, *inputs):
        return 3 + self.score(self.hidden(*inputs))[..., 0]


class SamplingForm(SetCropScorer):
    """(b) The model's own head: features sampled inside the crop and around it."""

    def forward(self, boxes, memory, mask, sizes, shares):
        return super().forward(boxes, memory, mask, sizes)


class CombinedForm(nn.Module):
    """(c) The sum of the attention form's and the sampling form's scores."""

    def __init__(self, config: SetCropConfig) -> None:
        super().__init__()
        self.attention, self.sampling = AttentionForm(config, layers=1), SetCropScorer(config)

    def forward(self, *inputs):
        return self.attention(*inputs) + self.sampling(*inputs[:4]) - 3


FORMS = {
    "geometry alone": GeometryForm,
    "(a) cross-attention": AttentionForm,
    "(b) sampling inside and outside": SamplingForm,
    "(c) both": CombinedForm,
}


def _waves(values: torch.Tensor, octaves: int) -> torch.Tensor:
    """Sines and cosines (..., C * 2 * octaves) of values (..., C) in [0, 1]."""
    angles = values[..., None] * (2.0 ** torch.arange(octaves) * torch.pi / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _cell_centres(mask: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 2) centres of the memory's cells in image units."""
    _, height, width = mask.shape
    y = ((torch.arange(height) + 0.5) / height)[None, :, None] / shares[:, 1, None, None]
    x = ((torch.arange(width) + 0.5) / width)[None, None, :] / shares[:, 0, None, None]
    return torch.stack([x.expand(*mask.shape), y.expand(*mask.shape)], dim=-1)


@torch.no_grad()
def encode(model: SetCropForImageCropping, processor: AutoImageProcessor, rows: Dataset, title: str) -> list[dict]:
    """Batches of encoder memories (half precision) with their labels."""
    size = processor.size
    sampler = AspectRatioBatchSampler(
        rows["height"][:], rows["width"][:], BATCH, [size["shortest_edge"]], size["longest_edge"], shuffle=False
    )
    loader = torch.utils.data.DataLoader(
        CropDataset(rows, augment=False, resample=processor.resample),
        batch_sampler=sampler,
        collate_fn=CropCollator(processor),
        num_workers=1,
    )
    batches = []
    for batch in tqdm(loader, desc=title):
        encoded = model.model.encode(batch["pixel_values"], batch["pixel_mask"])
        mask = encoded.feature_mask
        batches.append(
            {
                "memory": encoded.last_hidden_state.unflatten(1, mask.shape[1:]).half(),
                "mask": mask,
                "sizes": encoded.image_sizes,
                # Batches are of one size: nothing is padded.
                "shares": torch.ones_like(encoded.image_sizes),
                "boxes": nn.utils.rnn.pad_sequence([b["scored_boxes"] for b in batch["labels"]], batch_first=True),
                "labels": batch["labels"],
            }
        )
    return batches


def predict(head: nn.Module, batch: dict, boxes: torch.Tensor) -> torch.Tensor:
    return head(boxes, batch["memory"].float(), batch["mask"], batch["sizes"], batch["shares"])


def jittered(boxes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    corners = cxcywh_to_xyxy(boxes).flatten(0, 1).numpy()
    return xyxy_to_cxcywh(torch.from_numpy(jitter(corners, rng))).view_as(boxes)


def train(head: nn.Module, batches: list[dict], epochs: int, seed: int) -> None:
    order = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for i in order.permutation(len(batches)):
            batch = batches[i]
            score, rank = crop_scoring_loss(predict(head, batch, jittered(batch["boxes"], order)), batch["labels"])
            optimizer.zero_grad()
            (score + rank).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def evaluate(head: nn.Module, batches: list[dict]) -> tuple[float, float]:
    """Mean rank correlation within an image, and mean squared error."""
    correlations, errors = [], []
    for batch in batches:
        for row, label in zip(predict(head, batch, batch["boxes"]), batch["labels"], strict=True):
            scores = label["scores"].numpy()
            row = row[: len(scores)].numpy()
            correlations.append(spearmanr(row, scores).statistic)
            errors.append(((row - scores) ** 2).mean())
    return float(np.nanmean(correlations)), float(np.mean(errors))


def median_ms(function, repeats: int = 15) -> float:
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--layout", default="gaic")
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = SetCropForImageCropping.from_pretrained(args.model).eval()
    processor = AutoImageProcessor.from_pretrained(args.model)
    splits = load(args.layout, args.data)
    chosen = splits["train"].shuffle(seed=0).select(range(min(args.images, len(splits["train"]))))
    batches = encode(model, processor, chosen, "train")
    held_out = encode(model, processor, splits["validation"], "validation")
    table = {}
    image = torch.randn(1, 3, 152, 224)
    for name, form in FORMS.items():
        figures = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            head = form(copy.deepcopy(model.config))
            train(head.train(), batches, args.epochs, seed)
            figures.append(evaluate(head.eval(), held_out))
        with torch.no_grad():
            one = {k: v[:1] for k, v in held_out[0].items()}
            boxes = torch.rand(1, 1000, 4) * 0.4 + 0.3
            scoring, forward = median_ms(lambda: predict(head, one, boxes)), median_ms(lambda: model(image))  # noqa: B023
        correlations = [correlation for correlation, _ in figures]
        table[name] = {
            "srcc_mean": round(statistics.mean(correlations), 4),
            "srcc_min": round(min(correlations), 4),
            "srcc_max": round(max(correlations), 4),
            "mse_mean": round(statistics.mean(error for _, error in figures), 4),
            "parameters": sum(parameter.numel() for parameter in head.parameters()),
            "ms_1000_candidates": round(scoring, 2),
            "ms_forward": round(forward, 2),
        }
        print(name, json.dumps(table[name]), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
