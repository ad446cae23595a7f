"""The model and the image processor that a run starts from."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from torch import nn
from transformers import AutoImageProcessor, BaseImageProcessor

from ..configuration_setcrop import SetCropConfig
from ..modeling_setcrop import SetCropForImageCropping


def backbone_of(model: nn.Module) -> nn.Module:
    """The convolutional backbone of a SetCrop model."""
    return model.model.backbone.model


def backbone_stages(backbone: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """A backbone's stem and its stages, shallowest first.

    Knows the forms of transformers (ResNet: `embedder`, `encoder.stages`; EfficientNet-Lite: `stem`, `stages`) and of
    timm's ResNets (everything before `layer1`, `layer1`..`layer4`).

    Raises:
        ValueError: the backbone has another form.
    """
    if hasattr(backbone, "embedder") and hasattr(backbone, "encoder"):
        return backbone.embedder, list(backbone.encoder.stages)
    if hasattr(backbone, "stem") and hasattr(backbone, "stages"):
        return backbone.stem, list(backbone.stages)
    if hasattr(backbone, "layer1"):
        children = OrderedDict(backbone.named_children())
        stages = [module for name, module in children.items() if name.startswith("layer")]
        stem = [module for name, module in children.items() if not name.startswith("layer")]
        return nn.ModuleList(stem), stages
    raise ValueError(f"freeze_backbone_stages: the stages of a {type(backbone).__name__} are not known")


def freeze_backbone_stages(model: nn.Module, stages: int) -> None:
    """Keeps the stem and the first `stages` stages (all for -1) as they are; 0 changes nothing.

    torch skips the backward pass of what comes before the first trainable weight by itself.

    Raises:
        ValueError: the backbone has fewer stages.
    """
    if stages == 0:
        return
    backbone = backbone_of(model)
    if stages == -1:
        backbone.requires_grad_(False)
        return
    stem, rest = backbone_stages(backbone)
    if stages > len(rest):
        raise ValueError(f"freeze_backbone_stages is {stages}; the backbone has {len(rest)} stages")
    stem.requires_grad_(False)
    for stage in rest[:stages]:
        stage.requires_grad_(False)


def load_model(name_or_path: str) -> SetCropForImageCropping:
    """The model of a checkpoint, or one with random weights for a folder that has a `config.json` and no weights."""
    folder = Path(name_or_path)
    if folder.is_dir() and not any(folder.glob("*.safetensors*")):
        return SetCropForImageCropping(SetCropConfig.from_pretrained(folder))
    return SetCropForImageCropping.from_pretrained(name_or_path, ignore_mismatched_sizes=True)


def load_processor(name_or_path: str) -> BaseImageProcessor:
    """The image processor saved beside a model."""
    return AutoImageProcessor.from_pretrained(name_or_path)
