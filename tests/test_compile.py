"""`torch.compile` and the attention implementations that transformers offers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForObjectDetection

from modeling_setcrop.backbone_efficientnet_lite import EfficientNetLiteConvolution


def test_one_graph_serves_sizes_of_every_parity():
    """A strided convolution, the one place where parities matter; the whole model is slow to compile."""
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    convolution = EfficientNetLiteConvolution(3, 4, kernel_size=3, stride=2, batch_norm=False).eval()
    torch.compiler.reset()
    model = torch.compile(convolution, dynamic=True, backend=count)
    with torch.inference_mode():
        for height, width in [(96, 128), (97, 127), (111, 74), (96, 96), (65, 126), (80, 117)]:
            pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(model(pixels), convolution(pixels), atol=1e-6, rtol=1e-5)
    assert len(compiled) <= 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_attention_implementation_can_be_chosen(tiny_checkpoint, tiny_model, implementation):
    model = AutoModelForObjectDetection.from_pretrained(tiny_checkpoint, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = model(pixels), tiny_model(pixels)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
