"""Exported graphs: agreement with torch, the pipeline on onnxruntime, quantisation, errors."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import ask_page, chromium
from conftest import small_setcrop_lite, with_former_outputs
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, ResNetConfig, pipeline
from typer.testing import CliRunner

from hub_card.examples import PHOTOS
from modeling_setcrop import (
    DEFAULT_CHECKPOINT,
    Cropper,
    SetCropConfig,
    SetCropForImageCropping,
    SetCropImageProcessorPil,
)
from modeling_setcrop.cli import app
from modeling_setcrop.cli.options import UsageError, load_cropper
from modeling_setcrop.crop_geometry import cxcywh_to_xyxy
from modeling_setcrop.export.hub_export import export_hub
from modeling_setcrop.export.transformers_js import write_transformers_js_config
from modeling_setcrop.runtime.checkpoint import CheckpointError
from modeling_setcrop.runtime.onnx_engine import OnnxEngine

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from modeling_setcrop.export.onnx_export import (  # noqa: E402
    OnnxMismatchError,
    check_agreement,
    check_same_model,
    compare_graph,
    export_onnx,
    quantize,
)

WEB = Path(__file__).with_name("web")
MISSING = None
if shutil.which("node") is None:
    MISSING = "needs Node (apt-get install nodejs npm)"
elif not (WEB / "node_modules" / "@huggingface" / "transformers").is_dir():
    MISSING = "needs @huggingface/transformers (npm install --ignore-scripts --prefix tests/web)"
needs_transformers_js = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
needs_chromium = pytest.mark.skipif(chromium() is None, reason="needs Chromium (apt-get install chromium)")


def ask_transformers_js(folder: Path, images: list[Path], dtype: str | None = None) -> dict:
    question = json.dumps({"folder": str(folder), "dtype": dtype, "images": [str(path) for path in images]})
    command = ["node", str(WEB / "transformers.mjs")]
    found = subprocess.run(command, input=question, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def model(tiny_model) -> SetCropForImageCropping:
    """The tiny model with two sources of ratings, the second of them the default, and another box head."""
    sources = {"rating_sources": ["first", "second"], "tightness_sources": {"default": "second"}}
    model = SetCropForImageCropping(SetCropConfig.from_dict({**tiny_model.config.to_dict(), **sources})).eval()
    model.load_state_dict(tiny_model.state_dict(), strict=False)
    torch.manual_seed(0)
    # So that the image and the source move every bounding box.
    for layer in (model.model.source_embeddings, model.crop_scorer.source, model.bbox_predictor.layers[-1]):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tiny_processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "checkpoint"
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report_and_folder(checkpoint) -> tuple[dict, Path]:
    folder = checkpoint.with_name("graphs")
    return export_onnx(checkpoint, folder, PHOTOS), folder


@pytest.fixture(scope="module")
def folder(report_and_folder) -> Path:
    return report_and_folder[1]


def test_outputs_agree_on_images_of_several_sizes(report_and_folder):
    report, _ = report_and_folder
    assert report["agreement"].keys() == {"logits", "pred_boxes", "pred_ratings", "ratings"}
    assert max(report["agreement"].values()) <= 1e-4


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 97, 128), (2, 111, 75)])
def test_batch_height_and_width_are_free(folder, model, shape):
    batch, height, width = shape
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, height, width, generator=generator)
    reference = copy.deepcopy(model).half().float()
    with torch.inference_mode():
        expected = reference(pixels)
        boxes = torch.rand(batch, 7, 4, generator=generator) / 2 + 0.25
        scores = reference.score_crops(boxes, expected.encoder_outputs)
    graphs = OnnxEngine(folder)
    found = graphs.run(pixels.numpy())
    for name in ("logits", "pred_boxes", "pred_ratings"):
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=1e-4)
    np.testing.assert_allclose(graphs.rate(boxes.numpy(), found), scores.numpy(), atol=1e-4)


def test_graphs_whose_outputs_have_their_former_names_go_on_working(folder, photos, tmp_path):
    former = with_former_outputs(folder, tmp_path / "former")
    names = {entry.name for entry in onnxruntime.InferenceSession(former / "onnx" / "model.onnx").get_outputs()}
    assert "pred_scores" in names and "pred_ratings" not in names
    now, before = Cropper(str(folder), runtime="onnx"), Cropper(str(former), runtime="onnx")
    assert "pred_ratings" in before.engine.run(np.zeros((1, 3, 64, 64), np.float32))
    for options in ({}, {"aspect_ratio": "1:1"}):
        assert before(photos[0], **options) == now(photos[0], **options)


@pytest.mark.parametrize("graph", ["model.onnx", "model_fp16.onnx", "model_quantized.onnx"])
def test_a_graph_needs_only_pixels_and_has_the_default_eye(folder, model, graph):
    session = onnxruntime.InferenceSession(folder / "onnx" / graph)
    assert [entry.name for entry in session.get_inputs()] == ["pixel_values"]
    assert [entry.type for entry in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * (
        1 + len(session.get_outputs())
    )
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    boxes = {}
    for asked in ({}, {"source": 0}, {"source": 1}):
        given = {name: np.array(value) for name, value in asked.items()}
        (found,) = session.run(["pred_boxes"], {"pixel_values": pixels.numpy(), **given})
        with torch.inference_mode():
            expected = model(pixels, **asked).pred_boxes.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-3 if graph == "model.onnx" else 0.05)
        boxes[asked.get("source")] = found
    assert (boxes[None] == boxes[1]).all() and (boxes[None] != boxes[0]).any()


@pytest.mark.parametrize("name", ["model.onnx", "scorer.onnx", "model_fp16.onnx", "model_quantized.onnx"])
def test_weights_are_stored_in_half_precision_and_say_nothing_of_their_making(folder, checkpoint, name):
    graph = onnx.load(folder / "onnx" / name)
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.graph.initializer)
    assert graph.producer_name == "setcrop" and not graph.producer_version and not graph.metadata_props
    assert not graph.graph.value_info and not graph.graph.metadata_props and not graph.graph.doc_string
    for part in (*graph.graph.node, *graph.graph.initializer):
        assert not part.doc_string and not part.metadata_props
    assert (folder / "onnx" / name).stat().st_size < 0.7 * (checkpoint / "model.safetensors").stat().st_size


def test_the_pipeline_gives_the_same_crops(folder, checkpoint, photos):
    torch_crops, onnx_crops = pipeline("image-cropping", model=str(checkpoint)), Cropper(folder)
    assert onnx_crops.runtime == "onnx"
    for options in ({}, {"nms_iou": None, "top_k": 3}, {"details": True}):
        expected, found = (cropper(str(photos[0]), **options) for cropper in (torch_crops, onnx_crops))
        expected, found = (crops["crops"] if isinstance(crops, dict) else crops for crops in (expected, found))
        assert len(found) == len(expected)
        for crop, other in zip(found, expected, strict=True):
            assert crop["score"] == pytest.approx(other["score"], abs=1e-3)
    both = [str(photo) for photo in photos[:2]]
    assert onnx_crops(both, batch_size=2) == [onnx_crops(photo) for photo in both]


def test_what_other_precisions_change_is_measured(report_and_folder, tmp_path):
    report, folder = report_and_folder
    assert report["sizes"]["model_quantized.onnx"] < report["sizes"]["model.onnx"]
    assert 0 <= report["fp16"]["probability"] < 1e-3 and 0 < report["q8"]["probability"] < 0.1
    halves = onnx.load(folder / "onnx" / "model_fp16.onnx").graph.node
    assert not any(node.op_type == "Cast" and node.input[0].endswith(".half") for node in halves)
    # A graph that is not quantised loses nothing.
    same = shutil.copytree(folder, tmp_path / "same")
    shutil.copy(same / "onnx" / "model.onnx", same / "onnx" / "model_quantized.onnx")
    nothing = {"first_crop_iou": 1, "same_first_crop": 1, "probability": 0}
    assert compare_graph(same, "model_quantized.onnx", PHOTOS) == nothing
    assert Cropper(folder, "onnx-int8")(str(PHOTOS[0]), top_k=1)


def test_quantising_warns_of_nothing(folder, tiny_processor, tmp_path, capfd):
    """Of a model with several sources neither, whose graph has an input with a default."""
    quantize(tiny_processor, folder / "onnx" / "model.onnx", tmp_path / "quantised.onnx", PHOTOS[:1])
    assert capfd.readouterr() == ("", "")


def test_graphs_of_another_model_are_refused(folder, model, tiny_processor):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.class_labels_classifier.bias += 0.01
    with pytest.raises(OnnxMismatchError, match="logits"):
        check_agreement(other, tiny_processor, folder, PHOTOS[:1])


def test_outputs_that_are_no_numbers_do_not_agree(folder, model, tiny_processor):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.class_labels_classifier.bias += torch.nan
    with pytest.raises(OnnxMismatchError, match="nan"):
        check_agreement(other, tiny_processor, folder, PHOTOS[:1])


def test_a_folder_with_another_model_is_left_alone(tiny_checkpoint, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(FileExistsError, match=r"holds another model \(its config\.json differs in .*model_type"):
        export_onnx(tiny_checkpoint, tmp_path, PHOTOS)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_fine_tuned_model_keeps_its_own_graphs(model, checkpoint, tiny_processor, tmp_path):
    """Another model's are not written beside its weights, where they would run in its place; its own are."""
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.class_labels_classifier.bias += 0.5
    tuned.save_pretrained(tmp_path / "tuned")
    tiny_processor.save_pretrained(tmp_path / "tuned")
    with pytest.raises(FileExistsError, match=r"holds another model \(its model\.safetensors has other weights\)"):
        export_onnx(checkpoint, tmp_path / "tuned", PHOTOS[:1], ["fp32"])
    assert not (tmp_path / "tuned" / "onnx").exists()
    export_hub(tmp_path / "tuned", tmp_path / "hub", half=True)
    export_onnx(tmp_path / "tuned", tmp_path / "hub", PHOTOS[:1], ["fp32"])
    assert Cropper(tmp_path / "hub").runtime == "onnx"
    export_hub(tmp_path / "tuned", tmp_path / "hub", half=True)
    assert (tmp_path / "hub" / "onnx" / "model.onnx").is_file()


