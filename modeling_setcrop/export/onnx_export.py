"""Write a model as ONNX graphs for any batch and image size, in three precisions, and check them on images."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.conditional_detr import modeling_conditional_detr

from ..crop_geometry import box_iou
from ..image_preprocessing import MIN_SIDE, ImagePreprocessing
from ..image_reading import load_image_file
from ..images.atomic import atomic_files
from ..modeling_setcrop import SetCropForImageCropping
from ..runtime.checkpoint import (
    FP16_GRAPH,
    GRAPH_FOLDER,
    GRAPH_REPORT,
    MODEL_GRAPH,
    QUANTIZED_GRAPH,
    SCORER_GRAPH,
    WEIGHTS,
    CheckpointError,
    weights_hash,
)
from ..runtime.onnx_engine import SCORER_BOXES, OnnxEngine
from ..runtime.torch_engine import TorchEngine
from .transformers_js import write_transformers_js_config

TOLERANCE = 1e-4
Dtype = Literal["fp32", "fp16", "q8"]
# Precisions by transformers.js' names, and the file that it looks for.
GRAPHS: dict[Dtype, str] = {"fp32": MODEL_GRAPH, "fp16": FP16_GRAPH, "q8": QUANTIZED_GRAPH}
# Sizes that an export is traced with. A graph is for all sizes; the tracer must only not mistake one for a constant.
_BATCH, _HEIGHT, _WIDTH, _BOXES = 2, 176, 208, 5
_SMALLEST, _LARGEST = 64, 8192
# onnxruntime's numbers for what it logs; the second is its default.
_ERRORS, _WARNINGS = 3, 2
# Tensors of fewer values are stored as they are.
_LEAST_HALVED = 64
# The backbone's: convolutions and what stands between them.
_INT8_OPERATORS = ["Conv", "Clip", "Relu", "Pad", "MaxPool"]
# What another export of the same model may say differently in its config.
_NOT_ARCHITECTURE = {
    "auto_map", "custom_pipelines", "transformers_version", "_name_or_path", "transformers.js_config"
}  # fmt: skip


class OnnxMismatchError(RuntimeError):
    """The written graphs do not give the model's outputs."""


