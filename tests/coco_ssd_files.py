"""Writes coco-ssd models with any MobileNetV2 weights, in TensorFlow.js's own form."""

from __future__ import annotations

import json

import numpy as np
import torch
from transformers import MobileNetV2Model


def folded(layer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, scale and offset of an upstream convolution with batch norm."""
    norm = layer.normalization
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return layer.convolution.weight, scale, norm.bias - norm.running_mean * scale


def tensorflow_tensors(model: MobileNetV2Model) -> dict[str, np.ndarray]:
    """The upstream model's weights under coco-ssd's names and in TensorFlow's layout."""
    tensors = {}

    def add(name: str, layer, depthwise: bool = False) -> None:
        weight, scale, offset = folded(layer)
        if depthwise:
            tensors[f"{name}/depthwise_weights"] = weight.permute(2, 3, 0, 1)
            tensors[f"{name}/BatchNorm/batchnorm/mul"] = scale
        else:
            tensors[f"{name}/Conv2D/merged_input"] = (weight * scale[:, None, None, None]).permute(2, 3, 1, 0)
        tensors[f"{name}/BatchNorm/batchnorm/sub"] = offset

    add("Conv", model.conv_stem.first_conv)
    add("expanded_conv/depthwise", model.conv_stem.conv_3x3, depthwise=True)
    add("expanded_conv/project", model.conv_stem.reduce_1x1)
    for number, layer in enumerate(model.layer, start=1):
        add(f"expanded_conv_{number}/expand", layer.expand_1x1)
        add(f"expanded_conv_{number}/depthwise", layer.conv_3x3, depthwise=True)
        add(f"expanded_conv_{number}/project", layer.reduce_1x1)
    return {name: tensor.detach().numpy().astype(np.float32) for name, tensor in tensors.items()}


def write(folder, tensors: dict[str, np.ndarray]) -> None:
    """A TensorFlow.js model, its two shards cut within a tensor, with a tensor that is not the backbone's in front."""
    named = {"Postprocessor/anchors": np.zeros((7, 4), np.float32)}
    named |= {f"FeatureExtractor/MobilenetV2/{name}": tensor for name, tensor in tensors.items()}
    data = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in named.values())
    (folder / "shard1").write_bytes(data[:1001])
    (folder / "shard2").write_bytes(data[1001:])
    weights = [{"name": name, "shape": list(t.shape), "dtype": "float32"} for name, t in named.items()]
    manifest = [{"paths": ["shard1", "shard2"], "weights": weights}]
    (folder / "model.json").write_text(json.dumps({"modelTopology": {}, "weightsManifest": manifest}))
