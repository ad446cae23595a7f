"""The rating of any box: the formula written out by hand, its order, and its symmetry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_setcrop.crop_geometry import box_iou, cut_shares, kept_shares
from modeling_setcrop.data.any_box_rating import (
    CropLabels,
    mirror_boxes,
    rate_boxes,
    window_centre,
)

LABELS = CropLabels(
    crops=np.array([[0.1, 0.0, 0.9, 0.8], [0.2, 0.1, 0.8, 0.9]]),
    ratings=np.array([4.0, 3.5]),
    whole=3.0,
    subjects=np.array([[0.2, 0.2, 0.4, 0.4]]),
    importance=np.array([0.5]),
    square=0.4,
    slim=0.3,
    people=np.array([0.0, 0.0, 0.5, 1.0]),
)


def iou(a, b):
    across = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return across * down / (area - across * down)


def test_the_rating_is_the_documented_formula():
    box = [0.3, 0.1, 0.9, 0.9]
    first, second, whole = iou(box, LABELS.crops[0]), iou(box, LABELS.crops[1]), iou(box, [0, 0, 1, 1])
    weight = np.exp((3.5 - 4.0) / 0.5)
    consensus = (first + weight * second) / (1 + weight)
    nearest = max(first, second - 0.2 * 0.5, whole - 0.5 * 1.0)
    # Half of the subject lies left of the box, which the first crop keeps whole; importances sum to less than 1.
    lost = 0.5 * (1 - 0.5)
    expected = 1 + 4 * (0.65 * consensus + 0.35 * nearest - 0.15 * lost)
    assert rate_boxes(np.array([box]), LABELS)[0] == pytest.approx(expected)
    people = 0.7 * iou(box, LABELS.people) + 0.3 * (expected - 1) / 4
    assert rate_boxes(np.array([box]), LABELS, "people")[0] == pytest.approx(1 + 4 * people)


def test_a_cut_face_costs_what_the_documents_say():
    # The box keeps 0.9 of the first face's width and all of the second.
    faces = np.array([[0.2, 0.2, 0.4, 0.4], [0.5, 0.2, 0.6, 0.4]])
    box = np.array([[0.22, 0.0, 1.0, 1.0]])
    assert cut_shares(faces, box)[:, 0] == pytest.approx([(1 - 0.9) / 0.25, 0])
    without = rate_boxes(box, LABELS)[0]
    assert rate_boxes(box, replace(LABELS, faces=faces))[0] == pytest.approx(without - 4 * 0.4 * 0.4)
    # A quarter lost, half of it lost and all of it lost are one thing: a cut face.
    cut = cut_shares(faces[:1], np.array([[0.25, 0.0, 1.0, 1.0], [0.3, 0.0, 1.0, 1.0], [0.6, 0.0, 1.0, 1.0]]))
    assert cut[0] == pytest.approx([1, 1, 1])


def test_labels_without_a_source_are_refused():
    with pytest.raises(ValueError, match="people"):
        rate_boxes(np.array([[0, 0, 1, 1.0]]), CropLabels(crops=LABELS.crops, ratings=LABELS.ratings), "people")
    with pytest.raises(ValueError, match="no crops"):
        rate_boxes(np.array([[0, 0, 1, 1.0]]), CropLabels())


boxes = st.tuples(*[st.floats(0, 0.45)] * 2, *[st.floats(0.55, 1)] * 2)


@given(st.lists(boxes, min_size=1, max_size=5))
def test_ratings_lie_on_the_scale_and_are_the_same_mirrored(some):
    some = np.array(some)
    ratings = rate_boxes(some, LABELS)
    assert ((ratings >= 1) & (ratings <= 5)).all()
    mirrored = CropLabels(
        mirror_boxes(LABELS.crops), LABELS.ratings, 3.0, mirror_boxes(LABELS.subjects), LABELS.importance
    )
    np.testing.assert_allclose(rate_boxes(mirror_boxes(some), mirrored), ratings)


@given(boxes, boxes)
def test_overlap_and_kept_shares_agree_with_arithmetic(a, b):
    a, b = np.array(a), np.array(b)
    assert box_iou(a[None], b[None])[0, 0] == pytest.approx(iou(a, b))
    assert kept_shares(a[None], a[None])[0, 0] == pytest.approx(1)
    assert kept_shares(a[None], np.array([[0, 0, 1, 1.0]]))[0, 0] == pytest.approx(1)


def test_windows_lie_where_the_labels_say_and_move_evenly_between():
    # Landscape 3:2: the square window is 2/3 long, the slim one 3/8.
    assert window_centre(2 / 3, 1.5, LABELS) == pytest.approx(0.4)
    assert window_centre(3 / 8, 1.5, LABELS) == pytest.approx(0.3)
    assert window_centre((2 / 3 + 3 / 8) / 2, 1.5, LABELS) == pytest.approx(0.35)
    assert window_centre(1.0, 1.5, LABELS) == pytest.approx(0.5)
    # Shorter than slim: its centre; never outside the image.
    assert window_centre(0.2, 1.5, LABELS) == pytest.approx(0.3)
    assert window_centre(0.3, 1.5, CropLabels(square=0.0, slim=0.0)) == pytest.approx(0.15, abs=0.04)
