"""`torch.compile` and the attention implementations that transformers offers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForObjectDetection


def graphs_of(module, shapes, **options) -> int:
    """How often a module is compiled for images of these shapes; what it gives is checked."""
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = torch.compile(module, dynamic=True, backend=count)
    with torch.inference_mode():
        for height, width in shapes:
            pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
            found, expected = (run(pixel_values=pixels, **options).to_tuple() for run in (model, module))
            for value, other in zip(found, expected, strict=True):
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(value, other, atol=1e-4, rtol=1e-4)
    return len(compiled)


def test_the_backbone_has_one_graph_for_images_of_every_parity(tiny_model):
    sides = [(96, 128), (97, 127), (111, 75), (96, 96), (65, 127), (80, 118), (128, 85), (70, 66)]
    assert graphs_of(tiny_model.model.backbone.model, sides) == 1


def test_the_model_is_compiled_once_or_twice(tiny_model):
    assert 1 <= graphs_of(tiny_model, [(96, 128), (97, 75)]) <= 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_attention_implementation_can_be_chosen(tiny_checkpoint, tiny_model, implementation):
    model = AutoModelForObjectDetection.from_pretrained(tiny_checkpoint, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = model(pixels), tiny_model(pixels)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
