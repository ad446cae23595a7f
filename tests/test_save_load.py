"""Saving and loading restores everything exactly and silently."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from modeling_setcrop import DEFAULT_CHECKPOINT, InvertedResidualConfig, SetCropConfig, SetCropForImageCropping


def without_path(content: dict) -> dict:
    return {name: value for name, value in content.items() if name != "_name_or_path"}


def test_the_model_comes_back_exactly(tiny_model, tiny_processor, tmp_path, photos):
    from PIL import Image

    tiny_model.save_pretrained(tmp_path)
    loaded, report = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SetCropForImageCropping
    assert not loaded.training
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    state = loaded.state_dict()
    assert state.keys() == tiny_model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny_model.state_dict().items())
    with Image.open(photos[0]) as photo:
        inputs = tiny_processor(photo.reduce(4), return_tensors="pt")
    with torch.inference_mode():
        found, expected = loaded(**inputs), tiny_model(**inputs)
    for name in ("logits", "pred_boxes", "pred_ratings"):
        assert torch.equal(found[name], expected[name])


def test_the_config_comes_back_exactly(tmp_path):
    config = SetCropConfig(
        backbone_config=InvertedResidualConfig(
            variant="efficientnet_lite1", out_features=["stage3", "stage5"], hypercolumn=True
        ),
        num_queries=17,
        label_smoothing="distillation",
        distillation_momentum=0.25,
        crop_scoring=True,
        rerank=True,
        anchor_sizes=True,
        d_model=64,
    )
    config.save_pretrained(tmp_path / "first")
    loaded = AutoConfig.from_pretrained(tmp_path / "first")
    assert type(loaded) is SetCropConfig
    assert type(loaded.backbone_config) is InvertedResidualConfig
    loaded.save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "config.json").read_text() == (tmp_path / "first" / "config.json").read_text()


def test_a_checkpoint_that_names_its_backbone_as_before_loads_and_is_saved_anew(tmp_path, messages):
    folder = shutil.copytree(DEFAULT_CHECKPOINT, tmp_path / "former", ignore=shutil.ignore_patterns("onnx"))
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["model_type"] = "efficientnet_lite"
    (folder / "config.json").write_text(json.dumps(config))
    former, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert messages == [] and not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    now = AutoModelForObjectDetection.from_pretrained(DEFAULT_CHECKPOINT)
    assert former.config.to_diff_dict() == now.config.to_diff_dict()
    state = now.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in former.state_dict().items())
    former.save_pretrained(tmp_path / "anew")
    assert "efficientnet" not in (tmp_path / "anew" / "config.json").read_text()


def test_the_image_processor_comes_back_exactly(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(tiny_processor)
    assert loaded.to_dict() == tiny_processor.to_dict()


def test_weights_are_safetensors_and_nothing_else(tiny_checkpoint):
    names = {path.name for path in tiny_checkpoint.iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize("checkpoint", ["tiny", DEFAULT_CHECKPOINT], ids=["tiny", "embedded"])
def test_loading_says_nothing_a_user_would_have_to_ask_about(checkpoint, tiny_checkpoint, messages):
    folder = tiny_checkpoint if checkpoint == "tiny" else Path(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
        AutoImageProcessor.from_pretrained(folder)
    assert messages == []
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
