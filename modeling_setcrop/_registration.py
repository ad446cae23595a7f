"""Tells transformers of this package's classes, without importing it before somebody else does."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

# The modules that import transformers, and may be the first to do so.
_USERS = (
    "backbone_efficientnet_lite",
    "configuration_setcrop",
    "crop_scoring_setcrop",
    "image_processing_pil_setcrop",
    "image_processing_setcrop",
    "loss_setcrop",
    "modeling_setcrop",
    "pipeline_image_cropping",
)


def register_with_transformers(package: str, default_checkpoint: str) -> None:
    """Register at once where transformers is imported already, else as soon as it is.

    Args:
        package: This package's name.
        default_checkpoint: What the pipeline loads when no model is named.
    """
    registered = False

    def register_when_ready(module: Any) -> None:
        # While one of the modules below is half imported, and transformers was imported by it, the others cannot be
        # imported yet: they are when it is done.
        nonlocal registered
        if registered or not _is_loaded("transformers", module):
            return
        if any(not _is_loaded(f"{package}.{name}", module, True) for name in _USERS):
            return
        registered = True
        _register(package, default_checkpoint)

    if "transformers" in sys.modules:
        register_when_ready(None)
    if not registered:
        names = {"transformers", *(f"{package}.{user}" for user in _USERS)}
        sys.meta_path.insert(0, _AfterImport(names, register_when_ready))


class _AfterImport:
    """An import finder that finds nothing itself, but has the loaders of some modules say when they are done.

    Args:
        names: Of the modules.
        then: Called with each module after it was executed.
    """

    def __init__(self, names: set[str], then: Callable[[Any], None]) -> None:
        self.names, self.then = names, then

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self.names:
            return None
        self.names.discard(name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = exec_module
        return spec


def _is_loaded(name: str, just_loaded: Any, or_absent: bool = False) -> bool:
    """Whether a module is imported to its end; the one just loaded is, though it is not yet marked so."""
    module = sys.modules.get(name)
    if module is None:
        return or_absent
    if getattr(just_loaded, "__name__", None) == name:
        return True
    return not getattr(getattr(module, "__spec__", None), "_initializing", False)


def _register(package: str, default_checkpoint: str) -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection
    from transformers.pipelines import PIPELINE_REGISTRY
    from transformers.utils import is_torch_available, is_torchvision_available

    if not is_torch_available():
        return

    def load(module: str, name: str) -> Any:
        return getattr(importlib.import_module(f"{package}.{module}"), name)

    config = load("configuration_setcrop", "SetCropConfig")
    model = load("modeling_setcrop", "SetCropForImageCropping")
    processors = {"pil": load("image_processing_pil_setcrop", "SetCropImageProcessorPil")}
    if is_torchvision_available():
        processors["torchvision"] = load("image_processing_setcrop", "SetCropImageProcessor")
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, load("modeling_setcrop", "SetCropModel"), exist_ok=True)
    AutoModelForObjectDetection.register(config, model, exist_ok=True)
    AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
    if "image-cropping" not in PIPELINE_REGISTRY.get_supported_tasks():
        # An Auto class, because a custom pipeline that is saved and loaded again needs a class of transformers' own.
        PIPELINE_REGISTRY.register_pipeline(
            "image-cropping",
            load("pipeline_image_cropping", "ImageCroppingPipeline"),
            pt_model=AutoModelForObjectDetection,
            default={"model": (default_checkpoint, "main")},
            type="image",
        )
