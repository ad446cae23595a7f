"""Crops under constraints: inside, exact, keeping what they must, and honest about what gave way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modeling_setcrop.crop_constraints import ConstraintError, CropConstraints
from modeling_setcrop.crop_geometry import box_area, box_intersection, box_iou, pixel_sizes
from modeling_setcrop.crop_judging import Prediction, centre_of_mass
from modeling_setcrop.crop_options import CropOptions
from modeling_setcrop.crop_selection import Selection, select_crops, suggest

sides = st.integers(1, 700)
ratios = st.sampled_from([16 / 9, 1.0, 4 / 5, 9 / 16, 2.39, 1 / 3]) | st.floats(0.1, 10)


def predict(seed: int, size: tuple[int, int], count: int = 6, rate=None) -> Prediction:
    """A made-up prediction: a few boxes of at least a tenth of the image each way."""
    generator = np.random.default_rng(seed)
    boxes = generator.random((count, 4))
    boxes[:, 2:] = 0.1 + 0.9 * boxes[:, 2:]
    boxes[:, :2] = boxes[:, 2:] / 2 + (1 - boxes[:, 2:]) * boxes[:, :2]
    return Prediction.from_output(boxes, generator.random(count), size, rate)


def select(prediction: Prediction, **options) -> Selection:
    asked = CropOptions.from_kwargs(**options)
    constraints = CropConstraints.from_options(asked, asked.aspect_ratio, prediction.image_size)
    return select_crops(prediction, constraints, asked)


def judge_image(prediction: Prediction) -> dict:
    return suggest(prediction, CropOptions(details=True))


@st.composite
def inner_box(draw, height: int, width: int) -> list[int]:
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return [x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))]


def assert_sound(selection, size: tuple[int, int], ratio: float | None) -> None:
    height, width = size
    boxes = selection.boxes
    assert len(boxes) > 0
    assert (boxes == boxes.round()).all()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    assert (w >= 1).all() and (h >= 1).all()
    if ratio is not None:
        assert ((abs(w - ratio * h) < 1) | (abs(h - w / ratio) < 1)).all()
    assert selection.scores.tolist() == sorted(selection.scores.tolist(), reverse=True)


@settings(max_examples=60)
@given(data=st.data(), height=sides, width=sides, ratio=ratios, seed=st.integers(0, 99))
def test_any_ratio_bounds_and_content_give_sound_crops_that_satisfy_or_say_so(data, height, width, ratio, seed):
    size = (height, width)
    keep = data.draw(st.lists(inner_box(height, width), max_size=2))
    avoid = data.draw(st.lists(inner_box(height, width), max_size=2))
    low, high = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    least = (data.draw(st.integers(1, width)), data.draw(st.integers(1, height)))
    free = data.draw(st.booleans())
    options = CropOptions(
        aspect_ratio=None if free else ratio, min_area=low, max_area=high, min_size=least, keep=keep, avoid=avoid
    )
    constraints = CropConstraints.from_options(options, options.aspect_ratio, size)
    selection = select_crops(predict(seed, size), constraints, options)
    assert_sound(selection, size, None if free else ratio)
    for box, gave_way in zip(selection.boxes, selection.gave_way, strict=True):
        share = float(box_area(box)) / (height * width)
        w, h = (box[2:] - box[:2]).tolist()
        kept = box_intersection(box[None], constraints.keep) == box_area(constraints.keep)
        assert bool(kept.all()) == ("keep" not in gave_way)
        assert bool((box_intersection(box[None], constraints.avoid) == 0).all()) == ("avoid" not in gave_way)
        assert (w >= least[0] and h >= least[1]) == ("min_size" not in gave_way)
        assert (share >= low - 1e-9) == ("min_area" not in gave_way)
        assert (share <= high + 1e-9) == ("max_area" not in gave_way)


@settings(max_examples=60)
@given(data=st.data(), height=sides, width=sides, ratio=ratios, seed=st.integers(0, 99))
def test_content_that_fits_is_never_cut(data, height, width, ratio, seed):
    keep = data.draw(inner_box(height, width))
    sizes = pixel_sizes(ratio, (height, width))
    fits = ((sizes[:, 0] >= keep[2] - keep[0]) & (sizes[:, 1] >= keep[3] - keep[1])).any()
    selection = select(predict(seed, (height, width)), aspect_ratio=ratio, keep=[keep])
    assert_sound(selection, (height, width), ratio)
    assert all(gave_way == (() if fits else ("keep",)) for gave_way in selection.gave_way)


@settings(max_examples=60)
@given(height=st.integers(20, 700), width=st.integers(20, 700), ratio=ratios, seed=st.integers(0, 999))
def test_no_crop_of_the_ratio_overlaps_the_prediction_more(height, width, ratio, seed):
    assume(min(width, ratio * height) * min(1, 1 / ratio) >= 20)
    judge = predict(seed, (height, width), count=1)
    # Crops below a twenty-fifth of the largest are not looked for.
    assume(box_area(judge.boxes).item() >= 0.05 * min(width, ratio * height) ** 2 / ratio)
    crop = select(judge, aspect_ratio=ratio, top_k=1).boxes
    best = box_iou(crop, judge.boxes).item()
    sizes = pixel_sizes(ratio, (height, width))
    sizes = sizes[:: max(1, len(sizes) // 40)]
    limit = np.array([width, height], dtype=float)
    centre = (judge.boxes[0, :2] + judge.boxes[0, 2:]) / 2
    corners = np.minimum((centre - sizes / 2).round().clip(min=0), limit - sizes)
    others = np.concatenate([corners, corners + sizes], axis=-1)
    # The optimum itself lies between pixels; rounding its size and place costs at most a pixel a side.
    short = float((crop[0, 2:] - crop[0, :2]).min())
    assert float(box_iou(others, judge.boxes).max()) <= best + 2 / short


@settings(max_examples=40)
@given(data=st.data(), height=st.integers(10, 400), width=st.integers(10, 400), ratio=ratios)
def test_avoided_boxes_stay_outside_wherever_a_crop_can(data, height, width, ratio):
    avoid = data.draw(st.lists(inner_box(height, width), min_size=1, max_size=3))
    check_avoided(height, width, ratio, avoid)


@pytest.mark.parametrize(
    ("height", "width", "ratio", "avoid"),
    [
        # Free strips that hold crops of just under a twenty-fifth of the largest, and of hardly a few pixels.
        (141, 250, 16 / 9, [[0, 0, 199, 113]]),
        (300, 300, 1.0, [[0, 0, 295, 300]]),
        # One that is thinner than the ratio can be in whole pixels: nothing fits.
        (100, 100, 10.0, [[0, 0, 97, 100]]),
        (100, 100, 1.0, [[0, 0, 100, 100]]),
    ],
)
def test_thin_strips_beside_avoided_boxes_are_used_where_the_ratio_fits(height, width, ratio, avoid):
    check_avoided(height, width, ratio, avoid)


def check_avoided(height: int, width: int, ratio: float, avoid: list[list[int]]) -> None:
    """By trying every place of the smallest size, crops touch avoided boxes only where none can stay clear."""
    w, h = pixel_sizes(ratio, (height, width))[0].astype(int).tolist()
    blocked = np.zeros((height + 1, width + 1), dtype=int)
    for x1, y1, x2, y2 in avoid:
        blocked[1 + y1 : 1 + y2, 1 + x1 : 1 + x2] = 1
    table = blocked.cumsum(0).cumsum(1)
    sums = table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]
    selection = select(predict(0, (height, width)), aspect_ratio=ratio, avoid=avoid)
    assert_sound(selection, (height, width), ratio)
    assert all(gave_way == (() if bool((sums == 0).any()) else ("avoid",)) for gave_way in selection.gave_way)
    # Small only where it must be: every crop holds at least a twenty-fifth of the area of the largest found.
    areas = box_area(selection.boxes)
    assert float(areas.min()) >= 0.03 * float(areas.max())


def test_the_scoring_function_decides_among_all_places_of_a_ratio():
    def rightmost(boxes):
        return 1 + 4 * boxes[:, 0]

    judge = predict(0, (400, 600), rate=rightmost)
    selection = select(judge, aspect_ratio=1.0, min_area=0.665, top_k=3)
    # The mean of the best places, a little short of the one at the edge.
    assert selection.boxes[0].tolist() == pytest.approx([200, 0, 600, 400], abs=6)
    assert selection.scores[0].item() == pytest.approx(1 / (1 + math.exp(-4 * (1 + 4 * 4 / 6 - 4))), abs=1e-4)


def test_hardly_likely_crops_are_still_ordered():
    judge = predict(0, (400, 600), rate=lambda boxes: -20 + 10 * boxes[:, 0])
    selection = select(judge, aspect_ratio=1.0, min_area=0.665, top_k=1)
    assert selection.boxes[0].tolist() == pytest.approx([200, 0, 600, 400], abs=6) and selection.scores[0] == 0


def test_bounds_give_way_before_content_and_strict_raises():
    judge = predict(1, (100, 100))
    options = {"max_area": 0.1, "keep": [[10, 10, 90, 90]]}
    selection = select(judge, **options)
    assert selection.boxes[0].tolist() == [10, 10, 90, 90] and selection.gave_way[0] == ("max_area",)
    with pytest.raises(ConstraintError, match="max_area had to give way") as caught:
        select(judge, strict=True, **options)
    assert caught.value.gave_way == ("max_area",)


def test_kept_content_wider_than_the_ratio_is_cut_evenly():
    selection = select(predict(2, (100, 200)), aspect_ratio="1:1", keep=[[20, 40, 180, 60]])
    assert selection.boxes[0, [0, 2]].tolist() == [50, 150]
    assert selection.gave_way[0] == ("keep",)


def test_diversity_trades_score_for_distance():
    judge = predict(3, (300, 300), count=40)

    def spread(diversity):
        boxes = select(judge, diversity=diversity, top_k=4).boxes
        overlap = box_iou(boxes, boxes)
        return overlap.sum() - overlap.trace()

    assert spread(0.9) < spread(0.0)
    plain = select(judge, nms_iou=None, top_k=4)
    assert plain.boxes.tolist() == select(judge, diversity=0.0, top_k=4).boxes.tolist()


@pytest.mark.parametrize("options", [{"diversity": 0.2}, {"as_set": True}])
@pytest.mark.parametrize("x", np.linspace(0.3, 0.7, 9))
def test_crops_that_settle_in_one_place_are_given_once(options, x):
    """Without suppression one place, to which several crops had been refined, was given three times in five."""
    judge = predict(0, (360, 640), rate=lambda boxes: 4 - abs(boxes[:, 0] - x) - abs(boxes[:, 3] - 1))
    boxes = select(judge, aspect_ratio="1:1", top_k=12, **options).boxes
    assert len(np.unique(boxes, axis=0)) == len(boxes) == 12


def test_suppression_and_threshold_bound_the_set():
    judge = predict(4, (300, 300), count=60)
    crops = select(judge, nms_iou=0.3, threshold=0.5, top_k=50)
    overlap = box_iou(crops.boxes, crops.boxes) - np.eye(len(crops.boxes))
    assert (crops.scores > 0.5).all() and overlap.max() < 0.32
    assert len(select(judge, threshold=1.0).boxes) == 0


def test_threshold_and_suppression_hold_under_constraints_too():
    judge = predict(4, (300, 300), count=60)
    assert len(select(judge, aspect_ratio=1.0, threshold=1.0).boxes) == 0
    every, apart = (select(judge, aspect_ratio=1.0, top_k=20, nms_iou=iou).boxes for iou in (None, 0.5))
    assert (box_iou(every, every) - np.eye(len(every))).max() > 0.8
    assert (box_iou(apart, apart) - np.eye(len(apart))).max() <= 0.5


def test_a_set_covers_where_the_best_crop_may_be():
    """Of three places that rate nearly alike two are near each other: a set of two takes one and the third."""
    boxes = np.array([[0.3, 0.5, 0.5, 0.5], [0.31, 0.5, 0.5, 0.5], [0.7, 0.5, 0.5, 0.5]])
    ratings = np.array([4.2, 4.19, 4.1])
    prediction = Prediction.from_output(boxes, np.ones(3), (100, 100), lambda boxes: 3 + boxes[:, 0], ratings)
    assert select(prediction, as_set=True, top_k=2).boxes[:, 0].tolist() == [5, 45]
    assert select(prediction, nms_iou=None, top_k=2).boxes[:, 0].tolist() == [5, 6]
    constrained = select(predict(3, (300, 400), count=30), as_set=True, top_k=4, aspect_ratio="1:1")
    assert len({tuple(box) for box in constrained.boxes.tolist()}) == 4


def test_free_and_constrained_crops_and_the_verdict_are_on_one_scale():
    """With a scoring head everything is its ratings', whether or not the model ranks its set by them."""
    boxes, validity = np.array([[0.5, 0.5, 0.6, 0.6], [0.4, 0.4, 0.5, 0.5]]), np.array([0.2, 0.9])
    prediction = Prediction.from_output(boxes, validity, (100, 100), lambda boxes: 3 + boxes[:, 2])
    found = suggest(prediction, CropOptions(details=True, nms_iou=None))
    # The rating is the width's, and the set's best crop may be moved to where it is wider.
    best = found["crops"][0]
    assert best["box"]["xmax"] - best["box"]["xmin"] > 60
    assert 1 / (1 + math.exp(-4 * (3.6 - 4))) < best["score"] < 0.5
    assert found["keep_original"] == pytest.approx(0.5, abs=1e-3)
    assert found["improves"] == pytest.approx(best["score"] - 0.5, abs=1e-3)
    bounded = suggest(prediction, CropOptions(aspect_ratio="1:1", top_k=1))
    assert bounded[0]["score"] == pytest.approx(0.5, abs=0.02)


