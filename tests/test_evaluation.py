"""Baselines, intervals, and the whole way from a data set and a model to tables."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modeling_setcrop.cli import app
from modeling_setcrop.data import Problems, load
from modeling_setcrop.evaluation import Labels, Predictions, baselines, estimate, measure, predict
from modeling_setcrop.evaluation.measures import (
    first_crop_spread,
    label_spread,
    measure_human_agreement,
    resample,
)
from modeling_setcrop.evaluation.predict import _predict_batch, suppress
from modeling_setcrop.evaluation.run import run
from modeling_setcrop.metrics import pairwise_iou

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def make_labels(boxes: list[list[list[float]]], scores: list[list[float]] | None = None) -> Labels:
    corners = [np.array(crops, float) for crops in boxes]
    rated = None if scores is None else [np.array(values, float) for values in scores]
    good = [np.ones(len(crops), bool) for crops in corners] if rated is None else [v >= 4 for v in rated]
    return Labels([str(i) for i in range(len(boxes))], np.full((len(boxes), 2), 100.0), corners, rated, good)


@pytest.fixture(scope="module")
def photo_set(tmp_path_factory, photos) -> Path:
    """Three small images of two shapes with crops and scores, as a plain folder."""
    root = tmp_path_factory.mktemp("photos")
    lines = []
    for index, photo in enumerate(photos[:3]):
        image = Image.open(photo)
        image.thumbnail((160, 160))
        if index == 2:
            image = image.resize((107, 160))
        image.save(root / f"{index}.jpg")
        w, h = image.size
        boxes = [[0, 0, w, h], [w // 10, h // 10, w - 5, h - 5], [w // 4, h // 4, w, h]]
        for split in ("train", "test"):
            entry = {"file_name": f"{index}.jpg", "boxes": boxes, "scores": [3.0, 4.5, 2.0 + index], "split": split}
            lines.append(json.dumps(entry))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def test_labels_are_in_parts_of_the_image(photo_set):
    rows = load("folder", photo_set)["test"]
    labels = Labels.from_dataset(rows)
    assert len(labels) == 3
    np.testing.assert_allclose(labels.boxes[1][0], [0, 0, 1, 1])
    sides = np.tile(labels.sizes[1], 2)
    np.testing.assert_allclose(labels.boxes[1] * sides, rows[1]["boxes"], rtol=1e-6)
    assert [len(values) for values in labels.scores] == [3, 3, 3]
    part = labels.select([2])
    assert part.image_ids == ["2"] and part.scores[0].tolist() == [3.0, 4.5, 4.0]


def test_labels_without_scores_say_so(shared_data):
    labels = Labels.from_dataset(load("flms", shared_data / "flms43")["test"])
    assert labels.scores is None
    assert sum(len(crops) for crops in labels.boxes) == 427


def test_greedy_cover_takes_the_box_that_meets_most_images_then_the_rest():
    # Seven images want the left half-ish, three the right: one box cannot meet both at 0.9.
    left, right = [0, 0, 0.75, 1], [0.25, 0, 1, 1]
    train = make_labels([[left]] * 7 + [[right]] * 3, [[5.0]] * 10)
    boxes, scores = baselines.cover_set(train, eps=0.9, count=2)
    assert pairwise_iou(boxes[:1], np.array([left]))[0, 0] >= 0.9
    assert pairwise_iou(boxes[1:], np.array([right]))[0, 0] >= 0.9
    assert scores[0] > scores[1]


def test_best_constant_box_has_the_highest_mean_iou():
    train = make_labels([[[0.125, 0.125, 1, 1]]] * 3, [[5.0]] * 3)
    np.testing.assert_allclose(baselines.best_box(train), [0.125, 0.125, 1, 1])


def test_frequent_set_is_ordered_by_how_often_a_place_is_good():
    a, b, c = [0, 0, 1, 1], [0.25, 0.25, 1, 1], [0, 0, 0.75, 0.75]
    train = make_labels([[a, b, c], [a, b, c], [a, b, c]], [[5, 2, 4], [5, 4, 2], [4, 4, 2]])
    boxes, scores = baselines.frequent_set(train)
    assert boxes.tolist() == [a, b, c]
    np.testing.assert_allclose(scores, [1, 2 / 3, 1 / 3])


def test_mean_score_set_ranks_places_by_mean_score():
    a, b = [0, 0, 1, 1], [0.25, 0.25, 1, 1]
    train = make_labels([[a, b]] * 20, [[2.0, 4.0]] * 20)
    boxes, scores = baselines.mean_score_set(train)
    # Twenty crops at 2, drawn by five at the overall mean of 3.
    assert dict(zip(map(tuple, boxes.tolist()), scores, strict=True)) == {
        tuple(a): pytest.approx((20 * 2 + 5 * 3) / 25),
        tuple(b): pytest.approx((20 * 4 + 5 * 3) / 25),
    }


def test_constant_boxes_on_real_labels_reach_what_is_reported(shared_data):
    path = ROOT / "examples" / "constant_baseline.py"
    spec = importlib.util.spec_from_file_location("constant_baseline", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    labels = str(shared_data / "labels" / "gaic_v1.json.gz")
    train, test = example.read(labels, "train"), example.read(labels, "test")
    answer = baselines.constant(*baselines.cover_set(train, 0.85), len(test))
    measured = measure(test, answer)
    assert measured["acc_1/5@0.85"].mean() == pytest.approx(0.685)
    assert measured["acc_1/10@0.85"].mean() == pytest.approx(0.875)


@pytest.mark.parametrize("package", ["pyvips", "smartcrop"])
def test_saliency_croppers_stay_inside_and_have_the_size_asked_for(photo_set, package):
    pytest.importorskip(package)
    crop = baselines.libvips_attention if package == "pyvips" else baselines.smartcrop
    answer = crop(load("folder", photo_set)["test"], 0.8)
    boxes = np.concatenate(answer.boxes)
    assert len(boxes) == 3 and (boxes >= 0).all() and (boxes <= 1).all()
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], 0.8, atol=0.03)


def test_human_agreement_compares_each_annotator_with_the_others():
    a, b, c = [0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 1, 0.5]
    labels = make_labels([[a, b, c], [a]])
    found = measure_human_agreement(labels)
    # IoU: a-b and a-c 0.5, b-c 1/3. Nearest: 0.5 for each; mean: 0.5, 5/12, 5/12.
    np.testing.assert_allclose(found["iou"], [0.5, np.nan])
    np.testing.assert_allclose(found["iou_mean"], [(0.5 + 5 / 12 + 5 / 12) / 3, np.nan])


def test_interval_holds_the_value_and_narrows_with_images():
    rng = np.random.default_rng(0)
    few, many = rng.random(20), rng.random(2000)
    small, large = estimate({"m": few}, 20)["m"], estimate({"m": many}, 2000)["m"]
    assert small.low < small.value < small.high and large.low < large.value < large.high
    assert large.high - large.low < (small.high - small.low) / 5
    # The interval of a mean of uniform numbers: about 1.96 standard errors to each side.
    assert large.high - large.low == pytest.approx(2 * 1.96 * many.std() / np.sqrt(2000), rel=0.1)


def test_undefined_images_are_left_out_of_means_and_intervals():
    found = estimate({"m": np.array([1.0, np.nan, 3.0]), "none": np.full(3, np.nan)}, 3)
    assert found["m"].value == 2
    assert np.isnan(found["none"].value)


def test_a_difference_on_the_same_images_is_sharper_than_its_two_sides():
    rng = np.random.default_rng(0)
    easiness = rng.random(400)
    one, other = easiness + 0.02, easiness + rng.normal(0, 0.01, 400)
    sampled = resample({"one": one, "other": other}, 400)
    found = sampled["one"].less(sampled["other"])
    assert found.value == pytest.approx((one - other).mean())
    assert 0.015 < found.low < found.value < found.high < 0.025
    alone = estimate({"one": one, "other": other}, 400)
    assert alone["one"].low < alone["other"].high
    same = sampled["one"].less(sampled["one"])
    assert same == (0, 0, 0)


def test_a_difference_of_average_precisions_is_that_of_the_pooled_ones():
    labels = make_labels([[[0, 0, 1, 1], [0.2, 0, 1, 1]], [[0.1, 0.1, 1, 1], [0, 0, 0.8, 0.8]]], [[5, 4], [4, 2]])
    whole, small = baselines.whole_image(2), baselines.centre_crop(2, 0.5)
    one, other = (measure(labels, answer) for answer in (whole, small))
    expected = estimate(one, 2)["ap_5@0.85"].value - estimate(other, 2)["ap_5@0.85"].value
    found = resample(one, 2)["ap_5@0.85"].less(resample(other, 2)["ap_5@0.85"])
    assert expected > 0 and found.value == pytest.approx(expected)


def test_methods_that_look_stand_against_the_best_that_do_not(photo_set, tiny_model, tiny_processor):
    splits = load("folder", photo_set)
    found = run(splits["test"], tiny_model, tiny_processor, "tiny", Labels.from_dataset(splits["train"]))
    baselines_found = [name for name, result in found.methods.items() if result.image_independent]
    assert (
        "whole image" in baselines_found and "constant: frequency" in baselines_found and "tiny" not in baselines_found
    )
    compared = found.against_baselines("tiny", "iou")
    best = max(baselines_found, key=lambda name: found.methods[name].estimates["iou"].value)
    assert compared.against == best
    values = [found.methods[name].estimates["iou"].value for name in ("tiny", best)]
    assert compared.difference.value == pytest.approx(values[0] - values[1])
    assert found.against_baselines("tiny", "no such measure") is None
    # The last image's scores are 3, 4.5, 4: no two alike in any image.
    assert found.equals == 0


def test_spread_tells_a_constant_answer_from_a_moving_one():
    labels = make_labels([[[0, 0, 1, 1]], [[0.5, 0, 1, 1]]], [[5.0], [5.0]])
    np.testing.assert_allclose(label_spread(labels), [0.25, 0, 0, 0])
    np.testing.assert_allclose(first_crop_spread(baselines.centre_crop(2, 0.9)), 0)


def test_a_perfect_answer_has_perfect_measures():
    boxes = [[[0, 0, 1, 1], [0.2, 0, 1, 1], [0, 0.3, 0.9, 1]], [[0.1, 0.1, 1, 1], [0, 0, 0.8, 0.8], [0, 0.4, 1, 1]]]
    labels = make_labels(boxes, [[5.0, 3.0, 2.0], [4.5, 2.0, 1.0]])
    found = estimate(measure(labels, Predictions(labels.boxes, labels.scores)), 2)
    for name in ("iou", "acc_1/1@0.90", "ap_10@0.90", "ap_release_5@0.85", "srcc", "acc_1/5", "recall_5@0.90"):
        assert found[name].value == pytest.approx(1), name


def test_predictions_are_the_processors_crops_whatever_the_batch(photo_set, tiny_model, tiny_processor):
    rows = load("folder", photo_set)["test"]
    labels = Labels.from_dataset(rows)
    done = []
    one, indices = predict(tiny_model, tiny_processor, rows, labels, batch_size=1, progress=done.append)
    many, _ = predict(tiny_model, tiny_processor, rows, labels, batch_size=3)
    assert indices == [0, 1, 2] and sum(done) == 3
    inputs = tiny_processor(rows[1]["image"], return_tensors="pt")
    expected = tiny_processor.post_process_image_cropping(tiny_model(**inputs), threshold=-1.0)[0]
    np.testing.assert_allclose(one.boxes[1], expected["boxes"].detach(), atol=1e-5)
    for name in ("boxes", "scores", "candidate_scores"):
        for alone, together in zip(getattr(one, name), getattr(many, name), strict=True):
            np.testing.assert_array_equal(alone, together)
    assert [len(scores) for scores in one.candidate_scores] == [3, 3, 3]


def test_a_crop_that_labels_name_twice_has_one_rating_on_every_runtime(tiny_model, tiny_processor):
    class Runtime:
        """A model whose ratings of equal boxes differ in the last bits, as a batched product's rows may."""

        device, dtype, config = tiny_model.device, tiny_model.dtype, tiny_model.config

        def __call__(self, pixel_values, candidate_boxes):
            outputs = tiny_model(pixel_values=pixel_values, candidate_boxes=candidate_boxes)
            outputs["crop_ratings"] = outputs.crop_ratings + torch.arange(candidate_boxes.shape[1]) * 1e-6
            return outputs

    twice = np.tile(np.array([[2.0, 3.0, 40.0, 44.0]]), (2, 1)) / 64
    (answer,) = _predict_batch(Runtime(), tiny_processor, torch.zeros(1, 3, 64, 64), [twice])
    first, second = answer.candidate_scores
    assert first == second


