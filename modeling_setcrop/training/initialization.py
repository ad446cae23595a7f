"""The model and the image processor that a run starts from."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig

from ..configuration_setcrop import SetCropConfig
from ..image_processing_pil_setcrop import SetCropImageProcessorPil
from ..modeling_setcrop import SetCropForImageCropping
from ..runtime.checkpoint import is_folder_or_hub_name

logger = logging.getLogger(__name__)

_PIXEL_FIELDS = ("size", "image_mean", "image_std", "rescale_factor", "resample")
_SHOWN_NAMES = 5
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.bin.index.json")


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the convolutional backbone of a SetCrop model."""
    return model.model.backbone.model


def backbone_stages(backbone: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return a backbone's stem and its stages, shallowest first.

    Knows the forms of transformers (ResNet: `embedder`, `encoder.stages`; this package's: `stem`, `stages`) and of
    timm's ResNets (everything before `layer1`, `layer1`..`layer4`).

    Raises:
        ValueError: the backbone has another form.
    """
    if hasattr(backbone, "embedder") and hasattr(backbone, "encoder"):
        return backbone.embedder, list(backbone.encoder.stages)
    if hasattr(backbone, "stem") and hasattr(backbone, "stages"):
        return backbone.stem, list(backbone.stages)
    if hasattr(backbone, "layer1"):
        children = dict(backbone.named_children())
        stem = [module for name, module in children.items() if not name.startswith("layer")]
        return nn.ModuleList(stem), [module for name, module in children.items() if name.startswith("layer")]
    raise ValueError(f"freeze_backbone_stages: the stages of a {type(backbone).__name__} are not known")


def freeze_backbone_stages(model: nn.Module, stages: int) -> None:
    """Train all of the backbone but its stem and first `stages` stages; all for 0, nothing for -1.

    What was frozen before and is not to be is trained again. The paper's models keep one stage of a ResNet. torch
    skips the backward pass of what comes before the first trainable weight by itself.

    Raises:
        ValueError: the backbone has fewer stages.
    """
    backbone = backbone_of(model)
    backbone.requires_grad_(stages != -1)
    if stages in (0, -1):
        return
    stem, rest = backbone_stages(backbone)
    if not 0 < stages <= len(rest):
        raise ValueError(f"freeze_backbone_stages is {stages}; the backbone has {len(rest)} stages")
    stem.requires_grad_(False)
    for stage in rest[:stages]:
        stage.requires_grad_(False)


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """`["label_smoothing=none", "smoothing_upper_bound=0.3"]` as a dict, values read as YAML.

    Raises:
        ValueError: an entry is not `name=value`, or the config has no such field.
    """
    known = SetCropConfig().to_dict().keys() | {"backbone"}
    values = {}
    for entry in overrides:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"config_overrides: {entry!r} is not of the form name=value")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"config_overrides: the model's config has no field {name!r}{hint}")
        values[name] = yaml.safe_load(value) if value != "none" else value
    return values


def load_model(name_or_path: str, overrides: dict[str, Any] | None = None) -> SetCropForImageCropping:
    """Return the model to train.

    Args:
        name_or_path: a SetCrop or Conditional DETR checkpoint, as a folder or a name on the Hub. A folder with a
            `config.json` and no weights gives random weights.
        overrides: fields of the config to change.

    Raises:
        ValueError: the checkpoint is of another architecture, or none of its weights fits.
        OSError: there is no such checkpoint.
    """
    overrides = overrides or {}
    _check_there(name_or_path)
    kind = PreTrainedConfig.get_config_dict(name_or_path)[0].get("model_type")
    if kind not in ("setcrop", "conditional_detr"):
        raise ValueError(
            f"{name_or_path}: a checkpoint of the architecture {kind!r}; SetCrop starts from 'setcrop' or "
            "'conditional_detr'"
        )
    try:
        config = SetCropConfig.from_pretrained(name_or_path, **overrides)
        config.validate()
    except StrictDataclassError as error:
        changed = f" with {overrides}" if overrides else ""
        raise ValueError(f"{name_or_path}{changed}: {' '.join(str(error).split())}") from None
    folder = Path(name_or_path)
    if folder.is_dir() and not any(folder.glob("*.safetensors*")):
        other = sorted(file.name for pattern in _OTHER_WEIGHTS for file in folder.glob(pattern))
        if other:
            raise ValueError(
                f"{name_or_path}: its weights are in {other[0]}, and only safetensors are read: load the model with "
                "what wrote it, and save it with save_pretrained"
            )
        logger.info("%s has no weights: starting from random ones", folder)
        return SetCropForImageCropping(config)
    model, report = SetCropForImageCropping.from_pretrained(
        name_or_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = sorted(set(report["missing_keys"]) | {key[0] for key in report["mismatched_keys"]})
    parameters = model.state_dict().keys()
    loaded = len(parameters - set(new))
    if loaded == 0:
        raise ValueError(f"{name_or_path}: none of its weights fits the model")
    logger.info(
        "%s: %d of %d weights loaded; new: %s; not used: %s",
        name_or_path,
        loaded,
        len(parameters),
        _some(new),
        _some(sorted(report["unexpected_keys"])),
    )
    return model


def _check_there(name_or_path: str) -> None:
    """Raise FileNotFoundError where a checkpoint is neither a folder nor can be on the Hub."""
    if not is_folder_or_hub_name(name_or_path):
        raise FileNotFoundError(f"{name_or_path}: no such folder")


def load_processor(
    name_or_path: str, short_side: int | None = None, long_side: int | None = None
) -> BaseImageProcessor:
    """Return the image processor beside a model; for one of Conditional DETR, the same pixels with crops for labels.

    Args:
        name_or_path: a folder or a name on the Hub.
        short_side, long_side: the size in pixels to resize to, where it differs from the saved one.

    Raises:
        OSError: there is none.
    """
    _check_there(name_or_path)
    processor = AutoImageProcessor.from_pretrained(name_or_path)
    if not hasattr(processor, "post_process_image_cropping"):
        kept = {name: value for name, value in processor.to_dict().items() if name in _PIXEL_FIELDS}
        processor = SetCropImageProcessorPil(**kept)
    processor.size = type(processor.size)(
        shortest_edge=short_side or processor.size["shortest_edge"],
        longest_edge=long_side or processor.size["longest_edge"],
    )
    return processor


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
