"""Geometry: each function against the plain definition it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_setcrop.crop_geometry import (
    GoodCropProbability,
    box_iou,
    candidate_grid,
    covering_order,
    cxcywh_to_xyxy,
    fit_aspect_ratio,
    gaic_grid,
    hull,
    maximal_marginal_relevance,
    nms,
    pixel_sizes,
    place,
    round_to_sizes,
    xyxy_to_cxcywh,
)

sides = st.integers(1, 3000)
ratios = st.floats(0.05, 20, allow_nan=False)
shares = st.floats(0, 1, allow_nan=False)


def make_boxes(count: int, seed: int, height: float = 1.0, width: float = 1.0) -> np.ndarray:
    corners = np.sort(np.random.default_rng(seed).random((count, 2, 2)), axis=1)
    return (corners * [width, height]).reshape(count, 4)


@st.composite
def inner_box(draw, height: int, width: int) -> np.ndarray:
    """A whole-pixel box with some area inside the image."""
    x1 = draw(st.integers(0, width - 1))
    y1 = draw(st.integers(0, height - 1))
    x2 = draw(st.integers(x1 + 1, width))
    y2 = draw(st.integers(y1 + 1, height))
    return np.array([x1, y1, x2, y2], dtype=np.float64)


def test_overlap_of_two_boxes_by_hand():
    a = np.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    b = np.array([[2.0, 2.0, 6.0, 6.0], [4.0, 0.0, 8.0, 4.0]])
    np.testing.assert_allclose(box_iou(a, b), [[4 / 28, 0.0], [0.0, 0.0]])


def test_centre_and_corner_formats_invert_each_other():
    boxes = make_boxes(20, seed=0)
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_the_model_computes_the_same_formulas_on_tensors():
    a, b = make_boxes(7, seed=1), make_boxes(5, seed=2)
    for function in (cxcywh_to_xyxy, xyxy_to_cxcywh, GoodCropProbability()):
        found = function(torch.from_numpy(a))
        assert isinstance(found, torch.Tensor)
        np.testing.assert_allclose(found.numpy(), function(a), rtol=1e-12)
    np.testing.assert_allclose(box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy(), box_iou(a, b), rtol=1e-12)


@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_nms_is_the_greedy_loop_and_keeps_ties_in_order(count):
    boxes = make_boxes(count, seed=count)
    scores = np.random.default_rng(1).integers(0, 8, count).astype(float)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if all(box_iou(boxes[index][None], boxes[other][None]).item() <= 0.4 for other in kept):
            kept.append(index)
    assert nms(boxes, scores, 0.4).tolist() == kept
    assert nms(boxes, scores, 0.4, count=3).tolist() == kept[:3]


def test_diversity_goes_from_the_order_of_scores_to_the_least_overlap():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], dtype=float)
    scores = np.array([0.9, 0.8, 0.1])
    assert maximal_marginal_relevance(boxes, scores, 0.0, 3).tolist() == [0, 1, 2]
    assert maximal_marginal_relevance(boxes, scores, 0.7, 2).tolist() == [0, 2]
    assert maximal_marginal_relevance(boxes[:0], scores[:0], 0.5, 3).tolist() == []


@settings(max_examples=150)
@given(data=st.data(), height=sides, width=sides, ratio=ratios)
def test_no_box_of_the_ratio_overlaps_more_than_the_fitted_one(data, height, width, ratio):
    box = data.draw(inner_box(height, width))
    fitted = fit_aspect_ratio(box[None], ratio, (height, width))[0]
    x1, y1, x2, y2 = fitted.tolist()
    assert min(x1, y1) >= -1e-6 and x2 <= width + 1e-6 and y2 <= height + 1e-6
    assert (x2 - x1) / (y2 - y1) == pytest.approx(ratio, rel=1e-6)
    largest = min(height, width / ratio)
    h = np.linspace(0.01, 1, 60) * largest
    across, down = np.meshgrid(*[np.linspace(0, 1, 25)] * 2, indexing="ij")
    x = across.reshape(-1, 1) * (width - ratio * h)
    y = down.reshape(-1, 1) * (height - h)
    others = np.stack([x, y, x + ratio * h, y + h], axis=-1).reshape(-1, 4)
    assert box_iou(others, box[None]).max() <= box_iou(fitted[None], box[None]).item() + 1e-9


@settings(max_examples=150)
@given(data=st.data(), height=sides, width=sides, ratio=ratios, low=shares, high=shares)
def test_fitting_under_bounds_keeps_what_it_must_and_is_still_the_best(data, height, width, ratio, low, high):
    box, keep = data.draw(inner_box(height, width)), data.draw(inner_box(height, width))
    largest = min(height, width / ratio)
    low, high = sorted([low * largest, high * largest])
    needed = max(float(keep[3] - keep[1]), float(keep[2] - keep[0]) / ratio, low)
    fitted = fit_aspect_ratio(box[None], ratio, (height, width), low, high, keep)[0]
    h = float(fitted[3] - fitted[1])
    if needed > high:
        assert h == pytest.approx(min(high, largest), rel=1e-6, abs=1e-6)
        return
    assert low - 1e-6 <= h <= high + 1e-6
    assert bool((fitted[:2] <= keep[:2] + 1e-6).all()) and bool((fitted[2:] >= keep[2:] - 1e-6).all())
    heights = np.linspace(needed, high, 60)
    sizes = np.stack([heights * ratio, heights], axis=-1)
    lower = np.maximum(keep[2:] - sizes, 0)
    upper = np.minimum(keep[:2], [width, height] - sizes)
    share = np.stack(np.meshgrid(*[np.linspace(0, 1, 25)] * 2), axis=-1).reshape(-1, 2)
    corners = lower[:, None] + share[None] * (upper - lower).clip(min=0)[:, None]
    others = np.concatenate([corners, corners + sizes[:, None]], axis=-1).reshape(-1, 4)
    assert box_iou(others, box[None]).max() <= box_iou(fitted[None], box[None]).item() + 1e-6


@settings(max_examples=200)
@given(height=sides, width=sides, ratio=ratios)
def test_pixel_sizes_fit_and_have_the_ratio_to_one_pixel(height, width, ratio):
    sizes = pixel_sizes(ratio, (height, width))
    w, h = sizes.T
    assert bool((w >= 1).all() & (h >= 1).all() & (w <= width).all() & (h <= height).all())
    assert bool((sizes == sizes.round()).all())
    assert bool(((abs(w - ratio * h) < 1) | (abs(h - w / ratio) < 1)).all())
    # Nothing larger was forgotten: one more pixel on the shorter side leaves the image.
    short = sizes[-1].min() + 1
    long = (short * max(ratio, 1 / ratio)).round()
    assert (long > width or short > height) if ratio >= 1 else (long > height or short > width)


@settings(max_examples=100)
@given(data=st.data(), height=sides, width=sides, ratio=ratios)
def test_whole_pixel_boxes_are_inside_allowed_and_keep_what_fits(data, height, width, ratio):
    box, keep = data.draw(inner_box(height, width)), data.draw(inner_box(height, width))
    sizes = pixel_sizes(ratio, (height, width))
    placed = round_to_sizes(box[None], sizes, (height, width), keep)[0]
    assert bool((placed == placed.round()).all())
    assert min(placed[:2].tolist()) >= 0 and placed[2] <= width and placed[3] <= height
    size = placed[2:] - placed[:2]
    assert bool((sizes == size).all(axis=-1).any())
    for axis in range(2):
        if size[axis] >= keep[2 + axis] - keep[axis]:
            assert placed[axis] <= keep[axis] and placed[2 + axis] >= keep[2 + axis]


def test_grid_covers_every_place_at_the_stride_and_respects_keep():
    sizes = np.array([[60.0, 40.0], [90.0, 60.0]])
    grid = candidate_grid(sizes, (60, 120), 10)
    assert len(grid) == 7 * 3 + 4 * 1
    assert len(np.unique(grid, axis=0)) == len(grid)
    keep = np.array([70.0, 10.0, 80.0, 20.0])
    kept = candidate_grid(sizes, (60, 120), 10, keep)
    assert (kept[:, :2] <= keep[:2]).all() and (kept[:, 2:] >= keep[2:]).all()
    assert np.unique(kept[:, 0]).tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert kept[kept[:, 3] - kept[:, 1] == 40, 0].min() == 20


def test_place_centres_what_does_not_fit():
    placed = place(np.array([[5.0, 5.0]]), np.array([[10.0, 10.0]]), (100, 100), np.array([20.0, 20.0, 60.0, 24.0]))
    assert placed.tolist() == [[35.0, 14.0, 45.0, 24.0]]


def test_hull_contains_every_box():
    assert hull(np.array([[1, 2, 3, 4], [0, 3, 2, 9]])).tolist() == [0, 2, 3, 9]


def test_a_crop_does_not_stand_for_one_that_it_overlaps_by_just_the_threshold():
    # Ten and nine bins wide, IoU 0.9 but for rounding: the second is chosen for itself, before one that stands apart.
    crops = np.array([[near, 0.5, far, 11.5] for near, far in [(0.5, 10.5), (0.5, 9.5), (1.5, 11.5)]]) / 12
    assert covering_order(crops, np.array([0.5, 0.3, 0.2])).tolist() == [0, 1, 2]


def test_gaic_grid_has_its_90_crops():
    """12 x 12 bins, corners at their centres, four bins from each side, at least half the image: 90 crops."""
    grid = gaic_grid()
    expected = {
        (a, b, c, d)
        for a in range(4)
        for b in range(4)
        for c in range(8, 12)
        for d in range(8, 12)
        if (c - a) * (d - b) >= 72
    }
    assert {tuple(row) for row in (grid * 12 - 0.5).round().astype(int).tolist()} == expected
    assert len(grid) == len(expected) == 90


@given(seed=st.integers(0, 10_000), boxes=st.integers(1, 12))
def test_covering_order_keeps_the_first_and_then_covers_most_of_what_is_left(seed, boxes):
    generator = np.random.default_rng(seed)
    corner = generator.random((boxes, 2)) * 0.1
    crops = np.concatenate([corner, 1 - generator.random((boxes, 2)) * 0.1], axis=1)
    probabilities = generator.random(boxes)
    probabilities /= probabilities.sum()
    covers = box_iou(crops, crops) >= 0.905
    order = covering_order(crops, probabilities).tolist()
    assert sorted(order) == list(range(boxes))
    assert order[0] == 0
    left = probabilities * ~covers[0]
    for rank, index in enumerate(order[1:], start=1):
        gains = (covers * left).sum(axis=1)
        assert gains[index] >= max(float(gains[other]) for other in order[rank:]) - 2e-6
        left = left * ~covers[index]
    assert covering_order(crops, probabilities, 3).tolist() == order[:3]
