"""Tell transformers of this package's classes, without importing it before somebody else does."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def register_with_transformers(package: str, default_checkpoint: str) -> None:
    """Register at once where transformers is imported already, else as soon as it is.

    Args:
        package: This package's name.
        default_checkpoint: What the pipeline loads when no model is named.
    """
    finder = _AfterImport(package)

    def register_when_ready(just_loaded: Any) -> None:
        # While a module of the package is half imported, perhaps the one that is importing transformers, others that
        # need it cannot be: they are when it is done.
        if sys.modules.get("transformers") is None or _being_imported(package, just_loaded):
            return
        finder.remove()
        _register(package, default_checkpoint)

    finder.then = register_when_ready
    if sys.modules.get("transformers") is not None and not _being_imported(package, None):
        _register(package, default_checkpoint)
    else:
        sys.meta_path.insert(0, finder)


class _AfterImport:
    """An import finder that finds nothing itself, but has transformers and a package's modules say when they are done.

    Args:
        package: The package's name.
    """

    def __init__(self, package: str) -> None:
        self.prefix = f"{package}."
        self.then: Callable[[Any], None]
        self._finding: set[str] = set()

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name in self._finding or not (name == "transformers" or name.startswith(self.prefix)):
            return None
        self._finding.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._finding.discard(name)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            if self in sys.meta_path:
                self.then(module)

        loader.exec_module = exec_module
        return spec

    def remove(self) -> None:
        """Leave imports alone from now on."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)


def _being_imported(package: str, just_loaded: Any) -> bool:
    """Whether transformers or a module of the package is half imported; one just loaded is not, though marked so."""
    names = [name for name in sys.modules if name == "transformers" or name.startswith(f"{package}.")]
    names = [name for name in names if name != getattr(just_loaded, "__name__", None)]
    return any(getattr(getattr(sys.modules[name], "__spec__", None), "_initializing", False) for name in names)


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
