"""The code that travels with a checkpoint, so that transformers alone can load it (`trust_remote_code=True`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.dynamic_module_utils import get_relative_import_files

if TYPE_CHECKING:
    # transformers fetches with a module whatever it imports, by reading its text. So whoever loads any part of a
    # checkpoint has all of its code at hand, and can save a checkpoint that is complete.
    from .image_processing_pil_setcrop import SetCropImageProcessorPil  # noqa: F401
    from .image_processing_setcrop import SetCropImageProcessor  # noqa: F401
    from .modeling_setcrop import SetCropForImageCropping  # noqa: F401
    from .pipeline_image_cropping import ImageCroppingPipeline  # noqa: F401

AUTO_CLASSES = {
    "AutoConfig": "configuration_setcrop.SetCropConfig",
    "AutoModel": "modeling_setcrop.SetCropModel",
    "AutoModelForObjectDetection": "modeling_setcrop.SetCropForImageCropping",
}
IMAGE_PROCESSORS = {
    "torchvision": "image_processing_setcrop.SetCropImageProcessor",
    "pil": "image_processing_pil_setcrop.SetCropImageProcessorPil",
}
PIPELINES = {
    "image-cropping": {
        "impl": "pipeline_image_cropping.ImageCroppingPipeline",
        # A class of transformers' own, as loading a custom pipeline requires.
        "pt": ["AutoModelForObjectDetection"],
        "type": "image",
    }
}


def code_files() -> list[Path]:
    """Return the modules that a checkpoint's code consists of, sorted by name."""
    return sorted({Path(__file__), *map(Path, get_relative_import_files(__file__))})


def write_code(folder: str | Path) -> list[Path]:
    """Copy the code into a checkpoint's folder, which is made if need be, and return the files written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(module, folder / module.name)) for module in code_files()]
