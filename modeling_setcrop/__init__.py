"""SetCrop: a set of diverse, well-composed crops of a photograph, each with the probability that people call it good.

Importing the package registers its classes with transformers' `AutoConfig`, `AutoModel` (without the heads),
`AutoModelForObjectDetection`, `AutoImageProcessor` and `AutoBackbone`, and the pipeline task `"image-cropping"`.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_torchvision_available

from .backbone_efficientnet_lite import EfficientNetLiteBackbone, EfficientNetLiteConfig
from .configuration_setcrop import SetCropConfig
from .image_processing_pil_setcrop import SetCropImageProcessorPil
from .modeling_setcrop import SetCropForImageCropping, SetCropModel
from .pipeline_image_cropping import ImageCroppingPipeline

__version__ = "0.1.0"

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "checkpoints" / "setcrop-lite")

__all__ = [
    "DEFAULT_CHECKPOINT",
    "EfficientNetLiteBackbone",
    "EfficientNetLiteConfig",
    "ImageCroppingPipeline",
    "SetCropConfig",
    "SetCropForImageCropping",
    "SetCropImageProcessorPil",
    "SetCropModel",
]

_processors = {"pil": SetCropImageProcessorPil}
if is_torchvision_available():
    from .image_processing_setcrop import SetCropImageProcessor

    _processors["torchvision"] = SetCropImageProcessor
    __all__ += ["SetCropImageProcessor"]

AutoConfig.register(SetCropConfig.model_type, SetCropConfig, exist_ok=True)
AutoModel.register(SetCropConfig, SetCropModel, exist_ok=True)
AutoModelForObjectDetection.register(SetCropConfig, SetCropForImageCropping, exist_ok=True)
AutoImageProcessor.register(SetCropConfig, image_processor_classes=_processors, exist_ok=True)
if "image-cropping" not in PIPELINE_REGISTRY.get_supported_tasks():
    # An Auto class, because a custom pipeline that is saved and loaded again needs a class of transformers' own.
    PIPELINE_REGISTRY.register_pipeline(
        "image-cropping",
        ImageCroppingPipeline,
        pt_model=AutoModelForObjectDetection,
        default={"model": (DEFAULT_CHECKPOINT, "main")},
        type="image",
    )