def test_graphs_of_earlier_weights_are_not_run(folder, model, tiny_processor, tmp_path, photos):
    """Those that lie there after more training; on torch the new ones run."""
    tuned = shutil.copytree(folder, tmp_path / "tuned")
    with torch.no_grad():
        changed = copy.deepcopy(model)
        changed.class_labels_classifier.bias += 0.5
    changed.save_pretrained(tuned)
    tiny_processor.save_pretrained(tuned)
    found = CliRunner().invoke(app, ["suggest", str(photos[0]), "--model", str(tuned)])
    assert found.exit_code == 1 and len(found.output.strip().splitlines()) == 1
    assert f"setcrop export onnx {tuned} --model {tuned}" in found.output
    assert Cropper(tuned, "torch")(photos[0], top_k=1)


def test_graphs_travel_with_their_weights_and_not_with_others(folder, checkpoint, tiny_checkpoint, tmp_path):
    """Into a folder for the Hub, where the image processor is still ours in Python."""
    made = shutil.copytree(checkpoint, tmp_path / "made")
    shutil.copytree(folder / "onnx", made / "onnx")
    export_hub(made, tmp_path / "hub", half=True)
    assert {path.name for path in (tmp_path / "hub" / "onnx").iterdir()} == {
        *("model.onnx", "model_fp16.onnx", "model_quantized.onnx", "scorer.onnx", "report.json")
    }
    check_same_model(tmp_path / "hub", pipeline("image-cropping", model=str(checkpoint)).model)
    config = tmp_path / "hub" / "config.json"
    config.write_text(config.read_text().replace("inverted_residual", "efficientnet_lite"))  # as it was called before
    check_same_model(tmp_path / "hub", pipeline("image-cropping", model=str(checkpoint)).model)
    assert Cropper(tmp_path / "hub").runtime == "onnx"
    export_hub(tiny_checkpoint, tmp_path / "hub")
    assert not (tmp_path / "hub" / "onnx").exists()


