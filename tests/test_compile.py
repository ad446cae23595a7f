"""`torch.compile` and the attention implementations that transformers offers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import small_setcrop_lite
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForObjectDetection

from modeling_setcrop import SetCropForImageCropping
from modeling_setcrop.backbone_inverted_residual import InvertedResidualConvolution

# Upright and lying, square and slim, of every parity.
SHAPES = [
    *((192, 256), (256, 192), (176, 256), (256, 176), (256, 256), (144, 256), (256, 144), (208, 256)),
    *((80, 256), (256, 80), (171, 256), (255, 171), (143, 255), (255, 191), (97, 201), (111, 224)),
]


def whole_model() -> SetCropForImageCropping:
    """A model with every option, small."""
    return small_setcrop_lite(
        "mobilenet_v2",
        width=16,
        num_queries=5,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        anchor_sizes=True,
        rating_sources=["first", "second"],
        subject_map=True,
        face_finding=True,
    )


def test_one_graph_serves_sizes_of_every_parity():
    """A strided convolution, the one place where parities matter; the whole model is slow to compile."""
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    convolution = InvertedResidualConvolution(3, 4, kernel_size=3, stride=2, batch_norm=False).eval()
    torch.compiler.reset()
    model = torch.compile(convolution, dynamic=True, backend=count)
    with torch.inference_mode():
        for height, width in [(96, 128), (97, 127), (111, 74), (96, 96), (65, 126), (80, 117)]:
            pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(model(pixels), convolution(pixels), atol=1e-6, rtol=1e-5)
    assert len(compiled) <= 2


@pytest.fixture(params=[1, 2])
def threads(request) -> Iterator[int]:
    """So many threads for PyTorch's kernels; which it picks depends on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_images_of_sixteen_shapes_share_one_graph_or_two(threads):
    """Of the whole model with every option; what a backend then does with the graphs takes minutes."""
    model, masked = whole_model(), threads == 2
    counter = CompileCounterWithBackend("eager")
    torch.compiler.reset()
    compiled = torch.compile(model, dynamic=True, backend=counter)
    assert len(set(SHAPES)) == 16
    with torch.inference_mode():
        for height, width in SHAPES:
            pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
            mask = torch.ones(1, height, width, dtype=torch.long) if masked else None
            found, expected = compiled(pixels, mask), model(pixels, mask)
            torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
            torch.testing.assert_close(found.pred_ratings, expected.pred_ratings, atol=1e-4, rtol=0)
    assert counter.frame_count <= 2


def test_a_padded_batch_is_rated_the_same_when_compiled():
    """As each of its images is alone, compiled or not."""
    model, sizes = whole_model(), [(128, 96), (96, 128)]
    pixels, mask = torch.zeros(2, 3, 144, 128), torch.zeros(2, 144, 128, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    for row, (height, width) in enumerate(sizes):
        pixels[row, :, :height, :width] = torch.randn(3, height, width, generator=generator)
        mask[row, :height, :width] = 1
    torch.compiler.reset()
    with torch.inference_mode():
        found = torch.compile(model, dynamic=True, backend="eager")(pixels, mask)
        for row, (height, width) in enumerate(sizes):
            alone = model(pixels[row : row + 1, :, :height, :width])
            torch.testing.assert_close(found.pred_boxes[row], alone.pred_boxes[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(found.pred_ratings[row], alone.pred_ratings[0], atol=1e-4, rtol=0)
    assert found.encoder_outputs.image_sizes.tolist() == [[width, height] for height, width in sizes]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_attention_implementation_can_be_chosen(tiny_checkpoint, tiny_model, implementation):
    model = AutoModelForObjectDetection.from_pretrained(tiny_checkpoint, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = model(pixels), tiny_model(pixels)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
