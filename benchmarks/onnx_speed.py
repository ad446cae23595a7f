"""Time torch against onnxruntime, float and int8, on the same images, and measure what int8 costs.

    python benchmarks/onnx_speed.py [--model DIR] [--onnx DIR] [--threads 2] [--rounds 30] [--data DIR --layout flms]

The forward pass only, on `examples/photos` at the model's own size, one image and a batch of eight; every runtime in
turn in each round, medians over the rounds. With `--data`, the same labelled images are also evaluated with each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection
from transformers.utils import logging

from modeling_setcrop import DEFAULT_CHECKPOINT
from modeling_setcrop.crop_geometry import GoodCropProbability
from modeling_setcrop.export.onnx_export import export_onnx
from modeling_setcrop.image_preprocessing import ImagePreprocessing
from modeling_setcrop.image_reading import load_image_file
from modeling_setcrop.runtime.checkpoint import QUANTIZED_GRAPH
from modeling_setcrop.runtime.onnx_engine import OnnxEngine

PHOTOS = sorted((Path(__file__).resolve().parents[1] / "examples" / "photos").glob("*.jpg"))
MEASURES = ("iou", "iou_mean", "bde_mean", "acc_1/1@0.90", "acc_1/5@0.90", "ap_10@0.85", "srcc")


class OnnxAsModel:
    """Graphs behind the part of the torch model's interface that evaluation uses."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, engine: OnnxEngine) -> None:
        self.engine, self.config = engine, engine.config

    def __call__(self, pixel_values: torch.Tensor, candidate_boxes: torch.Tensor | None = None) -> SimpleNamespace:
        found = self.engine.run(pixel_values.numpy())
        ratings = None if candidate_boxes is None else self.engine.rate(candidate_boxes.numpy(), found)
        if "pred_ratings" in found:
            found["pred_probabilities"] = GoodCropProbability.of(self.config)(found["pred_ratings"])
        outputs = {name: torch.from_numpy(value) for name, value in found.items()}
        return SimpleNamespace(**outputs, crop_ratings=None if ratings is None else torch.from_numpy(ratings))

    def to(self, device: str) -> OnnxAsModel:
        return self

    def eval(self) -> OnnxAsModel:
        return self


def median_times(runtimes: dict[str, Callable], inputs: dict[str, torch.Tensor], rounds: int) -> dict[str, float]:
    """Median seconds of each runtime's forward pass, taken in turns after two rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    for _ in range(rounds + 2):
        for name, run in runtimes.items():
            start = time.perf_counter()
            run(**inputs)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--onnx", type=Path, help="of setcrop export onnx; made in a temporary folder when left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--layout", default="flms")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as work:
        if args.onnx is None:
            args.onnx = Path(work)
            print(export_onnx(args.model, args.onnx, PHOTOS, ["fp32", "q8"]))
        processor = AutoImageProcessor.from_pretrained(args.model)
        models = {
            "torch": AutoModelForObjectDetection.from_pretrained(args.model).eval(),
            "onnxruntime": OnnxAsModel(OnnxEngine(args.onnx, threads=args.threads)),
            "onnxruntime int8": OnnxAsModel(OnnxEngine(args.onnx, QUANTIZED_GRAPH, threads=args.threads)),
        }
    with torch.inference_mode():
        for count in (1, 8):
            preprocessing = ImagePreprocessing.from_dict(processor.to_dict())
            pixels = preprocessing(load_image_file(PHOTOS[0], preprocessing.short_side).image)
            inputs = {"pixel_values": torch.from_numpy(np.stack([pixels] * count))}
            shape = "x".join(map(str, inputs["pixel_values"].shape))
            for name, seconds in median_times(models, inputs, args.rounds).items():
                print(f"{shape}, {args.threads} threads, {name}: {seconds / count * 1e3:.2f} ms per image")
    if args.data is not None:
        compare_quality(models, processor, args.data, args.layout, args.split)


def compare_quality(models: dict[str, Callable], processor: object, data: Path, layout: str, split: str) -> None:
    """Print the measures of each runtime on one labelled data set."""
    from modeling_setcrop.data import load
    from modeling_setcrop.evaluation.run import run

    dataset = load(layout, data)[split]
    for name, model in models.items():
        found = run(dataset, model, processor, name).methods
        scored = {**found[name].estimates, **getattr(found.get(f"{name}, scoring head"), "estimates", {})}
        figures = ", ".join(f"{measure} {scored[measure].value:.4f}" for measure in MEASURES if measure in scored)
        print(f"{data.name} ({layout}, {split}, {len(dataset)} images), {name}: {figures}")


if __name__ == "__main__":
    main()