@pytest.mark.parametrize("export", ["hub", "onnx", "both"])
def test_what_transformers_js_reads_leaves_python_the_same(folder, checkpoint, tmp_path, export):
    target = folder
    if export != "onnx":
        made = shutil.copytree(checkpoint, tmp_path / "made")
        if export == "both":
            shutil.copytree(folder / "onnx", made / "onnx")
            write_transformers_js_config(made)
        target = tmp_path / "hub"
        export_hub(made, target)
    settings = json.loads((target / "preprocessor_config.json").read_text())
    # The only names under which transformers.js 4 finds a class for it.
    assert settings["feature_extractor_type"] == "DetrFeatureExtractor" and "image_processor_type" not in settings
    assert json.loads((target / "config.json").read_text())["transformers.js_config"] == {"dtype": "fp32"}
    processor, plain = AutoImageProcessor.from_pretrained(target), AutoImageProcessor.from_pretrained(checkpoint)
    assert type(processor) is SetCropImageProcessorPil
    assert processor.size == plain.size and processor.resample == plain.resample
    assert type(AutoConfig.from_pretrained(target)) is SetCropConfig
    # Saved again it is an ordinary checkpoint's, and loads.
    processor.save_pretrained(tmp_path / "again")
    AutoConfig.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "again")) is SetCropImageProcessorPil
    # And without the code it is what any other checkpoint of the package is.
    export_hub(made if export != "onnx" else checkpoint, tmp_path / "plain", code=False)
    assert "SetCropImageProcessor" in (tmp_path / "plain" / "preprocessor_config.json").read_text()


