"""Exported graphs: agreement with torch, the pipeline on onnxruntime, quantisation, errors."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, pipeline
from typer.testing import CliRunner

from hub_card.examples import PHOTOS
from modeling_setcrop import Cropper, SetCropConfig, SetCropForImageCropping
from modeling_setcrop.cli import app
from modeling_setcrop.cli.options import UsageError, load_cropper
from modeling_setcrop.export.hub_export import export_hub
from modeling_setcrop.runtime.checkpoint import CheckpointError
from modeling_setcrop.runtime.onnx_engine import OnnxEngine

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")

from modeling_setcrop.export.onnx_export import OnnxMismatchError, check_agreement, compare_int8, export_onnx  # noqa: E402


@pytest.fixture(scope="module")
def report_and_folder(tiny_checkpoint, tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    return export_onnx(tiny_checkpoint, folder, PHOTOS, int8=True), folder


@pytest.fixture(scope="module")
def folder(report_and_folder) -> Path:
    return report_and_folder[1]


def test_outputs_agree_on_images_of_several_sizes(report_and_folder):
    report, _ = report_and_folder
    assert report["agreement"].keys() == {"logits", "pred_boxes", "pred_scores", "scores"}
    assert max(report["agreement"].values()) <= 1e-4


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 97, 128), (2, 111, 75)])
def test_batch_height_and_width_are_free(folder, tiny_model, shape):
    batch, height, width = shape
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, height, width, generator=generator)
    reference = copy.deepcopy(tiny_model).half().float()
    with torch.inference_mode():
        expected = reference(pixels)
        boxes = torch.rand(batch, 7, 4, generator=generator) / 2 + 0.25
        scores = reference.score_crops(boxes, expected.encoder_outputs)
    graphs = OnnxEngine(folder)
    found = graphs.run(pixels.numpy())
    for name in ("logits", "pred_boxes", "pred_scores"):
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=1e-4)
    np.testing.assert_allclose(graphs.rate(boxes.numpy(), found), scores.numpy(), atol=1e-4)


def test_weights_are_stored_in_half_precision_and_say_nothing_of_their_making(folder, tiny_checkpoint):
    graph = onnx.load(folder / "onnx" / "model.onnx")
    halves = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.graph.initializer)
    assert halves > 10 and not graph.graph.value_info and not graph.metadata_props
    assert all(not node.metadata_props and not node.doc_string for node in graph.graph.node)
    assert (folder / "onnx" / "model.onnx").stat().st_size < 0.7 * (
        tiny_checkpoint / "model.safetensors"
    ).stat().st_size


def test_the_pipeline_gives_the_same_crops(folder, tiny_checkpoint, photos):
    torch_crops, onnx_crops = pipeline("image-cropping", model=str(tiny_checkpoint)), Cropper(folder)
    assert onnx_crops.runtime == "onnx"
    for options in ({}, {"nms_iou": None, "top_k": 3}, {"details": True}):
        expected, found = (cropper(str(photos[0]), **options) for cropper in (torch_crops, onnx_crops))
        expected, found = (crops["crops"] if isinstance(crops, dict) else crops for crops in (expected, found))
        assert len(found) == len(expected)
        for crop, other in zip(found, expected, strict=True):
            assert crop["score"] == pytest.approx(other["score"], abs=1e-3)
    both = [str(photo) for photo in photos[:2]]
    assert onnx_crops(both, batch_size=2) == [onnx_crops(photo) for photo in both]


def test_int8_is_smaller_and_its_loss_is_measured(report_and_folder, tmp_path):
    report, folder = report_and_folder
    assert report["sizes"]["model_int8.onnx"] < report["sizes"]["model.onnx"]
    assert report["int8"]["probability"] > 0
    # A graph that is not quantised loses nothing.
    same = shutil.copytree(folder, tmp_path / "same")
    (graph,) = same.rglob("model.onnx")
    shutil.copy(graph, graph.with_name("model_int8.onnx"))
    assert compare_int8(same, PHOTOS) == {"first_crop_iou": 1, "same_first_crop": 1, "probability": 0}
    assert Cropper(folder, "onnx-int8")(str(PHOTOS[0]), top_k=1)


def test_graphs_of_another_model_are_refused(folder, tiny_model, tiny_processor):
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.class_labels_classifier.bias += 0.01
    with pytest.raises(OnnxMismatchError, match="logits"):
        check_agreement(other, tiny_processor, folder, PHOTOS[:1])


def test_a_folder_with_another_model_is_left_alone(tiny_checkpoint, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(FileExistsError, match=r"holds another model \(its config\.json differs in .*model_type"):
        export_onnx(tiny_checkpoint, tmp_path, PHOTOS)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_graphs_can_join_an_exported_folder(folder, tiny_checkpoint, tmp_path):
    from modeling_setcrop.export.onnx_export import check_same_model

    export_hub(tiny_checkpoint, tmp_path / "hub")
    check_same_model(tmp_path / "hub", pipeline("image-cropping", model=str(tiny_checkpoint)).model)


def test_missing_graphs_are_named(tiny_checkpoint):
    with pytest.raises(CheckpointError, match=r"model\.onnx: no such ONNX graph"):
        Cropper(tiny_checkpoint, "onnx")


def test_images_are_needed(tiny_checkpoint, tmp_path):
    found = CliRunner().invoke(
        app, ["export", "onnx", str(tmp_path / "out"), "--model", str(tiny_checkpoint), "--photos", str(tmp_path)]
    )
    assert found.exit_code == 1
    assert "images are needed" in found.output


def test_the_papers_model_on_a_resnet_exports_without_a_scorer(tiny_processor, tmp_path):
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    config = SetCropConfig(
        backbone_config=backbone,
        num_queries=5,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    SetCropForImageCropping(config).save_pretrained(tmp_path / "resnet")
    tiny_processor.save_pretrained(tmp_path / "resnet")
    report = export_onnx(tmp_path / "resnet", tmp_path / "graphs", PHOTOS)
    assert report["agreement"].keys() == {"logits", "pred_boxes"}
    assert not (tmp_path / "graphs" / "onnx" / "scorer.onnx").exists()
    assert Cropper(tmp_path / "graphs")(str(PHOTOS[0]), top_k=1)


def test_commands_take_the_runtime(folder, photos, tmp_path):
    command = ["crop", str(photos[0]), "--model", str(folder), "--runtime", "onnx", "--out", str(tmp_path)]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert list(tmp_path.glob("*.jpg"))
    assert load_cropper(str(folder), None).runtime == "onnx"
    with pytest.raises(UsageError, match="runs on the CPU, not on cuda"):
        load_cropper(str(folder), "cuda", "onnx")
    with pytest.raises(UsageError, match="no such ONNX graph"):
        load_cropper(None, None, "onnx-int8")
