"""`training.json`, what a model card says of a training: the data, the recipe and the command, from the run itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..images.atomic import atomic_writer

RECORD = "training.json"
# Where a run's files lie and how it is watched says nothing of the model.
_NOT_OF_THE_RECIPE = (
    "output_dir",
    "report_to",
    "profile",
    "push_to_hub",
    "hub_model_id",
    "resume_from_checkpoint",
    "dataloader_num_workers",
)


def write_training_record(folder: Path, args: Any, images: Mapping[str, int], steps: int) -> Path:
    """Write `training.json` into a training's output folder.

    What a person wrote there before stays: only what is missing is filled in, so licences of the data, what the labels
    are and known limits can be added before or after the run.

    Args:
        folder: The output folder.
        args: The run's [`CropTrainingArguments`].
        images: Number of images of each split that was used.
        steps: Optimiser steps that were done.
    """
    given = _given(args)
    recipe = [f"{name}: {_text(value)}" for name, value in given.items() if name not in ("data", *_NOT_OF_THE_RECIPE)]
    record: dict[str, Any] = {
        "data": [
            {
                "name": Path(args.data).resolve().name,
                "images": images["train"],
                "licence": "not recorded",
            }
        ],
        "recipe": [f"{steps} optimiser steps; validation on {images['validation']} images", *recipe],
        "command": " ".join(["setcrop train", *_options(given)]),
    }
    start = str(args.model_name_or_path)
    if not Path(start).exists():
        record["base_model"] = start
    path = folder / RECORD
    if path.is_file():
        record |= json.loads(path.read_text(encoding="utf-8"))
    with atomic_writer(path) as file:
        file.write((json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    return path


def _given(args: Any) -> dict[str, Any]:
    """Return the arguments that are not their defaults."""
    given = {}
    for field in fields(args):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.init and getattr(args, field.name) != default:
            given[field.name] = getattr(args, field.name)
    return given


def _options(given: Mapping[str, Any]) -> list[str]:
    """Return the arguments as the command takes them; folders by name, since paths mean nothing elsewhere."""
    options = []
    for name, value in given.items():
        if name in _NOT_OF_THE_RECIPE:
            continue
        if name in ("data", "model_name_or_path") and Path(str(value)).exists():
            value = Path(str(value)).resolve().name
        options.append(f"--{name}" if value is True else f"--{name} {_text(value)}")
    return [*options, "--output_dir OUT"]


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