def test_missing_graphs_are_named(tiny_checkpoint):
    with pytest.raises(CheckpointError, match=r"model\.onnx: no such ONNX graph"):
        Cropper(tiny_checkpoint, "onnx")


@pytest.mark.parametrize(
    ("part", "message"), [("output", "gives no memory, which"), ("input", "one source of ratings")]
)
def test_graphs_that_do_not_belong_together_are_refused(folder, tmp_path, part, message):
    """As a folder has them into which files of two models were copied; every image failed."""
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    graph = onnx.load(mixed / "onnx" / "model.onnx")
    entries = graph.graph.output if part == "output" else graph.graph.initializer
    name = {"output": "memory", "input": "source"}[part]
    next(entry for entry in entries if entry.name == name).name = f"{name}.of.another"
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{name}.of.another" if entry == name else entry for entry in names]
    if part == "input":
        (given,) = [entry for entry in graph.graph.input if entry.name == name]
        graph.graph.input.remove(given)
    onnx.save(graph, mixed / "onnx" / "model.onnx")
    with pytest.raises(CheckpointError, match=rf"model\.onnx: .*{message}.*setcrop export onnx"):
        Cropper(mixed)


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
    report = export_onnx(tmp_path / "resnet", tmp_path / "graphs", PHOTOS, ["fp32"])
    assert report["agreement"].keys() == {"logits", "pred_boxes"} and report["sizes"].keys() == {"model.onnx"}
    assert not (tmp_path / "graphs" / "onnx" / "scorer.onnx").exists()
    assert Cropper(tmp_path / "graphs")(str(PHOTOS[0]), top_k=1)


@pytest.fixture(scope="module")
def lite_report_and_folder(tmp_path_factory) -> tuple[dict, Path]:
    """Graphs of a model as setcrop-lite is made: sources, fine detail, faces, sides of whole cells."""
    folder = tmp_path_factory.mktemp("lite")
    small_setcrop_lite(num_queries=6, face_finding=True).save_pretrained(folder / "lite")
    processor = SetCropImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 96}, size_divisor=16)
    processor.save_pretrained(folder / "lite")
    return export_onnx(folder / "lite", folder / "graphs", PHOTOS, dtypes=["fp16", "q8"]), folder / "graphs"


def test_graphs_have_no_masks_einsum_or_padding_that_depends_on_the_image(lite_report_and_folder):
    """Slow operations."""
    report, folder = lite_report_and_folder
    assert max(report["agreement"].values()) <= 1e-4 and report["q8"]["probability"] >= 0
    for name in ("model.onnx", "scorer.onnx"):
        operators = {node.op_type for node in onnx.load(folder / "onnx" / name).graph.node}
        assert not operators & {"Einsum", "IsNaN", "Pad"}, name


@pytest.mark.parametrize("graph", ["model.onnx", "model_fp16.onnx", "model_quantized.onnx"])
def test_a_graph_rounds_sides_to_multiples_as_the_image_processor_does(lite_report_and_folder, graph):
    """Whoever prepares images without our image processor cannot; sides that are multiples already stay."""
    engine = OnnxEngine(lite_report_and_folder[1], graph)
    # What 2400 x 1600 and so on become in 96 pixels, sides rounded down to pixels, and what ours makes of them.
    sides = {(63, 96): (64, 96), (54, 96): (48, 96), (7, 96): (32, 96), (96, 73): (96, 80)}
    for (height, width), rounded in sides.items():
        pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        expected = torch.nn.functional.interpolate(pixels, rounded, mode="bilinear", align_corners=False)
        found, wanted = engine.run(pixels.numpy()), engine.run(expected.numpy())
        assert found["image_sizes"].tolist() == [[rounded[1], rounded[0]]] * 2
        np.testing.assert_allclose(found["pred_boxes"], wanted["pred_boxes"], atol=1e-3)


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


