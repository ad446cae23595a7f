"""MobileNetV2 with coco-ssd weights: parity with transformers' MobileNetV2, and files that are something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coco_ssd_files import tensorflow_tensors, write
from transformers import MobileNetV2Config, MobileNetV2Model

from modeling_setcrop.backbone_inverted_residual import InvertedResidualBackbone, InvertedResidualConfig
from modeling_setcrop.training.convert_coco_ssd import load_coco_weights

STAGES = [f"stage{number}" for number in range(1, 8)]


def backbone(**options) -> InvertedResidualBackbone:
    options = {"variant": "mobilenet_v2", "batch_norm": False, **options}
    return InvertedResidualBackbone(InvertedResidualConfig(**options)).eval()


@torch.no_grad()
def test_features_equal_transformers_mobilenet_v2(tmp_path):
    torch.manual_seed(0)
    upstream = MobileNetV2Model(MobileNetV2Config(tf_padding=True)).eval()
    for module in upstream.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
    write(tmp_path, tensorflow_tensors(upstream))
    ours = load_coco_weights(backbone(out_features=STAGES), tmp_path)
    x = torch.rand(2, 3, 97, 130) * 2 - 1
    hidden = upstream.conv_stem(x)
    maps = [hidden]
    for layer in upstream.layer:
        hidden = layer(hidden)
        maps.append(hidden)
    last_of_stage = np.cumsum([1, 2, 3, 4, 3, 3, 1]) - 1
    for actual, number in zip(ours(x).feature_maps, last_of_stage, strict=True):
        torch.testing.assert_close(actual, maps[number], atol=1e-4, rtol=1e-4)


def test_another_model_or_backbone_is_named(tmp_path):
    write(tmp_path, {"Conv/Conv2D/merged_input": np.zeros((3, 3, 3, 32), np.float32)})
    with pytest.raises(ValueError, match=r"not a coco-ssd model of MobileNetV2, it has no 'Conv/BatchNorm"):
        load_coco_weights(backbone(), tmp_path)
    with pytest.raises(ValueError, match="variant="):
        load_coco_weights(backbone(variant="efficientnet_lite0"), tmp_path)
    (tmp_path / "shard2").unlink()
    with pytest.raises(FileNotFoundError, match="shard2"):
        load_coco_weights(backbone(), tmp_path)