def test_a_size_that_cannot_be_met_changes_no_place():
    """No square of this image is 3000 pixels wide: the crop is the best square, and says that it is too small."""
    judge = predict(0, (400, 600), rate=lambda boxes: 3 - abs(boxes[:, 0] - 0.61) - abs(boxes[:, 2] - 0.5))
    best = select(judge, aspect_ratio="1:1", top_k=1)
    short = select(judge, width=3000, height=3000, top_k=1)
    assert short.boxes.tolist() == best.boxes.tolist()
    assert best.gave_way == [()] and short.gave_way == [("min_size",)]
    with pytest.raises(ConstraintError, match="min_size"):
        select(judge, width=3000, height=3000, strict=True)


def test_the_whole_image_is_judged_on_the_scale_of_the_crops():
    boxes = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    verdict = judge_image(Prediction.from_output(boxes, np.array([0.75, 0.25]), (100, 100)))
    assert verdict["keep_original"] == 0.25 and verdict["improves"] == 0.5
    assert verdict["focus_point"] == {"x": pytest.approx(0.5), "y": pytest.approx(0.5)}


def test_the_focus_point_follows_the_crops():
    box = np.array([[0.8, 0.3, 0.3, 0.3]])
    x, y = judge_image(Prediction.from_output(box, np.ones(1), (200, 300)))["focus_point"].values()
    assert x > 0.65 and y < 0.45


