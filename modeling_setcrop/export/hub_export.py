"""A checkpoint together with its code, for people who have transformers but not this package."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from ..hub_code import AUTO_CLASSES, IMAGE_PROCESSORS
from ..images.atomic import atomic_files, is_empty
from ..runtime.checkpoint import GRAPH_FOLDER, GRAPH_REPORT, WEIGHTS, weights_hash, weights_of_graphs
from ..runtime.torch_engine import TorchEngine
from .onnx_export import check_same_weights
from .transformers_js import write_transformers_js_config

# What a checkpoint folder may hold beside the model, for its card.
_TRAINING, _EVALUATION, _EVALUATION_FILE = "training.json", "evaluation", "evaluation.json"


def export_hub(
    checkpoint: str | Path,
    target: str | Path,
    evaluations: Sequence[str | Path] = (),
    half: bool = False,
    code: bool = True,
) -> list[Path]:
    """Write model, image processor and code so that `trust_remote_code=True` is all that loading them needs.

    `pipeline("image-cropping", model=target, trust_remote_code=True)` then works without this package, and where
    `modeling_setcrop` is imported it works without the flag. What the card is made from comes along from a local
    checkpoint, and its ONNX graphs where they are of the same weights; with these, transformers.js loads the folder.

    Args:
        checkpoint: folder, as a training's output is, or Hub name of a model and image processor.
        target: folder to write; it is made, or replaced file by file when it is an earlier export.
        evaluations: folders that `setcrop evaluate --out` wrote, instead of those that lie in the checkpoint.
        half: store the weights in half precision; they are computed with in single precision all the same.
        code: bring the code along; a checkpoint that only this package reads needs none.

    Returns:
        The files written.

    Raises:
        CheckpointError: the checkpoint is incomplete or broken.
        FileExistsError: `target` holds something other than an earlier export, or without `code` other weights.
        FileNotFoundError: an evaluation's folder has no evaluation.json.
        OSError: the folder cannot be written.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target}: is no folder")
    if target.exists() and not is_empty(target) and not _is_export(target, code):
        raise FileExistsError(f"{target}: not empty and not an earlier export; name a folder that does not exist")
    model = TorchEngine(str(checkpoint), "cpu").model
    processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    if not code:
        # Without code a training's output looks like an export.
        check_same_weights(target, model)
    with atomic_files(target) as folder:
        for holder, classes in ((model.config, AUTO_CLASSES), (processor, {"AutoImageProcessor": IMAGE_PROCESSORS})):
            for name in ("auto_map", "feature_extractor_type"):
                vars(holder).pop(name, None)
            if code:
                holder.auto_map = dict(classes)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        stored = Path(checkpoint) / WEIGHTS
        if half:
            weights = {name: _half(value) for name, value in load_file(folder / WEIGHTS).items()}
            save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        elif stored.is_file():  # as they are: weights may be stored in another precision than they are computed in
            shutil.copyfile(stored, folder / WEIGHTS)
        if code:
            write_transformers_js_config(folder)
        _bring_record(Path(checkpoint), folder, evaluations)
        _bring_graphs(Path(checkpoint), folder)
        if evaluations and (target / _EVALUATION).is_dir():
            shutil.rmtree(target / _EVALUATION)
        written = [target / path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    if (target / GRAPH_FOLDER).is_dir() and not _graphs_match(target):
        shutil.rmtree(target / GRAPH_FOLDER)  # of what the folder held before
    return written


def _is_export(folder: Path, code: bool) -> bool:
    """Whether a folder is what an earlier export of the same kind wrote."""
    if code:
        return (folder / "configuration_setcrop.py").is_file()
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "setcrop"


def _half(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.is_floating_point() else value


def _bring_record(checkpoint: Path, folder: Path, evaluations: Sequence[str | Path]) -> None:
    """Copy into `folder` what the card is made from: how the model was trained, and how good it is."""
    if (checkpoint / _TRAINING).is_file():
        shutil.copyfile(checkpoint / _TRAINING, folder / _TRAINING)
    if not evaluations:
        if (checkpoint / _EVALUATION).is_dir():
            ignored = shutil.ignore_patterns("predictions.json", "*.csv", "*.md")
            shutil.copytree(checkpoint / _EVALUATION, folder / _EVALUATION, ignore=ignored)
        return
    for evaluated in map(Path, evaluations):
        source = evaluated / _EVALUATION_FILE
        if not source.is_file():
            raise FileNotFoundError(f"{evaluated}: has no {_EVALUATION_FILE}; write it with: setcrop evaluate --out")
        found = json.loads(source.read_text(encoding="utf-8"))
        # The data's name may be a path.
        place = folder / _EVALUATION / re.sub(r"[^\w.-]+", "_", f"{found['data']}_{found['split']}")
        if place.exists():
            raise ValueError(f"{source}: is the second evaluation on {found['data']}, {found['split']}")
        place.mkdir(parents=True)
        shutil.copyfile(source, place / _EVALUATION_FILE)


def _bring_graphs(checkpoint: Path, folder: Path) -> None:
    """Copy a local checkpoint's ONNX graphs, if they are of its weights and not of earlier ones."""
    if not _graphs_match(checkpoint):
        return
    shutil.copytree(checkpoint / GRAPH_FOLDER, folder / GRAPH_FOLDER)
    report = folder / GRAPH_FOLDER / GRAPH_REPORT
    content = json.loads(report.read_text(encoding="utf-8")) | {"weights": weights_hash(folder)}
    report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _graphs_match(folder: Path) -> bool:
    """Whether a folder has graphs that were made of its weights."""
    made_of = weights_of_graphs(folder)
    return made_of is not None and made_of == weights_hash(folder)