def test_a_model_that_reranks_is_measured_by_its_validities_too(photo_set, tiny_model, tiny_processor):
    rows = load("folder", photo_set)["test"]
    found, _ = predict(tiny_model, tiny_processor, rows, Labels.from_dataset(rows))
    with torch.no_grad():
        logits = tiny_model(**tiny_processor(rows[1]["image"], return_tensors="pt")).logits[0, :, 0]
    np.testing.assert_allclose(found.by_validity.scores[1], logits.sigmoid().sort(descending=True).values, atol=1e-5)
    reranked, by_validity = (np.sort(answer.boxes[1], axis=0) for answer in (found, found.by_validity))
    np.testing.assert_array_equal(reranked, by_validity)
    assert found.scores[1].tolist() != found.by_validity.scores[1].tolist()


def test_score_calibration_is_the_mean_labelled_score_by_bins_of_the_predicted():
    plots = pytest.importorskip("modeling_setcrop.evaluation.plots")
    labels = make_labels([[[0, 0, 1, 1]] * 4], [[2.0, 3.0, 4.0, 5.0]])
    predictions = Predictions(labels.boxes, labels.scores, [np.array([2.30, 2.40, 4.10, 4.20])])
    top, bottom = plots.score_calibration(labels, predictions).axes
    np.testing.assert_allclose(top.lines[1].get_xydata(), [[2.35, 2.5], [4.15, 4.5]])
    assert "mean distance 0.25" in top.get_title()  # (0.15 + 0.35) / 2
    assert [patch.get_height() for patch in bottom.patches] == [2, 2]


