"""Crops under constraints: inside, exact, keeping what they must, and honest about what gave way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modeling_setcrop.crop_geometry import box_area, box_intersection, box_iou, pixel_sizes
from modeling_setcrop.crop_selection import (
    ConstraintError,
    CropConstraints,
    CropJudge,
    judge_picture,
    parse_aspect_ratio,
    select_crops,
)

sides = st.integers(1, 700)
ratios = st.sampled_from([16 / 9, 1.0, 4 / 5, 9 / 16, 2.39, 1 / 3]) | st.floats(0.1, 10)


def predict(seed: int, size: tuple[int, int], count: int = 6, score=None) -> CropJudge:
    """A made-up prediction: a few boxes of at least a tenth of the picture each way."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator)
    boxes[:, 2:] = 0.1 + 0.9 * boxes[:, 2:]
    boxes[:, :2] = boxes[:, 2:] / 2 + (1 - boxes[:, 2:]) * boxes[:, :2]
    return CropJudge.from_prediction(boxes, torch.rand(count, generator=generator), size, score)


@st.composite
def inner_box(draw, height: int, width: int) -> list[int]:
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return [x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))]


def assert_sound(selection, size: tuple[int, int], ratio: float | None) -> None:
    height, width = size
    boxes = selection.boxes
    assert len(boxes) > 0
    assert bool((boxes == boxes.round()).all())
    assert bool((boxes[:, :2] >= 0).all() & (boxes[:, 2] <= width).all() & (boxes[:, 3] <= height).all())
    w, h = (boxes[:, 2:] - boxes[:, :2]).unbind(-1)
    assert bool((w >= 1).all() & (h >= 1).all())
    if ratio is not None:
        assert bool((((w - ratio * h).abs() < 1) | ((h - w / ratio).abs() < 1)).all())
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
    constraints = CropConstraints.from_options(
        size, aspect_ratio=None if free else ratio, min_area=low, max_area=high, min_size=least, keep=keep, avoid=avoid
    )
    selection = select_crops(predict(seed, size), constraints)
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
    constraints = CropConstraints.from_options((height, width), aspect_ratio=ratio, keep=[keep])
    selection = select_crops(predict(seed, (height, width)), constraints)
    assert_sound(selection, (height, width), ratio)
    assert all(gave_way == (() if fits else ("keep",)) for gave_way in selection.gave_way)