@pytest.mark.parametrize(("left", "right"), [(0.05, 0.2), (0.2, 0.35), (0.4, 0.6), (0.7, 0.95)])
def test_the_focus_point_lies_where_windows_rate_high(left, right):
    def keeps(boxes):
        low, high = boxes[:, 0] - boxes[:, 2] / 2, boxes[:, 0] + boxes[:, 2] / 2
        return 2 + 2 * (high.clip(max=right) - low.clip(min=left)).clip(min=0) / (right - left)

    focus = judge_image(predict(0, (300, 450), rate=keeps))["focus_point"]
    assert left - 0.04 <= focus["x"] <= right + 0.04 and focus["y"] == pytest.approx(0.5, abs=0.02)


def test_a_map_of_importance_says_where_the_focus_is_and_mirrors_with_the_image():
    importance = np.zeros((4, 8))
    importance[1, 2] = 1.0
    prediction = Prediction(np.array([[0, 0, 9, 9.0]]), np.ones(1), (10, 10), importance=importance)
    assert judge_image(prediction)["focus_point"] == {"x": 2.5 / 8, "y": 1.5 / 4}
    importance = np.random.default_rng(0).random((5, 7))
    x, y = centre_of_mass(importance)
    assert centre_of_mass(importance[:, ::-1]) == pytest.approx((1 - x, y))
    assert centre_of_mass(np.zeros((3, 3))) == (0.5, 0.5)


