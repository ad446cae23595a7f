"""Writes a model as ONNX graphs for any batch and picture size, checks them on photographs, and quantises them."""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from .crop_geometry import box_iou, cxcywh_to_xyxy
from .image_cropping_onnx import (
    GRAPH_FOLDER,
    INT8_GRAPH,
    MODEL_GRAPH,
    SCORER_BOXES,
    SCORER_GRAPH,
    SetCropOnnxModel,
)
from .image_processing_pil_setcrop import crop_ranking
from .image_reading import read_picture
from .modeling_setcrop import SetCropForImageCropping

TOLERANCE = 1e-4
# Sizes that an export is traced with. A graph is for all sizes; the tracer must only not mistake one for a constant.
_BATCH, _HEIGHT, _WIDTH, _BOXES = 2, 176, 208, 5
_SMALLEST, _LARGEST = 64, 8192
# The backbone's: convolutions and what stands between them.
_INT8_OPERATORS = ["Conv", "Clip", "Relu", "Pad", "MaxPool"]
# What another export of the same model may say differently in its config.
_NOT_ARCHITECTURE = {"auto_map", "custom_pipelines", "transformers_version", "_name_or_path"}


class OnnxMismatchError(RuntimeError):
    """The written graphs do not give the model's outputs."""


def export_onnx(
    checkpoint: str | Path, target: str | Path, photos: Sequence[str | Path], int8: bool = False
) -> dict[str, Any]:
    """Writes `config.json`, `preprocessor_config.json` and the graphs in `onnx/`, and checks them.

    `onnx/model.onnx` takes `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W) int64; `onnx/scorer.onnx`, where the
    model has a scoring head, takes boxes and the model graph's encoding. `onnx/report.json` holds what is returned.

    Args:
        checkpoint: folder or Hub name of the model.
        target: folder to write; it may hold the same model, for example `setcrop export hub`'s.
        photos: photographs that the graphs are checked on, and that int8 ranges are calibrated on.
        int8: also write `onnx/model_int8.onnx`.

    Returns:
        `agreement`: the largest absolute difference of each output between torch and onnxruntime; with `int8`,
        `int8`: what quantising changes on the photographs, see [`compare_int8`]; `sizes`: bytes of each graph.

    Raises:
        OnnxMismatchError: an output differs by more than 1e-4; the target is left as it was.
        FileExistsError: the target holds another model.
        ImportError: an ONNX package is not installed; the message names the extra.
    """
    if not photos:
        raise ValueError("photographs are needed to check the graphs on")
    target = Path(target)
    model = AutoModelForObjectDetection.from_pretrained(checkpoint).eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    check_same_model(target, model)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=target) as work:
        folder = Path(work)
        graphs = folder / GRAPH_FOLDER
        graphs.mkdir()
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        export_graphs(model, graphs)
        report: dict[str, Any] = {"photographs": [Path(photo).name for photo in photos]}
        report["agreement"] = check_agreement(model, processor, folder, photos)
        if int8:
            quantize(processor, graphs / MODEL_GRAPH, graphs / INT8_GRAPH, photos)
            report["int8"] = compare_int8(folder, photos)
        report["sizes"] = {path.name: path.stat().st_size for path in sorted(graphs.glob("*.onnx"))}
        (graphs / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (target / GRAPH_FOLDER).mkdir(exist_ok=True)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            place = target / path.relative_to(folder)
            if place.parent != target or not place.exists():
                os.replace(path, place)
    return report


def export_graphs(model: SetCropForImageCropping, folder: Path) -> None:
    """Writes `model.onnx`, and `scorer.onnx` if the model scores, into `folder`."""
    batch = torch.export.Dim("batch", max=1024)
    height = torch.export.Dim("height", min=_SMALLEST, max=_LARGEST)
    width = torch.export.Dim("width", min=_SMALLEST, max=_LARGEST)
    proposer = _Proposer(model).eval()
    pixels = torch.randn(_BATCH, model.config.num_channels, _HEIGHT, _WIDTH)
    mask = torch.ones(_BATCH, _HEIGHT, _WIDTH, dtype=torch.long)
    _write_graph(
        proposer,
        {"pixel_values": pixels, "pixel_mask": mask},
        {"pixel_values": {0: batch, 2: height, 3: width}, "pixel_mask": {0: batch, 1: height, 2: width}},
        proposer.output_names,
        folder / MODEL_GRAPH,
    )
    if not model.config.crop_scoring:
        return
    with torch.no_grad():
        encoded = dict(zip(proposer.output_names, proposer(pixels, mask), strict=True))
    rows, columns = torch.export.Dim("rows", min=2, max=1024), torch.export.Dim("columns", min=2, max=1024)
    boxes = torch.export.Dim("boxes", max=SCORER_BOXES)
    _write_graph(
        _Scorer(model).eval(),
        {
            "boxes": torch.full((_BATCH, _BOXES, 4), 0.5),
            "memory": encoded["memory"].unflatten(1, encoded["feature_mask"].shape[1:]),
            "feature_mask": encoded["feature_mask"],
            "picture_sizes": encoded["picture_sizes"],
            "picture_shares": encoded["picture_shares"],
        },
        {
            "boxes": {0: batch, 1: boxes},
            "memory": {0: batch, 1: rows, 2: columns},
            "feature_mask": {0: batch, 1: rows, 2: columns},
            "picture_sizes": {0: batch},
            "picture_shares": {0: batch},
        },
        ["scores"],
        folder / SCORER_GRAPH,
    )


class _Proposer(nn.Module):
    """The model with a plain signature: pictures in, a tuple of tensors out."""

    def __init__(self, model: SetCropForImageCropping) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.model.backbone = _MaskedBackbone(model.model.backbone)
        self.output_names = ["logits", "pred_boxes"]
        if model.config.rerank:
            self.output_names.append("pred_scores")
        if model.config.crop_choice:
            self.output_names.append("choice_probabilities")
        self.output_names += ["memory", "feature_mask", "picture_sizes", "picture_shares"]

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(pixel_values, pixel_mask)
        encoded = output.encoder_outputs
        found = {
            "logits": output.logits,
            "pred_boxes": output.pred_boxes,
            "pred_scores": output.pred_scores,
            "choice_probabilities": output.choice_probabilities,
            "memory": encoded.last_hidden_state,
            "feature_mask": encoded.feature_mask,
            "picture_sizes": encoded.picture_sizes,
            "picture_shares": encoded.picture_shares,
        }
        return tuple(found[name] for name in self.output_names)


class _MaskedBackbone(nn.Module):
    """Conditional DETR's backbone with the mask's nearest neighbours picked by index.

    onnxruntime's nearest-neighbour resize computes source positions with another rounding than torch, and a feature
    cell at the border of the padding may then count as picture in one and as padding in the other.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        features, _ = self.backbone(pixel_values, pixel_mask)[-1]
        for axis in (1, 2):
            length, cells = pixel_mask.shape[axis], features.shape[axis + 1]
            scale = torch.full((1,), length, dtype=torch.float32) / torch.full((1,), cells, dtype=torch.float32)
            nearest = (torch.arange(cells, dtype=torch.float32) * scale).floor().long()
            pixel_mask = pixel_mask.index_select(axis, nearest)
        return [(features, pixel_mask.to(torch.bool))]


class _Scorer(nn.Module):
    def __init__(self, model: SetCropForImageCropping) -> None:
        super().__init__()
        self.scorer = model.crop_scorer

    def forward(
        self,
        boxes: torch.Tensor,
        memory: torch.Tensor,
        feature_mask: torch.Tensor,
        picture_sizes: torch.Tensor,
        picture_shares: torch.Tensor,
    ) -> torch.Tensor:
        return self.scorer(boxes, memory, feature_mask, picture_sizes, picture_shares)[0]


def _write_graph(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    dynamic: dict[str, dict[int, torch.export.Dim]],
    outputs: list[str],
    path: Path,
) -> None:
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ImportError("exporting to ONNX needs: pip install 'setcrop[onnx]'") from error
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns of torchvision's absence, which is none of this model's business
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=tuple(dynamic.values()))
            written = torch.onnx.export(
                program, dynamo=True, input_names=list(inputs), output_names=outputs, verbose=False
            )
            written.save(path)
    finally:
        registration.setLevel(level)


def check_agreement(
    model: SetCropForImageCropping, processor: Any, folder: Path, photos: Sequence[str | Path]
) -> dict[str, float]:
    """Largest absolute difference of each output over photographs, one by one and as one padded batch.

    Raises:
        OnnxMismatchError: one of them is over 1e-4.
    """
    graphs = SetCropOnnxModel(folder)
    worst: dict[str, float] = {}
    for inputs in _batches(processor, photos):
        with torch.inference_mode():
            expected = model(**inputs)
            actual = graphs(**inputs)
            pairs = {name: (expected[name], actual[name]) for name in ("logits", "pred_boxes")}
            if model.config.rerank:
                pairs["pred_scores"] = (expected.pred_scores, actual.pred_scores)
            if model.config.crop_choice:
                pairs["choice_probabilities"] = (expected.choice_probabilities, actual.choice_probabilities)
            if model.config.crop_scoring:
                boxes = expected.pred_boxes
                scores = model.score_crops(boxes, expected.encoder_outputs)
                pairs["scores"] = (scores, graphs.score_crops(boxes, actual.encoder_outputs))
        for name, (reference, found) in pairs.items():
            worst[name] = max(worst.get(name, 0.0), float((reference - found).abs().max()))
    wrong = {name: difference for name, difference in worst.items() if not difference <= TOLERANCE}
    if wrong:
        raise OnnxMismatchError(f"onnxruntime's outputs differ from torch's by more than {TOLERANCE:g}: {wrong}")
    return worst


def quantize(processor: Any, source: Path, target: Path, photos: Sequence[str | Path]) -> None:
    """Writes the graph with a backbone in int8, the ranges of its activations calibrated on photographs.

    The transformer, where rounding costs most and time least, stays in float32.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Photographs(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, torch.Tensor]] = iter(_single_pictures(processor, photos))

        def get_next(self) -> dict[str, np.ndarray] | None:
            inputs = next(self.batches, None)
            return None if inputs is None else {name: tensor.numpy() for name, tensor in inputs.items()}

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a pre-processing that the exporter has done already
    try:
        quantize_static(
            source,
            target,
            Photographs(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_INT8_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(disabled)


def compare_int8(folder: Path, photos: Sequence[str | Path]) -> dict[str, float]:
    """What quantising changes on photographs.

    Returns:
        `first_crop_iou`: mean IoU of the first crop with the float model's; `same_first_crop`: share of photographs on
        which the same anchor wins; `probability`: mean absolute difference of the crops' probabilities.
    """
    processor = AutoImageProcessor.from_pretrained(folder)
    exact, quantized = SetCropOnnxModel(folder), SetCropOnnxModel(folder, INT8_GRAPH)
    ious, same, differences = [], [], []
    for inputs in _single_pictures(processor, photos):
        boxes, rankings = [], []
        for graphs in (exact, quantized):
            output = graphs(**inputs)
            ranking = crop_ranking(output.logits[0, :, 0].sigmoid()[None], output.pred_scores)[0]
            rankings.append(ranking)
            boxes.append(cxcywh_to_xyxy(output.pred_boxes[0])[ranking.argmax()])
        ious.append(float(box_iou(boxes[0][None], boxes[1][None])))
        same.append(float(rankings[0].argmax() == rankings[1].argmax()))
        differences.append(float((rankings[0] - rankings[1]).abs().mean()))
    return {
        "first_crop_iou": float(np.mean(ious)),
        "same_first_crop": float(np.mean(same)),
        "probability": float(np.mean(differences)),
    }


def _single_pictures(processor: Any, photos: Sequence[str | Path]) -> Iterator[dict[str, torch.Tensor]]:
    """Model inputs of each photograph on its own."""
    for photo in photos:
        yield model_inputs(processor, [photo])


def _batches(processor: Any, photos: Sequence[str | Path]) -> Iterator[dict[str, torch.Tensor]]:
    yield from _single_pictures(processor, photos)
    if len(photos) > 1:
        yield model_inputs(processor, photos)


def model_inputs(processor: Any, photos: Sequence[str | Path]) -> dict[str, torch.Tensor]:
    """`pixel_values` and `pixel_mask` of photographs as one batch."""
    pictures = []
    for photo in photos:
        with Image.open(photo) as opened:
            pictures.append(read_picture(opened, 2 * (processor.size.shortest_edge or 600)).image)
    return dict(processor(pictures, return_tensors="pt"))


def check_same_model(target: Path, model: SetCropForImageCropping) -> None:
    """Raises FileExistsError if a folder has the config of a model of another architecture."""
    path = target / "config.json"
    if not path.is_file():
        return
    present = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(model.config.to_json_string())
    differing = {
        name for name in present.keys() | wanted.keys() if present.get(name) != wanted.get(name)
    } - _NOT_ARCHITECTURE
    if differing:
        raise FileExistsError(
            f"{target}: holds another model (its config.json differs in {', '.join(sorted(differing))})"
        )
