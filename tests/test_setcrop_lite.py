"""`setcrop init`: the untrained setcrop-lite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_ssd_files import tensorflow_tensors, write
from PIL import Image
from training_data import write_editor
from transformers import MobileNetV2Config, MobileNetV2Model
from typer.testing import CliRunner

from modeling_setcrop import SetCropForImageCropping, SetCropImageProcessorPil
from modeling_setcrop.cli import app
from modeling_setcrop.crop_geometry import gaic_grid, xyxy_to_cxcywh


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("coco-ssd")
    write(folder, tensorflow_tensors(MobileNetV2Model(MobileNetV2Config(tf_padding=True)).eval()))
    return folder


def crops_folder(root: Path, crops: int) -> Path:
    """One image with that many different good crops, none of them on GAIC's grid."""
    root.mkdir()
    Image.new("RGB", (200, 100), "olive").save(root / "0.png")
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.integers(0, 30, (crops, 2)), [200, 100] - rng.integers(1, 30, (crops, 2))], axis=1)
    entry = {"file_name": "0.png", "boxes": boxes.tolist(), "scores": [5.0] * crops, "split": "train"}
    (root / "metadata.jsonl").write_text(json.dumps(entry))
    return root


def initialise(*arguments: object):
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


def test_anchors_start_on_the_grid_and_everything_loads_again(detector, tmp_path):
    result = initialise(tmp_path / "start", "--coco-weights", detector)
    assert result.exit_code == 0, result.output
    assert "3.6 M parameters" in result.stdout
    model = SetCropForImageCropping.from_pretrained(tmp_path / "start").eval()
    processor = SetCropImageProcessorPil.from_pretrained(tmp_path / "start")
    with torch.no_grad():
        outputs = model(**processor(Image.new("RGB", (90, 70), "teal"), return_tensors="pt"))
    grid = torch.from_numpy(xyxy_to_cxcywh(gaic_grid())).float()
    torch.testing.assert_close(outputs.pred_boxes[0], grid, atol=1e-6, rtol=0)
    assert outputs.pred_ratings.shape == (1, 90)


def test_anchors_start_at_the_good_crops_of_given_data(detector, tmp_path):
    data = crops_folder(tmp_path / "data", crops=300)
    result = initialise(tmp_path / "start", "--coco-weights", detector, "--data", data, "--layout", "folder")
    assert result.exit_code == 0, result.output
    model = SetCropForImageCropping.from_pretrained(tmp_path / "start").eval()
    with torch.no_grad():
        boxes = model(torch.zeros(1, 3, 64, 96)).pred_boxes[0]
    # The crops' sides are 71 to 100 % of the image's width and 42 to 99 % of its height, and so are their means.
    assert (boxes[:, 2] > 0.7).all() and (boxes[:, 3] > 0.4).all() and len(boxes.unique(dim=0)) == 90
    grid = torch.from_numpy(xyxy_to_cxcywh(gaic_grid())).float()
    assert (boxes[:, None] - grid[None]).abs().amax(-1).amin() > 1e-4


def test_a_model_for_an_editors_library_has_what_its_labels_train(detector, tmp_path):
    data = write_editor(tmp_path / "library", train=45)
    result = initialise(tmp_path / "start", "--coco-weights", detector, "--data", data, "--layout", "editor")
    assert result.exit_code == 0, result.output
    config = SetCropForImageCropping.from_pretrained(tmp_path / "start").config
    assert config.subject_map and config.rating_sources == ["editors", "people"]
    assert (config.quality_lower, config.quality_upper) == (3.5, 4.75)


def test_what_is_missing_is_said_in_one_line(detector, tmp_path):
    few = crops_folder(tmp_path / "data", crops=20)
    result = initialise(tmp_path / "start", "--coco-weights", detector, "--data", few, "--layout", "folder")
    assert result.exit_code == 1
    assert result.stderr.startswith("setcrop init: 90 anchors need at least as many different good crops, and")
    assert "without a data set anchors start on GAIC's grid" in result.stderr
    result = initialise(tmp_path / "start", "--coco-weights", tmp_path)
    assert result.exit_code == 1 and result.stderr.startswith("setcrop init: ") and "model.json" in result.stderr
    assert not (tmp_path / "start").exists()


def test_what_lies_in_the_folder_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"mine")
    for place in (tmp_path / "mine", tmp_path / "mine" / "model.safetensors"):
        result = initialise(place)
        assert result.exit_code == 1
        assert result.stderr == f"setcrop init: {place}: exists already; choose another folder\n"
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == b"mine"
