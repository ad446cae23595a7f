"""The training engine: what it learns, writes, refuses, and that stopping and resuming changes nothing."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Image as ImageFeature
from huggingface_hub import HfApi, RepoUrl
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from training_data import write_cpc, write_editor, write_folder, write_gaic, write_tiny_start
from transformers import HfArgumentParser

from modeling_setcrop import SetCropConfig, SetCropForImageCropping
from modeling_setcrop.data import LAYOUTS, load, with_validation
from modeling_setcrop.images.atomic import OLD_PREFIX
from modeling_setcrop.training import checkpointing, engine
from modeling_setcrop.training.arguments import (
    LAYOUT_NAMES,
    CropTrainingArguments,
    option_parser,
    parse_arguments,
)
from modeling_setcrop.training.averaging import moving_average
from modeling_setcrop.training.checkpointing import CheckpointError, find_checkpoint
from modeling_setcrop.training.engine import (
    CropTraining,
    Interrupted,
    TrainingError,
    learning_rate_factor,
    parameter_groups,
    run,
)
from modeling_setcrop.training.initialization import (
    backbone_of,
    freeze_backbone_stages,
    load_model,
    load_processor,
    parse_overrides,
)
from modeling_setcrop.training.publishing import HubError, prepare_repository
from modeling_setcrop.training.teacher import label_with_teacher

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gaic(tmp_path_factory.mktemp("gaic"), train=10, val=5)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def resnet_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_start(
        tmp_path_factory.mktemp("resnet"),
        backbone_config={"model_type": "resnet", "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
        | {"embedding_size": 8, "out_features": ["stage4"], "layer_type": "basic"},
    )


@pytest.fixture
def arguments(data: Path, start: Path, tmp_path: Path):
    def make(**options: object) -> CropTrainingArguments:
        return CropTrainingArguments(
            **{
                "data": str(data),
                "model_name_or_path": str(start),
                "output_dir": str(tmp_path / "out"),
                "num_train_epochs": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-3,
                "dataloader_num_workers": 0,
                "logging_steps": 1,
                **options,
            }
        )

    return make


def log_of(args: CropTrainingArguments) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(args.output_dir) / "log.jsonl").read_text().splitlines()]


def truncate(image: Path) -> None:
    """Leave the header and a part of the pixels, as a JPEG, whose header says nothing of that."""
    with Image.open(image) as whole:
        pixels = whole.convert("RGB")
    pixels.save(image, "JPEG")
    image.write_bytes(image.read_bytes()[: image.stat().st_size * 9 // 10])


class StoppedAt(CropTraining):
    """A run that gets SIGTERM during a given step."""

    stop_at = 0

    def _optimizer_step(self, batches):
        if self.step + 1 == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super()._optimizer_step(batches)


class TestRun:
    def test_writes_a_loadable_best_model_its_figures_a_log_and_a_checkpoint(self, arguments):
        args = arguments()
        figures = CropTraining(args).train()
        out = Path(args.output_dir)
        model = SetCropForImageCropping.from_pretrained(out)
        assert model.config.num_queries == 12
        assert json.loads((out / "metrics.json").read_text()) == figures
        assert figures.keys() >= {"loss", "ap_10@0.85", "ap_10@0.90", "iou", "acc_1/5@0.90", "srcc"}
        assert (out / "checkpoint-6" / "model.safetensors").is_file()
        # Whoever reads the configuration can read the weights.
        assert len({path.stat().st_mode for path in out.rglob("*") if path.is_file()}) == 1
        assert not (out / "checkpoint-3").exists()
        steps = [line for line in log_of(args) if "loss" in line]
        assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
        assert all(math.isfinite(line["loss"]) for line in steps)
        assert sum("validation_loss" in line for line in log_of(args)) == 2

    @pytest.mark.parametrize(("layout", "workers"), [("gaic", 0), ("gaic", 1), ("editor", 1)])
    def test_a_broken_image_alone_in_its_batch_is_no_end(self, arguments, tmp_path, caplog, layout, workers):
        write = write_gaic if layout == "gaic" else write_editor
        data = write(tmp_path / "data", train=4, val=3)
        for rows in load(layout, data).values():
            truncate(Path(rows.cast_column("image", ImageFeature(decode=False))[0]["image"]["path"]))
        options = {"data": str(data), "layout": layout, "dataloader_num_workers": workers}
        args = arguments(**options, per_device_train_batch_size=1)
        figures = CropTraining(args).train()
        assert figures["images"] == 2
        assert [line["step"] for line in log_of(args) if "loss" in line] == list(range(1, 9))

    def test_data_of_which_nothing_can_be_decoded_is_said(self, arguments, tmp_path):
        for broken, other in (("train", "validation"), ("val", "training")):
            data = write_gaic(tmp_path / broken, train=2, val=2)
            for image in (data / "images" / broken).iterdir():
                truncate(image)
            said = "training" if other == "validation" else "validation"
            args = arguments(data=str(data), output_dir=str(tmp_path / f"out-{broken}"))
            with pytest.raises(TrainingError, match=f"none of the {said} images can be decoded"):
                CropTraining(args).train()

    def test_without_a_validation_split_a_tenth_of_the_images_is_held_out(self, arguments, tmp_path, caplog):
        data = write_gaic(tmp_path / "data", train=10, val=0)
        training = CropTraining(arguments(data=str(data), max_steps=1))
        assert (len(training.train_rows), len(training.validation_rows)) == (9, 1)
        assert "1 of the 10 training images are held out" in caplog.text
        assert training.train()["images"] == 1
        held = training.validation_rows["image_id"][:]
        assert with_validation(load("gaic", data))["validation"]["image_id"][:] == held
        assert held[0] not in training.train_rows["image_id"][:]

    def test_a_model_in_the_output_folder_stays(self, arguments, start, tmp_path):
        mine = tmp_path / "out" / "model.safetensors"
        mine.parent.mkdir()
        mine.write_bytes(b"mine")
        CropTraining(arguments(output_dir=str(tmp_path / "other"), max_steps=1)).train()
        for resumed in (None, str(tmp_path / "other" / "checkpoint-1")):
            with pytest.raises(CheckpointError, match="out: has a model, which training would replace"):
                CropTraining(arguments(resume_from_checkpoint=resumed))
        assert mine.read_bytes() == b"mine"

    def test_a_figure_that_is_not_defined_is_left_out(self, arguments, tmp_path):
        data = write_gaic(tmp_path / "data", train=4, val=1)
        (labels,) = (data / "annotations" / "val").iterdir()
        lines = [line.split() for line in labels.read_text().splitlines()]
        labels.write_text("\n".join(" ".join([*line[:4], "4"]) for line in lines))  # all equal: no rank correlation
        args = arguments(data=str(data), max_steps=1)
        assert "srcc" not in CropTraining(args).train()
        assert "NaN" not in Path(args.output_dir, "log.jsonl").read_text()

    def test_every_validation_is_told(self, arguments, caplog):
        caplog.set_level("INFO")
        CropTraining(arguments(max_steps=3)).train()
        (told,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch 1: loss")]
        assert "srcc" in told and told.endswith("(the best so far)")

    def test_the_model_that_training_starts_from_may_stay_the_best(self, arguments, tiny_checkpoint):
        args = arguments(max_steps=3, learning_rate=0.5, model_name_or_path=str(tiny_checkpoint), eval_on_start=True)
        found = CropTraining(args).train()
        lines = [line for line in log_of(args) if "validation_loss" in line]
        assert [(line["epoch"], line["step"]) for line in lines] == [(0, 0), (1, 3)]
        assert lines[0]["validation_loss"] < lines[1]["validation_loss"] and found["step"] == found["epoch"] == 0
        start, kept = (SetCropForImageCropping.from_pretrained(x) for x in (tiny_checkpoint, args.output_dir))
        assert all(torch.equal(value, kept.state_dict()[name]) for name, value in start.state_dict().items())
        record = json.loads((Path(args.output_dir) / "training.json").read_text())
        assert record["recipe"][0].startswith("3 optimiser steps, the best model after 0;")

    def test_overfits_three_images(self, arguments):
        args = arguments(
            max_train_samples=3,
            num_train_epochs=25,
            per_device_train_batch_size=3,
            learning_rate=1e-2,
            max_grad_norm=1.0,
            eval_every=25,
        )
        CropTraining(args).train()
        losses = [line["loss"] for line in log_of(args) if "loss" in line]
        assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])

    def test_the_same_seed_gives_the_same_weights_and_another_does_not(self, arguments, tmp_path):
        runs = [
            arguments(max_steps=2, seed=seed, output_dir=str(tmp_path / name))
            for name, seed in (("a", 3), ("b", 3), ("c", 4))
        ]
        weights = []
        for args in runs:
            CropTraining(args).train()
            weights.append(load_file(Path(args.output_dir) / "model.safetensors"))
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])

    def test_saves_the_averaged_weights_and_keeps_the_current_ones_in_the_checkpoint(self, arguments):
        args = arguments(ema_decay=0.5, max_steps=2)
        CropTraining(args).train()
        out = Path(args.output_dir)
        best = SetCropForImageCropping.from_pretrained(out).state_dict()
        average = load_file(out / "checkpoint-2" / "average.safetensors")
        current = SetCropForImageCropping.from_pretrained(out / "checkpoint-2").state_dict()
        assert all(torch.equal(best[name], average[name]) for name in best)
        assert not torch.equal(best["class_labels_classifier.weight"], current["class_labels_classifier.weight"])

    def test_accumulated_batches_make_the_step_of_the_whole_batch(self, arguments, tmp_path):
        weights = []
        for batch_size, accumulation in ((4, 1), (2, 2)):
            args = arguments(
                max_train_samples=4,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                max_steps=1,
                train_short_sides=[64],
                output_dir=str(tmp_path / str(batch_size)),
                config_overrides=["dropout=0.0"],
            )
            training = CropTraining(args)
            fixed = [training.train_loader.collate_fn([item]) for item in _items(training)]
            size = 4 // accumulation
            weights.append(_gradients(training, [_merge(fixed[i : i + size]) for i in range(0, 4, size)]))
        assert weights[0].keys() == weights[1].keys()
        for name, gradient in weights[0].items():
            torch.testing.assert_close(gradient, weights[1][name], atol=1e-5, rtol=1e-4)


def _gradients(training: CropTraining, batches: list[dict]) -> dict[str, torch.Tensor]:
    """The gradients of an optimiser step."""
    gradients = {}
    training.optimizer.optimizer.register_step_pre_hook(
        lambda *_: gradients.update(
            {name: p.grad.clone() for name, p in training.raw_model.named_parameters() if p.grad is not None}
        )
    )
    training._optimizer_step(batches)
    return gradients


def _trainer_example():
    spec = importlib.util.spec_from_file_location("train_with_trainer", RECIPES.parent / "train_with_trainer.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def _items(training: CropTraining) -> list[dict]:
    """The four images of a run at one size, so that they go into any batch alike."""
    from modeling_setcrop.data.collation import Draw

    return [training.train_loader.dataset[Draw(i, (64, 64), (64, 64), seed=i)] for i in range(4)]


def _merge(batches: list[dict]) -> dict:
    return {
        "pixel_values": torch.cat([batch["pixel_values"] for batch in batches]),
        "pixel_mask": torch.cat([batch["pixel_mask"] for batch in batches]),
        "labels": [label for batch in batches for label in batch["labels"]],
        "indices": torch.cat([batch["indices"] for batch in batches]),
    }


class TestWithoutRatings:
    """Ratings are optional: of all images, of a split's, or of most."""

    @pytest.fixture(params=[{}, {"train": 1}, {"train": 1, "validation": 1}], ids=["none", "train", "one in three"])
    def unrated(self, request, arguments, tmp_path):
        data = write_folder(tmp_path / "data", request.param, rated_every=3)
        options = {"data": str(data), "layout": "folder", "per_device_train_batch_size": 2, "num_train_epochs": 1}
        return arguments(**options, config_overrides=["crop_scoring=true", "rerank=true"]), request.param

    def test_trains_and_validates(self, unrated):
        args, ratings = unrated
        figures = CropTraining(args).train()
        assert math.isfinite(figures["loss"]) and figures["images"] == 4
        assert ("srcc" in figures) == ("validation" in ratings)
        assert all(math.isfinite(line["loss"]) for line in log_of(args) if "loss" in line)

    def test_the_trainer_trains_and_evaluates(self, unrated, tmp_path):
        args, _ = unrated
        splits = load("folder", args.data)
        model = load_model(args.model_name_or_path, parse_overrides(args.config_overrides))
        trainer = _trainer_example().make_trainer(
            model,
            load_processor(args.model_name_or_path),
            splits["train"],
            splits["validation"],
            output_dir=str(tmp_path / "trainer"),
            max_steps=3,
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        assert math.isfinite(trainer.train().training_loss)
        assert math.isfinite(trainer.evaluate()["eval_loss"])

    def test_a_metric_that_needs_ratings_is_refused_before_training(self, arguments, tmp_path):
        data = write_folder(tmp_path / "data", {"train": 1})
        with pytest.raises(ValueError, match="srcc needs ratings, and no validation image has any"):
            CropTraining(arguments(data=str(data), layout="folder", metric_for_best_model="srcc"))


class TestBatchSize:
    """What is measured and learned does not depend on how images are put into batches."""

    @pytest.fixture
    def scoring(self, arguments, tmp_path):
        data = write_folder(tmp_path / "mixed", {"train": 1, "validation": 1}, val=9, rated_every=2)

        def make(**options):
            overrides = ["crop_scoring=true", "rerank=true", "dropout=0.0"]
            return arguments(data=str(data), layout="folder", config_overrides=overrides, **options)

        return make

    def test_validation_figures_are_those_of_single_images(self, scoring):
        found = []
        for batch_size in (1, 2, 8):
            training = CropTraining(scoring(per_device_train_batch_size=batch_size))
            found.append(training.evaluate(training.raw_model))
        assert found[0].keys() == found[1].keys() == found[2].keys() >= {"loss", "srcc", "ap_10@0.85"}
        for figures in found[1:]:
            assert figures == pytest.approx(found[0], rel=1e-5)

    def test_accumulation_is_exact_where_only_some_images_are_rated(self, scoring, tmp_path):
        gradients = []
        for batch_size, accumulation in ((4, 1), (1, 4)):
            options = {
                "per_device_train_batch_size": batch_size,
                "gradient_accumulation_steps": accumulation,
                "max_train_samples": 4,
            }
            training = CropTraining(scoring(**options, train_short_sides=[64], output_dir=str(tmp_path / "o")))
            fixed = [training.train_loader.collate_fn([item]) for item in _items(training)]
            gradients.append(
                _gradients(training, [_merge(fixed[i : i + batch_size]) for i in range(0, 4, batch_size)])
            )
        assert any(name.startswith("crop_scorer") for name in gradients[0])
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)

    def test_the_trainer_evaluates_images_of_one_size_together(self, scoring, tmp_path):
        args = scoring()
        splits = load("folder", args.data)
        trainer = _trainer_example().make_trainer(
            load_model(args.model_name_or_path),
            load_processor(args.model_name_or_path),
            splits["train"],
            splits["validation"],
            output_dir=str(tmp_path / "trainer"),
            per_device_eval_batch_size=8,
            report_to="none",
            use_cpu=True,
        )
        masks = [batch["pixel_mask"] for batch in trainer.get_eval_dataloader()]
        assert sum(len(mask) for mask in masks) == 9 and max(len(mask) for mask in masks) > 1
        assert all((mask == 1).all() for mask in masks)


