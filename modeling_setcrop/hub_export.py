"""A checkpoint together with its code, for people who have transformers but not this package."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from transformers import AutoImageProcessor, AutoModelForObjectDetection
from transformers.dynamic_module_utils import get_relative_import_files

_PACKAGE = Path(__file__).parent
_AUTO_CLASSES = {
    "AutoConfig": "configuration_setcrop.SetCropConfig",
    "AutoModel": "modeling_setcrop.SetCropModel",
    "AutoModelForObjectDetection": "modeling_setcrop.SetCropForImageCropping",
}
_IMAGE_PROCESSORS = {
    "torchvision": "image_processing_setcrop.SetCropImageProcessor",
    "pil": "image_processing_pil_setcrop.SetCropImageProcessorPil",
}
_PIPELINES = {
    "image-cropping": {
        "impl": "pipeline_image_cropping.ImageCroppingPipeline",
        # A class of transformers' own, as loading a custom pipeline requires.
        "pt": ["AutoModelForObjectDetection"],
        "type": "image",
    }
}
# What a checkpoint folder may hold beside the model, for its card.
_ACCOMPANYING = ("training.json", "evaluation")


def code_files() -> list[Path]:
    """The modules that custom code on the Hub consists of: the classes' own and what these import, sorted by name."""
    classes = [*_AUTO_CLASSES.values(), *_IMAGE_PROCESSORS.values(), *(p["impl"] for p in _PIPELINES.values())]
    modules = {_PACKAGE / f"{name.split('.')[0]}.py" for name in classes}
    for module in list(modules):
        modules.update(Path(imported) for imported in get_relative_import_files(module))
    return sorted(modules)


def export_hub(checkpoint: str | Path, target: str | Path) -> list[Path]:
    """Writes model, image processor and code so that `trust_remote_code=True` is all that loading them needs.

    `pipeline("image-cropping", model=target, trust_remote_code=True)` then works without this package, and where
    `modeling_setcrop` is imported it works without the flag. What the card is made from comes along from a local
    checkpoint.

    Args:
        checkpoint: folder or Hub name of a model and image processor.
        target: folder to write; it is made, or replaced file by file when it is an earlier export.

    Returns:
        The files written.

    Raises:
        FileExistsError: `target` holds something other than an earlier export.
        OSError, ValueError: the checkpoint cannot be loaded, or the folder cannot be written.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()) and not (target / "configuration_setcrop.py").is_file():
        raise FileExistsError(f"{target}: not empty and not an earlier export")
    model = AutoModelForObjectDetection.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        folder = Path(work)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        stored = Path(checkpoint) / "model.safetensors"
        if stored.is_file():  # as they are: weights may be stored in another precision than they are computed in
            shutil.copyfile(stored, folder / stored.name)
        _update_json(folder / "config.json", auto_map=_AUTO_CLASSES, custom_pipelines=_PIPELINES)
        _update_json(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": _IMAGE_PROCESSORS})
        for module in code_files():
            shutil.copyfile(module, folder / module.name)
        for name in _ACCOMPANYING:
            source = Path(checkpoint) / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.is_file():
                shutil.copyfile(source, folder / name)
        return _move_files(folder, target)


def _update_json(path: Path, **entries: object) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **entries}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _move_files(source: Path, target: Path) -> list[Path]:
    """Moves every file of one folder into another on the same disk, each replaced in one step."""
    moved = []
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
        moved.append(place)
    return moved
