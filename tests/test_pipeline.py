"""The pipeline: what callers pass in and get back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import pipeline

import modeling_setcrop
from modeling_setcrop.crop_constraints import ConstraintError
from modeling_setcrop.image_reading import LoadedImage
from modeling_setcrop.image_sources import read_any_image


@pytest.fixture(scope="module")
def cropper(tiny_checkpoint):
    assert modeling_setcrop.ImageCroppingPipeline
    return pipeline("image-cropping", model=str(tiny_checkpoint))


def check(crops, size):
    width, height = size
    assert crops
    for crop in crops:
        box = crop["box"]
        assert 0 <= box["xmin"] < box["xmax"] <= width and 0 <= box["ymin"] < box["ymax"] <= height
        assert 0 <= crop["score"] <= 1
    scores = [crop["score"] for crop in crops]
    assert scores == sorted(scores, reverse=True)


def test_path_image_and_reduced_image_give_the_same_crops(cropper, photos):
    crops = cropper(str(photos[0]), top_k=3)
    with Image.open(photos[0]) as image:
        check(crops, image.size)
        reduced = LoadedImage(image.convert("RGB").reduce(2), (image.height, image.width))
    assert len(crops) == 3
    assert cropper(photos[0], top_k=3) == crops
    others = cropper(reduced, top_k=3)
    assert [crop["score"] for crop in others] == pytest.approx([crop["score"] for crop in crops], abs=0.02)
    assert max(crop["box"]["xmax"] for crop in others) > reduced.image.width


def test_results_do_not_depend_on_the_batch_or_the_run(cropper, photos):
    paths = [str(photo) for photo in photos[:4]]
    options = {"aspect_ratio": ["16:9", "4:5"], "details": True, "top_k": 3}
    alone = [cropper(path, **options) for path in paths]
    assert cropper(paths, batch_size=3, **options) == alone
    assert cropper(paths, **options) == alone


def test_boxes_are_those_of_the_upright_image(cropper, photos, tmp_path):
    with Image.open(photos[0]) as image:
        upright = image.convert("RGB").resize((300, 200))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    expected = cropper(tmp_path / "upright.png")
    assert cropper(tmp_path / "turned.png") == expected
    with Image.open(tmp_path / "turned.png") as image:
        assert cropper(image) == expected


def test_every_aspect_ratio_of_a_list_has_its_crops(cropper, photos):
    crops = cropper(str(photos[0]), aspect_ratio=["16:9", 1, "original", "free"], top_k=2)
    assert [crop["aspect_ratio"] for crop in crops] == ["16:9", "16:9", 1, 1, "original", "original", "free", "free"]
    for crop, ratio in zip(crops[:4], [16 / 9, 16 / 9, 1, 1], strict=True):
        box = crop["box"]
        assert abs((box["xmax"] - box["xmin"]) - ratio * (box["ymax"] - box["ymin"])) <= 1


def test_several_ratios_encode_the_image_once(cropper, photos, monkeypatch):
    calls = []
    encode = cropper.model.model.encode
    monkeypatch.setattr(
        cropper.model.model, "encode", lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs)
    )
    cropper(str(photos[0]), aspect_ratio=["16:9", "1:1", "4:5", "9:16"], details=True)
    assert len(calls) == 1


def test_constraints_hold_or_are_reported(cropper, photos):
    photo = str(photos[0])
    with Image.open(photo) as image:
        width, height = image.size
    keep = [[width // 3, height // 3, width // 2, height // 2], [10, 10]]
    for crop in cropper(photo, aspect_ratio="1:1", keep=keep, min_area=0.2, max_area=0.9):
        box = crop["box"]
        assert "gave_way" not in crop
        assert box["xmin"] <= 10 and box["ymin"] <= 10 and box["xmax"] >= width // 2 and box["ymax"] >= height // 2
    wide = [[0, 0, width, 20]]
    assert cropper(photo, aspect_ratio="9:16", keep=wide)[0]["gave_way"] == ["keep"]
    with pytest.raises(ConstraintError):
        cropper(photo, aspect_ratio="9:16", keep=wide, strict=True)


def test_details_say_whether_to_crop_and_where_to_look(cropper, photos):
    result = cropper(str(photos[0]), details=True, top_k=1)
    assert set(result) == {"crops", "keep_original", "improves", "focus_point"}
    assert -1 <= result["improves"] <= 1 and 0 <= result["keep_original"] <= 1
    assert all(0 <= result["focus_point"][axis] <= 1 for axis in "xy")


def test_ratios_are_ranked_by_the_scoring_head(cropper, photos):
    crops = cropper(str(photos[0]), aspect_ratio="1:1", min_area=0.5, top_k=4)
    loaded = read_any_image(photos[0], cropper.short_side)
    height, width = loaded.size
    boxes = torch.tensor([list(crop["box"].values()) for crop in crops]) / torch.tensor([width, height] * 2)
    boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    pixels = torch.from_numpy(cropper.prepare(loaded))[None]
    with torch.inference_mode():
        scores = cropper.model.score_crops(boxes[None], pixel_values=pixels)[0]
    expected = torch.sigmoid(4 * (scores - 4)).tolist()
    assert [crop["score"] for crop in crops] == pytest.approx(expected, abs=1e-4)


def test_the_callers_own_image_stays_as_it_is(cropper, photos):
    with Image.open(photos[0]) as image:
        size = image.size
        expected = cropper(str(photos[0]))
        found = cropper(image)
        assert image.size == size and np.asarray(image).shape[:2] == size[::-1]
    assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=0.05)


def test_no_image_is_no_answer(cropper):
    assert cropper([]) == []


def test_unknown_options_and_impossible_values_are_refused_before_anything_is_read(cropper, photos):
    with pytest.raises(TypeError, match="did you mean 'top_k'"):
        cropper("no-such-file.jpg", topk=3)
    for options in ({"threshold": 50}, {"nms_iou": 80}, {"top_k": -1}, {"aspect_ratio": "wide"}):
        with pytest.raises(ValueError, match="|".join((*options, "aspect ratio"))):
            cropper("no-such-file.jpg", **options)
    with pytest.raises(ValueError, match="this model has no tightness 'tight'"):
        cropper("no-such-file.jpg", tightness="tight")
    with pytest.raises(ValueError, match=r"point .* lies outside the image"):
        cropper(str(photos[0]), keep=[(10**6, 3)])


def test_crops_of_one_call_can_be_kept_in_another(cropper, photos):
    (crop,) = cropper(str(photos[0]), top_k=1)
    for kept in cropper(str(photos[0]), keep=[crop["box"]]):
        assert kept["box"]["xmin"] <= crop["box"]["xmin"] and kept["box"]["ymax"] >= crop["box"]["ymax"]


def test_everything_leaves_the_device_before_it_is_made_double(cropper, photos, monkeypatch):
    """Some accelerators have no float64: a stand-in for their tensors refuses it."""

    def refuse(self, *args, **kwargs):
        if torch.float64 in (*args, kwargs.get("dtype")) and getattr(self, "on_device", False):
            raise TypeError("this device has no float64")
        return convert(self, *args, **kwargs)

    def leave(self, *args, **kwargs):
        return torch.Tensor.clone(self)

    convert = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", refuse)
    monkeypatch.setattr(torch.Tensor, "cpu", leave)
    monkeypatch.setattr(torch.Tensor, "double", lambda self: refuse(self, torch.float64))
    forward = cropper.model.forward

    def on_device(*args, **kwargs):
        output = forward(*args, **kwargs)
        for value in output.values():
            if isinstance(value, torch.Tensor):
                value.on_device = True
        return output

    monkeypatch.setattr(cropper.model, "forward", on_device)
    assert cropper(str(photos[0]), aspect_ratio="1:1", details=True)["crops"]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2000, 60), (40, 1600)])
@pytest.mark.parametrize("ratio", [None, "16:9", "9:16"])
def test_extreme_images_still_give_crops(cropper, size, ratio):
    check(cropper(Image.new("RGB", size, "teal"), aspect_ratio=ratio), size)


def test_threshold_may_leave_nothing_and_bad_options_are_named(cropper, photos):
    assert cropper(str(photos[0]), threshold=1.0) == []
    with pytest.raises(ValueError, match="aspect ratio 'wide'"):
        cropper(str(photos[0]), aspect_ratio="wide")


def test_a_set_holds_the_best_crop(cropper, photos):
    best, *rest = cropper(str(photos[0]), top_k=4, as_set=True)
    assert len(rest) == 3
    assert best == cropper(str(photos[0]), top_k=1)[0]
    assert len({tuple(crop["box"].values()) for crop in (best, *rest)}) == 4
