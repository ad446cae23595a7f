"""Train setcrop-lite, second stage: the set of crops, on the features of the first stage.

    python examples/train_setcrop_lite_set.py --editor-data DIR --start OUT_OF_FIRST_STAGE --output_dir OUT

Backbone, encoder and scoring head stay as they are, so every view is encoded once. Anchors start at the k-means
centres of the good crops; quality guidance takes the ratings of unmatched anchors from the labels' rating of any box.
`--label_smoothing` compares hard labels, quality guidance and self distillation from the same start.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_setcrop_lite import SOURCES, STRIDE, nearest_size, read_image

from modeling_setcrop import SetCropForImageCropping, SetCropImageProcessorPil
from modeling_setcrop.crop_geometry import box_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from modeling_setcrop.data import Problems
from modeling_setcrop.data.crop_views import ViewLabels, draw_source, draw_window, good_crops
from modeling_setcrop.data.editor import EditorImage, read_editor_images
from modeling_setcrop.metrics.functional import average_precision
from modeling_setcrop.modeling_setcrop import SetCropEncoderOutput
from modeling_setcrop.training.averaging import moving_average
from modeling_setcrop.training.setcrop_lite import kmeans_anchors
from modeling_setcrop.training.teacher import label_with_teacher

# Pixels of the long side that the features see.
LONG = 256


class EncodedViews:
    """Views of one size, encoded: memory in half precision, good crops and the ratings of any box by source."""

    def __init__(self, images: list[EditorImage], windows_per_image: int, seed: int):
        self.images = images
        self.rng = np.random.default_rng(seed)
        self.windows_per_image = windows_per_image
        self.views: dict[tuple[int, int], list[tuple[int, np.ndarray, bool]]] = {}
        self.memory: dict[tuple[int, int], torch.Tensor] = {}

    def encode(self, model: SetCropForImageCropping, mirror: bool = True) -> None:
        """Read and encode every view, in batches of one size."""
        whole = np.array([0.0, 0.0, 1.0, 1.0])
        waiting: dict[tuple[int, int], list[np.ndarray]] = {}
        parts: dict[tuple[int, int], list[torch.Tensor]] = {}

        def flush(size: tuple[int, int]) -> None:
            pixels = torch.from_numpy(np.stack(waiting.pop(size))).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                parts.setdefault(size, []).append(model.model.encode(pixels).last_hidden_state.half())

        for index, entry in enumerate(self.images):
            image = read_image(entry.path)
            ratio = image.width / image.height
            windows = [(whole, False)] + ([(whole, True)] if mirror else [])
            for _ in range(self.windows_per_image):
                windows.append((draw_window(entry.labels, "editors", ratio, self.rng), self.rng.random() < 0.5))
            for window, mirrored in windows:
                size = nearest_size(ratio * (window[2] - window[0]) / (window[3] - window[1]), LONG)
                pixels = image.resize(size, Image.Resampling.LANCZOS, box=tuple(window * np.tile(image.size, 2)))
                if mirrored:
                    pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                self.views.setdefault(size, []).append((index, window, mirrored))
                waiting.setdefault(size, []).append(np.asarray(pixels))
                if len(waiting[size]) == 16:
                    flush(size)
        for size in list(waiting):
            flush(size)
        self.memory = {size: torch.cat(tensors) for size, tensors in parts.items()}

    def __len__(self) -> int:
        return sum(map(len, self.views.values()))

    def batches(self, batch: int) -> list[tuple[tuple[int, int], np.ndarray]]:
        """All views in batches of one size, in random order."""
        result = []
        for size, views in self.views.items():
            order = self.rng.permutation(len(views))
            result += [(size, order[start : start + batch]) for start in range(0, len(order), batch)]
        self.rng.shuffle(result)
        return result

    def labels(self, size: tuple[int, int], rows: np.ndarray) -> tuple[list[dict], torch.Tensor]:
        """Return the model's labels of a batch, and whose they are."""
        labels, sources = [], []
        for row in rows:
            index, window, mirrored = self.views[size][row]
            known = self.images[index].labels
            source = draw_source(known, self.rng)
            view = ViewLabels(known, source, window, mirrored)
            boxes = xyxy_to_cxcywh(torch.from_numpy(view.good_crops()).float())
            labels.append({"boxes": boxes, "rate_boxes": view.rate_boxes})
            sources.append(SOURCES.index(source))
        return labels, torch.tensor(sources)