def export_onnx(
    checkpoint: str | Path,
    target: str | Path,
    images: Sequence[str | Path],
    dtypes: Sequence[Dtype] = tuple(GRAPHS),
    announce: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Write `config.json`, `preprocessor_config.json` and the graphs in `onnx/`, and check them.

    The layout is that of transformers.js, which loads the folder as it is. `onnx/model.onnx` takes `pixel_values`
    (B, 3, H, W), images of one shape without padding, and, if given, `source`; sides that are no multiples of
    the image processor's `size_divisor` it makes so itself. `onnx/scorer.onnx`, where the model has a scoring head,
    takes boxes and the model graph's encoding. Weights are stored in half precision and computed with in single
    precision. `onnx/model_fp16.onnx` computes in half precision, for graphics processors;
    `onnx/model_quantized.onnx` has a backbone in int8.
    `onnx/report.json` holds what is returned.

    Args:
        checkpoint: folder or Hub name of the model.
        target: folder to write; it may hold the same model, for example `setcrop export hub`'s.
        images: images that the graphs are checked on, and that int8 ranges are calibrated on.
        dtypes: the graphs to write beside `model.onnx`, which is always written.
        announce: called with what is done next; each step takes from a few seconds on.

    Returns:
        `agreement`: the largest absolute difference of each output between torch and onnxruntime; `fp16` and `q8`,
        where written: what that precision changes on the images, see [`compare_graph`]; `weights`: SHA-256 of
        the checkpoint's weights; `sizes`: bytes of each graph.

    Raises:
        OnnxMismatchError: an output differs by more than 1e-4; the target is left as it was.
        CheckpointError: the checkpoint is incomplete or broken.
        FileExistsError: the target holds another model, or the same with other weights.
        ImportError: an ONNX package is not installed; the message names the extra.
    """
    if not images:
        raise ValueError("images are needed to check the graphs on")
    target = Path(target)
    # With the weights that the graphs store, so that what is compared is the graphs.
    model = TorchEngine(str(checkpoint), "cpu").model.half().float()
    processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    check_same_model(target, model)
    check_same_weights(target, model)
    with atomic_files(target) as folder:
        graphs = folder / GRAPH_FOLDER
        graphs.mkdir()
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        announce("writing the graphs")
        with _plain_attention(model):
            export_graphs(model, graphs, getattr(processor, "size_divisor", None))
        report: dict[str, Any] = {"images": [Path(image).name for image in images]}
        announce(f"checking them on {len(images)} images")
        report["agreement"] = check_agreement(model, processor, folder, images)
        for dtype in sorted(set(dtypes) - {"fp32"}):
            announce(f"writing and comparing {GRAPHS[dtype]}")
            if dtype == "fp16":
                halve(graphs / MODEL_GRAPH, graphs / FP16_GRAPH)
            else:
                quantize(processor, graphs / MODEL_GRAPH, graphs / QUANTIZED_GRAPH, images)
            report[dtype] = compare_graph(folder, GRAPHS[dtype], images)
        report["weights"] = weights_hash(target) or weights_hash(checkpoint)
        report["sizes"] = {path.name: path.stat().st_size for path in sorted(graphs.glob("*.onnx"))}
        (graphs / GRAPH_REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        for path in folder.iterdir():
            # The checkpoint's own configuration stays.
            if path.is_file() and (target / path.name).exists():
                path.unlink()
    for stale in {*GRAPHS.values(), SCORER_GRAPH} - report["sizes"].keys():
        (target / GRAPH_FOLDER / stale).unlink(missing_ok=True)
    write_transformers_js_config(target)
    return report


@contextmanager
def _plain_attention(model: SetCropForImageCropping) -> Iterator[None]:
    """Attention as two products and a softmax, without masks: in a graph that is fastest, and runs everywhere.

    Images without padding need no mask, which upstream cannot know where sizes are variables; and torch's fused
    attention is written with many operations on shapes.
    """
    implementation = model.config._attn_implementation
    create_mask = modeling_conditional_detr.create_bidirectional_mask
    model.config._attn_implementation = "eager"
    modeling_conditional_detr.create_bidirectional_mask = lambda *_, **__: None
    try:
        yield
    finally:
        modeling_conditional_detr.create_bidirectional_mask = create_mask
        model.config._attn_implementation = implementation


def export_graphs(model: SetCropForImageCropping, folder: Path, size_divisor: int | None = None) -> None:
    """Write `model.onnx`, and `scorer.onnx` if the model scores, into `folder`.

    Args:
        model: in evaluation mode.
        folder: where to.
        size_divisor: what the model sees the sides of all images as multiples of; None for any sides.
    """
    # Sides that are even at every stride need no padding that depends on them.
    step = size_divisor or 1
    sides = [math.ceil(side / step) * step for side in (_HEIGHT, _WIDTH)]
    batch = torch.export.Dim("batch", max=1024)
    height, width = (
        step * torch.export.Dim(name, min=math.ceil(_SMALLEST / step), max=_LARGEST // step)
        for name in ("height", "width")
    )
    several = bool(getattr(model.config, "rating_sources", None))
    # Who gives no source gets the default one.
    source, any_source = ({"source": model.model.source_index(None)}, {"source": None}) if several else ({}, {})
    pixels = torch.randn(_BATCH, model.config.num_channels, *sides)
    with torch.no_grad():
        encoded = _encoding(model(pixels).encoder_outputs)
    proposer = _Proposer(model, encoded).eval()
    _write_graph(
        proposer,
        {"pixel_values": pixels, **source},
        ({0: batch, 2: height, 3: width}, *any_source.values()),
        proposer.output_names,
        folder / MODEL_GRAPH,
        size_divisor,
    )
    if not model.config.crop_scoring:
        return

    def cells(name: str) -> Any:
        return torch.export.Dim(name, min=2, max=1024)

    shapes = {
        "boxes": {0: batch, 1: torch.export.Dim("boxes", max=SCORER_BOXES)},
        "memory": {0: batch, 1: cells("rows"), 2: cells("columns")},
        "image_sizes": {0: batch},
        "detail": {0: batch, 2: cells("detail_rows"), 3: cells("detail_columns")},
        "faces": {0: batch},
    }
    given = {"boxes": torch.full((_BATCH, _BOXES, 4), 0.5), **encoded}
    inputs = {name: given[name] for name in shapes if name in given} | source
    dynamic = (tuple({**shapes, **any_source}[name] for name in inputs),)
    _write_graph(_Scorer(model, list(inputs)).eval(), inputs, dynamic, ["ratings"], folder / SCORER_GRAPH)


class _Proposer(nn.Module):
    """The model with a plain signature: images without padding in, a tuple of tensors out."""

    def __init__(self, model: SetCropForImageCropping, encoded: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self.output_names = ["logits", "pred_boxes", *(["pred_ratings"] if model.config.rerank else []), *encoded]

    def forward(self, pixel_values: torch.Tensor, source: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        output = self.model(pixel_values, **({} if source is None else {"source": source}))
        found = {**output, **_encoding(output.encoder_outputs)}
        return tuple(found[name] for name in self.output_names)


def _encoding(encoded: Any) -> dict[str, torch.Tensor]:
    """Return the parts of an encoding that the scoring head or the caller needs, by their names in the graphs.

    `memory` is (B, H, W, D); the rest is named as in [`SetCropEncoderOutput`].
    """
    found = {"memory": encoded.last_hidden_state.unflatten(1, encoded.feature_mask.shape[1:])}
    names = ("image_sizes", "detail", "importance", "faces")
    return found | {name: encoded[name] for name in names if encoded.get(name) is not None}


class _Scorer(nn.Module):
    """The scoring head alone, on the other graph's encoding of images without padding."""

    def __init__(self, model: SetCropForImageCropping, names: list[str]) -> None:
        super().__init__()
        self.scorer, self.names = model.crop_scorer, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        given["mask"] = torch.ones(given["memory"].shape[:3], dtype=torch.bool)
        return self.scorer(**given)


def _write_graph(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    dynamic: Any,
    outputs: list[str],
    path: Path,
    size_divisor: int | None = None,
) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ImportError("exporting to ONNX needs: pip install 'setcrop[onnx]'") from error
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns of torchvision's absence, which is none of this model's business
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=dynamic)
            written: Any = torch.onnx.export(
                program, dynamo=True, input_names=list(inputs), output_names=outputs, verbose=False
            )
            graph = compact_graph(written.model_proto)
            if "source" in inputs:
                _make_optional(graph, "source", inputs["source"].numpy())
            if size_divisor is not None:
                _resize_to_multiples(graph, "pixel_values", size_divisor)
            onnx.save(graph, path)
    finally:
        registration.setLevel(level)


