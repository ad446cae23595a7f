"""The comparison of label smoothings on cached features, run as its user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_data import write_gaic

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("hard labels (mu 0)", "self distillation", "set and scoring head")


def compare(*options: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / "ablations.py"), *options, "--processes", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("ablations")
    data = write_gaic(root / "gaic", train=40, val=4)
    for folder in ("images", "annotations"):
        (write_gaic(root / folder, train=0, val=4, seed=1) / folder / "val").rename(data / folder / "test")
    options = ["--model", str(tiny_checkpoint), "--data", str(data), "--output_dir", str(root / "out")]
    options += ["--views", "32", "--seeds", "0", "--variants", *VARIANTS]
    result = compare(*options)
    assert result.returncode == 0, result.stderr[-3000:]
    return root / "out", options


def test_every_variant_is_measured_beside_constant_boxes(compared):
    out, _ = compared
    runs = {run["variant"]: run for run in json.loads((out / "ablations.json").read_text())["runs"]}
    assert tuple(runs) == VARIANTS
    assert all(run["steps"] == 2 and 0 <= run["test"]["ap_10@0.85"] <= 100 for run in runs.values())
    assert "srcc_head" in runs["set and scoring head"]["test"]
    assert "srcc_head" not in runs["hard labels (mu 0)"]["test"]
    table = (out / "ablations.md").read_text()
    assert all(f"| {name} |" in table for name in VARIANTS) and "| constant boxes" in table


def test_a_finished_run_is_not_repeated_and_other_options_are_refused(compared):
    out, options = compared
    before = {file: file.stat().st_mtime_ns for file in (out / "runs").iterdir()}
    assert compare(*options).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in (out / "runs").iterdir()} == before
    refused = compare(*options, "--lr", "0.1")
    assert refused.returncode == 1 and "made with other options" in refused.stderr