def encoder_output(
    model: SetCropForImageCropping, memory: torch.Tensor, size: tuple[int, int]
) -> SetCropEncoderOutput:
    rows, columns = size[1] // STRIDE, size[0] // STRIDE
    mask = torch.ones(len(memory), rows, columns, dtype=torch.bool)
    position = model.model.position_embedding(
        shape=(len(memory), 1, rows, columns), device=memory.device, dtype=torch.float32, mask=mask
    )
    return SetCropEncoderOutput(
        last_hidden_state=memory.float(),
        feature_mask=mask,
        position_embeddings=position.flatten(2).transpose(1, 2),
        image_sizes=torch.tensor([[float(size[0]), float(size[1])]]).expand(len(memory), -1),
    )


def anchors(images: list[EditorImage], count: int, seed: int) -> torch.Tensor:
    """k-means centres (count, 4), cxcywh, of all good crops and their mirror images, largest first."""
    crops = np.concatenate([good_crops(image.labels, "people")[:6] for image in images])
    return torch.from_numpy(kmeans_anchors(crops, count, seed))


@torch.inference_mode()
def evaluate(model: SetCropForImageCropping, views: EncodedViews) -> dict[str, float]:
    """AP of the set by validity on whole images, and how far its boxes move from image to image."""
    model.eval()
    boxes, scores, good, everything = [], [], [], []
    for size, rows in views.views.items():
        outputs = model(encoder_outputs=encoder_output(model, views.memory[size], size))
        for (index, _, _), box, logit in zip(rows, outputs.pred_boxes.double(), outputs.logits[..., 0], strict=True):
            boxes.append(cxcywh_to_xyxy(box).clamp(0, 1).numpy())
            scores.append(logit.sigmoid().double().numpy())
            good.append(views.images[index].labels.crops)
            everything.append(np.ones(len(good[-1]), bool))
    figures = {}
    for eps in (0.85, 0.90):
        for k in (5, 10, 40):
            figures[f"ap_k{k}_{eps:.2f}"] = average_precision(boxes, scores, good, everything, eps=eps, k=k)
    first = np.stack([b[s.argmax()] for b, s in zip(boxes, scores, strict=True)])
    figures["first"] = np.mean([box_iou(g[:1], f[None])[0, 0] for g, f in zip(good, first, strict=True)])
    figures["edge_spread"] = first.std(0).mean()
    figures["anchor_moves"] = np.stack(boxes).std(0).mean()
    model.train()
    return {name: round(float(value), 4) for name, value in figures.items()}