def test_width_and_height_say_ratio_and_least_size():
    constraints = CropConstraints.from_options(CropOptions(width=300, height=200), None, (600, 800))
    assert constraints.aspect_ratio == 1.5 and tuple(constraints.min_size) == (300, 200)


def test_points_are_kept_as_the_pixel_they_lie_in_and_must_lie_in_the_image():
    options = CropOptions(keep=[[10.7, 20.2], [200, 100], {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}])
    constraints = CropConstraints.from_options(options, None, (100, 200))
    assert constraints.keep.tolist() == [[10, 20, 11, 21], [199, 99, 200, 100], [1, 2, 3, 4]]
    for outside in ([201, 5], [-1, 5], [900, 0, 950, 10]):
        with pytest.raises(ValueError, match=r"lies outside the image \(200 x 100\)"):
            CropConstraints.from_options(CropOptions(keep=[outside]), None, (100, 200))


def test_the_same_photo_gives_the_same_crops_whatever_the_last_bits():
    judge = predict(6, (480, 640), count=90)
    noisy = Prediction(judge.boxes + 1e-9, judge.validity + 1e-9, judge.image_size)
    for options in ({}, {"aspect_ratio": "4:5"}, {"aspect_ratio": "16:9", "min_area": 0.3}, {"max_area": 0.4}):
        assert select(judge, **options).boxes.tolist() == select(noisy, **options).boxes.tolist()


