"""SetCrop's image processor on torchvision; it needs torchvision to be importable."""

from __future__ import annotations

from transformers.models.conditional_detr.image_processing_conditional_detr import ConditionalDetrImageProcessor

from .image_processing_pil_setcrop import CropProcessingMixin


class SetCropImageProcessor(CropProcessingMixin, ConditionalDetrImageProcessor):
    """Resize, rescale, normalise and pad with torchvision, on any device; otherwise as the Pillow one."""


__all__ = ["SetCropImageProcessor"]