def set_optimizer(model: SetCropForImageCropping, lr: float) -> torch.optim.Optimizer:
    """Freeze all but decoder, anchors and set heads, and return what trains those."""
    model.requires_grad_(False)
    inner = model.model
    parts = [
        inner.decoder,
        inner.query_position_embeddings,
        inner.source_embeddings,
        model.class_labels_classifier,
        model.bbox_predictor,
    ]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    anchor_parameters = [p for name, p in model.named_parameters() if name.startswith("anchor")]
    for parameter in (*parameters, *anchor_parameters):
        parameter.requires_grad_(True)
    groups = [{"params": parameters}, {"params": anchor_parameters, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=1e-4)


def train_set(
    model: SetCropForImageCropping, train: EncodedViews, val: EncodedViews, args: argparse.Namespace
) -> tuple[SetCropForImageCropping, dict]:
    """Train decoder, anchors and set heads; return the average model and its validation figures."""
    optimizer = set_optimizer(model, args.lr)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps_per_epoch = len(train.batches(args.batch_size))
    # Over about the last twenty steps' weights.
    decay = max(0.0, 1 - 20 / (args.epochs * steps_per_epoch))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    teacher = None
    total, step, began = args.epochs * steps_per_epoch, 0, time.time()
    for epoch in range(args.epochs):
        if args.label_smoothing == "distillation" and teacher is None and epoch >= args.epochs * 2 // 3:
            teacher = moving_average(model, model.config.distillation_momentum)
        sums: dict[str, float] = {}
        model.train()
        for size, rows in train.batches(args.batch_size):
            factor = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = args.lr * max(factor, 0.01)
            labels, sources = train.labels(size, rows)
            encoded = encoder_output(model, train.memory[size][rows], size)
            batch = {"encoder_outputs": encoded, "labels": labels, "source": sources}
            if teacher is not None:
                label_with_teacher(teacher, batch)
            outputs = model(**batch)
            optimizer.zero_grad()
            outputs.loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            average.update_parameters(model)
            if teacher is not None:
                teacher.update_parameters(model)
            step += 1
            for name in ("loss_ce", "loss_bbox", "loss_giou"):
                sums[name] = sums.get(name, 0.0) + outputs.loss_dict[name].item() / steps_per_epoch
        figures = evaluate(average.module, val)
        line = {
            "epoch": epoch + 1,
            "seconds": round(time.time() - began),
            **{k: round(v, 4) for k, v in sums.items()},
            **figures,
        }
        print(json.dumps(line), flush=True)
    return average.module, figures


def save_half(model: SetCropForImageCropping, folder: Path) -> None:
    """Save a checkpoint to ship: weights in half precision, computed with in float32, and the image processor."""
    model.config.save_pretrained(folder)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    SetCropImageProcessorPil(
        size={"shortest_edge": LONG, "longest_edge": LONG},
        size_divisor=STRIDE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


def fresh_model(
    start: SetCropForImageCropping, smoothing: str, seed: int, train: list[EditorImage], args: argparse.Namespace
) -> SetCropForImageCropping:
    """Return a model with the body of another and a new set, or that one's with `--go_on`."""
    torch.manual_seed(seed)
    fresh = SetCropForImageCropping(start.config)
    body = ("model.backbone", "model.encoder", "model.input", "model.subject", "crop_scorer")
    kept = ("",) if args.go_on else body
    fresh.load_state_dict(
        {name: value for name, value in start.state_dict().items() if name.startswith(kept)}, strict=False
    )
    fresh.config.label_smoothing = smoothing
    fresh.config.rerank = False  # the set alone
    fresh.config.smoothing_upper_bound = args.smoothing_upper_bound
    fresh.config.quality_lower, fresh.config.quality_upper = 3.5, 4.75
    if not args.go_on:
        fresh.initialize_anchors(anchors(train, fresh.config.num_queries, seed))
    return fresh


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor-data", type=Path, required=True)
    parser.add_argument("--start", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--label_smoothing", nargs="+", default=["quality"], help="one, or several to compare")
    parser.add_argument("--smoothing_upper_bound", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--go_on", action="store_true", help="keep the set of --start instead of a new one")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--windows", type=int, default=1, help="windows beside each whole image and its mirror image")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    images = list(read_editor_images(args.editor_data, Problems()))
    train = [image for image in images if image.split == "train"]
    train = train[:: max(1, round(1 / args.share))]
    model = SetCropForImageCropping.from_pretrained(args.start)
    model.eval()
    began = time.time()
    encoded = EncodedViews(train, args.windows, 0)
    encoded.encode(model)
    val = EncodedViews([image for image in images if image.split == "val"], 0, 0)
    val.encode(model, mirror=False)
    print(len(encoded), "views encoded in", round(time.time() - began), "s", flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    comparing = len(args.label_smoothing) * len(args.seeds) > 1
    every = args.label_smoothing
    for smoothing in every:
        for seed in args.seeds:
            fresh = fresh_model(model, smoothing, seed, train, args)
            encoded.rng = np.random.default_rng(seed)
            args.label_smoothing = smoothing
            best, figures = train_set(fresh, encoded, val, args)
            with open(args.output_dir / "labels.jsonl", "a") as file:
                file.write(
                    json.dumps({"labels": smoothing, "seed": seed, "mu": args.smoothing_upper_bound, **figures}) + "\n"
                )
            if not comparing:
                best.requires_grad_(True)
                best.config.rerank = True
                save_half(best, args.output_dir)


if __name__ == "__main__":
    main()
