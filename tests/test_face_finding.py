"""Faces found in the model's features, and what a crop that loses one pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_setcrop_lite
from torch import nn

from modeling_setcrop import SetCropConfig
from modeling_setcrop.face_finding_setcrop import lost_faces


@pytest.fixture(scope="module")
def model():
    return small_setcrop_lite(num_queries=6, face_finding=True, face_penalty=0.7)


def corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


def test_lost_faces_are_the_worst_cut_share_by_how_sure_the_face_is():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.2, 0.6, (2, 40, 4))
    starts = rng.uniform(0, 0.7, (2, 8, 2))
    faces = np.concatenate([starts, starts + rng.uniform(0.05, 0.3, (2, 8, 2)), rng.random((2, 8, 1))], axis=-1)
    found = lost_faces(torch.from_numpy(boxes), torch.from_numpy(faces)).numpy()
    for image in range(2):
        cut = np.zeros((8, 40))
        for row, (x1, y1, x2, y2) in enumerate(faces[image, :, :4]):
            for column, (left, top, right, bottom) in enumerate(corners(boxes[image])):
                inside = max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
                cut[row, column] = np.clip((1 - inside / ((x2 - x1) * (y2 - y1))) / 0.25, 0, 1)
        sure = np.clip((faces[image, :, 4] - 0.35) / 0.15, 0, 1)
        np.testing.assert_allclose(found[image], (cut * sure[:, None]).max(0), atol=1e-9)


def test_a_crop_that_loses_a_face_is_rated_lower_by_the_penalty(model):
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]]])
    with torch.no_grad():
        encoded = model.model.encode(pixels)
        encoded.faces = None
        plain = model.score_crops(boxes, encoded)
        encoded.faces = torch.tensor([[[0.1, 0.3, 0.2, 0.5, 0.9], [0.6, 0.1, 0.8, 0.3, 0.1]]])
        rated = model.score_crops(boxes, encoded)
    # The whole keeps both; the second loses only one that is no face; the third loses the sure one.
    torch.testing.assert_close(plain - rated, torch.tensor([[0.0, 0.0, 0.7]]))


def test_faces_lie_where_the_cells_say_surest_first(model):
    finder = model.model.face_finder
    memory, detail = torch.randn(1, 4, 6, 32), torch.randn(1, finder.detail.in_channels, 8, 12)
    answer = torch.full((1, 5, 8, 12), -9.0)
    answer[0, :, 2, 3] = torch.tensor([2.0, 0.25, -0.5, np.log(2.0), np.log(4.0)])
    answer[0, :, 2, 4] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])  # a neighbour, less sure of the same face
    answer[0, :, 7, 0] = torch.tensor([3.0, 0.0, 0.0, np.log(2.0), np.log(2.0)])

    class Says(nn.Module):
        def forward(self, _):
            return answer

    trained, finder.answer = finder.answer, Says()
    try:
        faces = finder(memory, detail)[0]
    finally:
        finder.answer = trained
    assert faces.shape == (8, 5)
    # The first sticks out of the image at the left and at the bottom.
    torch.testing.assert_close(faces[0], torch.tensor([0, 6.5 / 8, 1.5 / 12, 1, torch.tensor(3.0).sigmoid()]))
    middle = torch.tensor([3.75, 2.0, 3.75, 2.0]) + torch.tensor([-1.0, -2.0, 1.0, 2.0])
    torch.testing.assert_close(faces[1, :4], middle / torch.tensor([12.0, 8.0, 12.0, 8.0]))
    assert faces[1, 4] == torch.tensor(2.0).sigmoid() and faces[2, 4] < 0.01


def test_a_new_finder_finds_no_faces(model):
    with torch.no_grad():
        pixels = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
        assert model.model.encode(pixels).faces[..., 4].max() < 0.2


def test_a_checkpoint_keeps_its_faces(model, tmp_path):
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        again = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(again.model.encode(pixels).faces, model.model.encode(pixels).faces)
        assert torch.equal(again(pixels).pred_ratings, model(pixels).pred_ratings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"face_finding": True}, "crop_scoring_detail"),
        ({"face_penalty": -1}, "face_penalty"),
    ],
)
def test_a_config_that_cannot_be_is_refused(options, message):
    with pytest.raises(Exception, match=message):
        SetCropConfig(**options)