class TestResume:
    @pytest.mark.parametrize("kind", ["averaged", "distilled", "views"])
    def test_a_run_stopped_within_an_epoch_ends_bit_for_bit_as_one_that_was_not(self, arguments, tmp_path, kind):
        distilled = kind == "distilled"
        options = {
            "lr_scheduler_type": "cosine",
            "ema_decay": 0.9,
            "distillation_start_epoch": 0,
            "config_overrides": ["label_smoothing=distillation"] if distilled else ["crop_scoring=true"],
        }
        if kind == "views":
            library = write_editor(tmp_path / "library", train=10)
            options |= {"data": str(library), "layout": "editor", "dataloader_num_workers": 1}
            options["config_overrides"] += ["subject_map=true", "rating_sources=[editors, people]"]
        whole = arguments(**options, output_dir=str(tmp_path / "whole"))
        CropTraining(whole).train()

        stopped = arguments(**options, output_dir=str(tmp_path / "stopped"))
        training = StoppedAt(stopped)
        training.stop_at = 5
        with pytest.raises(Interrupted, match=r"SIGTERM at step 5.*--resume_from_checkpoint .*checkpoint-5"):
            training.train()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        torch.manual_seed(999)
        resumed = arguments(**options, output_dir=str(tmp_path / "stopped"), resume_from_checkpoint="latest")
        CropTraining(resumed).train()

        names = ["model", "average", "optimizer", "random", *(["teacher"] if distilled else [])]
        for name in names:
            a = load_file(Path(whole.output_dir) / "checkpoint-6" / f"{name}.safetensors")
            b = load_file(Path(stopped.output_dir) / "checkpoint-6" / f"{name}.safetensors")
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a), name
        losses = [[line["loss"] for line in log_of(args) if "loss" in line] for args in (whole, stopped)]
        assert losses[0] == losses[1]

    def test_a_new_run_does_not_mix_its_checkpoints_with_an_earlier_ones(self, arguments):
        CropTraining(arguments(max_steps=1)).train()
        with pytest.raises(CheckpointError, match="has checkpoint-1 of an earlier run; go on from it with"):
            CropTraining(arguments(max_steps=1)).train()

    def test_steps_past_the_last_checkpoint_are_in_the_log_once(self, arguments, tmp_path):
        args = arguments(save_steps=2, num_train_epochs=2)
        CropTraining(args).train()
        whole = [line for line in log_of(args) if "loss" in line]
        killed = arguments(save_steps=2, num_train_epochs=2, output_dir=str(tmp_path / "killed"))
        training = StoppedAt(killed)
        # Killed: nothing is saved, and the log's last line is torn.
        training._interrupt = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        training.stop_at = 3
        with pytest.raises(KeyboardInterrupt):
            training.train()
        with open(tmp_path / "killed" / "log.jsonl", "a") as log:
            log.write('{"step": 3, "lo')
        CropTraining(dataclasses.replace(killed, resume_from_checkpoint="latest")).train()
        resumed = log_of(killed)
        assert [line["step"] for line in resumed if "loss" in line] == [1, 2, 3, 4, 5, 6]
        assert [line["loss"] for line in resumed if "loss" in line] == [line["loss"] for line in whole]
        assert sum("validation_loss" in line for line in resumed) == 2

    def test_what_a_killed_run_left_half_written_is_swept_and_a_moved_checkpoint_comes_back(self, arguments):
        args = arguments(max_steps=1)
        CropTraining(args).train()
        out = Path(args.output_dir)
        (out / "checkpoint-1").rename(out / f"{OLD_PREFIX}checkpoint-1")
        (out / ".setcrop-17-1-0.part").mkdir()
        (out / ".setcrop-17-1-1.part").write_bytes(b"half a fi")
        resumed = CropTraining(arguments(max_steps=2, resume_from_checkpoint="latest"))
        assert resumed.resume_folder == out / "checkpoint-1"
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []

    def test_a_finished_run_is_not_gone_on_with_in_another_folder(self, arguments, tmp_path):
        CropTraining(arguments(max_steps=1)).train()
        finished = {"resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-1")}
        with pytest.raises(CheckpointError, match="checkpoint-1: its run is at its end"):
            CropTraining(arguments(max_steps=1, output_dir=str(tmp_path / "other"), **finished)).train()
        # Whatever was best in the first folder, the second one gets a model.
        CropTraining(arguments(max_steps=2, learning_rate=0.0, output_dir=str(tmp_path / "third"), **finished)).train()
        assert (tmp_path / "third" / "model.safetensors").is_file()

    def test_refuses_another_batch_size(self, arguments):
        CropTraining(arguments(max_steps=3)).train()
        with pytest.raises(CheckpointError, match="3 steps an epoch, not 5"):
            CropTraining(arguments(per_device_train_batch_size=2, resume_from_checkpoint="latest")).train()

    def test_says_where_there_is_no_checkpoint(self, tmp_path):
        with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
            find_checkpoint("latest", tmp_path)
        with pytest.raises(CheckpointError, match="not a training checkpoint"):
            find_checkpoint(str(tmp_path), tmp_path)

    def test_latest_is_the_highest_step(self, tmp_path):
        for step in (9, 10):
            (tmp_path / f"checkpoint-{step}").mkdir()
        assert find_checkpoint("latest", tmp_path).name == "checkpoint-10"


