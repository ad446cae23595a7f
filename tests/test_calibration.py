"""Probabilities of good crops: the fit, how it is measured, and the command."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from modeling_setcrop import DEFAULT_CHECKPOINT, Cropper, ImageCroppingPipeline, SetCropConfig
from modeling_setcrop import SetCropForImageCropping as Model
from modeling_setcrop import SetCropImageProcessorPil as Processor
from modeling_setcrop.cli import app
from modeling_setcrop.crop_geometry import good_crop_probability
from modeling_setcrop.evaluation.calibration import are_good, cross_fitted, fit_logistic, reliability
from modeling_setcrop.runtime.checkpoint import CheckpointError, read_config

PHOTO = ROOT / "examples" / "photos" / "budgie-branch.jpg"


def drawn(slope: float, middle: float, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ratings = rng.uniform(2.5, 5, count)
    return ratings, rng.random(count) < 1 / (1 + np.exp(-slope * (ratings - middle)))


@pytest.mark.parametrize(("slope", "middle"), [(4.0, 4.0), (8.0, 4.2), (1.5, 3.0)])
def test_the_fit_finds_the_numbers_that_crops_were_drawn_with(slope, middle):
    found = fit_logistic(*drawn(slope, middle, 40_000))
    assert found.slope == pytest.approx(slope, rel=0.05) and found.middle == pytest.approx(middle, abs=0.03)


def test_the_fit_is_the_most_likely_one_of_platts_targets():
    ratings, good = drawn(5.0, 4.0, 300)
    slope, middle = fit_logistic(ratings, good)
    targets = np.where(good, (good.sum() + 1) / (good.sum() + 2), 1 / ((~good).sum() + 2))
    residual = targets - 1 / (1 + np.exp(-slope * (ratings - middle)))
    # Where the likelihood is highest, its derivatives by slope and offset are nothing.
    assert abs(residual.mean()) < 1e-5 and abs((residual * ratings).mean()) < 1e-4


def test_ratings_that_separate_good_crops_have_an_end():
    slope, middle = fit_logistic(np.array([3.0, 3.5, 4.0, 4.5]), np.array([False, False, True, True]))
    assert 0 < slope < 20 and middle == pytest.approx(3.75, abs=0.01)


@pytest.mark.parametrize("good", [[False] * 4, [True] * 4])
def test_one_kind_of_crop_is_refused(good):
    with pytest.raises(ValueError, match="good ones and others"):
        fit_logistic(np.arange(4.0), np.array(good))


def test_a_model_that_rates_upside_down_is_refused():
    with pytest.raises(ValueError, match="no higher than others"):
        fit_logistic(np.array([3.0, 3.5, 4.0, 4.5]), np.array([True, True, False, False]))


def test_each_half_of_the_images_is_judged_by_the_other():
    ratings, good = drawn(5.0, 4.0, 400)
    image = np.arange(400) // 10
    found = cross_fitted(ratings, good, image)
    even = image % 2 == 0
    np.testing.assert_array_equal(
        found[even], good_crop_probability(ratings[even], *fit_logistic(ratings[~even], good[~even]))
    )
    changed = good.copy()
    changed[np.flatnonzero(even)[:5]] ^= True
    np.testing.assert_array_equal(cross_fitted(ratings, changed, image)[even], found[even])


def test_reliability_by_hand():
    probabilities = np.array([0.9, 0.1, 0.6, 0.4])
    found = reliability(probabilities, np.array([True, False, False, True]))
    # Four crops, a bin each: 0.1 and 0, 0.4 and 1, 0.6 and 0, 0.9 and 1.
    assert found.predicted.tolist() == [0.1, 0.4, 0.6, 0.9] and found.found.tolist() == [0, 1, 0, 1]
    assert found.calibration_error == pytest.approx((0.1 + 0.6 + 0.6 + 0.1) / 4)
    assert found.brier == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)


def test_a_crop_is_good_by_the_rating_of_any_box_or_by_overlap():
    boxes = np.array([[10.0, 10, 90, 90], [12, 12, 90, 90], [40, 40, 60, 60]])
    row = {"width": 100, "height": 100, "boxes": [[10, 10, 90, 90], [40, 40, 60, 60]], "good": [True, False]}
    assert are_good(boxes, row).tolist() == [True, True, False]
    labels = {"crops": [[0.1, 0.1, 0.9, 0.9]], "ratings": [4.5], "whole": None, "subjects": [], "importance": []}
    labels |= {"square": None, "slim": None, "people": None, "faces": []}
    assert are_good(boxes, row | {"crop_labels": labels}).tolist() == [True, True, False]
    own = labels | {"crops": [], "ratings": [], "people": [0.4, 0.4, 0.6, 0.6]}
    assert are_good(boxes, row | {"crop_labels": own}).tolist() == [False, False, True]


@given(st.floats(1, 5), st.floats(0.1, 20), st.floats(1, 5))
def test_the_probability_is_the_logistic_function(rating, slope, middle):
    expected = torch.sigmoid(torch.tensor(slope * (rating - middle), dtype=torch.float64)).item()
    assert good_crop_probability(np.array(rating), slope, middle) == pytest.approx(expected, abs=1e-12)
    assert good_crop_probability(torch.tensor(rating, dtype=torch.float64), slope, middle).item() == pytest.approx(
        expected
    )


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEFAULT_CHECKPOINT, folder, ignore=shutil.ignore_patterns("examples", "evaluation"))
    return folder


def with_fields(folder, **fields):
    content = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(content))


def test_every_way_to_crop_gives_the_configs_probability(checkpoint):
    with_fields(checkpoint, probability_slope=4.0, probability_middle=4.0)
    before = Cropper(checkpoint)(str(PHOTO), details=True)
    with_fields(checkpoint, probability_slope=7.0, probability_middle=4.2)
    onnx = Cropper(checkpoint)(str(PHOTO), details=True)
    pipe = ImageCroppingPipeline(
        model=Model.from_pretrained(checkpoint), image_processor=Processor.from_pretrained(checkpoint)
    )
    for crop, other, torch_crop in zip(onnx["crops"], before["crops"], pipe(str(PHOTO)), strict=True):
        rating = 4 + np.log(other["score"] / (1 - other["score"])) / 4
        assert crop["box"] == other["box"]
        assert crop["score"] == pytest.approx(1 / (1 + np.exp(-7 * (rating - 4.2))), abs=1e-3)
        assert torch_crop["score"] == pytest.approx(crop["score"], abs=1e-3)
    processor, model = pipe.image_processor, pipe.model.eval()
    with Image.open(PHOTO) as image, torch.inference_mode():
        output = model(**processor(image.convert("RGB"), return_tensors="pt"))
    scores = processor.post_process_image_cropping(output, top_k=3)[0]["scores"]
    expected = torch.sigmoid(7 * (output.pred_ratings[0].sort(descending=True).values[:3] - 4.2))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "fields", [{"probability_slope": 0}, {"probability_slope": "steep"}, {"probability_middle": None}]
)
def test_a_config_that_cannot_be_so_names_the_field(checkpoint, fields):
    with_fields(checkpoint, **fields)
    with pytest.raises(CheckpointError, match=rf"config.json: {next(iter(fields))} must be"):
        read_config(checkpoint / "config.json")


def test_the_models_config_refuses_a_slope_that_turns_the_order_round():
    with pytest.raises(Exception, match="probability_slope must be above 0"):
        SetCropConfig(probability_slope=-1.0)


@pytest.fixture
def library(tmp_path):
    """Eight crops of the shipped photos in the layout `editor`, each image's first crop where the model says."""
    folder, cropper = tmp_path / "library", Cropper()
    folder.mkdir()
    lines = []
    for number, path in enumerate(sorted((ROOT / "examples" / "photos").glob("*.jpg"))):
        with Image.open(path) as image:
            image.draft("RGB", (600, 600))
            image = image.convert("RGB").reduce(2)
        image.save(folder / f"{number}.jpg")
        box = np.array(list(cropper(image, top_k=1)[0]["box"].values())) / np.tile(image.size, 2)
        crops = [[*box.round(3).tolist(), 4.6]]
        lines.append(json.dumps({"photo": f"{number}.jpg", "split": "val", "crops": crops, "whole": 3.0}))
    (folder / "labels.jsonl").write_text("\n".join(lines))
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_the_command_measures_and_changes_the_config_alone(checkpoint, library):
    before = json.loads((checkpoint / "config.json").read_text())
    dry = run(checkpoint, "--data", library, "--layout", "editor", "--dry-run")
    assert dry.exit_code == 0 and "nothing was changed" in dry.output, dry.output
    assert json.loads((checkpoint / "config.json").read_text()) == before
    (library / "0.jpg").write_bytes(b"\xff\xd8 broken")
    done = run(checkpoint, "--data", library, "--layout", "editor")
    assert done.exit_code == 0 and "calibration error" in done.output, done.output
    assert "Brier score" in done.output and "of 5 images" in done.output
    after = json.loads((checkpoint / "config.json").read_text())
    fitted = {name: after.pop(name) for name in ("probability_slope", "probability_middle")}
    assert after == {name: value for name, value in before.items() if name not in fitted}
    assert fitted["probability_slope"] > 0 and 3 < fitted["probability_middle"] < 5
    assert 0 < Cropper(checkpoint)(str(PHOTO), top_k=1)[0]["score"] < 1


def test_what_cannot_be_calibrated_is_said_in_one_line(checkpoint, library, tmp_path):
    for arguments, reason in (
        ((tmp_path / "none", "--data", library, "--layout", "editor"), "config.json: No such file"),
        ((checkpoint, "--data", library, "--layout", "editor", "--split", "test"), "has no split 'test'"),
        ((checkpoint, "--data", tmp_path / "none", "--layout", "editor"), "none"),
    ):
        found = run(*arguments)
        assert found.exit_code == 1 and reason in found.output and len(found.output.splitlines()) == 1, found.output
    with_fields(checkpoint, crop_scoring=False)
    found = run(checkpoint, "--data", library, "--layout", "editor")
    assert found.exit_code == 1 and "no scoring head" in found.output