def _make_optional(graph: Any, name: str, default: np.ndarray) -> None:
    """Give a graph's input a value that holds where none is given; programs then do not list it as an input."""
    from onnx import numpy_helper

    graph.graph.initializer.append(numpy_helper.from_array(default, name))


def _resize_to_multiples(graph: Any, name: str, divisor: int) -> None:
    """Have a graph resize images (B, 3, H, W) whose sides are no multiples of a number to the nearest ones.

    Image processors other than ours know only how to round sides down, to a pixel or to a multiple, which would show
    the model another shape of the image than ours does.
    """
    from onnx import helper, numpy_helper

    resized = f"{name}.resized"
    for node in graph.graph.node:
        node.input[:] = [resized if entry == name else entry for entry in node.input]
    constants = {"half": divisor // 2, "divisor": divisor, "least": max(divisor, MIN_SIDE)}
    graph.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype=np.int64), f"{name}.{key}") for key, value in constants.items()
    )
    sides, nodes = f"{name}.sides", [helper.make_node("Shape", [name], [f"{name}.sides"], start=2)]
    for operator, operand in (("Add", "half"), ("Div", "divisor"), ("Mul", "divisor"), ("Max", "least")):
        given, sides = sides, f"{sides}.{operator}"
        nodes.append(helper.make_node(operator, [given, f"{name}.{operand}"], [sides]))
    nodes.append(helper.make_node("Resize", [name, "", "", sides], [resized], axes=[2, 3], mode="linear"))
    nodes.extend(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    (pixels,) = [entry for entry in graph.graph.input if entry.name == name]
    for axis, side in ((2, "height"), (3, "width")):
        pixels.type.tensor_type.shape.dim[axis].dim_param = side


def compact_graph(graph: Any) -> Any:
    """Return a graph whose weights are stored in half precision, cast when it is loaded.

    What half precision does not hold exactly, such as what follows from several weights, stays as it is.
    """
    from onnx import TensorProto, helper, numpy_helper

    del graph.metadata_props[:], graph.functions[:]
    graph.producer_name = "setcrop"
    graph.producer_version = graph.doc_string = graph.graph.doc_string = ""
    del graph.graph.value_info[:], graph.graph.metadata_props[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    casts = []
    for tensor in graph.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):  # what does not fit stays as it is
            half = values.astype(np.float16)
        if values.size < _LEAST_HALVED or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph


def _expanded(graph: Any) -> Any:
    """Return the same graph with its weights in single precision again, as quantisation needs them."""
    from onnx import numpy_helper

    halves = {tensor.name: tensor for tensor in graph.graph.initializer if tensor.name.endswith(".half")}
    for node in [node for node in graph.graph.node if node.op_type == "Cast" and node.input[0] in halves]:
        tensor = halves[node.input[0]]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
        graph.graph.node.remove(node)
    return graph


def check_agreement(
    model: SetCropForImageCropping, processor: Any, folder: Path, images: Sequence[str | Path]
) -> dict[str, float]:
    """Largest absolute difference of each output over images, one by one and as one batch of one shape.

    Raises:
        OnnxMismatchError: one of them is over 1e-4.
    """
    graphs = OnnxEngine(folder)
    worst: dict[str, float] = {}
    for pixels in _batches(processor, images):
        with torch.inference_mode():
            expected = model(torch.from_numpy(pixels))
            actual = graphs.run(pixels)
            pairs = {name: (expected[name], actual[name]) for name in ("logits", "pred_boxes")}
            if model.config.rerank:
                pairs["pred_ratings"] = (expected.pred_ratings, actual["pred_ratings"])
            if model.config.crop_scoring:
                boxes = expected.pred_boxes
                ratings = model.score_crops(boxes, expected.encoder_outputs)
                pairs["ratings"] = (ratings, graphs.rate(boxes.numpy(), actual))
        for name, (reference, found) in pairs.items():
            # `max` would lose what is not a number.
            worst[name] = float(np.maximum(worst.get(name, 0.0), np.abs(reference.numpy() - found).max()))
    wrong = {name: difference for name, difference in worst.items() if not difference <= TOLERANCE}
    if wrong:
        raise OnnxMismatchError(f"onnxruntime's outputs differ from torch's by more than {TOLERANCE:g}: {wrong}")
    return worst


def halve(source: Path, target: Path) -> None:
    """Write the graph with its computations in half precision; inputs and outputs stay in single precision."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(compact_graph(convert_float_to_float16(_expanded(onnx.load(source)), keep_io_types=True)), target)


def quantize(processor: Any, source: Path, target: Path, images: Sequence[str | Path]) -> None:
    """Write the graph with a backbone in int8, the ranges of its activations calibrated on images.

    The rest and the backbone's first convolutions, where rounding costs most and time least, stay in float32.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class CalibrationImages(CalibrationDataReader):
        def __init__(self) -> None:
            self.images: Iterator[np.ndarray] = iter(_single_images(processor, images))

        def get_next(self) -> dict[str, np.ndarray] | None:
            pixels = next(self.images, None)
            return None if pixels is None else {"pixel_values": pixels}

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a pre-processing that the exporter has done already
    onnxruntime.set_default_logger_severity(_ERRORS)  # it warns of inputs that have defaults, as ours are meant to
    try:
        onnx.save(_expanded(onnx.load(source)), target)
        quantize_static(
            target,
            target,
            CalibrationImages(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_INT8_OPERATORS,
            nodes_to_exclude=_kept_in_float(target),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        onnx.save(compact_graph(onnx.load(target)), target)
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)
        logging.disable(disabled)


def _kept_in_float(path: Path) -> list[str]:
    """Return the names of the convolutions that are not quantised: outside the backbone, and its first ones.

    Those cost little time, and rounding shows most there. Without them first crops overlap those of the float graph by
    an IoU of 0.994, with them by 0.989 (60 validation images of setcrop-lite).
    """
    import onnx

    def is_kept(weight: str) -> bool:
        return "backbone" not in weight or ".stem." in weight or ".stages.0." in weight

    return [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv" and is_kept(node.input[1])]


def compare_graph(folder: Path, graph: str, images: Sequence[str | Path]) -> dict[str, float]:
    """Return what another precision's graph changes on images.

    Args:
        folder: with the graphs in `onnx/`.
        graph: name of the one that is compared with `model.onnx`.
        images: files.

    Returns:
        `first_crop_iou`: mean IoU of the first crop with that of `model.onnx`; `same_first_crop`: share of images
        on which the same anchor wins; `probability`: mean absolute difference of the crops' probabilities.
    """
    exact, other = OnnxEngine(folder), OnnxEngine(folder, graph)
    ious, same, differences = [], [], []
    for image in images:
        found = []
        for engine in (exact, other):
            loaded = load_image_file(image, engine.preprocessing.short_side)
            prediction = engine.encode([engine.preprocessing(loaded.image)])[0].prediction(loaded.size)
            found.append((prediction.boxes, prediction.score(prediction.set_merit)))
        (boxes, scores), (other_boxes, other_scores) = found
        first, other_first = int(scores.argmax()), int(other_scores.argmax())
        ious.append(float(box_iou(boxes[first][None], other_boxes[other_first][None])[0, 0]))
        same.append(float(first == other_first))
        differences.append(float(np.abs(scores - other_scores).mean()))
    return {
        "first_crop_iou": float(np.mean(ious)),
        "same_first_crop": float(np.mean(same)),
        "probability": float(np.mean(differences)),
    }


def _single_images(processor: Any, images: Sequence[str | Path]) -> Iterator[np.ndarray]:
    """Pixels (1, 3, H, W) of each image."""
    preprocessing = ImagePreprocessing.from_dict(processor.to_dict())
    for image in images:
        yield preprocessing(load_image_file(image, preprocessing.short_side).image)[None]


def _batches(processor: Any, images: Sequence[str | Path]) -> Iterator[np.ndarray]:
    pixels = list(_single_images(processor, images))
    yield from pixels
    yield np.concatenate([pixels[0], pixels[0][..., ::-1]])


def check_same_model(target: Path, model: SetCropForImageCropping) -> None:
    """Raise FileExistsError if a folder has the config of a model of another architecture."""
    path = target / "config.json"
    if not path.is_file():
        return
    try:
        # As it is read, so that what has other names in older files is no difference.
        present = json.loads(AutoConfig.from_pretrained(target, trust_remote_code=False).to_json_string())
    except (OSError, ValueError) as error:
        raise FileExistsError(f"{target}: holds another model (its config.json: {error})") from error
    wanted = json.loads(model.config.to_json_string())
    differing = {
        name for name in present.keys() | wanted.keys() if present.get(name) != wanted.get(name)
    } - _NOT_ARCHITECTURE
    if differing:
        raise FileExistsError(
            f"{target}: holds another model (its config.json differs in {', '.join(sorted(differing))})"
        )


def check_same_weights(target: Path, model: SetCropForImageCropping) -> None:
    """Raise FileExistsError if a folder has other weights than a model's, half precision apart."""
    if not (target / WEIGHTS).is_file():
        return
    try:
        # As they are loaded: in the file some have other names.
        present = TorchEngine(str(target), "cpu").model.state_dict()
    except CheckpointError as error:
        raise FileExistsError(f"{target}: holds another model, or half of one ({error})") from error
    wanted = model.state_dict()
    if present.keys() != wanted.keys() or not all(
        torch.equal(value.half(), wanted[name].half()) for name, value in present.items()
    ):
        raise FileExistsError(f"{target}: holds another model (its {WEIGHTS} has other weights)")
