"""A checkpoint together with its code, for people who have transformers but not this package."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from transformers import AutoImageProcessor, AutoModelForObjectDetection

from .hub_code import AUTO_CLASSES, IMAGE_PROCESSORS

# What a checkpoint folder may hold beside the model, for its card.
_ACCOMPANYING = ("training.json", "evaluation")


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
        model.config.auto_map = dict(AUTO_CLASSES)
        model.save_pretrained(folder)
        processor.auto_map = {"AutoImageProcessor": dict(IMAGE_PROCESSORS)}
        processor.save_pretrained(folder)
        stored = Path(checkpoint) / "model.safetensors"
        if stored.is_file():  # as they are: weights may be stored in another precision than they are computed in
            shutil.copyfile(stored, folder / stored.name)
        for name in _ACCOMPANYING:
            source = Path(checkpoint) / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.is_file():
                shutil.copyfile(source, folder / name)
        return _move_files(folder, target)


def _move_files(source: Path, target: Path) -> list[Path]:
    """Moves every file of one folder into another on the same disk, each replaced in one step."""
    moved = []
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
        moved.append(place)
    return moved