@needs_transformers_js
@pytest.mark.parametrize(("dtype", "pixels"), [(None, 2), ("fp16", 2), ("q8", 20)])
def test_transformers_js_gives_pythons_boxes(folder, model, tiny_processor, photos, tmp_path, dtype, pixels):
    """On the same pixels, in those of the photo, with the default dtype; quantised a little farther off."""
    sizes, expected = [], []
    for photo in photos:
        with Image.open(photo) as opened:
            image = opened.convert("RGB")
        sizes.append(image.size)
        height, width = tiny_processor(image, return_tensors="pt")["pixel_values"].shape[-2:]
        image = image.resize((width, height))
        image.save(tmp_path / f"{photo.stem}.png")
        with torch.inference_mode():
            expected.append(model(**tiny_processor(image, return_tensors="pt")))
    found = ask_transformers_js(folder, [tmp_path / f"{photo.stem}.png" for photo in photos], dtype)
    assert found["classes"] == ["DetrFeatureExtractor", "PreTrainedModel"]
    for result, output, (width, height) in zip(found["results"], expected, sizes, strict=True):
        assert result["pixelSizes"][0] == result["pixelSizes"][1]
        difference = np.abs(np.array(result["outputs"]["pred_boxes"]) - output.pred_boxes.numpy())
        assert (difference * [width, height, width, height]).max() <= pixels
        if dtype is None:
            np.testing.assert_allclose(result["outputs"]["pred_ratings"], output.pred_ratings, atol=1e-2)


def first_crop(output: dict) -> int:
    """Which anchor's crop is the first, of a model's output for an image."""
    return int(np.argmax(np.asarray(output["pred_ratings"])[0]))


def edges(output: dict, anchor: int, image_size: tuple[int, int]) -> np.ndarray:
    """An anchor's crop, in pixels of the image (width, height)."""
    return cxcywh_to_xyxy(np.asarray(output["pred_boxes"], dtype=np.float64)[0, anchor]) * np.tile(image_size, 2)


@needs_transformers_js
def test_transformers_js_finds_pythons_first_crop_in_photo_files(photos, tmp_path):
    """From the JPEG file, with the default dtype: the checkpoint names the one filter that averages there."""
    export_hub(DEFAULT_CHECKPOINT, tmp_path / "hub")
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "hub").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hub")
    found = ask_transformers_js(tmp_path / "hub", photos)["results"]
    for photo, result in zip(photos, found, strict=True):
        with Image.open(photo) as image, torch.inference_mode():
            output, size = model(**processor(image, return_tensors="pt")), image.size
        assert result["size"] == [size[1], size[0]]
        # Of two crops that are rated alike either may be the first: the decoders' pixels differ by a little.
        first, ratings = first_crop(result["outputs"]), output["pred_ratings"][0]
        assert ratings[first] >= ratings.max() - 0.01, photo.name
        found, expected = (edges(one, first, size) for one in (result["outputs"], output))
        assert np.abs(found - expected).max() <= 3, photo.name


@needs_transformers_js
@needs_chromium
def test_transformers_js_crops_photos_much_as_python_does_in_a_browser(photos, tmp_path):
    """It makes them smaller without averaging there, so that the edges of Python's first crop move by some pixels."""
    export_hub(DEFAULT_CHECKPOINT, tmp_path / "hub")
    model = AutoModelForObjectDetection.from_pretrained(DEFAULT_CHECKPOINT).eval()
    processor = AutoImageProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    task = {"photos": [photo.name for photo in photos]}
    answers = ask_page(tmp_path / "hub", photos[0].parent, task, page="transformers.html")
    # Without our word for it a browser takes the quantised graph.
    assert all(answer["dtype"] == "fp32" for answer in answers.values())
    for photo in photos:
        with Image.open(photo) as image, torch.inference_mode():
            output, size = model(**processor(image, return_tensors="pt")), image.size
        found, expected = (edges(one, first_crop(output), size) for one in (answers[photo.name]["outputs"], output))
        assert np.abs(found - expected).max() <= 10, photo.name
