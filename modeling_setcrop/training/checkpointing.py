"""Checkpoints of a training run: written beside their place and renamed, read back bit for bit, without pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_PREFIX = "checkpoint-"


class CheckpointError(ValueError):
    """A checkpoint that cannot be found or continued."""


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint after optimiser step `step` lies."""
    return output_dir / f"{_PREFIX}{step}"


def _existing(output_dir: Path) -> list[Path]:
    folders = [p for p in output_dir.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name[len(_PREFIX) :]))


def remove_old(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for folder in _existing(output_dir)[:-keep]:
        shutil.rmtree(folder)


def refuse_results_in(output_dir: Path) -> None:
    """Raise CheckpointError where there are checkpoints, for which a new run's would be taken, or a model."""
    found = _existing(output_dir)
    if found:
        raise CheckpointError(
            f"{output_dir}: has {found[-1].name} of an earlier run; go on from it with "
            "--resume_from_checkpoint latest, or choose another output_dir"
        )
    if any(output_dir.glob("*.safetensors")):
        raise CheckpointError(f"{output_dir}: has a model, which training would replace; choose another output_dir")


def find_checkpoint(name: str, output_dir: Path) -> Path:
    """Return the checkpoint folder called `name`, or the newest of `output_dir` for "latest".

    Raises:
        CheckpointError: there is none.
    """
    if name == "latest":
        folders = _existing(output_dir)
        if not folders:
            raise CheckpointError(f"{output_dir}: no checkpoint to resume from")
        return folders[-1]
    folder = Path(name)
    if not (folder / "progress.json").is_file():
        raise CheckpointError(f"{folder}: not a training checkpoint (it has no progress.json)")
    return folder


def cut_log(path: Path, size: int) -> None:
    """Cut a log back to its first `size` bytes, which were there when the checkpoint was written."""
    if path.is_file() and path.stat().st_size > size:
        os.truncate(path, size)


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write `optimizer.safetensors` (moments) and `optimizer.json` (groups)."""
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            key = f"{index}.{name}"
            if isinstance(value, torch.Tensor):
                tensors[key] = value.detach().cpu().contiguous()
            else:
                scalars[key] = value
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps({"groups": state["param_groups"], "scalars": scalars}))


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `save_optimizer` wrote into an optimiser over the same parameters.

    Raises:
        CheckpointError: the optimiser is over other parameters.
    """
    saved = json.loads((folder / "optimizer.json").read_text())
    values: dict[str, Any] = {**load_file(folder / "optimizer.safetensors"), **saved["scalars"]}
    state: dict[int, dict[str, Any]] = {}
    for key, value in values.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})
    except ValueError as error:
        raise CheckpointError(f"{folder}: the optimiser's state is of another model or recipe: {error}") from error


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write all parameters and buffers of a model."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}, path)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote.

    Raises:
        CheckpointError: there is no such file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: not found; the checkpoint is of a run without averaged weights")
    model.load_state_dict(load_file(path))


def random_state() -> dict[str, torch.Tensor]:
    """States of torch's generators (CPU and this process's GPU), the only ones that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def save_random_states(states: list[dict[str, torch.Tensor]], folder: Path) -> None:
    """Write the `random_state` of every process."""
    save_file(
        {f"{rank}.{device}": value for rank, state in enumerate(states) for device, value in state.items()},
        folder / "random.safetensors",
    )


def restore_random_state(folder: Path, rank: int) -> None:
    """Set process `rank`'s states again; a process that had none keeps its own."""
    states = load_file(folder / "random.safetensors")
    if f"{rank}.cpu" in states:
        torch.set_rng_state(states[f"{rank}.cpu"])
    if f"{rank}.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"{rank}.cuda"])
