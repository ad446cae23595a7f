"""Fixtures every test may use."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the research data sets' files; the tests that need them are skipped where it is absent."""
    folder = Path(os.environ.get("SETCROP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder} (set SETCROP_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The six images that ship with the repository."""
    return sorted((ROOT / "examples" / "photos").glob("*.jpg"))


class Messages(logging.Handler):
    """Collects what transformers tells the user."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@pytest.fixture
def messages():
    """What transformers tells the user, from here on."""
    logger = logging.getLogger("transformers")
    handler = Messages()
    logger.addHandler(handler)
    yield handler.found
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def tiny_model():
    """A small model with random weights and every optional part, in evaluation mode; do not change it."""
    import torch

    from modeling_setcrop import InvertedResidualConfig, SetCropConfig, SetCropForImageCropping

    torch.manual_seed(0)
    backbone = InvertedResidualConfig(batch_norm=False, hypercolumn=True, out_features=["stage3", "stage4"])
    config = SetCropConfig(
        backbone_config=backbone,
        num_queries=12,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        anchor_sizes=True,
        crop_scoring=True,
        rerank=True,
    )
    model = SetCropForImageCropping(config).eval()
    generator = torch.Generator().manual_seed(0)
    centres = 0.35 + 0.3 * torch.rand(12, 2, generator=generator)
    sizes = 0.4 + 0.2 * torch.rand(12, 2, generator=generator)
    model.initialize_anchors(torch.cat([centres, sizes], dim=1))
    return model


def small_setcrop_lite(variant: str = "efficientnet_lite0", width: int = 32, **options):
    """A model with random weights, made as setcrop-lite is: two sources, and three maps, the finest for scoring alone.

    `width` is that of every part; `options` are the configuration's and go before it.
    """
    import torch

    from modeling_setcrop import InvertedResidualConfig, SetCropConfig, SetCropForImageCropping

    torch.manual_seed(0)
    backbone = InvertedResidualConfig(
        variant=variant,
        batch_norm=False,
        hypercolumn=True,
        detail=True,
        out_features=["stage2", "stage3", "stage4"],
    )
    shape = dict(
        d_model=width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=width,
        decoder_ffn_dim=width,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        crop_scoring=True,
        crop_scoring_dim=width,
        crop_scoring_detail=True,
        rating_sources=["editors", "people"],
        rerank=True,
    )
    return SetCropForImageCropping(SetCropConfig(backbone_config=backbone, **{**shape, **options})).eval()


def with_former_outputs(checkpoint: Path, target: Path) -> Path:
    """Copy a checkpoint's folder, with what graphs exported before call their outputs."""
    import onnx

    former = {"pred_ratings": "pred_scores", "ratings": "scores"}
    shutil.copytree(checkpoint, target)
    for path in (target / "onnx").glob("*.onnx"):
        model = onnx.load(path)
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [former.get(name, name) for name in names]
        for output in model.graph.output:
            output.name = former.get(output.name, output.name)
        onnx.save(model, path)
    return target


@pytest.fixture(scope="session")
def tiny_processor():
    """The image processor that goes with `tiny_model`."""
    from modeling_setcrop import SetCropImageProcessorPil

    return SetCropImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 128})


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model, tiny_processor, tmp_path_factory) -> Path:
    """A folder with `tiny_model` and its image processor, as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder
