"""A checkpoint's files: where they are, what they say, and whether that can be so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..crop_geometry import GoodCropProbability
from ..image_preprocessing import ImagePreprocessing

GRAPH_FOLDER = "onnx"
# The files that transformers.js looks for, and one more.
MODEL_GRAPH, FP16_GRAPH, QUANTIZED_GRAPH = "model.onnx", "model_fp16.onnx", "model_quantized.onnx"
SCORER_GRAPH, GRAPH_REPORT = "scorer.onnx", "report.json"
CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"

_FLAGS = ("crop_scoring", "rerank", "anchor_sizes", "auxiliary_loss", "distillation_halved", "is_encoder_decoder")
_COUNTS = (
    "num_queries", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
    "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "crop_scoring_dim", "num_channels",
)  # fmt: skip
_NUMBERS = tuple(f"probability_{name}" for name in GoodCropProbability._fields)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that names the file and the field."""


def has_graphs(folder: Path) -> bool:
    """Whether a folder holds graphs for onnxruntime."""
    return (folder / GRAPH_FOLDER / MODEL_GRAPH).is_file()


def weights_hash(folder: str | Path) -> str | None:
    """Return the SHA-256 of a local checkpoint's weights, by which its graphs are known for its own, or None."""
    import hashlib  # which most commands do without

    weights = Path(folder) / WEIGHTS
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None


def weights_of_graphs(folder: Path) -> str | None:
    """Return the hash of the weights that a folder's graphs were made of, or None where that is not known."""
    try:
        report = json.loads((folder / GRAPH_FOLDER / GRAPH_REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report.get("weights") if isinstance(report, dict) else None


def check_graphs(folder: Path) -> None:
    """Raise CheckpointError where weights lie beside the graphs of earlier ones, as after more training.

    Weights that are older than the graphs are not looked at: a large file takes long.
    """
    graph, weights, made_of = folder / GRAPH_FOLDER / MODEL_GRAPH, folder / WEIGHTS, weights_of_graphs(folder)
    if made_of is None or not weights.is_file() or weights.stat().st_mtime <= graph.stat().st_mtime:
        return
    if made_of != weights_hash(folder):
        again = f"write them anew with: setcrop export onnx {folder} --model {folder}"
        raise CheckpointError(f"{folder}: its graphs are of other weights than its {WEIGHTS}; {again}")


def check_name(name: str) -> None:
    """Raise CheckpointError where a name is neither a folder nor one that the Hub can have."""
    if not is_folder_or_hub_name(name):
        raise CheckpointError(f"{name}: no such folder")


def is_folder_or_hub_name(name: str) -> bool:
    """Whether a checkpoint can be called so; without huggingface_hub every name is left to who loads it."""
    if Path(name).is_dir():
        return True
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def read_config(path: Path) -> SimpleNamespace:
    """Return the fields of a `config.json`, checked.

    Raises:
        CheckpointError: The file is missing, no JSON, of another model, or a field cannot be so.
    """
    fields = _read_json(path)
    if fields.get("model_type") != "setcrop":
        raise CheckpointError(f"{path}: model_type is {fields.get('model_type')!r}, not 'setcrop'")
    for name in _FLAGS:
        if not isinstance(fields.get(name, False), bool):
            raise CheckpointError(f"{path}: {name} must be true or false, not {fields[name]!r}")
    for name in _COUNTS:
        value = fields.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{path}: {name} must be a whole number of at least 1, not {value!r}")
    for name in _NUMBERS:
        value = fields.get(name, 4.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise CheckpointError(f"{path}: {name} must be a number, not {value!r}")
    if fields.get("probability_slope", 4.0) <= 0:
        raise CheckpointError(f"{path}: probability_slope must be above 0, not {fields['probability_slope']}")
    return SimpleNamespace(**{"crop_scoring": False, "rerank": False, "id2label": {"0": "crop"}, **fields})


def read_preprocessing(path: Path) -> ImagePreprocessing:
    """Return the preprocessing that a `preprocessor_config.json` describes, checked.

    Raises:
        CheckpointError: The file is missing, no JSON, or a field cannot be so.
    """
    try:
        return ImagePreprocessing.from_dict(_read_json(path))
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content
