"""What cutting costs: read from larger crops, by hand where a score is known, and sound for any picture."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_setcrop.content_profile import ContentProfile, familiarity

sides = st.integers(1, 2000)


def test_a_score_that_is_lost_cell_by_cell_is_found_again():
    """Score 4, less 1.2 times the width cut beyond a quarter from the left: 0.1 for each twelfth."""

    def score(boxes):
        left, right = boxes[:, 0] - boxes[:, 2] / 2, boxes[:, 0] + boxes[:, 2] / 2
        return 4 - 1.2 * ((left - 0.25).clamp(min=0) + (1 - right))

    profile = ContentProfile.measure(score, (300, 400))
    assert profile.level == pytest.approx(4, abs=0.02)
    assert profile.across[4:].tolist() == pytest.approx([0.1] * 8, abs=0.03)
    assert profile.across[:2].tolist() == pytest.approx([0] * 2, abs=0.03)
    assert profile.down.tolist() == pytest.approx([0] * 12, abs=0.01)
    crops = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.0, 0.5, 1.0], [0.75, 0.2, 1.0, 0.4]], dtype=torch.float64)
    assert profile(crops).tolist() == pytest.approx([4, 3.4, 3.4], abs=0.08)


def test_what_a_picture_is_better_without_costs_nothing_to_cut():
    profile = ContentProfile.measure(lambda boxes: 3 - boxes[:, 3], (300, 400))
    assert profile.down.tolist() == [0] * 12 and profile.focus[1] == 0.5


def test_crops_are_familiar_within_the_bounds_of_rated_ones():
    boxes = torch.tensor(
        [
            [0.0, 0.0, 1.0, 1.0],
            [0.1, 0.1, 0.9, 0.9],
            [0.0, 0.0, 0.5, 2 / 3],  # a third of the picture: two thirds of the least, where familiarity ends
            [0.0, 0.0, 1.0, 0.7],  # 3 : 1.4, so 1.07 times too flat
        ],
        dtype=torch.float64,
    )
    assert familiarity(boxes, (200, 300)).tolist() == pytest.approx([1, 1, 0, 0.8299], abs=1e-3)


@settings(max_examples=60)
@given(height=sides, width=sides, seed=st.integers(0, 99))
def test_any_picture_has_a_profile_and_a_focus_inside_it(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(4, generator=generator, dtype=torch.float64)
    profile = ContentProfile.measure(lambda boxes: 3 + torch.sin(5 * boxes.double() @ weights), (height, width))
    assert bool((profile.across >= 0).all()) and bool((profile.down >= 0).all())
    assert all(0 <= value <= 1 for value in profile.focus)
    x1, y1, x2, y2 = torch.rand(4, 50, generator=generator, dtype=torch.float64)
    boxes = torch.stack(
        [torch.minimum(x1, x2), torch.minimum(y1, y2), torch.maximum(x1, x2), torch.maximum(y1, y2)], 1
    )
    # Whatever is cut, cutting more of it never predicts a higher score.
    inner = torch.cat([boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]) * 0.2, boxes[:, 2:]], dim=1)
    assert bool((profile(inner) <= profile(boxes) + 1e-9).all())
    assert bool((profile(boxes) <= profile.level + 1e-9).all())
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    assert familiarity(whole, (height, width)).item() == 1
