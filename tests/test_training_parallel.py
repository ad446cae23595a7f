"""Two processes train as one does on twice the batch, launched as a user launches them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_data import write_editor, write_folder, write_tiny_start

from modeling_setcrop.training.engine import run

ROOT = Path(__file__).resolve().parents[1]


def launch_two(*options: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(ROOT / "examples" / "train_setcrop.py"), *options]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module", params=["folder", "editor"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Ten steps on eleven images, validation on seven, by one process and by two.

    In the layout `folder` two in three are unrated; in the layout `editor` views are drawn of all.
    """
    root, layout = tmp_path_factory.mktemp("parallel"), request.param
    if layout == "folder":
        data = write_folder(root / "data", {"train": 1, "validation": 1}, train=11, val=7, rated_every=3)
    else:
        data = write_editor(root / "data", train=11, val=7)
    parts = {"subject_map": True, "rating_sources": ["editors", "people"]}
    start = write_tiny_start(root / "start", dropout=0.0, crop_scoring=True, **parts)
    options = [
        "--data",
        str(data),
        "--layout",
        layout,
        "--model_name_or_path",
        str(start),
        "--max_steps",
        "10",
        "--dataloader_num_workers",
        "0",
    ]
    options += ["--logging_steps", "1", "--ema_decay", "0.5", "--eval_every", "100"]
    assert run([*options, "--per_device_train_batch_size", "4", "--output_dir", str(root / "1")], prog="one") == 0
    launch_two(*options, "--per_device_train_batch_size", "2", "--output_dir", str(root / "2"))
    return {processes: root / str(processes) for processes in (1, 2)}


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_ten_steps_of_two_processes_give_the_losses_of_one(runs):
    losses = {n: [line["loss"] for line in log_of(folder) if "loss" in line] for n, folder in runs.items()}
    assert len(losses[1]) == 10
    assert losses[2] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("name", ["model", "average"])
def test_ten_steps_of_two_processes_give_the_weights_of_one(runs, name):
    one, two = (load_file(folder / "checkpoint-10" / f"{name}.safetensors") for folder in runs.values())
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


def test_validation_over_two_processes_counts_every_image_once(runs):
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in runs.values())
    assert one["images"] == two["images"] == 7
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["ap_10@0.85"] == pytest.approx(one["ap_10@0.85"], abs=1e-3)
