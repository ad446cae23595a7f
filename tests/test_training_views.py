"""Training on the layout `editor`: views drawn afresh, their labels, and the losses that these give."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import DatasetDict, concatenate_datasets
from training_data import write_editor, write_folder, write_tiny_start

from modeling_setcrop import SetCropConfig, SetCropForImageCropping, SetCropImageProcessorPil
from modeling_setcrop.crop_geometry import box_iou, cxcywh_to_xyxy
from modeling_setcrop.data import load
from modeling_setcrop.data.any_box_rating import CropLabels, rate_boxes
from modeling_setcrop.data.collation import AspectRatioBatchSampler, CropCollator, CropDataset
from modeling_setcrop.data.crop_views import BOXES, FAMILIES, WINDOWS, ViewChoices, good_crops
from modeling_setcrop.data.saved import save
from modeling_setcrop.loss_any_box_setcrop import any_box_losses, view_scoring_losses, view_subject_map_loss
from modeling_setcrop.loss_setcrop import match_anchors, rated_targets, set_crop_loss
from modeling_setcrop.training.arguments import CropTrainingArguments
from modeling_setcrop.training.engine import CropTraining, run

OVERRIDES = ["crop_scoring=true", "subject_map=true", "rating_sources=[editors, people]", "dropout=0.0"]
OVERRIDES += ["quality_lower=3.5", "quality_upper=4.75"]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return write_editor(tmp_path_factory.mktemp("editor") / "library")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return write_tiny_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def rows(library):
    return load("editor", library)["train"]


@pytest.fixture
def arguments(library, start, tmp_path):
    def make(**options):
        fixed = {"data": str(library), "layout": "editor", "model_name_or_path": str(start)}
        fixed |= {"output_dir": str(tmp_path / "out"), "config_overrides": OVERRIDES, "dataloader_num_workers": 0}
        fixed |= {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}
        return CropTrainingArguments(**{**fixed, **options})

    return make


def choices(rows, seed=0) -> ViewChoices:
    labels = [CropLabels.from_dict(values) for values in rows["crop_labels"]]
    return ViewChoices(labels, rows["height"][:], rows["width"][:], seed)


def sampler(rows, **options) -> AspectRatioBatchSampler:
    fixed = {"batch_size": 4, "short_sides": [64], "long_side": 96, "size_divisor": 8, "views": choices(rows)}
    return AspectRatioBatchSampler(rows["height"][:], rows["width"][:], **{**fixed, **options})


def items_of(rows, epochs=range(6)):
    """Items of several epochs, each with its row."""
    images, batches = CropDataset(rows, augment=True), sampler(rows)
    for epoch in epochs:
        batches.set_epoch(epoch)
        for draw in (draw for batch in batches for draw in batch):
            yield rows[draw.index], images[draw]


def of_the_image(boxes: np.ndarray, window: tuple, mirrored: bool) -> np.ndarray:
    """Corners (M, 4) of a view in coordinates of the image, written out by hand."""
    result = []
    for x1, y1, x2, y2 in boxes:
        left, right = (1 - x2, 1 - x1) if mirrored else (x1, x2)
        wide, high = window[2] - window[0], window[3] - window[1]
        result.append(
            [window[0] + left * wide, window[1] + y1 * high, window[0] + right * wide, window[1] + y2 * high]
        )
    return np.array(result)


class TestViews:
    def test_a_view_contains_one_of_the_best_crops_of_whose_labels_it_has(self, rows):
        sources, views = set(), choices(rows)
        for epoch in range(40):
            for index, labels in enumerate(views.labels):
                choice = views.choose(epoch, index)
                window = np.array(choice.window)
                best = labels.people[None] if choice.source == "people" else labels.crops[:3]
                contained = (window[:2] <= best[:, :2] + 1e-9).all(1) & (window[2:] >= best[:, 2:] - 1e-9).all(1)
                assert contained.any()
                sources.add((index % 4, choice.source))
        # Whoever made crops of an image labels it, now the ones, now the others.
        editors, people = {(0, "editors"), (1, "editors"), (3, "editors")}, {(1, "people"), (2, "people")}
        assert sources == editors | people

    def test_a_mirrored_view_has_mirrored_labels(self, rows):
        """The first crop of every image is lighter than the rest: the view's pixels say where it is."""
        seen = {True: 0, False: 0}
        for row, item in items_of(rows):
            labels, drawn = CropLabels.from_dict(row["crop_labels"]), item["drawn"]
            inside = drawn.labels.good_crops()
            if item["view"].source != "editors":
                continue
            first = of_the_image(inside, item["view"].window, drawn.labels.mirrored)[0]
            if not np.allclose(first, labels.crops[0]):
                continue  # the view cuts the first crop
            seen[drawn.labels.mirrored] += 1
            width, height = drawn.image.size
            light = np.asarray(drawn.image.convert("L"), dtype=float)
            light = (light - light.mean()) / light.std()
            columns, rows_ = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
            x1, y1, x2, y2 = inside[0]
            within = ((rows_ > y1) & (rows_ < y2))[:, None] & ((columns > x1) & (columns < x2))
            if within.all():
                continue
            assert light[within].mean() > light[~within].mean() + 1
        assert min(seen.values()) > 3

    def test_drawn_boxes_have_the_ratings_of_the_image(self, rows):
        for row, item in items_of(rows, range(2)):
            drawn = item["drawn"]
            boxes = of_the_image(drawn.boxes, item["view"].window, drawn.labels.mirrored)
            expected = rate_boxes(boxes, CropLabels.from_dict(row["crop_labels"]), item["view"].source)
            np.testing.assert_allclose(drawn.ratings, expected)

    def test_views_are_a_function_of_seed_epoch_and_image(self, rows):
        whole = sampler(rows, batch_size=8)
        first = list(whole)
        whole.set_epoch(1)
        second = list(whole)
        whole.set_epoch(0)
        assert list(whole) == first != second
        assert list(sampler(rows, batch_size=8, views=choices(rows, 1))) != first
        halves = [list(sampler(rows, processes=2, rank=rank)) for rank in range(2)]
        assert [a + b for a, b in zip(*halves, strict=True)] == first
        images, draw = CropDataset(rows, augment=True), first[0][0]
        a, b = images[draw], pickle.loads(pickle.dumps(images))[draw]
        assert a["image"].tobytes() == b["image"].tobytes() and np.array_equal(a["drawn"].boxes, b["drawn"].boxes)
        assert images[draw._replace(seed=draw.seed + 1)]["image"].tobytes() != a["image"].tobytes()

    def test_a_validated_image_is_whole_upright_and_the_same_every_time(self, rows):
        images = CropDataset(rows, augment=False)
        draws = [draw for batch in sampler(rows, shuffle=False) for draw in batch]
        for draw in draws:
            a, b = images[draw], images[draw._replace(seed=7)]
            labels = CropLabels.from_dict(rows[draw.index]["crop_labels"])
            best = labels.crops if len(labels.crops) else labels.people[None]
            np.testing.assert_allclose(a["drawn"].labels.good_crops(), best)
            assert np.array_equal(a["drawn"].boxes, b["drawn"].boxes)

    def test_a_converted_copy_gives_the_same_views(self, library, rows, tmp_path):
        save(load("editor", library), tmp_path / "copy", "parquet")
        copy = load("saved", tmp_path / "copy")["train"]
        assert copy["crop_labels"][:] == rows["crop_labels"][:]
        draw = next(iter(sampler(rows)))[0]
        items = [CropDataset(found, augment=True)[draw] for found in (rows, copy)]
        assert items[0]["image"].tobytes() == items[1]["image"].tobytes()


