"""What works for a detector of transformers works for SetCrop: Auto classes and the object-detection pipeline."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline

from modeling_setcrop import DEFAULT_CHECKPOINT, SetCropForImageCropping, SetCropModel
from modeling_setcrop.crop_geometry import box_iou

BOX = ("xmin", "ymin", "xmax", "ymax")


@pytest.fixture(scope="module")
def detector(tiny_checkpoint):
    return pipeline("object-detection", model=str(tiny_checkpoint))


def test_auto_model_is_the_base_model_and_the_detection_class_has_the_heads(tiny_checkpoint, tiny_model):
    base = AutoModel.from_pretrained(tiny_checkpoint)
    assert type(base) is SetCropModel
    assert type(AutoModelForObjectDetection.from_pretrained(tiny_checkpoint)) is SetCropForImageCropping
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = base(pixels).last_hidden_state, tiny_model(pixels).last_hidden_state
    assert torch.equal(found, expected)


def test_object_detection_ranks_crops_as_image_cropping_does(photos):
    # The embedded model: one with random weights rates its crops so alike that rounding decides.
    detector = pipeline("object-detection", model=DEFAULT_CHECKPOINT)
    cropper = pipeline("image-cropping")
    for photo in photos[:3]:
        with Image.open(photo) as opened:  # so small that the image-cropping pipeline has nothing to reduce
            image = opened.convert("RGB").resize((240, 160))
        found = detector(image, threshold=0.0)
        expected = cropper(image, top_k=None)
        assert len(found) >= 1
        assert found[0].keys() == {"score", "label", "box"}
        assert {crop["label"] for crop in found} == {"crop"}
        scores = [crop["score"] for crop in found]
        assert scores == sorted(scores, reverse=True)
        # Which also moves its best crops to where the ratings around them are highest.
        first, best = (np.array([[crop["box"][edge] for edge in BOX]], float) for crop in (found[0], expected[0]))
        assert box_iou(first, best)[0, 0] > 0.8
        assert found[0]["score"] <= expected[0]["score"] + 0.01


def test_object_detection_takes_batches_and_its_threshold(detector, photos):
    both = [str(photo) for photo in photos[:2]]
    batch = detector(both, batch_size=2, threshold=0.0)
    for crops, alone in zip(batch, detector(both, threshold=0.0), strict=True):
        assert crops[0]["score"] == pytest.approx(alone[0]["score"], abs=0.05)
    assert detector(both[0], threshold=1.0) == []


def test_object_detection_does_not_complain_of_the_model(tiny_checkpoint):
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        pipeline("object-detection", model=str(tiny_checkpoint))
    finally:
        logger.removeHandler(handler)
    assert not messages


def test_crops_for_a_detector_rank_as_crops(tiny_model, tiny_processor):
    with torch.inference_mode():
        output = tiny_model(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
    sizes = [(480, 720), (640, 960)]
    found = tiny_processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
    expected = tiny_processor.post_process_image_cropping(output, sizes, nms_iou=0.8)
    for crops, others in zip(found, expected, strict=True):
        assert torch.equal(crops["boxes"], others["boxes"]) and torch.equal(crops["scores"], others["scores"])
        assert crops["labels"].tolist() == [0] * len(others["scores"])


def test_code_written_for_auto_model_is_told_what_to_load(tiny_checkpoint):
    """`AutoModel` used to load the model with heads."""
    model = AutoModel.from_pretrained(tiny_checkpoint)
    processor = AutoImageProcessor.from_pretrained(tiny_checkpoint)
    sentence = "AutoModel loads SetCrop without its heads, AutoModelForObjectDetection with them"
    with pytest.raises(AttributeError, match=sentence):
        model.score_crops(torch.rand(1, 2, 4))
    with pytest.raises(AttributeError, match=sentence):
        processor.post_process_image_cropping(model(torch.zeros(1, 3, 64, 64)))
    pixels = torch.zeros(1, 3, 64, 64)
    with pytest.raises(KeyError, match=sentence):
        model(pixels)["logits"]
    with pytest.raises(AttributeError, match=f"'loss': {sentence}"):
        _ = model(pixels).loss
    with pytest.raises(TypeError, match=f"'labels': {sentence}"):
        model(pixels, labels=[{"boxes": torch.rand(1, 4)}])
    with pytest.raises(AttributeError, match=sentence):
        pipeline("object-detection", model=model, image_processor=processor)(Image.new("RGB", (90, 60)))
    with pytest.raises(AttributeError, match="no attribute 'wings'"):
        _ = model.wings


def test_a_checkpoint_that_names_auto_model_still_loads(tiny_checkpoint, photos, tmp_path):
    """As `setcrop export hub` and `pipeline.save_pretrained` wrote it when `AutoModel` had the heads."""
    folder = tmp_path / "old"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_setcrop.SetCropConfig",
        "AutoModel": "modeling_setcrop.SetCropForImageCropping",
    }
    config["custom_pipelines"] = {
        "image-cropping": {
            "impl": "pipeline_image_cropping.ImageCroppingPipeline",
            "pt": ["AutoModel"],
            "type": "image",
        }
    }
    (folder / "config.json").write_text(json.dumps(config))
    expected = pipeline("image-cropping", model=str(tiny_checkpoint))(str(photos[0]))
    assert pipeline("image-cropping", model=str(folder))(str(photos[0])) == expected
    assert type(AutoModelForObjectDetection.from_pretrained(folder)) is SetCropForImageCropping
