"""The three stages that make setcrop-lite, as real processes, on a dozen images in the layout `editor`."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from modeling_setcrop import DEFAULT_CHECKPOINT, ImageCroppingPipeline, SetCropForImageCropping
from modeling_setcrop import SetCropImageProcessorPil as Processor


@pytest.fixture
def library(tmp_path):
    rng = np.random.default_rng(0)
    lines, rated = [], []
    for number in range(14):
        name = f"{number}.jpg"
        size = (120, 80) if number % 2 else (80, 120)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / name)
        low, high = rng.uniform(0, 0.3, (5, 2)), rng.uniform(0.7, 1, (5, 2))
        crops = np.concatenate([low, high, rng.uniform(3, 4.5, (5, 1))], axis=1).round(3)
        entry = {"photo": name, "split": "val" if number >= 12 else "train", "crops": crops.tolist(), "whole": 3.0}
        entry |= {"subjects": [[0.4, 0.4, 0.6, 0.6, 1.0]], "square": 0.5, "slim": 0.45}
        if number in (3, 4, 12):
            entry["people"] = crops[1, :4].tolist()
        lines.append(json.dumps(entry))
        grid = [[8, 8, size[1] - 8, size[0] - 8 - step, 3.5] for step in range(5)]
        rated.append(
            {
                "photo": name,
                "split": "train",
                "window": [0, 0, *size],
                "label_width": size[0],
                "crops": grid,
                "view": 0,
            }
        )
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    (tmp_path / "rated").mkdir()
    with gzip.open(tmp_path / "rated" / "labels.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in rated)
    return tmp_path


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_three_stages_make_a_checkpoint_that_crops(library, tmp_path):
    first, out = library / "first", library / "out"
    printed = run(
        "train_setcrop_lite.py",
        *("--editor-data", library, "--raters-data", library / "rated", "--start", DEFAULT_CHECKPOINT),
        *("--output_dir", first, "--steps", 2, "--batch_size", 2),
    )
    figures = json.loads(printed.splitlines()[-1])
    assert figures["step"] >= 2 and 0 <= figures["first"] <= 1 and 0 <= figures["people"] <= 1
    printed = run(
        "train_setcrop_lite_set.py",
        *("--editor-data", library, "--start", first, "--output_dir", out, "--epochs", 1, "--batch_size", 4),
    )
    figures = json.loads(printed.splitlines()[-1])
    assert {"ap_k10_0.85", "edge_spread"} <= figures.keys()
    faces = tmp_path / "faces.jsonl"
    faces.write_text(json.dumps({"photo": "0.jpg", "faces": [[0.3, 0.2, 0.7, 0.8]], "unsure": [[0, 0, 0.2, 0.2]]}))
    printed = run(
        "train_setcrop_lite_faces.py",
        *("--editor-data", library, "--faces", faces, "--start", out, "--output_dir", tmp_path / "faces"),
        *("--steps", 50, "--batch_size", 2),
    )
    figures = json.loads(printed.splitlines()[-1])
    assert figures["step"] == 50 and 0 < figures["middles"] < 10 and 0 < figures["boxes"] < 4
    before = SetCropForImageCropping.from_pretrained(out)
    out = tmp_path / "faces"
    model = SetCropForImageCropping.from_pretrained(out).eval()
    assert all(torch.equal(model.state_dict()[name], values.half()) for name, values in before.state_dict().items())
    assert model.config.face_finding
    assert model.config.rating_sources == ["editors", "people", "raters"] and model.config.rerank
    cropper = ImageCroppingPipeline(model=model, image_processor=Processor.from_pretrained(out))
    crops = cropper(str(library / "0.jpg"), top_k=2, aspect_ratio="1:1", tightness="tight")
    assert len(crops) == 2 and all(0 < crop["score"] < 1 for crop in crops)