@settings(max_examples=60)
@given(height=st.integers(20, 700), width=st.integers(20, 700), ratio=ratios, seed=st.integers(0, 999))
def test_no_crop_of_the_ratio_overlaps_the_prediction_more(height, width, ratio, seed):
    assume(min(width, ratio * height) * min(1, 1 / ratio) >= 20)
    judge = predict(seed, (height, width), count=1)
    # Crops below a twenty-fifth of the largest are not looked for.
    assume(float(box_area(judge.boxes)) >= 0.05 * min(width, ratio * height) ** 2 / ratio)
    constraints = CropConstraints(aspect_ratio=ratio)
    crop = select_crops(judge, constraints, top_k=1).boxes
    best = float(box_iou(crop, judge.boxes))
    sizes = pixel_sizes(ratio, (height, width))
    sizes = sizes[:: max(1, len(sizes) // 40)]
    limit = torch.tensor([width, height], dtype=torch.float64)
    centre = (judge.boxes[0, :2] + judge.boxes[0, 2:]) / 2
    corners = torch.minimum((centre - sizes / 2).round().clamp(min=0), limit - sizes)
    others = torch.cat([corners, corners + sizes], dim=-1)
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
    w, h = pixel_sizes(ratio, (height, width))[0].long().tolist()
    blocked = torch.zeros(height + 1, width + 1, dtype=torch.long)
    for x1, y1, x2, y2 in avoid:
        blocked[1 + y1 : 1 + y2, 1 + x1 : 1 + x2] = 1
    table = blocked.cumsum(0).cumsum(1)
    sums = table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]
    selection = select_crops(
        predict(0, (height, width)), CropConstraints.from_options((height, width), aspect_ratio=ratio, avoid=avoid)
    )
    assert_sound(selection, (height, width), ratio)
    assert all(gave_way == (() if bool((sums == 0).any()) else ("avoid",)) for gave_way in selection.gave_way)
    # Small only where it must be: every crop holds at least a twenty-fifth of the area of the largest found.
    areas = box_area(selection.boxes)
    assert float(areas.min()) >= 0.03 * float(areas.max())


def test_the_scoring_function_decides_among_all_places_of_a_ratio():
    def rightmost(boxes):
        return 1 + 4 * boxes[:, 0]

    judge = predict(0, (400, 600), score=rightmost)
    selection = select_crops(judge, CropConstraints(aspect_ratio=1.0, min_area=0.665), top_k=3)
    assert selection.boxes[0].tolist() == [200, 0, 600, 400]
    assert selection.scores[0].item() == pytest.approx(1 / (1 + math.exp(-4 * (1 + 4 * 4 / 6 - 4))), abs=1e-4)


def keeps(left: float, right: float):
    """Scores that fall with how much of an upright strip, from `left` to `right` in 0..1, a crop cuts."""

    def score(boxes):
        low, high = boxes[:, 0] - boxes[:, 2] / 2, boxes[:, 0] + boxes[:, 2] / 2
        kept = (high.clamp(max=right) - low.clamp(min=left)).clamp(min=0)
        return 2 + 2 * kept / (right - left)

    return score


@settings(max_examples=40)
@given(height=st.integers(60, 600), longer=st.floats(1.2, 2.5), ratio=st.floats(0.25, 0.6), place=st.floats(0, 1))
def test_narrow_crops_keep_what_larger_crops_lose_score_without(height, longer, ratio, place):
    """Although the head says of narrow crops the contrary, as it may of crops that nobody has rated."""
    width = round(longer * height)
    wide = ratio * height / width
    left = place * (1 - 0.5 * wide)
    right = left + 0.5 * wide

    def score(boxes):
        narrow = boxes[:, 2] * width / (boxes[:, 3] * height) < 0.4
        return torch.where(narrow, 2.5 + 0.2 * (boxes[:, 0] - (left + right) / 2).abs(), keeps(left, right)(boxes))

    crop = select_crops(predict(0, (height, width), score=score), CropConstraints(aspect_ratio=ratio), top_k=1)
    kept = min(float(crop.boxes[0, 2]) / width, right) - max(float(crop.boxes[0, 0]) / width, left)
    # A cell of the profile is a twelfth of the picture.
    assert kept >= right - left - 1.5 / 12


def test_crops_like_those_people_rated_are_judged_by_the_head_alone():
    judge = predict(0, (400, 600), score=lambda boxes: 3 + boxes[:, 0])
    boxes = torch.tensor([[0, 0, 600, 400], [100, 0, 500, 400], [0, 40, 500, 400]], dtype=torch.float64)
    expected = [3 + 1 / 2, 3 + 1 / 2, 3 + 250 / 600]
    assert judge.merit(boxes).tolist() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(judge(boxes), torch.sigmoid(4 * (judge.merit(boxes) - 4)), atol=1e-4, rtol=0)


def test_hardly_likely_crops_are_still_ordered():
    judge = predict(0, (400, 600), score=lambda boxes: -20 + boxes[:, 0])
    selection = select_crops(judge, CropConstraints(aspect_ratio=1.0, min_area=0.665), top_k=1)
    assert selection.boxes[0].tolist() == [200, 0, 600, 400] and float(selection.scores[0]) == 0


def test_bounds_give_way_before_content_and_strict_raises():
    judge = predict(1, (100, 100))
    constraints = CropConstraints.from_options((100, 100), max_area=0.1, keep=[[10, 10, 90, 90]])
    selection = select_crops(judge, constraints)
    assert selection.boxes[0].tolist() == [10, 10, 90, 90] and selection.gave_way[0] == ("max_area",)
    with pytest.raises(ConstraintError, match="max_area had to give way") as caught:
        select_crops(judge, constraints, strict=True)
    assert caught.value.gave_way == ("max_area",)


def test_kept_content_wider_than_the_ratio_is_cut_evenly():
    constraints = CropConstraints.from_options((100, 200), aspect_ratio="1:1", keep=[[20, 40, 180, 60]])
    selection = select_crops(predict(2, (100, 200)), constraints)
    assert selection.boxes.tolist() == [[50, 0, 150, 100]] or selection.boxes[0, 2] - selection.boxes[0, 0] == 100
    assert selection.gave_way[0] == ("keep",)


def test_diversity_trades_score_for_distance():
    judge = predict(3, (300, 300), count=40)

    def spread(diversity):
        boxes = select_crops(judge, CropConstraints(), diversity=diversity, top_k=4).boxes
        overlap = box_iou(boxes, boxes)
        return float(overlap.sum() - overlap.trace())

    assert spread(0.9) < spread(0.0)
    plain = select_crops(judge, CropConstraints(), top_k=4)
    torch.testing.assert_close(plain.boxes, select_crops(judge, CropConstraints(), diversity=0.0, top_k=4).boxes)
    with pytest.raises(ValueError, match="diversity lies in"):
        select_crops(judge, CropConstraints(), diversity=1.5)


def test_suppression_and_threshold_bound_the_set():
    judge = predict(4, (300, 300), count=60)
    crops = select_crops(judge, CropConstraints(), nms_iou=0.3, threshold=0.5, top_k=50)
    overlap = box_iou(crops.boxes, crops.boxes).fill_diagonal_(0)
    assert bool((crops.scores > 0.5).all()) and float(overlap.max()) < 0.32
    assert len(select_crops(judge, CropConstraints(), threshold=1.0).boxes) == 0
    assert len(select_crops(judge, CropConstraints(aspect_ratio=1.0), threshold=1.0).boxes) == 1


def test_the_whole_picture_is_judged_on_the_scale_of_the_crops():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    judge = CropJudge.from_prediction(boxes, torch.tensor([0.75, 0.25]), (100, 100))
    verdict = judge_picture(judge)
    assert verdict["keep_original"] == 0.25 and verdict["improves"] == 0.5
    assert verdict["focus_point"] == {"x": pytest.approx(0.5), "y": pytest.approx(0.5)}


def test_the_focus_point_follows_the_crops():
    box = torch.tensor([[0.8, 0.3, 0.3, 0.3]])
    x, y = judge_picture(CropJudge.from_prediction(box, torch.ones(1), (200, 300)))["focus_point"].values()
    assert x > 0.65 and y < 0.45


@pytest.mark.parametrize(("left", "right"), [(0.05, 0.2), (0.2, 0.35), (0.4, 0.6), (0.7, 0.95)])
def test_the_focus_point_lies_where_cutting_costs_score(left, right):
    focus = judge_picture(predict(0, (300, 450), score=keeps(left, right)))["focus_point"]
    assert left - 0.04 <= focus["x"] <= right + 0.04 and focus["y"] == pytest.approx(0.5, abs=0.02)


NAMED = [("original", 2.0), ("free", None)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("16:9", 16 / 9),
        ("16/9", 16 / 9),
        ("4x5", 0.8),
        (1.5, 1.5),
        ("1.91:1", 1.91),
        ("2.39", 2.39),
        ("Square", 1.0),
        *NAMED,
    ],
)
def test_aspect_ratios_are_read(value, expected):
    assert parse_aspect_ratio(value, (100, 200)) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("value", ["", "16:", "a:b", "0:5", "5:0", 0, -1, float("nan"), float("inf"), "1:2:3"])