class TestRefusals:
    def test_a_loss_that_is_not_a_number_stops_and_names_the_images(self, arguments):
        args = arguments()
        training = CropTraining(args)
        training._checkpoint()
        with torch.no_grad():
            training.raw_model.class_labels_classifier.weight[0, 0] = float("nan")
        with pytest.raises(TrainingError, match=r"the loss is nan at step 1 \(epoch 1\), on the images train0\d\d"):
            training.train()
        assert find_checkpoint("latest", Path(args.output_dir)).name == "checkpoint-0"

    @pytest.mark.parametrize("error", [OSError, SafetensorError])
    def test_a_full_disk_is_said_and_leaves_the_last_checkpoint_whole(self, arguments, monkeypatch, error):
        args = arguments(save_steps=1)
        training = CropTraining(args)
        save = checkpointing.save_optimizer

        def full(optimizer, folder):
            if training.step == 2:
                raise error(errno.ENOSPC, "No space left on device")
            save(optimizer, folder)

        monkeypatch.setattr("modeling_setcrop.training.engine.save_optimizer", full)
        with pytest.raises(TrainingError, match=r"cannot write .*checkpoint-2: .*No space left on device"):
            training.train()
        out = Path(args.output_dir)
        assert find_checkpoint("latest", out).name == "checkpoint-1"
        assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []

    def test_an_empty_split(self, arguments, tmp_path):
        data = write_gaic(tmp_path / "gaic", train=0, val=2)
        with pytest.raises(ValueError, match="'train' has no images; there are validation"):
            CropTraining(arguments(data=str(data)))

    def test_an_unknown_metric(self, arguments):
        with pytest.raises(ValueError, match=r"metric_for_best_model is 'ap'; there are loss, ap_10@0\.85"):
            CropTraining(arguments(metric_for_best_model="ap"))

    def test_an_unknown_tracker(self, arguments):
        with pytest.raises(ValueError, match="no tracker 'tensorbord'"):
            CropTraining(arguments(report_to=["tensorbord"]))

    def test_more_frozen_stages_than_there_are(self, start):
        with pytest.raises(ValueError, match="the backbone has 3 stages"):
            freeze_backbone_stages(load_model(str(start)), 4)
        with pytest.raises(ValueError, match="freeze_backbone_stages is -7"):
            freeze_backbone_stages(load_model(str(start)), -7)

    @pytest.mark.parametrize("overrides", [{"label_smoothing": "foo"}, {"num_queries": "abc"}])
    def test_a_config_that_cannot_be(self, start, overrides):
        with pytest.raises(ValueError, match=next(iter(overrides))) as found:
            load_model(str(start), overrides)
        assert "\n" not in str(found.value)