def test_refined_crops_settle_at_the_top_and_do_not_repeat_each_other():
    """Ratings peak at one box; the first crop settles there, and the others stay where they differ from it."""
    peak = np.array([0.15, 0.2, 0.8, 0.9])

    def rate(boxes):
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        return 4.5 - 3 * np.abs(corners - peak).sum(1)

    rng = np.random.default_rng(0)
    corners = (peak + rng.normal(0, 0.08, (60, 4))).clip(0, 1)
    boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    prediction = Prediction.from_output(boxes, np.ones(60), (400, 600), rate)
    crops = select(prediction, nms_iou=None, top_k=8)
    assert np.abs(crops.boxes[0] / [600, 400, 600, 400] - peak).max() < 0.03
    before = np.abs(corners - peak).max(1)[rate(boxes).argmax()]
    assert np.abs(crops.boxes[0] / [600, 400, 600, 400] - peak).max() < before
    overlap = box_iou(crops.boxes, crops.boxes) - np.eye(len(crops.boxes))
    assert overlap.max() < 0.97


def test_all_aspect_ratios_and_the_verdict_are_rated_in_two_calls():
    calls = []

    def rate(boxes):
        calls.append(len(boxes))
        return 3 + boxes[:, 0] * boxes[:, 3]

    judge = predict(0, (300, 450), rate=rate)
    ratios = ["16:9", "1:1", "4:5", None]
    found = suggest(judge, CropOptions(aspect_ratio=ratios, top_k=1, details=True))
    together = calls[:]
    # The set's own ratings, the places of all, and their surroundings.
    assert len(together) == 3
    calls.clear()
    for ratio, crop in zip(ratios, found["crops"], strict=True):
        (alone,) = suggest(judge, CropOptions(aspect_ratio=ratio, top_k=1))
        assert crop["box"] == alone["box"] and crop["score"] == alone["score"]
    assert sum(calls) < sum(together) and judge_image(judge)["focus_point"] == found["focus_point"]


def test_a_small_window_of_a_narrow_shape_must_be_better_by_more_than_chance():
    """The more of the image a ratio cuts off anyway, the less a crop gains by being small."""

    def small_is_a_little_better(boxes):
        return 3 + 0.3 * (1 - boxes[:, 2] * boxes[:, 3])

    def largest_share(ratio, rate):
        (box,) = select(predict(0, (400, 600), rate=rate), aspect_ratio=ratio, top_k=1).boxes
        width, height = min(600, 400 * ratio), min(400, 600 / ratio)
        return (box[2] - box[0]) * (box[3] - box[1]) / (width * height)

    assert largest_share(1.5, small_is_a_little_better) < 0.6
    assert largest_share(9 / 16, small_is_a_little_better) > 0.95
    # What is much better may be small in any shape.
    assert largest_share(9 / 16, lambda boxes: 5 - 6 * boxes[:, 2] * boxes[:, 3]) < 0.6