def test_a_image_that_does_not_decode_is_named_and_left_out(photo_set, tmp_path, tiny_model, tiny_processor):
    root = tmp_path / "set"
    root.mkdir()
    for file in photo_set.iterdir():
        (root / file.name).write_bytes(file.read_bytes())
    content = (root / "1.jpg").read_bytes()
    (root / "1.jpg").write_bytes(content[: len(content) // 2])
    problems = Problems()
    found = run(load("folder", root)["test"], tiny_model, tiny_processor, problems=problems)
    assert found.labels.image_ids == ["0", "2"]
    assert [problem.kind for problem in problems.found] == ["undecodable image"]


def test_evaluate_command_writes_the_same_figures_in_three_forms(photo_set, tiny_checkpoint, tmp_path):
    arguments = ["evaluate", "--model", str(tiny_checkpoint), "--data", str(photo_set), "--layout", "folder"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["images"] == 3
    methods = content["methods"]
    own = ["tiny", "tiny, NMS 0.9", "tiny, as a set", "tiny, by validity", "tiny, scoring head"]
    assert list(methods)[:6] == [*own, "whole image"]
    assert {"centre crop 0.9", "constant: cover at 0.85", "constant: frequency", "constant: mean score"} <= set(
        methods
    )
    with open(tmp_path / "out" / "evaluation.csv") as file:
        rows = {(row["method"], row["measure"]): row for row in csv.DictReader(file)}
    iou = methods["whole image"]["measures"]["iou"]
    assert float(rows["whole image", "iou"]["value"]) == pytest.approx(iou["value"], abs=1e-6)
    compared = methods["tiny"]["less_best_baseline"]["iou"]
    assert compared["value"] == pytest.approx(
        methods["tiny"]["measures"]["iou"]["value"] - methods[compared["against"]]["measures"]["iou"]["value"]
    )
    assert "less_best_baseline" not in methods["whole image"] and content["share_with_equal_best"] == 0
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert (
        "| | best image-independent baseline | tiny | tiny, NMS 0.9 |" in text and f"{compared['value']:+.3f}" in text
    )
    for shown in (text, result.output):
        assert f"{iou['value']:.3f}" in shown and "whole image" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "validation"], "has no split 'validation', only train, test"),
        (["--layout", "gaic"], "needs the folders 'images' and 'annotations'"),
        (["--model", "/no/such/checkpoint"], "/no/such/checkpoint: no such folder"),
        (["--data", "/no/such/data"], "/no/such/data: no such folder"),
        (["--data", __file__], "test_evaluation.py: not a folder"),
        (["--device", "gpu"], "--device gpu: "),
        (["--device", "xpu"], "--device xpu: "),
        (["--out", __file__], "test_evaluation.py"),
    ],
)
def test_evaluate_command_explains_what_is_wrong_in_one_line(photo_set, options, message):
    arguments = ["evaluate", "--model", "none", "--data", str(photo_set), "--layout", "folder"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 1
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_the_evaluation_of_something_else_is_not_replaced(photo_set, tmp_path, command):
    def measure(*options: str):
        arguments = ["--model", "none", "--data", str(photo_set), "--layout", "folder", "--out", str(tmp_path / "out")]
        return CliRunner().invoke(app, [command, *arguments, *options])

    for _ in range(2):
        assert measure().exit_code == 0
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    result = measure("--split", "train")
    assert result.exit_code == 1
    assert "out: has the evaluation of none on" in result.stderr and "(folder, test); choose another" in result.stderr
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before
    (tmp_path / "out" / "evaluation.json").write_text("[]")
    assert "evaluation.json: not an evaluation, which it would replace" in measure().stderr


def test_report_is_one_page_with_everything_in_it(photo_set, tiny_checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "report"
    arguments = ["report", "--model", str(tiny_checkpoint), "--data", str(photo_set), "--layout", "folder"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--images", "2"])
    assert result.exit_code == 0, result.output
    figures = ("contact_sheet", "quality_validity", "score_calibration", "precision_recall", "smoothing_map")
    for name in figures:
        assert Image.open(out / f"{name}.png").size[0] > 300
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(figures)
    # Nothing is fetched from elsewhere; the figures' own letters may say anything.
    assert "http" not in re.sub(r"base64,[^\"]*", "", page) and "whole image" in page and "scoring head" in page
    # Two images side by side, labels and predictions of each.
    assert Image.open(out / "contact_sheet.png").size[0] > 4 * 160


def test_smoothing_map_is_the_losses_own(tiny_model):
    plots = pytest.importorskip("modeling_setcrop.evaluation.plots")
    curve, area, _ = plots.smoothing_map(tiny_model.config).axes
    scores, labels = curve.lines[0].get_data()
    mu, low, high = 0.5, 2.0, 3.5
    np.testing.assert_allclose(labels, np.clip(mu * (scores - low) / (high - low), 0, mu), atol=1e-6)
    shown = area.images[0].get_array()
    overlaps = np.linspace(0.7, 1, 121)
    assert (shown[:, overlaps < 0.849] == 0).all() and (shown[-1, overlaps > 0.851] == mu).all()


def test_suppression_keeps_the_better_of_two_crops_that_nearly_coincide():
    boxes = np.array([[0.0, 0.0, 0.9, 0.9], [0.0, 0.0, 0.91, 0.9], [0.3, 0.3, 1.0, 1.0]])
    kept = suppress(Predictions([boxes], [np.array([0.5, 0.6, 0.4])]), 0.9)
    assert kept.boxes[0].tolist() == boxes[[1, 2]].tolist()
    assert kept.scores[0].tolist() == [0.6, 0.4]
