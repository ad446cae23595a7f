"""The image processor: sizes, labels and decoding."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.modeling_outputs import ModelOutput

from modeling_setcrop import SetCropImageProcessorPil
from modeling_setcrop.image_preprocessing import ImagePreprocessing, resized_size
from modeling_setcrop.image_processing_pil_setcrop import encode_crops
from modeling_setcrop.image_sources import read_any_image


def test_pixels_are_normalised_padded_and_masked(tiny_processor):
    wide, tall = Image.new("RGB", (200, 100), (255, 0, 0)), Image.new("RGB", (100, 100))
    batch = tiny_processor([wide, tall], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 96, 128) and batch["pixel_mask"].shape == (2, 96, 128)
    assert batch["pixel_mask"][0].sum() == 64 * 128 and batch["pixel_mask"][1].sum() == 96 * 96
    mean, std = tiny_processor.image_mean, tiny_processor.image_std
    assert batch["pixel_values"][0, 0, 10, 10].item() == pytest.approx((1 - mean[0]) / std[0], abs=1e-5)


@given(height=st.integers(1, 20000), width=st.integers(1, 20000))
def test_sizes_keep_the_ratio_where_the_model_can_see_it(height, width):
    new_height, new_width = resized_size((height, width), 176, 224)
    assert 32 <= min(new_height, new_width) <= 176 and max(new_height, new_width) <= 224
    scale = min(176 / min(height, width), 224 / max(height, width))
    if min(height, width) * scale >= 32:
        assert abs(new_height - height * scale) <= 0.5 and abs(new_width - width * scale) <= 0.5


def test_labels_are_shares_of_the_image_whatever_its_padding(tiny_processor):
    images = [Image.new("RGB", (400, 200)), Image.new("RGB", (100, 200))]
    annotation = {"boxes": [[40, 20, 360, 180], [0, 0, 400, 200]], "scores": [4.5, 3.0], "good": [True, False]}
    second = {"boxes": [[10, 20, 90, 180]], "scores": None, "good": [True]}
    labels = tiny_processor(images, annotations=[annotation, second], return_tensors="pt")["labels"]
    torch.testing.assert_close(labels[0]["boxes"], torch.tensor([[0.5, 0.5, 0.8, 0.8]]))
    torch.testing.assert_close(labels[0]["scored_boxes"], torch.tensor([[0.5, 0.5, 0.8, 0.8], [0.5, 0.5, 1.0, 1.0]]))
    assert labels[0]["scores"].tolist() == [4.5, 3.0] and labels[0]["class_labels"].tolist() == [0]
    torch.testing.assert_close(labels[1]["boxes"], torch.tensor([[0.5, 0.5, 0.8, 0.8]]))
    assert labels[1]["scores"].shape == (0,) and labels[1]["scored_boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"boxes": [[0, 0, 9, 9]], "scores": [3], "good": []}, "'good'"),
        ({"boxes": [[0, 0, 9, 9]], "scores": [3, 4], "good": [True]}, "scores"),
        ({"boxes": [[5, 0, 5, 9]], "scores": [3], "good": [True]}, "x1 < x2"),
        ({"boxes": [[float("nan"), 0, 5, 9]], "scores": [3], "good": [True]}, "x1 < x2"),
        ({"boxes": [[0, 0, 9, 9]], "scores": [float("nan")], "good": [True]}, "finite"),
        ({"boxes": [[0, 0, 9, 9], [0, 0, 500, 9]], "scores": None, "good": [True, True]}, "inside the image"),
        ({"boxes": [[-5, 0, 9, 9]], "scores": None, "good": [True]}, "inside the image"),
        ({"boxes": [[0.1, 0.1, 0.9, 1]], "scores": None, "good": [True]}, "not normalised"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(annotation, message):
    with pytest.raises(ValueError, match=message):
        encode_crops(annotation, (10, 10))


def test_as_many_annotations_as_images(tiny_processor):
    with pytest.raises(ValueError, match="1 images, but 0 annotations"):
        tiny_processor(Image.new("RGB", (50, 50)), annotations=[], return_tensors="pt")


@given(seed=st.integers(0, 1000), top_k=st.integers(1, 9), nms_iou=st.sampled_from([None, 0.5, 0.8]))
def test_crops_are_ranked_inside_and_at_most_so_many(seed, top_k, nms_iou):
    generator = torch.Generator().manual_seed(seed)
    outputs = ModelOutput(
        logits=torch.randn(2, 8, 1, generator=generator), pred_boxes=torch.rand(2, 8, 4, generator=generator)
    )
    sizes = [(100, 200), (33, 47)]
    results = SetCropImageProcessorPil().post_process_image_cropping(outputs, sizes, top_k=top_k, nms_iou=nms_iou)
    for result, (height, width) in zip(results, sizes, strict=True):
        scores, boxes = result["scores"], result["boxes"]
        assert 1 <= len(scores) == len(boxes) <= top_k
        assert (scores[:-1] >= scores[1:]).all() and (scores > 0).all() and (scores <= 1).all()
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    best = outputs.logits[0, :, 0].sigmoid().max()
    assert results[0]["scores"][0].item() == pytest.approx(best.item(), abs=1e-6)


def test_threshold_may_leave_nothing():
    outputs = ModelOutput(logits=torch.zeros(1, 3, 1), pred_boxes=torch.full((1, 3, 4), 0.5))
    processor = SetCropImageProcessorPil()
    assert len(processor.post_process_image_cropping(outputs, threshold=0.5)[0]["scores"]) == 0
    assert len(processor.post_process_image_cropping(outputs, threshold=0.49)[0]["scores"]) == 3


def test_reranking_goes_by_the_predicted_scores():
    validity = torch.tensor([[0.64, 0.5, 0.1]])
    outputs = SimpleNamespace(
        logits=validity.logit()[..., None],
        pred_boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.8, 0.8]]]),
        pred_ratings=torch.tensor([[4.0, 3.5, 4.5]]),
        pred_probabilities=torch.tensor([[0.5, 0.125, 0.875]]),
    )
    processor = SetCropImageProcessorPil()
    assert processor.post_process_image_cropping(outputs)[0]["scores"].tolist() == [0.875, 0.5, 0.125]
    outputs.pred_probabilities = None
    with pytest.raises(ValueError, match="pred_probabilities"):
        processor.post_process_image_cropping(outputs)
    outputs.pred_ratings = None
    found = processor.post_process_image_cropping(outputs)[0]["scores"].tolist()
    assert found == pytest.approx(validity[0].tolist(), abs=1e-6)


def test_the_auto_class_finds_the_processor(tiny_checkpoint, tiny_processor):
    loaded = AutoImageProcessor.from_pretrained(tiny_checkpoint)
    assert loaded.to_dict() == tiny_processor.to_dict()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8))
    ours, again = tiny_processor(image, return_tensors="pt"), loaded(image, return_tensors="pt")
    assert torch.equal(ours["pixel_values"], again["pixel_values"])


def test_a_set_starts_with_the_best_crop_and_goes_on_with_what_it_does_not_cover():
    """Two near copies of the best crop and one elsewhere: the third crop comes second."""
    boxes = torch.tensor([[[0.5, 0.5, 0.9, 0.9], [0.51, 0.5, 0.9, 0.9], [5 / 12, 5 / 12, 0.75, 0.75]]])
    outputs = SimpleNamespace(
        logits=torch.zeros(1, 3, 1),
        pred_boxes=boxes,
        pred_ratings=torch.tensor([[4.5, 4.4, 3.0]]),
        pred_probabilities=torch.tensor([[0.9, 0.8, 0.1]]),
    )
    processor = SetCropImageProcessorPil()
    (found,) = processor.post_process_image_cropping(outputs, [(100, 200)], as_set=True)
    torch.testing.assert_close(found["boxes"][1], torch.tensor([200 / 24, 100 / 24, 200 * 19 / 24, 100 * 19 / 24]))
    assert found["scores"].argmax() == 0 and found["scores"][1] < found["scores"][2]
    (two,) = processor.post_process_image_cropping(outputs, as_set=True, top_k=2)
    assert len(two["boxes"]) == 2


@pytest.mark.parametrize("size", [(70, 90), (300, 40), (500, 900)])
def test_the_runtimes_preprocessing_is_the_image_processors(tiny_processor, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    expected = tiny_processor(image, return_tensors="np", do_pad=False)["pixel_values"][0]
    found = ImagePreprocessing.from_dict(tiny_processor.to_dict())(image)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_std": [0, 1, 1]}, "image_std must be above 0"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
        ({"image_std": ["a", 1, 1]}, "image_std must be three numbers"),
        ({"size": {"shortest_edge": -1, "longest_edge": 5}}, "shortest_edge must be a whole number"),
        ({"size": {"shortest_edge": 224}}, "size must have"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(tiny_processor, fields, message):
    with pytest.raises(ValueError, match=message):
        ImagePreprocessing.from_dict(tiny_processor.to_dict() | fields)


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_are_what_the_pipeline_sees(tiny_processor, mode):
    values = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    image = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(values[..., 1]))
    preprocessing = ImagePreprocessing.from_dict(tiny_processor.to_dict())
    expected = preprocessing(read_any_image(image, 80).image)
    found = tiny_processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_annotations_of_neither_form_are_refused(tiny_processor):
    image = np.zeros((120, 160, 3), np.uint8)
    for wrong in ([[{"bbox": [0, 0, 5, 5]}]], {"boxes": [[0, 0, 5, 5]]}, {"segments_info": []}):
        with pytest.raises(ValueError, match="annotations are a dict for each image, with 'annotations'"):
            tiny_processor(image, annotations=wrong)
