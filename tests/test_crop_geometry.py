"""Geometry: each function against the plain definition it stands for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_setcrop.crop_geometry import (
    box_iou,
    candidate_grid,
    choice_grid,
    covering_order,
    cxcywh_to_xyxy,
    fit_aspect_ratio,
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


def make_boxes(count: int, seed: int, height: float = 1.0, width: float = 1.0) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    corners = corners.sort(dim=1).values * torch.tensor([width, height], dtype=torch.float64)
    return corners.reshape(count, 4)


@st.composite
def inner_box(draw, height: int, width: int) -> torch.Tensor:
    """A whole-pixel box with some area inside the picture."""
    x1 = draw(st.integers(0, width - 1))
    y1 = draw(st.integers(0, height - 1))
    x2 = draw(st.integers(x1 + 1, width))
    y2 = draw(st.integers(y1 + 1, height))
    return torch.tensor([x1, y1, x2, y2], dtype=torch.float64)


def test_overlap_of_two_boxes_by_hand():
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[2.0, 2.0, 6.0, 6.0], [4.0, 0.0, 8.0, 4.0]])
    torch.testing.assert_close(box_iou(a, b), torch.tensor([[4 / 28, 0.0], [0.0, 0.0]]))


def test_centre_and_corner_formats_invert_each_other():
    boxes = make_boxes(20, seed=0)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_nms_is_the_greedy_loop_and_keeps_ties_in_order(count):
    boxes = make_boxes(count, seed=count)
    scores = torch.randint(0, 8, (count,), generator=torch.Generator().manual_seed(1)).double()
    kept: list[int] = []
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        if all(box_iou(boxes[index][None], boxes[other][None]).item() <= 0.4 for other in kept):
            kept.append(index)
    assert nms(boxes, scores, 0.4).tolist() == kept
    assert nms(boxes, scores, 0.4, count=3).tolist() == kept[:3]


def test_diversity_goes_from_the_order_of_scores_to_the_least_overlap():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8, 0.1], dtype=torch.float64)
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
    h = torch.linspace(0.01, 1, 60, dtype=torch.float64) * largest
    across, down = torch.meshgrid(*[torch.linspace(0, 1, 25, dtype=torch.float64)] * 2, indexing="ij")
    x = across.reshape(-1, 1) * (width - ratio * h)
    y = down.reshape(-1, 1) * (height - h)
    others = torch.stack([x, y, x + ratio * h, y + h], dim=-1).reshape(-1, 4)
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
    heights = torch.linspace(needed, high, 60, dtype=torch.float64)
    sizes = torch.stack([heights * ratio, heights], dim=-1)
    lower = torch.maximum(keep[2:] - sizes, torch.zeros_like(sizes))
    upper = torch.minimum(keep[:2].expand_as(sizes), torch.tensor([width, height], dtype=torch.float64) - sizes)
    share = torch.cartesian_prod(*[torch.linspace(0, 1, 25, dtype=torch.float64)] * 2)
    corners = lower[:, None] + share[None] * (upper - lower).clamp(min=0)[:, None]
    others = torch.cat([corners, corners + sizes[:, None]], dim=-1).reshape(-1, 4)
    assert box_iou(others, box[None]).max() <= box_iou(fitted[None], box[None]).item() + 1e-6


@settings(max_examples=200)
@given(height=sides, width=sides, ratio=ratios)
def test_pixel_sizes_fit_and_have_the_ratio_to_one_pixel(height, width, ratio):
    sizes = pixel_sizes(ratio, (height, width))
    w, h = sizes.unbind(dim=-1)
    assert bool((w >= 1).all() & (h >= 1).all() & (w <= width).all() & (h <= height).all())
    assert bool((sizes == sizes.round()).all())
    assert bool((((w - ratio * h).abs() < 1) | ((h - w / ratio).abs() < 1)).all())
    # Nothing larger was forgotten: one more pixel on the shorter side leaves the picture.
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
    assert bool((sizes == size).all(dim=-1).any())
    for axis in range(2):
        if size[axis] >= keep[2 + axis] - keep[axis]:
            assert placed[axis] <= keep[axis] and placed[2 + axis] >= keep[2 + axis]


def test_grid_covers_every_place_at_the_stride_and_respects_keep():
    sizes = torch.tensor([[60.0, 40.0], [90.0, 60.0]], dtype=torch.float64)
    grid = candidate_grid(sizes, (60, 120), 10)
    assert len(grid) == 7 * 3 + 4 * 1
    assert len(grid.unique(dim=0)) == len(grid)
    keep = torch.tensor([70.0, 10.0, 80.0, 20.0])
    kept = candidate_grid(sizes, (60, 120), 10, keep)
    assert bool((kept[:, :2] <= keep[:2]).all() & (kept[:, 2:] >= keep[2:]).all())
    assert kept[:, 0].unique().tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert kept[kept[:, 3] - kept[:, 1] == 40, 0].min() == 20


def test_place_centres_what_does_not_fit():
    placed = place(
        torch.tensor([[5.0, 5.0]]), torch.tensor([[10.0, 10.0]]), (100, 100), torch.tensor([20.0, 20.0, 60.0, 24.0])
    )
    assert placed.tolist() == [[35.0, 14.0, 45.0, 24.0]]


def test_hull_contains_every_box():
    assert hull(torch.tensor([[1, 2, 3, 4], [0, 3, 2, 9]])).tolist() == [0, 2, 3, 9]


def test_a_crop_does_not_stand_for_one_that_it_overlaps_by_just_the_threshold():
    # Ten and nine bins wide, IoU 0.9 but for rounding: the second is chosen for itself, before one that stands apart.
    x = torch.tensor([[0.5, 10.5], [0.5, 9.5], [1.5, 11.5]]) / 12
    full = torch.tensor([0.5, 11.5]) / 12
    crops = torch.stack([torch.stack([near, full[0], far, full[1]]) for near, far in x])
    at = [int((choice_grid() - crop).abs().amax(dim=1).argmin()) for crop in crops]
    probabilities = torch.zeros(90)
    probabilities[at] = torch.tensor([0.5, 0.3, 0.2])
    assert covering_order(crops, probabilities).tolist() == [0, 1, 2]


def test_module_stands_alone_beside_torch():
    source = Path(importlib.util.find_spec("modeling_setcrop.crop_geometry").origin).read_text()
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert imports == ["from __future__ import annotations", "import torch", "from torch import Tensor"]


def test_choice_grid_is_gaics():
    """12 x 12 bins, corners at their centres, four bins from each side, at least half the picture: 90 crops."""
    grid = choice_grid()
    expected = {
        (a, b, c, d)
        for a in range(4)
        for b in range(4)
        for c in range(8, 12)
        for d in range(8, 12)
        if (c - a) * (d - b) >= 72
    }
    assert {tuple(row) for row in (grid * 12 - 0.5).round().int().tolist()} == expected
    assert len(grid) == len(expected) == 90


@given(seed=st.integers(0, 10_000), boxes=st.integers(1, 12))
def test_covering_order_keeps_the_first_and_then_covers_most_of_what_is_left(seed, boxes):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(boxes, 2, generator=generator) * 0.3
    crops = torch.cat([corner, 1 - torch.rand(boxes, 2, generator=generator) * 0.3], dim=1)
    probabilities = torch.rand(90, generator=generator).softmax(dim=0)
    covers = box_iou(crops, choice_grid()) >= 0.905
    order = covering_order(crops, probabilities).tolist()
    assert sorted(order) == list(range(boxes))
    assert order[0] == 0
    left = probabilities * ~covers[0]
    for rank, index in enumerate(order[1:], start=1):
        gains = (covers * left).sum(dim=1)
        assert gains[index] >= max(float(gains[other]) for other in order[rank:]) - 2e-6
        left = left * ~covers[index]
    assert covering_order(crops, probabilities, 3).tolist() == order[:3]