class TestLabels:
    def batch(self, rows, sources=("editors", "people")):
        images, draws = CropDataset(rows, augment=True), next(iter(sampler(rows, batch_size=8)))
        items = [images[draw] for draw in draws]
        processor = SetCropImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}, size_divisor=8)
        return items, CropCollator(processor, True, sources)(items)

    def test_a_batch_says_whose_labels_it_has(self, rows):
        items, batch = self.batch(rows)
        wanted = [("editors", "people").index(item["view"].source) for item in items]
        assert batch["source"].tolist() == wanted and len(set(wanted)) == 2
        assert "source" not in self.batch(rows, None)[1] and "source" not in self.batch(rows, ["raters"])[1]
        for label in batch["labels"]:
            assert label["scored_boxes"].shape == (BOXES, 4) and label["windows"].shape == (FAMILIES, WINDOWS, 4)
            assert len(label["class_labels"]) == len(label["boxes"]) > 0

    def test_quality_guidance_rates_every_unmatched_anchor_by_the_function(self, rows):
        items, batch = self.batch(rows)
        config = SetCropConfig(quality_lower=1.5, quality_upper=4.5, smoothing_upper_bound=0.5)
        anchors = torch.rand(2, len(items), 5, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
        found = rated_targets(anchors, [label["rate_boxes"] for label in batch["labels"]], config)
        for number, item in enumerate(items):
            labels = CropLabels.from_dict(rows[item["index"]]["crop_labels"])
            for layer in range(2):
                corners = cxcywh_to_xyxy(anchors[layer, number].double()).clamp(0, 1).numpy()
                boxes = of_the_image(corners, item["view"].window, item["drawn"].labels.mirrored)
                ratings = rate_boxes(boxes, labels, item["view"].source)
                expected = (0.5 * (ratings - 1.5) / 3.0).clip(0, 0.5)
                assert expected.max() > 0
                np.testing.assert_allclose(found[layer, number].numpy(), expected, atol=1e-6)

    def test_the_set_loss_is_the_focal_loss_of_those_ratings(self, rows):
        items, batch = self.batch(rows)
        config = SetCropConfig(quality_lower=1.5, quality_upper=4.5, auxiliary_loss=False)
        generator = torch.Generator().manual_seed(1)
        boxes = torch.rand(len(items), 9, 4, generator=generator) * 0.4 + 0.3
        logits = torch.randn(len(items), 9, 1, generator=generator)
        _, guided, _ = set_crop_loss(logits, batch["labels"], logits.device, boxes, config, num_good_crops=1.0)
        config.label_smoothing = "none"
        _, hard, _ = set_crop_loss(logits, batch["labels"], logits.device, boxes, config, num_good_crops=1.0)
        probability = logits[..., 0].sigmoid()
        soft = rated_targets(boxes[None], [label["rate_boxes"] for label in batch["labels"]], config)[0]

        def focal(p, v):
            p_t = p * v + (1 - p) * (1 - v)
            entropy = -(v * p.log() + (1 - v) * (1 - p).log())
            return (0.25 * v + 0.75 * (1 - v)) * (1 - p_t) ** 2 * entropy

        # Both share the matched anchors' part; what is left is the unmatched ones'.
        counts = [len(label["boxes"]) for label in batch["labels"]]
        padded = torch.nn.utils.rnn.pad_sequence([label["boxes"] for label in batch["labels"]], batch_first=True)
        _, image, anchor, _ = match_anchors(logits[None, ..., 0], boxes[None], padded, counts, config)
        free = torch.ones_like(probability, dtype=torch.bool)
        free[image, anchor] = False
        total = (focal(probability, soft) - focal(probability, torch.zeros_like(soft)))[free].sum()
        assert guided["loss_ce"] - hard["loss_ce"] == pytest.approx(float(total), rel=1e-4)

    def test_the_importance_map_lies_where_the_subjects_are(self, rows):
        for item in self.batch(rows)[0]:
            labels, shape = CropLabels.from_dict(rows[item["index"]]["crop_labels"]), (40, 60)
            found = item["drawn"].labels.importance_map(shape)
            down, across = ((np.arange(count) + 0.5) / count for count in shape)
            for row, column in ((5, 7), (20, 30), (33, 50), (12, 44)):
                centre = np.array([[across[column], down[row]] * 2])
                x, y = of_the_image(centre, item["view"].window, item["drawn"].labels.mirrored)[0, :2]
                edges = labels.subjects + np.array([-0.03, -0.03, 0.03, 0.03])
                near = ((edges[:, :2] < [x, y]) & (edges[:, 2:] > [x, y])).all(1)
                if not near.any():
                    assert found[row, column] == 0
                edges = labels.subjects - np.array([-0.03, -0.03, 0.03, 0.03])
                deep = ((edges[:, :2] < [x, y]) & (edges[:, 2:] > [x, y])).all(1)
                if deep.any():
                    assert found[row, column] == pytest.approx(labels.importance[deep].max())


class TestLosses:
    def test_ratings_of_boxes_written_out(self):
        predicted, ratings = torch.tensor([[3.0, 4.5]]), torch.tensor([[3.5, 4.0]])
        losses = any_box_losses(predicted, ratings)
        assert losses["score"] == pytest.approx(0.5 * 0.5**2)
        # Without their means the predictions are -0.75, 0.75, and the ratings -0.25, 0.25.
        assert losses["order"] == pytest.approx(0.25)
        first = 1 / (1 + np.exp(0.5 / 0.15))
        log = np.log(np.array([1 / (1 + np.exp(1.5 / 0.15)), 1 / (1 + np.exp(-1.5 / 0.15))]))
        assert losses["choice"] == pytest.approx(-0.3 * (first * log[0] + (1 - first) * log[1]), rel=1e-4)
        weighted = any_box_losses(
            torch.tensor([[3.0, 4.5, 9.0]]), torch.tensor([[3.5, 4.0, 1.0]]), torch.tensor([[1.0, 1, 0]])
        )
        for name, value in losses.items():
            torch.testing.assert_close(weighted[name], value)

    def test_only_windows_that_the_labels_speak_of_count(self):
        label = {"scores": torch.tensor([3.0]), "window_fit": torch.tensor([[1.0, 0.0], [0.5, 0.5]])}
        label["window_weight"] = torch.tensor([1.0, 0.0])
        silent = {**label, "window_weight": torch.zeros(2)}
        windows = torch.tensor([[[3.3, 3.0], [1.0, 5.0]]]).expand(2, -1, -1)
        losses = view_scoring_losses(torch.tensor([[3.0], [3.0]]), windows, [label, silent])
        wanted = 1 / (1 + np.exp(-4 / 0.3))
        expected = -(wanted * np.log(1 / (1 + np.exp(-1))) + (1 - wanted) * np.log(1 / (1 + np.exp(1))))
        assert losses["loss_crop_windows"] == pytest.approx(expected / 2, rel=1e-5)  # of two images

    def test_padding_is_no_part_of_the_subject_map(self):
        mask = torch.zeros(2, 3, 4, dtype=torch.bool)
        mask[0], mask[1, :2, :3] = True, True
        labels = [{"importance_map": lambda shape: np.full(shape, 0.25)}] * 2
        predicted = torch.where(mask, 0.5, 0.9)
        assert view_subject_map_loss(predicted, mask, labels) == pytest.approx(np.log(2))


class TestTraining:
    def test_every_part_of_the_model_learns(self, arguments, library):
        args = arguments(num_train_epochs=40, learning_rate=5e-3, max_grad_norm=1.0, eval_every=40)
        first = CropTraining(args)
        before = first.evaluate(first.raw_model)
        figures = first.train()
        log = [json.loads(line) for line in (Path(args.output_dir) / "log.jsonl").read_text().splitlines()]
        log = [line for line in log if "loss" in line]
        names = ("loss", "loss_crop_score", "loss_crop_rank", "loss_crop_windows", "loss_subject_map", "loss_bbox")
        for name in names:
            values = [line[name] for line in log]
            assert np.mean(values[-10:]) < 0.95 * np.mean(values[:10]), name
        assert figures["loss"] < before["loss"] and figures["srcc"] > before["srcc"]
        model = SetCropForImageCropping.from_pretrained(args.output_dir)
        assert model.config.rating_sources == ["editors", "people"]
        # Both sources were trained: they propose different sets.
        assert model.model.source_embeddings.weight.abs().sum(1).min() > 0

    @pytest.mark.parametrize("overrides", [[], ["label_smoothing=none"], ["crop_scoring=true"], ["subject_map=true"]])
    def test_a_model_without_some_of_the_parts_trains(self, arguments, overrides):
        figures = CropTraining(arguments(config_overrides=overrides, max_steps=2)).train()
        assert np.isfinite(figures["loss"])

    def test_figures_and_gradients_do_not_depend_on_the_batches(self, arguments):
        found = []
        for size in (1, 4):
            training = CropTraining(arguments(per_device_train_batch_size=size))
            found.append(training.evaluate(training.raw_model))
        assert found[0].keys() >= {"srcc", "iou", "ap_10@0.85"}
        assert found[1] == pytest.approx(found[0], rel=1e-5)

    def test_images_with_and_without_such_labels_are_not_mixed(self, arguments, library, tmp_path):
        editor = load("editor", library)
        plain = load("folder", write_folder(tmp_path / "plain", {"train": 1, "validation": 1}))
        mixed = concatenate_datasets([editor["train"], plain["train"]])
        with pytest.raises(
            ValueError, match=r"'train' has images with labels that rate any box .* and images without"
        ):
            CropTraining(arguments(), DatasetDict(train=mixed, validation=editor["validation"]))
        with pytest.raises(ValueError, match="only one of the splits"):
            CropTraining(arguments(), DatasetDict(train=editor["train"], validation=plain["validation"]))

    def test_faces_that_nothing_teaches_are_not_unlearned(self, arguments):
        overrides = [*OVERRIDES, "face_finding=true", "crop_scoring_detail=true"]
        training = CropTraining(arguments(config_overrides=overrides, max_steps=2))
        finder = training.raw_model.model.face_finder
        before = {name: value.clone() for name, value in finder.state_dict().items()}
        training.train()
        assert all(torch.equal(value, before[name]) for name, value in finder.state_dict().items())

    def test_found_faces_do_not_change_what_the_head_learns(self, arguments):
        """Labels without faces would teach it to rate what cuts one higher, against the penalty."""
        overrides = [*OVERRIDES, "face_finding=true", "crop_scoring_detail=true"]
        training = CropTraining(arguments(config_overrides=overrides))
        model, batch = training.raw_model.eval(), next(iter(training.validation_loader))
        torch.nn.init.constant_(model.model.face_finder.answer.bias[:1], 5.0)
        with torch.no_grad():
            inputs = training._on_device(batch)
            found = [model(**inputs)]
            boxes = batch["labels"][0]["scored_boxes"].expand(len(batch["labels"]), -1, -1)
            rated = [model.score_crops(boxes, found[0].encoder_outputs)]
            model.crop_scorer.face_penalty = 0.0
            found.append(model(**inputs))
            rated.append(model.score_crops(boxes, found[1].encoder_outputs))
        assert (rated[0] < rated[1] - 0.5).any()
        for name in ("loss_crop_score", "loss_crop_rank", "loss_crop_windows"):
            assert found[0].loss_dict[name] == found[1].loss_dict[name] > 0

    def test_what_nothing_trains_stands_still(self, arguments, library, tmp_path):
        """A map of subjects in a model that is trained on crops alone has no gradient, which processes wait for."""
        data = write_folder(tmp_path / "plain", {"train": 1, "validation": 1})
        training = CropTraining(arguments(data=str(data), layout="folder", max_steps=1))
        assert not any(p.requires_grad for p in training.raw_model.model.subject_map.parameters())

    def test_mixed_precision_trains_every_loss(self, arguments):
        AcceleratorState._reset_state(reset_partial_state=True)
        args = arguments(mixed_precision="bf16", max_steps=2)
        try:
            assert np.isfinite(CropTraining(args).train()["loss"])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    def test_the_command_trains_with_views_drawn_by_another_process(self, library, start, tmp_path):
        options = ["--data", str(library), "--layout", "editor", "--model_name_or_path", str(start)]
        options += ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--per_device_train_batch_size", "4"]
        options += ["--config_overrides", *OVERRIDES, "--dataloader_num_workers", "1"]
        assert run(options, prog="train") == 0
        line = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert np.isfinite(line["loss"])


def test_good_crops_of_people_come_first(rows):
    labels = CropLabels.from_dict(rows[1]["crop_labels"])
    assert box_iou(good_crops(labels, "people")[:1], labels.people[None])[0, 0] == pytest.approx(1)