def test_bad_aspect_ratios_are_named(value):
    with pytest.raises(ValueError, match="aspect ratio"):
        parse_aspect_ratio(value, (100, 200))


def test_width_and_height_say_ratio_and_least_size():
    constraints = CropConstraints.from_options((600, 800), width=300, height=200)
    assert constraints.aspect_ratio == 1.5 and constraints.min_size == (300, 200)
    small = select_crops(predict(5, (100, 100)), CropConstraints.from_options((100, 100), width=300, height=200))
    assert small.gave_way[0] == ("min_size",) and small.boxes[0, 2] - small.boxes[0, 0] == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_area": 2}, "min_area"),
        ({"min_area": 0.5, "max_area": 0.4}, "larger than max_area"),
        ({"min_size": 0}, "min_size"),
        ({"width": 0}, "width must be"),
        ({"width": 300, "height": 200, "aspect_ratio": "1:1"}, "contradict"),
        ({"keep": [[1, 2, 3]]}, "keep: expected"),
        ({"keep": [[5, 5, 5, 9]]}, "needs x1 < x2"),
        ({"avoid": [[1, 2]]}, "avoid: expected"),
        ({"avoid": [[900, 0, 950, 10]]}, "outside the picture"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CropConstraints.from_options((100, 200), **options)


def test_points_are_kept_as_the_pixel_they_lie_in():
    constraints = CropConstraints.from_options((100, 200), keep=[[10.7, 20.2], [200, 100]])
    assert constraints.keep.tolist() == [[10, 20, 11, 21], [199, 99, 200, 100]]


def test_the_same_photo_gives_the_same_crops_whatever_the_last_bits():
    judge = predict(6, (480, 640), count=90)
    noisy = CropJudge(judge.boxes + 1e-9, judge.validity + 1e-9, judge.picture_size)
    for options in ({}, {"aspect_ratio": "4:5"}, {"aspect_ratio": "16:9", "min_area": 0.3}, {"max_area": 0.4}):
        constraints = CropConstraints.from_options((480, 640), **options)
        first, second = select_crops(judge, constraints), select_crops(noisy, constraints)
        assert first.boxes.tolist() == second.boxes.tolist()