class TestOptimisation:
    def test_the_backbone_has_its_own_learning_rate_and_no_parameter_is_forgotten(self, start):
        model = load_model(str(start))
        rest, backbone = parameter_groups(model, lr=1e-4, lr_backbone=1e-5)
        assert (rest["lr"], backbone["lr"]) == (1e-4, 1e-5)
        assert {id(p) for p in backbone["params"]} == {id(p) for p in backbone_of(model).parameters()}
        assert len(rest["params"]) + len(backbone["params"]) == len(list(model.parameters()))

    def test_frozen_stages_do_not_move(self, arguments, start):
        args = arguments(freeze_backbone_stages=2, max_steps=2, lr_backbone=1e-3, max_grad_norm=10.0)
        training = CropTraining(args)
        before = {name: p.clone() for name, p in backbone_of(training.raw_model).named_parameters()}
        training.train()
        moved = {
            name.split(".")[0] + name.split(".")[1] * name.startswith("stages")
            for name, p in backbone_of(training.raw_model).named_parameters()
            if not torch.equal(p, before[name])
        }
        assert moved == {"stages2"}

    def test_freezing_one_stage_of_resnet_50_leaves_the_papers_42_tensors_and_thaws_again(self):
        shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
        model = SetCropForImageCropping(SetCropConfig(**shape))
        trained = []
        for stages in (1, -1, 2, 1, 0):
            freeze_backbone_stages(model, stages)
            trained.append(sum(p.requires_grad for p in backbone_of(model).parameters()))
        assert trained == [42, 0, 29, 42, 53]
        freeze_backbone_stages(model, 1)
        frozen = [name for name, p in backbone_of(model).named_parameters() if not p.requires_grad]
        assert all(name.startswith(("embedder", "encoder.stages.0")) for name in frozen)

    def test_a_run_from_a_native_resnets_config_resumes(self, arguments, resnet_start):
        options = {"model_name_or_path": str(resnet_start), "freeze_backbone_stages": 1}
        CropTraining(arguments(**options, max_steps=1)).train()
        resumed = CropTraining(arguments(**options, max_steps=2, resume_from_checkpoint="latest"))
        resumed.train()
        assert resumed.step == 2

    def test_batch_norm_of_the_backbone_stays_as_it_was(self, arguments, resnet_start):
        start = resnet_start
        training = CropTraining(
            arguments(model_name_or_path=str(start), max_steps=2, lr_backbone=1e-3, max_grad_norm=10.0)
        )
        before = {name: b.clone() for name, b in backbone_of(training.raw_model).named_buffers()}
        training.train()
        after = dict(backbone_of(training.raw_model).named_buffers())
        assert any("running_var" in name for name in before)
        assert all(torch.equal(after[name], value) for name, value in before.items())

    def test_step_schedule_divides_by_ten_after_the_drop_epochs(self, arguments):
        args = arguments(lr_drop_epochs=[2, 3])
        factors = [
            learning_rate_factor(step, args, steps_per_epoch=10, total_steps=40) for step in (0, 19, 20, 29, 30)
        ]
        assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])

    def test_cosine_schedule_warms_up_and_ends_at_zero(self, arguments):
        args = arguments(lr_scheduler_type="cosine", warmup_steps=4)
        factors = [learning_rate_factor(step, args, steps_per_epoch=10, total_steps=24) for step in (0, 3, 4, 14, 24)]
        assert factors == pytest.approx([0.25, 1, 1, 0.5, 0])

    def test_average_follows_the_papers_formula(self):
        model = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(model.weight, 1.0)
        average = moving_average(model, theta=0.25)
        torch.nn.init.constant_(model.weight, 5.0)
        average.update_parameters(model)
        assert average.module.weight.tolist() == [[2.0, 2.0]]  # 0.25 * 5 + 0.75 * 1
        average.update_parameters(model)
        assert average.module.weight.tolist() == [[2.75, 2.75]]


