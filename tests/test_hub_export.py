"""The exported folder: complete, loadable without the package, and giving the same crops."""

from __future__ import annotations

import copy
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, pipeline
from typer.testing import CliRunner

from modeling_setcrop import SetCropConfig, SetCropForImageCropping
from modeling_setcrop.cli import app
from modeling_setcrop.export.hub_export import export_hub
from modeling_setcrop.hub_code import code_files

# What transformers and torch bring along is there; what only SetCrop asks for is not.
ABSENT = """
import json, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
absent = {"modeling_setcrop", "scipy", "accelerate", "datasets", "evaluate", "rich"}
PathFinder.find_spec = classmethod(
    lambda _, name, *rest, **named: None if name.split(".")[0] in absent else find(name, *rest, **named)
)
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline
"""
CROP = (
    ABSENT
    + """
folder, photos, flags = sys.argv[1], sys.argv[2].split(","), json.loads(sys.argv[3])
torch.set_num_threads(1)
cropper = pipeline("image-cropping", model=folder, **flags)
assert type(cropper.model).__module__.startswith("transformers_modules."), type(cropper.model)
crops = [cropper(photo, top_k=5) for photo in photos]
model = AutoModelForObjectDetection.from_pretrained(folder, **flags)
assert type(model).__name__ == "SetCropForImageCropping"
assert type(AutoImageProcessor.from_pretrained(folder, **flags)).__name__ == "SetCropImageProcessorPil"
print(json.dumps(crops))
"""
)
# One step of training, then the model saved, and the pipeline.
TRAIN_AND_SAVE = (
    ABSENT.replace('"scipy", ', "")  # the loss needs it
    + """
folder, target = sys.argv[1:3]
torch.set_num_threads(1)
torch.manual_seed(0)
model = AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=True).train()
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
crops = {"boxes": [[20, 10, 120, 90], [0, 0, 60, 50]], "scores": [4.5, 2.0], "good": [True, False]}
batch = processor(torch.zeros(3, 100, 140), annotations=crops, return_tensors="pt")
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
model(**batch).loss.backward()
optimizer.step()
model.save_pretrained(target + "/model")
processor.save_pretrained(target + "/model")
pipeline("image-cropping", model=folder, trust_remote_code=True).save_pretrained(target + "/pipeline")
"""
)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "tiny-crop"
    export_hub(tiny_checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def python_without_setcrop(tmp_path_factory) -> Path:
    """Interpreter of a virtual environment that sees the installed libraries, but no editable installs."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    inner = sysconfig.get_path("purelib", "venv", {"base": str(folder), "installed_base": str(folder)})
    # Directories named in a .pth file are searched, but their own .pth files are not read.
    Path(inner, "outer.pth").write_text("\n".join(sorted(paths)) + "\n")
    return folder / "bin" / "python"


def run_without_setcrop(
    python: Path, tmp_path: Path, *arguments: str, script: str = CROP
) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    # A cache of its own, so that a folder has to bring all of its code itself.
    environment |= {"HF_MODULES_CACHE": tempfile.mkdtemp(dir=tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-c", script, *arguments]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)


def test_the_code_is_flat_and_closed():
    names = {path.stem for path in code_files()}
    assert {"configuration_setcrop", "modeling_setcrop", "loss_setcrop", "backbone_inverted_residual"} <= names
    assert {"image_processing_setcrop", "image_processing_pil_setcrop", "pipeline_image_cropping"} <= names
    for path in code_files():
        for line in path.read_text().splitlines():
            assert not line.lstrip().startswith(("from modeling_setcrop", "import modeling_setcrop", "from .."))
            if line.lstrip().startswith("from ."):
                assert line.split()[1].lstrip(".") in names, f"{path.name}: {line}"


def test_the_folder_names_its_code(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"]["AutoModelForObjectDetection"] == "modeling_setcrop.SetCropForImageCropping"
    assert config["custom_pipelines"]["image-cropping"]["impl"] == "pipeline_image_cropping.ImageCroppingPipeline"
    processor = json.loads((exported / "preprocessor_config.json").read_text())
    assert processor["auto_map"]["AutoImageProcessor"]["pil"].startswith("image_processing_pil_setcrop.")
    assert (exported / "model.safetensors").is_file()
    assert not list(exported.glob("*.bin"))


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is laid out for POSIX")
def test_same_crops_to_the_last_bit_without_setcrop(
    exported, tiny_checkpoint, python_without_setcrop, photos, tmp_path
):
    chosen = [str(photo) for photo in photos[:3]]
    found = run_without_setcrop(
        python_without_setcrop, tmp_path, str(exported), ",".join(chosen), '{"trust_remote_code": true}'
    )
    assert found.returncode == 0, found.stderr
    cropper = pipeline("image-cropping", model=str(tiny_checkpoint))
    assert json.loads(found.stdout.splitlines()[-1]) == [cropper(photo, top_k=5) for photo in chosen]


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is laid out for POSIX")
def test_without_setcrop_the_trust_flag_is_needed(exported, python_without_setcrop, photos, tmp_path):
    found = run_without_setcrop(
        python_without_setcrop, tmp_path, str(exported), str(photos[0]), '{"trust_remote_code": false}'
    )
    assert found.returncode != 0
    assert "trust_remote_code=True" in found.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is laid out for POSIX")
def test_what_is_saved_without_setcrop_loads_again_without_it(exported, python_without_setcrop, photos, tmp_path):
    """Saved by the model after training and by the pipeline; each folder is complete."""
    found = run_without_setcrop(python_without_setcrop, tmp_path, str(exported), str(tmp_path), script=TRAIN_AND_SAVE)
    assert found.returncode == 0, found.stderr
    before = pipeline("image-cropping", model=str(exported))(str(photos[0]), top_k=5)
    for name in ("model", "pipeline"):
        found = run_without_setcrop(
            python_without_setcrop, tmp_path, str(tmp_path / name), str(photos[0]), '{"trust_remote_code": true}'
        )
        assert found.returncode == 0, found.stderr
        (crops,) = json.loads(found.stdout.splitlines()[-1])
        assert (crops == before) is (name == "pipeline")


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is laid out for POSIX")
def test_what_is_saved_with_setcrop_loads_without_it(
    exported, tiny_checkpoint, python_without_setcrop, photos, tmp_path
):
    """A checkpoint that came with its code keeps it; the pipeline brings it in every case."""
    AutoModelForObjectDetection.from_pretrained(exported).save_pretrained(tmp_path / "model")
    AutoImageProcessor.from_pretrained(exported).save_pretrained(tmp_path / "model")
    cropper = pipeline("image-cropping", model=str(tiny_checkpoint))
    cropper.save_pretrained(tmp_path / "pipeline")
    for name in ("model", "pipeline"):
        assert {file.name for file in code_files()} <= {file.name for file in (tmp_path / name).iterdir()}
        assert pipeline("image-cropping", model=str(tmp_path / name))(str(photos[0])) == cropper(str(photos[0]))
        found = run_without_setcrop(
            python_without_setcrop, tmp_path, str(tmp_path / name), str(photos[0]), '{"trust_remote_code": true}'
        )
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout.splitlines()[-1]) == [cropper(str(photos[0]), top_k=5)]


def test_with_the_package_no_flag_is_needed(exported, tiny_checkpoint, photos):
    cropper = pipeline("image-cropping", model=str(exported))
    assert type(cropper.model) is SetCropForImageCropping
    assert type(AutoConfig.from_pretrained(exported)) is SetCropConfig
    assert type(AutoModelForObjectDetection.from_pretrained(exported)) is SetCropForImageCropping
    assert type(AutoImageProcessor.from_pretrained(exported)) is type(cropper.image_processor)
    expected = pipeline("image-cropping", model=str(tiny_checkpoint))
    assert cropper(str(photos[0])) == expected(str(photos[0]))


def test_an_export_can_be_repeated_but_replaces_nothing_else(exported, tiny_checkpoint, tmp_path):
    export_hub(tiny_checkpoint, exported)
    (tmp_path / "letters.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not empty"):
        export_hub(tiny_checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_what_the_card_is_made_from_comes_along(tiny_checkpoint, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    (checkpoint / "training.json").write_text("{}")
    (checkpoint / "evaluation" / "flms").mkdir(parents=True)
    (checkpoint / "evaluation" / "flms" / "evaluation.json").write_text("{}")
    written = export_hub(checkpoint, tmp_path / "export")
    names = {path.relative_to(tmp_path / "export").as_posix() for path in written}
    assert {"training.json", "evaluation/flms/evaluation.json"} <= names


def test_a_training_and_its_evaluations_become_one_folder(tiny_checkpoint, tiny_model, tmp_path):
    """One command: half the bytes, the evaluations given and no others, the training's own record, a card."""
    run, measured = tmp_path / "run", tmp_path / "measured"
    shutil.copytree(tiny_checkpoint, run)
    (run / "training.json").write_text(json.dumps({"recipe": ["4 optimiser steps"], "command": "setcrop train"}))
    (run / "checkpoint-4").mkdir()
    evaluation = {
        "data": "flms43",
        "split": "all",
        "model": "run",
        "images": 43,
        "methods": {"run": {"measures": {"iou": {"value": 0.81, "low": 0.8, "high": 0.82}}}},
    }
    measured.mkdir()
    (measured / "evaluation.json").write_text(json.dumps(evaluation))
    (measured / "predictions.json").write_text("[]")
    command = ["export", "hub", str(tmp_path / "out"), "--model", str(run), "--evaluation", str(measured), "--half"]
    for _ in range(2):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 0, found.output
    out = tmp_path / "out"
    assert (out / "model.safetensors").stat().st_size < 0.6 * (run / "model.safetensors").stat().st_size
    loaded = AutoModelForObjectDetection.from_pretrained(out)
    assert loaded.dtype == torch.float32
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, tiny_model.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert [path.relative_to(out).as_posix() for path in sorted((out / "evaluation").rglob("*.json"))] == [
        "evaluation/flms43_all/evaluation.json"
    ]
    card = (out / "README.md").read_text()
    assert "- 4 optimiser steps" in card and "| **run** | 0.810" in card
    assert not (out / "checkpoint-4").exists() and (out / "modeling_setcrop.py").is_file()
    missing = CliRunner().invoke(app, [*command, "--evaluation", str(run)])
    assert missing.exit_code == 1 and "has no evaluation.json" in missing.output


def test_an_export_without_code_replaces_no_other_model(tiny_checkpoint, tiny_model, tmp_path):
    """A training's output looks like one."""
    tuned = shutil.copytree(tiny_checkpoint, tmp_path / "tuned")
    changed = copy.deepcopy(tiny_model)
    with torch.no_grad():
        changed.class_labels_classifier.bias += 0.5
    changed.save_pretrained(tuned)
    before = (tuned / "model.safetensors").read_bytes()
    found = CliRunner().invoke(app, ["export", "hub", str(tuned), "--model", str(tiny_checkpoint), "--no-code"])
    assert found.exit_code == 1 and "holds another model" in found.output
    assert (tuned / "model.safetensors").read_bytes() == before


def test_what_a_killed_export_left_is_no_obstacle(tiny_checkpoint, tmp_path):
    target = tmp_path / "target"
    (target / ".setcrop-1-1-1.part" / "onnx").mkdir(parents=True)
    export_hub(tiny_checkpoint, target)
    assert (target / "modeling_setcrop.py").is_file() and not list(target.glob(".setcrop-*"))
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is no folder"):
        export_hub(tiny_checkpoint, tmp_path / "file")


def test_a_checkpoint_for_the_package_needs_no_code(tiny_checkpoint, tmp_path):
    written = export_hub(tiny_checkpoint, tmp_path / "plain", code=False)
    assert {path.name for path in written} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert "auto_map" not in (tmp_path / "plain" / "config.json").read_text()
    export_hub(tiny_checkpoint, tmp_path / "plain", code=False)
