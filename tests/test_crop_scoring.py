"""The scoring head: what it samples, by hand; sources; padding; the map of subjects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_setcrop_lite

from modeling_setcrop import SetCropConfig
from modeling_setcrop.crop_scoring_setcrop import _grid_lines, _interpolation
from modeling_setcrop.loss_setcrop import rated_targets


@pytest.fixture(scope="module")
def model():
    model = small_setcrop_lite(
        num_queries=12,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        anchor_sizes=True,
        tightness_sources={"default": "people"},
        subject_map=True,
        face_finding=True,
    )
    torch.nn.init.normal_(model.model.source_embeddings.weight)
    torch.nn.init.normal_(model.bbox_predictor.layers[-1].weight, std=0.1)  # it starts at zero
    return model


def boxes(*shape, seed=0):
    return torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.35


def test_grid_lines_lie_inside_at_and_beyond_the_edges():
    lines = _grid_lines(torch.tensor([[0.5]]), torch.tensor([[0.6]]))[0, 0]
    inside = 0.2 + 0.6 * (np.arange(6) + 0.5) / 6
    beyond = [0.1, 0.22, 0.17, 0.12, 0.78, 0.83, 0.88, 0.9]
    np.testing.assert_allclose(lines, [*inside, *beyond], atol=1e-6)


def test_interpolation_is_numpys_inside_the_image_and_nothing_beyond():
    values = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    places = np.array([-0.01, 0.0, 0.05, 0.33, 0.5, 0.87, 1.0, 1.2])
    weights = _interpolation(torch.tensor(places)[None, None], torch.tensor([5.0]), 5)[0, 0].numpy()
    expected = np.interp(places * 5 - 0.5, np.arange(5), values)
    expected[[0, -1]] = 0
    np.testing.assert_allclose(weights @ values, expected, atol=1e-6)


def test_only_cells_of_the_image_are_read():
    weights = _interpolation(torch.tensor([[[0.99]]]), torch.tensor([3.0]), 5)[0, 0, 0]
    np.testing.assert_allclose(weights, [0, 0, 1, 0, 0], atol=1e-6)


def test_an_image_is_encoded_alike_alone_and_in_a_padded_batch(model):
    generator = torch.Generator().manual_seed(0)
    sizes = [(96, 128), (64, 100), (90, 64), (64, 100)]
    images = [torch.randn(3, *size, generator=generator) for size in sizes]
    padded, mask = torch.zeros(4, 3, 96, 128), torch.zeros(4, 96, 128)
    for row, image in enumerate(images):
        padded[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = 1
    asked = boxes(4, 9)
    with torch.no_grad():
        together = model(padded, mask, candidate_boxes=asked)
        for row, image in enumerate(images):
            alone = model(image[None], candidate_boxes=asked[row : row + 1])
            for name in ("logits", "pred_boxes", "pred_ratings", "crop_ratings"):
                torch.testing.assert_close(together[name][row], alone[name][0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                together.encoder_outputs.faces[row], alone.encoder_outputs.faces[0], atol=1e-5, rtol=0
            )
            cells = alone.encoder_outputs.importance[0]
            found = together.encoder_outputs.importance[row]
            torch.testing.assert_close(found[: cells.shape[0], : cells.shape[1]], cells, atol=1e-5, rtol=0)
            assert found.sum() == pytest.approx(cells.sum().item(), abs=1e-3)


def test_sources_give_other_sets_and_ratings_and_the_default_is_the_configs(model):
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    asked = boxes(2, 5)
    with torch.no_grad():
        default = model(pixels, candidate_boxes=asked)
        people = model(pixels, candidate_boxes=asked, source=1)
        mixed = model(pixels, candidate_boxes=asked, source=torch.tensor([0, 1]))
    assert model.config.default_source == 1
    for name in ("pred_boxes", "crop_ratings"):
        assert torch.equal(default[name], people[name])
        torch.testing.assert_close(mixed[name][1], people[name][1])
        assert not torch.allclose(mixed[name][0], people[name][0])


def test_no_boxes_have_no_ratings(model):
    with torch.no_grad():
        assert model.score_crops(torch.zeros(2, 0, 4), pixel_values=torch.zeros(2, 3, 64, 64)).shape == (2, 0)


def test_a_rating_sees_what_a_crop_keeps_and_what_it_throws_away(model):
    memory = torch.randn(1, 6, 6, 32, requires_grad=True)
    mask, sizes = torch.ones(1, 6, 6, dtype=torch.bool), torch.tensor([[96.0, 96.0]])
    detail = torch.randn(1, model.model.backbone.intermediate_channel_sizes[0], 12, 12, requires_grad=True)
    box = torch.tensor([[[0.25, 0.5, 0.4, 0.9]]])
    model.crop_scorer(box, memory, mask, sizes, detail, torch.tensor(0)).sum().backward()
    # Beyond the mean of the whole image, which every cell is in: compared with a box elsewhere.
    assert (memory.grad.abs().sum(-1)[0, :, 4:] > 0).any()
    assert (detail.grad.abs().sum((0, 1))[:, :6] > 0).any() and (detail.grad.abs().sum((0, 1))[:, 7:] > 0).any()


def test_quality_guidance_by_a_function_is_equation_4():
    config = SetCropConfig(smoothing_upper_bound=0.5, quality_lower=2.0, quality_upper=3.5)
    ratings = np.array([1.0, 2.0, 2.75, 3.5, 5.0])
    given = torch.rand(3, 2, 5, 4)  # three layers, two images, five anchors
    labels = rated_targets(given, [lambda some: np.tile(ratings, 3), lambda some: np.tile(ratings[::-1], 3)], config)
    expected = torch.tensor([0, 0, 0.25, 0.5, 0.5])
    torch.testing.assert_close(labels[:, 0], expected.expand(3, 5))
    torch.testing.assert_close(labels[:, 1], expected.flip(0).expand(3, 5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tightness_sources": {"tight": "nobody"}}, "nobody"),
        ({"tightness_sources": {"snug": "editors"}}, "snug"),
        ({"crop_scoring": False, "rerank": False}, "crop_scoring_detail"),
    ],
)
def test_a_config_that_cannot_be_is_refused(model, fields, message):
    with pytest.raises(Exception, match=message):
        SetCropConfig.from_dict({**model.config.to_dict(), **fields})
