"""The three stages that make setcrop-lite, as real processes, on a dozen images in the layout `editor`."""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from modeling_setcrop import DEFAULT_CHECKPOINT, ImageCroppingPipeline, SetCropForImageCropping
from modeling_setcrop import SetCropImageProcessorPil as Processor


@pytest.fixture
def library(tmp_path):
    rng = np.random.default_rng(0)
    lines, rated = [], []
    for number in range(14):
        name = f"{number}.jpg"
        size = (120, 80) if number % 2 else (80, 120)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / name)
        low, high = rng.uniform(0, 0.3, (5, 2)), rng.uniform(0.7, 1, (5, 2))
        crops = np.concatenate([low, high, rng.uniform(3, 4.5, (5, 1))], axis=1).round(3)
        entry = {"photo": name, "split": "val" if number >= 12 else "train", "crops": crops.tolist(), "whole": 3.0}
        entry |= {"subjects": [[0.4, 0.4, 0.6, 0.6, 1.0]], "square": 0.5, "slim": 0.45}
        if number in (3, 4, 12):
            entry["people"] = crops[1, :4].tolist()
        lines.append(json.dumps(entry))
        grid = [[8, 8, size[1] - 8, size[0] - 8 - step, 3.5] for step in range(5)]
        rated.append(
            {
                "photo": name,
                "split": "train",
                "window": [0, 0, *size],
                "label_width": size[0],
                "crops": grid,
                "view": 0,
            }
        )
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    (tmp_path / "rated").mkdir()
    with gzip.open(tmp_path / "rated" / "labels.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in rated)
    return tmp_path


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def shallow_student_of(teacher, library):
    printed = run(
        "train_setcrop_lite.py",
        *("--editor-data", library, "--start", teacher, "--output_dir", library / "student", "--encoder_layers", 1),
        *("--teachers", teacher, "--taught", 0.9, "--anywhere", 0.5, "--fold", "0/4", "--steps", 2, "--batch_size", 2),
    )
    seen = int(printed.split(" training images")[0].splitlines()[-1])
    assert 0 < seen < 12 and json.loads((library / "student" / "fold.json").read_text()) == [0, 4]
    student = SetCropForImageCropping.from_pretrained(library / "student")
    assert len(student.model.encoder.layers) == 1
    return library / "student"


@pytest.fixture
def stage(monkeypatch):
    """The script of the first stage, imported."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("train_setcrop_lite")


def test_an_image_is_taught_by_those_who_never_saw_it(stage, monkeypatch):
    monkeypatch.setattr(
        stage,
        "predict",
        lambda model, batch: {
            "ratings": torch.full((4, 3), model),
            "windows": torch.full((4, 2, 5), 4 * model),
            "importance": torch.full((4, 1, 1), model),
        },
    )
    batch = {"image": torch.tensor([4, 5, 6, 11]), "ratings": torch.zeros(4, 3), "fit": torch.zeros(4, 2, 5)}
    batch["importance"], batch["labelled"] = torch.zeros(4, 1, 1), torch.tensor([0.0, 0.0, 1.0, 0.0])
    teachers = [stage.Teacher(1.0, (0, 2)), stage.Teacher(2.0, (1, 2)), stage.Teacher(3.0, None)]
    taught = stage.teach(teachers, batch)
    # Even numbers by the first and the third, odd ones by the second and the third; but a view with labels, which the
    # third learned by heart, by the first alone.
    wanted = torch.tensor([2.0, 2.5, 1.0, 2.5])
    assert torch.equal(taught["ratings"], wanted[:, None].expand(4, 3))
    assert torch.equal(taught["fit"], wanted[:, None, None].expand(4, 2, 5))
    assert torch.equal(taught["importance"][:, 0, 0], wanted)
    batch["labelled"] = torch.ones(4)  # where there is no other, it teaches
    assert torch.equal(stage.teach(teachers[2:], batch)["ratings"], torch.full((4, 3), 3.0))


def test_losses_are_shared_between_labels_and_teachers(stage, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    predicted = {
        "ratings": torch.rand(2, 96, generator=generator),
        "windows": torch.rand(2, 4, 13, generator=generator),
    }
    predicted["importance"] = torch.rand(2, 3, 4, generator=generator)
    monkeypatch.setattr(stage, "predict", lambda model, batch: predicted)
    labels, taught = (
        {
            "ratings": torch.rand(2, 96, generator=generator) + 3,
            "fit": torch.rand(2, 4, 13, generator=generator),
            "importance": torch.rand(2, 3, 4, generator=generator),
        }
        for _ in range(2)
    )
    fixed = {"weight": torch.ones(2, 96), "families": torch.ones(2, 4), "source": torch.tensor([0, 1])}
    fixed["labelled"] = torch.ones(2)
    from_labels = stage.batch_loss(None, {**labels, **fixed})
    from_teachers = stage.batch_loss(None, {**taught, **fixed})
    both = stage.batch_loss(None, {**labels, **fixed}, taught=taught, share=0.3)
    for name, loss in both.items():
        torch.testing.assert_close(loss, 0.7 * from_labels[name] + 0.3 * from_teachers[name])


def test_of_a_part_of_an_image_teachers_alone_say_what_is_good(stage, library, monkeypatch):
    images = list(stage.read_editor_images(library, stage.Problems()))
    pixels = [np.asarray(stage.read_image(image.path)) for image in images]
    args = argparse.Namespace(batch_size=4, seed=0, long_side=256, anywhere=0.5)
    views = iter(stage.Views(images, pixels, {}, args))
    batch = next(batch for batch in views if len(batch["labelled"].unique()) == 2)
    unlabelled = batch["labelled"] == 0
    windows = batch["windows"][unlabelled][batch["families"][unlabelled] > 0]
    long, across = (0, 1) if batch["pixels"].shape[2] >= batch["pixels"].shape[1] else (1, 0)
    assert (windows[..., [across, 2 + across]] == torch.tensor([0.0, 1.0])).all()
    torch.testing.assert_close(windows[:, 0, long], torch.zeros(len(windows)))
    torch.testing.assert_close(windows[:, -1, 2 + long], torch.ones(len(windows)))
    boxes = batch["boxes"][unlabelled]
    assert (boxes[:, 0] == torch.tensor([0.0, 0.0, 1.0, 1.0])).all()
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[..., 2:] > boxes[..., :2]).all()
    # What stands for labels there has no part in the losses.
    predicted = {
        "ratings": torch.rand(batch["ratings"].shape),
        "windows": torch.rand(batch["fit"].shape),
        "importance": torch.rand(batch["importance"].shape),
    }
    monkeypatch.setattr(stage, "predict", lambda model, batch: predicted)
    others = {
        name: torch.where(
            unlabelled.view(-1, *[1] * (batch[name].dim() - 1)), torch.rand(batch[name].shape), batch[name]
        )
        for name in ("ratings", "fit", "importance")
    }
    losses, same = stage.batch_loss(None, batch), stage.batch_loss(None, {**batch, **others})
    assert all(loss.isfinite() and torch.equal(loss, same[name]) for name, loss in losses.items())
    taught = {name: batch[name] for name in ("ratings", "fit", "importance")}
    learned = stage.batch_loss(None, batch, taught=taught, share=1.0)
    moved = stage.batch_loss(None, batch, taught={**taught, **others}, share=1.0)
    assert all(moved[name] != learned[name] for name in ("rating", "order", "windows", "importance"))


def test_every_fold_needs_a_teacher(stage, tmp_path):
    shutil.copytree(DEFAULT_CHECKPOINT, tmp_path / "teacher", ignore=shutil.ignore_patterns("onnx"))
    (tmp_path / "teacher" / "fold.json").write_text("[1, 3]")
    with pytest.raises(ValueError, match="some images have none"):
        stage.read_teachers([tmp_path / "teacher"], "cpu")
    teachers = stage.read_teachers([tmp_path / "teacher", Path(DEFAULT_CHECKPOINT)], "cpu")
    assert [teacher.fold for teacher in teachers] == [(1, 3), None]


@pytest.mark.parametrize("text", ["4/4", "-1/2", "0/1", "half", "1"])
def test_folds_that_are_none_are_refused(stage, text):
    with pytest.raises(argparse.ArgumentTypeError, match="0/4"):
        stage.fold_of(text)


def test_three_stages_make_a_checkpoint_that_crops(library, tmp_path):
    first, out = library / "first", library / "out"
    printed = run(
        "train_setcrop_lite.py",
        *("--editor-data", library, "--raters-data", library / "rated", "--start", DEFAULT_CHECKPOINT),
        *("--output_dir", first, "--steps", 2, "--batch_size", 2),
    )
    figures = json.loads(printed.splitlines()[-1])
    assert figures["step"] >= 2 and 0 <= figures["first"] <= 1 and 0 <= figures["people"] <= 1
    first = shallow_student_of(first, library)
    printed = run(
        "train_setcrop_lite_set.py",
        *("--editor-data", library, "--start", first, "--output_dir", out, "--epochs", 1, "--batch_size", 4),
    )
    figures = json.loads(printed.splitlines()[-1])
    assert {"ap_k10_0.85", "edge_spread"} <= figures.keys()
    faces = tmp_path / "faces.jsonl"
    faces.write_text(json.dumps({"photo": "0.jpg", "faces": [[0.3, 0.2, 0.7, 0.8]], "unsure": [[0, 0, 0.2, 0.2]]}))
    printed = run(
        "train_setcrop_lite_faces.py",
        *("--editor-data", library, "--faces", faces, "--start", out, "--output_dir", tmp_path / "faces"),
        *("--steps", 50, "--batch_size", 2),
    )
    figures = json.loads(printed.splitlines()[-1])
    assert figures["step"] == 50 and 0 < figures["middles"] < 10 and 0 < figures["boxes"] < 4
    before = SetCropForImageCropping.from_pretrained(out)
    out = tmp_path / "faces"
    model = SetCropForImageCropping.from_pretrained(out).eval()
    assert all(torch.equal(model.state_dict()[name], values.half()) for name, values in before.state_dict().items())
    assert model.config.face_finding
    assert model.config.rating_sources == ["editors", "people", "raters"] and model.config.rerank
    cropper = ImageCroppingPipeline(model=model, image_processor=Processor.from_pretrained(out))
    crops = cropper(str(library / "0.jpg"), top_k=2, aspect_ratio="1:1", tightness="tight")
    assert len(crops) == 2 and all(0 < crop["score"] < 1 for crop in crops)
