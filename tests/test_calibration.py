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
from modeling_setcrop.crop_geometry import GoodCropProbability, cut_off_by
from modeling_setcrop.evaluation.calibration import (
    JudgedCrops,
    are_good,
    cross_fitted,
    fit_probability,
    reliability,
    window_of,
)
from modeling_setcrop.runtime.checkpoint import CheckpointError, read_config

PHOTO = ROOT / "examples" / "photos" / "budgie-branch.jpg"
with Image.open(PHOTO) as opened:
    SIZE = opened.size


def drawn(slope: float, middle: float, count: int, cut_off: float = 0.0, seed: int = 0) -> JudgedCrops:
    rng = np.random.default_rng(seed)
    ratings = rng.uniform(2.5, 5, count)
    good = rng.random(count) < 1 / (1 + np.exp(-slope * (ratings - middle)))
    return JudgedCrops(ratings, np.full(count, cut_off), good, np.arange(count) // 10)


def together(*parts: JudgedCrops) -> JudgedCrops:
    return JudgedCrops(*map(np.concatenate, zip(*parts, strict=True)))


@pytest.mark.parametrize(("slope", "middle"), [(4.0, 4.0), (8.0, 4.2), (1.5, 3.0)])
def test_the_fit_finds_the_numbers_that_crops_were_drawn_with(slope, middle):
    start = GoodCropProbability(4.0, 4.0, 3.0, 2.0)
    found = fit_probability(drawn(slope, middle, 40_000), start)
    assert found.slope == pytest.approx(slope, rel=0.05) and found.middle == pytest.approx(middle, abs=0.03)
    assert found[2:] == start[2:]  # no crop has a shape that was given


def test_the_fit_finds_what_a_given_shape_changes():
    # By hand: slope 8 e^(-2 c), middle 4 - 1.5 c.
    parts = [drawn(8 * np.exp(-2 * c), 4 - 1.5 * c, 30_000, c, seed) for seed, c in enumerate((0.0, 0.2, 0.4, 0.6))]
    found = fit_probability(together(*parts))
    assert found.slope == pytest.approx(8, rel=0.05) and found.middle == pytest.approx(4, abs=0.03)
    assert found.softening == pytest.approx(2, abs=0.15) and found.lowering == pytest.approx(1.5, abs=0.1)


def test_the_fit_is_the_most_likely_one_of_platts_targets():
    crops = drawn(5.0, 4.0, 300)
    found = fit_probability(crops)
    good, others = crops.good.sum(), (~crops.good).sum()
    targets = np.where(crops.good, (good + 1) / (good + 2), 1 / (others + 2))
    residual = targets - 1 / (1 + np.exp(-found.slope * (crops.ratings - found.middle)))
    # Where the likelihood is highest, its derivatives by slope and offset are nothing.
    assert abs(residual.mean()) < 1e-4 and abs((residual * crops.ratings).mean()) < 4e-4


def judged(ratings: list[float], good: list[bool]) -> JudgedCrops:
    return JudgedCrops(np.array(ratings), np.zeros(len(good)), np.array(good), np.arange(len(good)))


def test_ratings_that_separate_good_crops_have_an_end():
    found = fit_probability(judged([3.0, 3.5, 4.0, 4.5], [False, False, True, True]))
    assert 0 < found.slope < 20 and found.middle == pytest.approx(3.75, abs=0.01)


@pytest.mark.parametrize("good", [[False] * 4, [True] * 4])
def test_one_kind_of_crop_is_refused(good):
    with pytest.raises(ValueError, match="good ones and others"):
        fit_probability(judged([1.0, 2.0, 3.0, 4.0], good))


def test_a_model_that_rates_upside_down_is_refused():
    with pytest.raises(ValueError, match="no higher than others"):
        fit_probability(judged([3.0, 3.5, 4.0, 4.5], [True, True, False, False]))


def test_each_half_of_the_images_is_judged_by_the_other():
    crops = drawn(5.0, 4.0, 400)
    found, even = cross_fitted(crops), crops.image % 2 == 0
    np.testing.assert_array_equal(found[even], fit_probability(crops.some(~even))(crops.ratings[even], 0.0))
    changed = crops.good.copy()
    changed[np.flatnonzero(even)[:5]] ^= True
    np.testing.assert_array_equal(cross_fitted(crops._replace(good=changed))[even], found[even])


def test_the_window_that_the_labels_want():
    labels = {"crops": [], "ratings": [], "whole": None, "subjects": [], "importance": [], "people": None, "faces": []}
    row = {"width": 300, "height": 200, "crop_labels": labels | {"square": 0.4, "slim": 0.3}}
    # A square of 300 x 200 is 200 wide; its middle at 0.4 of 300 is 120.
    assert window_of(1.0, row) == pytest.approx([20, 0, 220, 200])
    assert window_of(9 / 16, row) == pytest.approx([90 - 56.25, 0, 90 + 56.25, 200])
    upright = {"width": 200, "height": 300, "crop_labels": row["crop_labels"]}
    assert window_of(1.0, upright) == pytest.approx([0, 20, 200, 220])
    assert window_of(1.0, row | {"height": 295}) is None
    assert window_of(1.0, row | {"crop_labels": None}) is None
    assert window_of(1.0, row | {"crop_labels": labels | {"square": None, "slim": None}}) is None


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


@given(st.floats(1, 5), st.floats(0.1, 20), st.floats(1, 5), st.floats(0, 4), st.floats(0, 3), st.floats(0, 0.9))
def test_the_probability_is_the_logistic_function(rating, slope, middle, softening, lowering, cut_off):
    steep = slope * np.exp(-softening * cut_off)
    expected = torch.sigmoid(torch.tensor(steep * (rating - middle + lowering * cut_off), dtype=torch.float64)).item()
    probability = GoodCropProbability(slope, middle, softening, lowering)
    assert probability(np.array(rating), cut_off) == pytest.approx(expected, abs=1e-12)
    tensor = probability(torch.tensor(rating, dtype=torch.float64), cut_off)
    assert tensor.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("aspect_ratio", "size", "expected"), [(1.5, (200, 300), 0), (1.0, (200, 300), 1 / 3), (2.0, (200, 300), 1 / 4)]
)
def test_what_a_shape_cuts_off(aspect_ratio, size, expected):
    assert cut_off_by(aspect_ratio, size) == pytest.approx(expected)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEFAULT_CHECKPOINT, folder, ignore=shutil.ignore_patterns("examples", "evaluation"))
    return folder


