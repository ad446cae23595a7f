"""`training.json`, what a model card says of a training: the data, the recipe and the command, from the run itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..images.atomic import atomic_writer
from .arguments import CropTrainingArguments

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
_FIRST_LINE = re.compile(r"\d+ optimiser steps.*; validation on \d+ images")


def write_training_record(
    folder: Path, args: Any, images: Mapping[str, int], steps: int, best_step: int | None = None
) -> Path:
    """Write `training.json` into a training's output folder.

    What a person wrote there before stays: only what is missing is filled in, so licences of the data, what the labels
    are and known limits can be added before or after the run. The recipe and command of a run that went on from there
    are replaced, unless a person has changed the recipe.

    Args:
        folder: The output folder.
        args: The run's [`CropTrainingArguments`].
        images: Number of images of each split that was used.
        steps: Optimiser steps that were done.
        best_step: After which of them the model is as it was saved; None for the last one.

    Raises:
        ValueError: The file that is there is not JSON.
    """
    given = {name: _portable(name, value) for name, value in _given(args).items() if name not in _NOT_OF_THE_RECIPE}
    recipe = [f"{name}: {_text(value)}" for name, value in given.items() if name != "data"]
    best = "" if best_step in (None, steps) else f", the best model after {best_step}"
    record: dict[str, Any] = {
        "data": [
            {
                "name": Path(args.data).resolve().name,
                "images": images["train"],
                "licence": "not recorded",
            }
        ],
        "recipe": [f"{steps} optimiser steps{best}; validation on {images['validation']} images", *recipe],
        "command": " ".join(["setcrop train", *_options(given)]),
    }
    start = str(args.model_name_or_path)
    if not Path(start).exists():
        record["base_model"] = start
    path = folder / RECORD
    record |= _written_by_people(path)
    with atomic_writer(path) as file:
        file.write((json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    return path


def _written_by_people(path: Path) -> dict[str, Any]:
    """Return what the file says, without the recipe and the command where these are as a run wrote them."""
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        recipe = record.get("recipe")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a table in JSON ({error}); the model beside it is whole") from None
    names = tuple(f"{field.name}: " for field in fields(CropTrainingArguments))
    if (
        isinstance(recipe, list)
        and recipe
        and _FIRST_LINE.fullmatch(str(recipe[0]))
        and all(str(line).startswith(names) for line in recipe[1:])
    ):
        return {name: value for name, value in record.items() if name not in ("recipe", "command")}
    return record


def _given(args: Any) -> dict[str, Any]:
    """Return the arguments that are not their defaults."""
    given = {}
    for field in fields(args):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.init and getattr(args, field.name) != default:
            given[field.name] = getattr(args, field.name)
    return given


def _portable(name: str, value: Any) -> Any:
    """Return an argument's value, a folder's by its name alone: paths mean nothing elsewhere."""
    is_folder = name in ("data", "model_name_or_path") and Path(str(value)).exists()
    return Path(str(value)).resolve().name if is_folder else value


def _options(given: Mapping[str, Any]) -> list[str]:
    """Return the arguments as the command takes them."""
    options = [f"--{name}" if value is True else f"--{name} {_text(value)}" for name, value in given.items()]
    return [*options, "--output_dir OUT"]


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