class TestDistillation:
    def test_the_teacher_labels_with_its_own_probabilities_in_eval_mode(self, start):
        model = load_model(str(start), {"label_smoothing": "distillation"})
        teacher = moving_average(model, theta=0.5)
        with torch.no_grad():
            model.class_labels_classifier.bias += 1  # the student has moved on; the teacher has not
        pixels = torch.rand(2, 3, 64, 64)
        batch = {"pixel_values": pixels, "pixel_mask": torch.ones(2, 64, 64), "labels": [{}, {}]}
        label_with_teacher(teacher, batch)
        with torch.no_grad():
            student = model.eval()(pixels).logits[..., 0]
        for label, logits in zip(batch["labels"], student, strict=True):
            torch.testing.assert_close(label["teacher_validity"], (logits - 1).sigmoid())

    def test_begins_at_its_epoch(self, arguments):
        args = arguments(config_overrides=["label_smoothing=distillation"], distillation_start_epoch=1)
        training = CropTraining(args)
        seen = []
        step = training._optimizer_step

        def record(batches):
            seen.append(training.teacher is not None)
            return step(batches)

        training._optimizer_step = record
        training.train()
        assert seen == [False] * 3 + [True] * 3


class TestInitialization:
    def test_a_conditional_detr_detector_lends_all_but_class_head_and_queries(self, start, tmp_path, caplog):
        from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

        ours = load_model(str(start)).config
        taken = (
            "backbone_config",
            "d_model",
            "encoder_layers",
            "decoder_layers",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
        )
        taken += ("encoder_attention_heads", "decoder_attention_heads")
        config = ConditionalDetrConfig(
            **{name: getattr(ours, name) for name in taken}, num_labels=91, num_queries=300, use_timm_backbone=False
        )
        detector = ConditionalDetrForObjectDetection(config)
        detector.save_pretrained(tmp_path)
        with caplog.at_level("INFO", logger="modeling_setcrop.training.initialization"):
            model = load_model(str(tmp_path))
        lent, state = detector.state_dict(), model.state_dict()
        assert state.keys() == lent.keys()
        new = {name for name, value in state.items() if not torch.equal(value, lent[name])}
        assert new == {
            "class_labels_classifier.weight",
            "class_labels_classifier.bias",
            "model.query_position_embeddings.weight",
        }
        assert model.config.num_queries == 90
        assert f"{len(state) - 3} of {len(state)} weights loaded" in caplog.text
        assert "class_labels_classifier.bias" in caplog.text

    def test_another_architecture_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match="architecture 'bert'; SetCrop starts from"):
            load_model(str(tmp_path))

    def test_weights_in_another_format_are_refused(self, start, tmp_path):
        (tmp_path / "config.json").write_text((start / "config.json").read_text())
        torch.save({}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"its weights are in pytorch_model\.bin, and only safetensors are read"):
            load_model(str(tmp_path))

    def test_weights_that_fit_nothing_are_refused(self, start, tmp_path):
        from safetensors.torch import save_file

        (tmp_path / "config.json").write_text((start / "config.json").read_text())
        save_file({"other.weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match="none of its weights fits"):
            load_model(str(tmp_path))


class TestReporting:
    def test_tensorboard_gets_the_figures_of_the_log(self, arguments):
        events = pytest.importorskip("tensorboardX.proto.event_pb2")
        args = arguments(report_to=["tensorboard"], max_steps=2)
        CropTraining(args).train()
        (file,) = (Path(args.output_dir) / "setcrop").glob("events.out.tfevents.*")
        content, found = file.read_bytes(), []
        while content:  # records of a length, its checksum, an event and its checksum
            length = int.from_bytes(content[:8], "little")
            event = events.Event.FromString(content[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
        losses = [(line["step"], "loss", pytest.approx(line["loss"], abs=1e-5)) for line in log_of(args)[:2]]
        assert [value for value in found if value[1] == "loss"] == losses
        assert any(tag == "validation_loss" for _, tag, _ in found)

    def test_trackio_gets_the_figures_of_the_log(self, arguments, tmp_path):
        pytest.importorskip("trackio")
        args = arguments(max_steps=2)
        command = [sys.executable, str(RECIPES.parent / "train_setcrop.py"), "--report_to", "trackio"]
        for name in (
            "data",
            "model_name_or_path",
            "output_dir",
            "max_steps",
            "per_device_train_batch_size",
            "dataloader_num_workers",
            "logging_steps",
        ):
            command += [f"--{name}", str(getattr(args, name))]
        environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
        subprocess.run(command, env=environment, check=True, timeout=120)
        with sqlite3.connect(tmp_path / "trackio" / "setcrop.db") as database:
            rows = database.execute("SELECT step, metrics FROM metrics").fetchall()
        found = [(step, json.loads(figures)) for step, figures in rows]
        losses = [(line["step"], pytest.approx(line["loss"], abs=1e-5)) for line in log_of(args)[:2]]
        assert [(step, figures["loss"]) for step, figures in found if "loss" in figures] == losses

    def test_the_profile_tells_where_all_the_time_went(self, arguments):
        args = arguments(profile=True, max_steps=2)
        CropTraining(args).train()
        line = next(line for line in log_of(args) if "share_forward" in line)
        shares = [line[f"share_{part}"] for part in ("data", "forward", "loss", "backward", "optimizer")]
        assert all(share > 0 for share in shares) and sum(shares) == pytest.approx(1, abs=1e-4)
        assert line["images_per_second"] > 0

    def test_what_is_uploaded_is_what_export_hub_writes(self, arguments, monkeypatch):
        asked, sent = [], {}

        def upload_folder(self, *, folder_path, allow_patterns, **options):
            asked.append(("upload", options["repo_id"]))
            sent.update({name: Path(folder_path, name).read_bytes() for name in allow_patterns})

        def create_repo(self, repo_id, **options):
            asked.append(("create", repo_id))
            return RepoUrl(f"https://huggingface.co/someone/{repo_id.split('/')[-1]}")

        monkeypatch.setattr(HfApi, "whoami", lambda self: asked.append(("whoami",)))
        monkeypatch.setattr(HfApi, "create_repo", create_repo)
        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
        args = arguments(push_to_hub=True, hub_model_id="crops", max_steps=1)
        CropTraining(args).train()
        names = [call[0] for call in asked]
        assert names[:2] == ["whoami", "create"] and names[-1] == "upload"
        assert asked[-1] == ("upload", "someone/crops")
        assert {"model.safetensors", "modeling_setcrop.py", "pipeline_image_cropping.py", "README.md"} <= sent.keys()
        assert b"someone/crops" in sent["README.md"]
        assert json.loads(sent["training.json"]) == json.loads(Path(args.output_dir, "training.json").read_text())

    def test_a_hub_that_cannot_be_written_to_is_told_before_training(self, arguments, monkeypatch):
        def whoami(self):
            raise OSError("connection refused")

        monkeypatch.setattr(HfApi, "whoami", whoami)
        args = arguments(push_to_hub=True, hub_model_id="someone/crops", max_steps=1)
        with pytest.raises(OSError, match=r"^push_to_hub: someone/crops: connection refused; nothing was trained$"):
            CropTraining(args).train()
        assert not Path(args.output_dir).exists()

    def test_a_hub_that_cannot_be_reached_is_one_line(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        nowhere = HfApi(endpoint="http://127.0.0.1:9", token="hf_none")
        with pytest.raises(HubError, match=r"^push_to_hub: someone/crops: .*refused; nothing was trained$"):
            prepare_repository("someone/crops", api=nowhere)

    def test_a_failed_upload_loses_nothing(self, arguments, monkeypatch, caplog):
        def upload_folder(self, **options):
            raise OSError("connection lost")

        monkeypatch.setattr(HfApi, "whoami", lambda self: None)
        monkeypatch.setattr(
            HfApi, "create_repo", lambda self, repo_id, **_: RepoUrl(f"https://huggingface.co/{repo_id}")
        )
        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
        args = arguments(push_to_hub=True, hub_model_id="someone/crops", max_steps=1)
        assert "loss" in CropTraining(args).train()
        (message,) = [record.getMessage() for record in caplog.records if "push_to_hub" in record.getMessage()]
        assert "connection lost" in message and f"setcrop export hub EXPORT --model {args.output_dir}" in message
        assert Path(args.output_dir, "model.safetensors").is_file()

    def test_a_run_writes_down_what_a_card_says_of_it(self, arguments):
        args = arguments(max_steps=2)
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        Path(args.output_dir, "training.json").write_text('{"labels": "Rated by gardeners."}')
        CropTraining(args).train()
        record = json.loads(Path(args.output_dir, "training.json").read_text())
        assert record["labels"] == "Rated by gardeners."
        assert record["data"][0]["name"] == Path(args.data).name and record["data"][0]["images"] > 0
        assert record["recipe"][0].startswith("2 optimiser steps")
        assert "--max_steps 2" in record["command"] and record["command"].startswith("setcrop train --")
        assert str(Path(args.output_dir).parent) not in record["command"]

    def test_a_run_that_goes_on_writes_down_its_own_steps_and_no_folder(self, arguments):
        args = arguments(max_steps=2)
        CropTraining(args).train()
        record = Path(args.output_dir, "training.json")
        assert str(Path(args.model_name_or_path).parent) not in record.read_text()
        record.write_text(json.dumps(json.loads(record.read_text()) | {"labels": "Rated by gardeners."}))
        CropTraining(arguments(max_steps=4, learning_rate=0.0, resume_from_checkpoint="latest")).train()
        found = json.loads(record.read_text())
        assert found["labels"] == "Rated by gardeners." and "--max_steps 4" in found["command"]
        assert found["recipe"][0].startswith("4 optimiser steps")
        found["recipe"].append("Dried for a week.")
        record.write_text(json.dumps(found))
        CropTraining(arguments(max_steps=5, resume_from_checkpoint="latest")).train()
        assert json.loads(record.read_text())["recipe"] == found["recipe"]

    def test_mixed_precision_trains_with_finite_losses(self, arguments):
        AcceleratorState._reset_state(reset_partial_state=True)
        args = arguments(mixed_precision="bf16", max_steps=2)
        try:
            CropTraining(args).train()
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        assert all(math.isfinite(line["loss"]) for line in log_of(args) if "loss" in line)


class TestLauncher:
    @pytest.mark.parametrize(
        ("environment", "warned"),
        [
            ({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}, True),
            ({"WORLD_SIZE": "2"}, True),
            ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
            ({"WORLD_SIZE": "1"}, False),
            ({"ACCELERATE_USE_CPU": "True"}, False),
            ({}, False),
        ],
    )
    def test_one_process_where_several_were_asked_for_is_said(self, monkeypatch, caplog, environment, warned):
        for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "ACCELERATE_USE_CPU", "OMPI_COMM_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        engine._warn_of_missing_processes(1)
        assert ("torchrun --nproc_per_node" in caplog.text) == warned
        caplog.clear()
        engine._warn_of_missing_processes(2)
        assert not caplog.text


class TestCommand:
    def test_trains_and_returns_success(self, data, start, tmp_path):
        options = ["--data", str(data), "--model_name_or_path", str(start), "--output_dir", str(tmp_path / "out")]
        assert run([*options, "--max_steps", "1", "--num_workers", "0"], prog="train") == 0
        assert (tmp_path / "out" / "model.safetensors").is_file()

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("--data", "gaic"),
            ("--model_name_or_path", "config.json"),
            ("--resume_from_checkpoint", "no progress.json"),
        ],
    )
    def test_what_is_not_there_is_one_line(self, data, start, tmp_path, capsys, option, message):
        options = {"--data": str(data), "--model_name_or_path": str(start), "--output_dir": str(tmp_path / "out")}
        options[option] = str(tmp_path)
        assert run([part for pair in options.items() for part in pair], prog="train") == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("train: ") and message in error

    def test_a_model_that_is_nowhere_is_a_folder_that_is_not_there(self, tmp_path):
        for load_part in (load_processor, load_model):
            with pytest.raises(FileNotFoundError, match=r"lost: no such folder$"):
                load_part(str(tmp_path / "lost"))

    @pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
    def test_recipes_are_valid(self, recipe):
        args = parse_arguments(["--config", str(recipe), "--data", "d", "--model_name_or_path", "m"])
        config = SetCropConfig(**parse_overrides(args.config_overrides))
        if recipe.stem in ("gaic", "cpc"):
            assert (args.freeze_backbone_stages, config.cls_loss_coefficient, config.num_queries) == (1, 2, 90)

    @pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
    def test_recipes_train_on_data_in_their_own_layout(self, recipe, data, tmp_path):
        layout = parse_arguments(["--config", str(recipe), "--data", "d", "--model_name_or_path", "m"]).layout
        start = write_tiny_start(tmp_path / "start", backbone_config=_SEVEN_STAGES, crop_scoring="lite" in recipe.stem)
        options = ["--config", str(recipe), "--model_name_or_path", str(start), "--output_dir", str(tmp_path / "out")]
        data = {
            "gaic": lambda gaic=data: gaic,
            "cpc": lambda: write_cpc(tmp_path / "cpc", 22),
            "editor": lambda: write_editor(tmp_path / "library"),
        }[layout]()
        options += ["--data", str(data)]
        # Small enough for a test; everything else is the recipe's.
        options += ["--max_steps", "2", "--batch_size", "2", "--num_workers", "0", "--distillation_start_epoch", "0"]
        options += ["--train_short_sides", "48", "64", "--max_long_side", "96"]
        options += ["--eval_short_side", "48", "--eval_long_side", "80"]
        assert run(options, prog="train") == 0
        figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert figures["step"] == 2 and math.isfinite(figures["loss"])


# Enough of them for every recipe's frozen ones.
_SEVEN_STAGES = {"model_type": "inverted_residual", "out_features": ["stage5"], "batch_norm": False}


class TestTransformersTrainer:
    def test_trains_the_model(self, data, start, tmp_path):
        splits = load("gaic", data)
        trainer = _trainer_example().make_trainer(
            load_model(str(start)),
            load_processor(str(start)),
            splits["train"],
            splits["validation"],
            output_dir=str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=5e-3,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < before
        trainer.save_model()
        assert SetCropForImageCropping.from_pretrained(tmp_path).config.num_queries == 12

    def test_holds_images_out_where_there_is_no_validation_split(self, start, tmp_path, monkeypatch):
        data = write_gaic(tmp_path / "data", train=4, val=0)
        options = {"--data": data, "--model": start, "--output_dir": tmp_path / "out", "--epochs": 1}
        monkeypatch.setattr(sys, "argv", ["train", *(str(part) for option in options.items() for part in option)])
        _trainer_example().main()
        assert (tmp_path / "out" / "model.safetensors").is_file()

    def test_trains_on_views_of_an_editors_library_that_differ_by_epoch(self, start, tmp_path):
        splits = load("editor", write_editor(tmp_path / "library"))
        trainer = _trainer_example().make_trainer(
            load_model(str(start), {"crop_scoring": True, "subject_map": True}),
            load_processor(str(start)),
            splits["train"],
            splits["validation"],
            output_dir=str(tmp_path / "out"),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=2,
            logging_steps=1,
            eval_strategy="epoch",
            report_to="none",
            use_cpu=True,
        )
        views, seen = trainer.train_dataset, []
        trainer.data_collator.views = lambda items, collate=trainer.data_collator.views: (
            seen.extend(item["view"].window for item in items) or collate(items)
        )
        trainer.train()
        assert views.epoch == 1 and len(seen) == 16 and len(set(seen)) > 10
        assert np.isfinite([line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]).all()

    @pytest.mark.parametrize("concatenated", [True, False])
    def test_compute_metrics_gets_predictions_and_nothing_large(self, data, start, tmp_path, concatenated):
        seen = []

        def compute(found):
            seen.append(found)
            return {}

        splits = load("gaic", data)
        model = load_model(str(start), {"crop_scoring": True, "rerank": True})
        trainer = _trainer_example().make_trainer(
            model,
            load_processor(str(start)),
            splits["train"],
            splits["validation"],
            compute_metrics=compute,
            output_dir=str(tmp_path),
            per_device_eval_batch_size=2,
            eval_do_concat_batches=concatenated,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer.evaluate()
        logits, boxes, *ratings = seen[0].predictions if concatenated else seen[0].predictions[0]
        assert len(ratings) == 1
        if concatenated:
            assert (logits.shape, boxes.shape, ratings[0].shape) == ((5, 12, 1), (5, 12, 4), (5, 12))
        else:
            assert len(seen[0].label_ids) == len(seen[0].predictions) > 1

    @pytest.mark.parametrize(("wrong", "part"), [("data", "no such folder"), ("split", "'train' has no images")])
    def test_the_example_says_in_a_line_what_is_wrong(self, data, start, tmp_path, capsys, wrong, part):
        if wrong == "split":
            shutil.copytree(data, tmp_path / "data")
            for folder in ("images", "annotations"):
                shutil.rmtree(tmp_path / "data" / folder / "train")
        options = ["--data", str(tmp_path / "data"), "--model", str(start), "--output_dir", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as ended:
            _trainer_example().main(options)
        assert ended.value.code == 2 and part in capsys.readouterr().err.splitlines()[-1]

    def test_evaluates_in_half_precision(self, data, start, tmp_path):
        splits = load("gaic", data)
        trainer = _trainer_example().make_trainer(
            load_model(str(start), {"crop_scoring": True, "rerank": True}),
            load_processor(str(start)),
            splits["train"],
            splits["validation"],
            output_dir=str(tmp_path),
            bf16_full_eval=True,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        assert math.isfinite(trainer.evaluate()["eval_loss"])
        assert trainer.model.dtype == torch.bfloat16
        encoded = trainer.model.model.encode(torch.rand(1, 3, 64, 64))
        assert trainer.model.score_crops(torch.full((1, 2, 4), 0.5), encoded).dtype == torch.bfloat16


class TestArguments:
    NEEDED = ("--data", "d", "--model_name_or_path", "m", "--output_dir", "o")

    @pytest.mark.parametrize(
        "options",
        [
            "",
            "--data=d --output-dir o --lr-drop-epochs 3 4 --profile --torch_compile false --ema_decay 0.9",
            "--rating_scale 0 100 --train_short_sides 64 96 --max-steps 5 --report_to trackio --push_to_hub yes",
        ],
    )
    def test_options_are_read_as_transformers_reads_them(self, options):
        """Without importing it: `--help` would take seconds."""
        theirs = HfArgumentParser(CropTrainingArguments, prog="train", description="Trains a SetCrop model.")
        theirs.add_argument("--config", type=Path, help="YAML file with any of these options.")
        ours = option_parser("train")
        assert vars(ours.parse_args(options.split())) == vars(theirs.parse_args(options.split()))
        assert ours.format_help() == theirs.format_help()

    def test_layouts_are_named_as_they_are(self):
        assert tuple(LAYOUTS) == LAYOUT_NAMES

    def test_the_command_line_overrides_the_file(self, tmp_path):
        file = tmp_path / "recipe.yaml"
        file.write_text(
            "learning_rate: 3e-4\nnum_train_epochs: 7\ntrain_short_sides: [480, 512]\nprofile: true\nema_decay: 0.99\n"
        )
        args = parse_arguments([*self.NEEDED, "--config", str(file), "--num_train_epochs", "9"])
        assert (args.learning_rate, args.num_train_epochs, args.train_short_sides) == (3e-4, 9, [480, 512])
        assert args.profile is True and args.ema_decay == 0.99

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("lerning_rate: 1", "unknown option 'lerning_rate'"),
            ("warmup_step: 1", "unknown option 'warmup_step'; did you mean 'warmup_steps'"),
            ("- lr", "expected a table of options"),
            ("lr: [", "not valid YAML"),
            ("per_device_train_batch_size: 0", "per_device_train_batch_size is 0; it must be at least 1"),
            ("lr_scheduler_type: linear", "lr_scheduler_type is 'linear'; it must be one of step, cosine"),
            ("train_short_sides: [8]", "each must be at least 32 pixels"),
            ("ema_decay: 1.0", "ema_decay is 1.0; it must be between 0 and 1"),
            ("learning_rate: -1", "learning_rate is -1.0; it must not be negative"),
            ("learning_rate: .nan", "learning_rate is nan"),
            ("max_grad_norm: .nan", "max_grad_norm is nan"),
            ("num_train_epochs: null", "recipe.yaml: num_train_epochs has no value"),
            ("num_train_epochs: many", "invalid int value: 'many'"),
        ],
    )
    def test_bad_options_are_named(self, tmp_path, text, message):
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        with pytest.raises(ValueError, match=message.replace("[", r"\[")):
            parse_arguments([*self.NEEDED, "--config", str(file)])

    @pytest.mark.parametrize(
        ("line", "name", "value"),
        [
            ("lr_drop_epochs: 1", "lr_drop_epochs", [1]),
            ("train_short_sides: 128", "train_short_sides", [128]),
            ("config_overrides: label_smoothing=none", "config_overrides", ["label_smoothing=none"]),
            ("config_overrides: []", "config_overrides", []),
            ("report_to: tensorboard", "report_to", ["tensorboard"]),
            ("mixed_precision: no", "mixed_precision", "no"),
            ("max_steps: null", "max_steps", None),
        ],
    )
    def test_a_file_says_what_the_command_line_would(self, line, name, value, tmp_path):
        (tmp_path / "recipe.yaml").write_text(line)
        assert getattr(parse_arguments([*self.NEEDED, "--config", str(tmp_path / "recipe.yaml")]), name) == value

    def test_old_names_are_understood_with_a_note(self, tmp_path, caplog):
        file = tmp_path / "recipe.yaml"
        file.write_text("lr: 3e-4\nclip: 0.5\nlr_scheduler: cosine\nmetric_for_best: srcc\n")
        options = ["--epochs", "9", "--batch_size=3", "--log_every", "7", "--num-workers", "2"]
        options += ["--checkpointing_steps", "5", "--checkpoints_total_limit=4"]
        args = parse_arguments([*self.NEEDED, "--config", str(file), *options])
        found = (args.learning_rate, args.max_grad_norm, args.num_train_epochs)
        assert found == (3e-4, 0.5, 9)
        assert (args.per_device_train_batch_size, args.logging_steps) == (3, 7)
        assert (args.lr_scheduler_type, args.metric_for_best_model) == ("cosine", "srcc")
        assert (args.dataloader_num_workers, args.save_steps, args.save_total_limit) == (2, 5, 4)
        assert "the option epochs is called num_train_epochs now" in caplog.text
        assert "the option lr is called learning_rate now" in caplog.text

    def test_a_missing_folder_is_named(self):
        with pytest.raises(ValueError, match="model_name_or_path is not given"):
            parse_arguments(["--data", "d", "--output_dir", "o"])

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ("label_smooting=none", "no field 'label_smooting'; did you mean 'label_smoothing'"),
            ("label_smoothing", "not of the form name=value"),
            ("label_smoothing=some", "label_smoothing must be one of"),
        ],
    )
    def test_a_misspelt_config_field_is_named(self, arguments, entry, message):
        with pytest.raises(Exception, match=message):
            CropTraining(arguments(config_overrides=[entry]))