def with_fields(folder, **fields):
    content = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(content))


def test_every_way_to_crop_gives_the_configs_probability(checkpoint):
    numbers = dict.fromkeys(("probability_softening", "probability_lowering"), 0.0)
    with_fields(checkpoint, **numbers, probability_slope=4.0, probability_middle=4.0)
    before = Cropper(checkpoint)(str(PHOTO), details=True)
    (square,) = Cropper(checkpoint)(str(PHOTO), aspect_ratio=1, top_k=1)
    numbers = {"probability_softening": 2.0, "probability_lowering": 1.5}
    with_fields(checkpoint, **numbers, probability_slope=7.0, probability_middle=4.2)
    (same,) = Cropper(checkpoint)(str(PHOTO), aspect_ratio=1, top_k=1)
    rating, cut_off = 4 + np.log(square["score"] / (1 - square["score"])) / 4, 1 - min(SIZE) / max(SIZE)
    logit = 7 * np.exp(-2 * cut_off) * (rating - 4.2 + 1.5 * cut_off)
    assert same["box"] == square["box"] and same["score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-3)
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
    """The shipped photos in the layout `editor`, each one's crop and square where the model has them."""
    folder, cropper = tmp_path / "library", Cropper()
    folder.mkdir()
    lines = []
    for number, path in enumerate(sorted((ROOT / "examples" / "photos").glob("*.jpg"))):
        with Image.open(path) as image:
            image.draft("RGB", (600, 600))
            image = image.convert("RGB").reduce(2)
        image.save(folder / f"{number}.jpg")
        box = np.array(list(cropper(image, top_k=1)[0]["box"].values())) / np.tile(image.size, 2)
        entry = {"photo": f"{number}.jpg", "split": "val", "crops": [[*box.round(3).tolist(), 4.6]], "whole": 3.0}
        # Its square is where the model has it, which rates narrower windows lower: they are elsewhere.
        square = cropper(image, aspect_ratio=1, min_area=0.98 * min(image.size) / max(image.size), top_k=1)[0]["box"]
        axis = "x" if image.width > image.height else "y"
        centre = (square[f"{axis}min"] + square[f"{axis}max"]) / 2 / max(image.size)
        lines.append(json.dumps(entry | {"square": round(centre, 3), "slim": 0.05 if centre > 0.5 else 0.95}))
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
    assert "50 crops of 5 images" in done.output and "20 crops of a given aspect ratio of 5 images" in done.output
    assert done.output.count("Brier score") == 2
    after = json.loads((checkpoint / "config.json").read_text())
    fitted = {name: after.pop(name) for name in list(after) if name.startswith("probability_")}
    assert len(fitted) == 4 and after == {name: value for name, value in before.items() if name not in fitted}
    assert fitted["probability_slope"] > 0 and 3 < fitted["probability_middle"] < 5
    assert 0 < Cropper(checkpoint)(str(PHOTO), top_k=1)[0]["score"] < 1


def test_a_fit_that_is_no_better_on_images_left_out_changes_nothing(checkpoint, library):
    assert run(checkpoint, "--data", library, "--layout", "editor").exit_code == 0
    before = (checkpoint / "config.json").read_bytes()
    again = run(checkpoint, "--data", library, "--layout", "editor")
    assert again.exit_code == 0 and "nothing was changed (on images left out, the fit is no better)" in again.output
    assert (checkpoint / "config.json").read_bytes() == before


def test_without_a_validation_split_the_images_that_training_leaves_out_are_asked(checkpoint, library):
    labels = library / "labels.jsonl"
    labels.write_text(labels.read_text().replace('"split": "val"', '"split": "train"'))
    found = run(checkpoint, "--data", library, "--layout", "editor", "--dry-run")
    assert found.exit_code == 1 and "all of the crops are of one image" in found.output
    lines = labels.read_text().splitlines()
    for number in range(9):
        shutil.copy(library / f"{number % 6}.jpg", library / f"again{number}.jpg")
        lines.append(lines[number % 6].replace(f'"{number % 6}.jpg"', f'"again{number}.jpg"'))
    labels.write_text("\n".join(lines))
    found = run(checkpoint, "--data", library, "--layout", "editor", "--dry-run")
    assert found.exit_code == 0 and "20 crops of 2 images" in found.output, found.output


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
