"""SetCrop: a set of diverse, well-composed crops of an image, each with the probability that people call it good.

Importing the package imports nothing heavy; its names are loaded when they are asked for. Where transformers is in
use, before or after this import, the classes are registered with its `AutoConfig`, `AutoModel` (without the heads),
`AutoModelForObjectDetection`, `AutoImageProcessor` and `AutoBackbone`, and the pipeline task `"image-cropping"`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._light_installation import how_to_get
from ._registration import register_with_transformers

if TYPE_CHECKING:
    from .backbone_inverted_residual import InvertedResidualBackbone, InvertedResidualConfig
    from .configuration_setcrop import SetCropConfig
    from .crop_constraints import ConstraintError
    from .crop_options import CropOptions
    from .image_processing_pil_setcrop import SetCropImageProcessorPil
    from .image_processing_setcrop import SetCropImageProcessor as SetCropImageProcessor
    from .image_reading import ImageFileError
    from .modeling_setcrop import SetCropForImageCropping, SetCropModel
    from .pipeline_image_cropping import ImageCroppingPipeline
    from .runtime.checkpoint import CheckpointError
    from .runtime.cropper import Cropper

__version__ = "0.1.0"

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "checkpoints" / "setcrop-lite")

# Where each name is.
_MODULES = {
    "CheckpointError": "runtime.checkpoint",
    "ConstraintError": "crop_constraints",
    "CropOptions": "crop_options",
    "Cropper": "runtime.cropper",
    "InvertedResidualBackbone": "backbone_inverted_residual",
    "InvertedResidualConfig": "backbone_inverted_residual",
    "ImageCroppingPipeline": "pipeline_image_cropping",
    "ImageFileError": "image_reading",
    "SetCropConfig": "configuration_setcrop",
    "SetCropForImageCropping": "modeling_setcrop",
    "SetCropImageProcessor": "image_processing_setcrop",
    "SetCropImageProcessorPil": "image_processing_pil_setcrop",
    "SetCropModel": "modeling_setcrop",
}

# Names of before, for one more version.
_FORMER = {
    "EfficientNetLiteBackbone": "InvertedResidualBackbone",
    "EfficientNetLiteConfig": "InvertedResidualConfig",
}

# What every installation has.
__all__ = ["DEFAULT_CHECKPOINT", "CheckpointError", "ConstraintError", "CropOptions", "Cropper", "ImageFileError"]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is None in `sys.modules`
        return False


if _is_installed("torch") and _is_installed("transformers"):
    # `SetCropImageProcessor` needs torchvision, so that it comes only when it is asked for by name.
    __all__ += [
        "ImageCroppingPipeline",
        "InvertedResidualBackbone",
        "InvertedResidualConfig",
        "SetCropConfig",
        "SetCropForImageCropping",
        "SetCropImageProcessorPil",
        "SetCropModel",
    ]


if not TYPE_CHECKING:  # type checkers would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name in _FORMER:
            warnings.warn(f"{name} is called {_FORMER[name]} now", FutureWarning, stacklevel=2)
            return getattr(sys.modules[__name__], _FORMER[name])
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if (reason := how_to_get(error)) is None:
                raise
            raise ModuleNotFoundError(f"{name} {reason}", name=error.name) from None
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the names that can be loaded here: without torch, or torchvision, a few cannot."""
    names = {*globals(), *__all__}
    if "SetCropModel" in __all__ and _is_installed("torchvision"):
        names.add("SetCropImageProcessor")
    return sorted(names)


register_with_transformers(__name__, DEFAULT_CHECKPOINT)
