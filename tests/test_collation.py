"""Augmentation and batching: boxes stay exact, batches repeat, padding is small and every image counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_setcrop import SetCropImageProcessorPil
from modeling_setcrop.crop_geometry import cxcywh_to_xyxy
from modeling_setcrop.data.augmentation import jitter, mirror, photometric_distortion
from modeling_setcrop.data.collation import AspectRatioBatchSampler, CropCollator, CropDataset, Draw
from modeling_setcrop.data.reading import displayed_size
from modeling_setcrop.data.schema import FEATURES
from modeling_setcrop.image_reading import READ_FACTOR
from modeling_setcrop.image_sources import read_any_image
from modeling_setcrop.metrics import pairwise_iou


def marked_image(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """Black, with `box` painted white."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), box)
    return image


class TestMirror:
    @given(st.integers(2, 40), st.integers(1, 10), st.data())
    @settings(max_examples=30)
    def test_the_box_still_frames_what_it_framed(self, width, height, data):
        x1 = data.draw(st.integers(0, width - 1))
        x2 = data.draw(st.integers(x1 + 1, width))
        image, boxes = mirror(marked_image(width, height, (x1, 0, x2, height)), np.array([[x1, 0, x2, height]]))
        assert image.getbbox() == tuple(boxes[0])

    def test_twice_is_the_identity(self):
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        boxes = np.array([[1.5, 0.0, 6.25, 4.0]])
        again, boxes_again = mirror(*mirror(image, boxes))
        assert again.tobytes() == image.tobytes()
        assert boxes_again.tolist() == boxes.tolist()


class TestPhotometricDistortion:
    def test_keeps_size_and_mode_and_repeats_with_the_same_seed(self):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8))
        first, second = (photometric_distortion(image, np.random.default_rng(5)) for _ in range(2))
        assert (first.size, first.mode) == (image.size, "RGB")
        assert first.tobytes() == second.tobytes()

    def test_stays_within_the_bounds_of_the_recipe(self):
        grey = Image.new("RGB", (1, 1), (100, 100, 100))
        values = [photometric_distortion(grey, np.random.default_rng(s)).getpixel((0, 0)) for s in range(300)]
        # Grey has no saturation and no hue, so only (100 +- 32) * 0.5..1.5 is left.
        assert all(len(set(value)) == 1 for value in values)
        levels = [value[0] for value in values]
        assert min(levels) >= round(68 * 0.5) and max(levels) <= round(132 * 1.5)
        assert min(levels) < 60 and max(levels) > 160
        assert 100 in levels

    def test_hue_turns_by_at_most_18_degrees(self):
        red = Image.new("RGB", (1, 1), (255, 0, 0))
        hues = [
            photometric_distortion(red, np.random.default_rng(s)).convert("HSV").getpixel((0, 0))[0] * 360 / 256
            for s in range(200)
        ]
        turned = [min(hue, 360 - hue) for hue in hues]
        assert max(turned) <= 18 + 3  # 8-bit hue and rounding of RGB
        assert max(turned) > 12


class TestJitter:
    def test_moves_most_boxes_a_little_and_keeps_them_near_and_inside(self):
        rng = np.random.default_rng(0)
        low, high = rng.uniform(0, 0.4, (200, 2)), rng.uniform(0.5, 1, (200, 2))
        boxes = np.concatenate([low, high], axis=1).astype(np.float32)
        moved = jitter(boxes, np.random.default_rng(1))
        assert moved.dtype == boxes.dtype and moved.min() >= 0 and moved.max() <= 1
        assert (np.diagonal(pairwise_iou(boxes, moved)) >= 0.9).all()
        assert np.abs(moved - boxes).max() <= 0.015 + 1e-6
        assert (moved != boxes).any(axis=1).mean() > 0.5

    def test_a_box_that_a_move_would_change_too_much_stays(self):
        boxes = np.tile([0.5, 0.5, 0.51, 0.51], (200, 1))
        moved = jitter(boxes, np.random.default_rng(0))
        assert (moved == boxes).all(axis=1).mean() > 0.95
        assert (np.diagonal(pairwise_iou(boxes, moved)) >= 0.9).all()

    def test_no_boxes_are_no_boxes(self):
        assert jitter(np.zeros((0, 4)), np.random.default_rng(0)).shape == (0, 4)


def sampler(count: int = 50, **options) -> AspectRatioBatchSampler:
    rng = np.random.default_rng(0)
    return AspectRatioBatchSampler(
        rng.integers(100, 400, count),
        rng.integers(100, 400, count),
        **{"batch_size": 4, "short_sides": [48, 64], "long_side": 128, **options},
    )


class TestSampler:
    def test_an_epoch_shows_every_image_and_fills_the_last_batch_up(self):
        drawn = [draw.index for batch in sampler() for draw in batch]
        assert len(drawn) == 52 and set(drawn) == set(range(50))

    def test_an_unshuffled_epoch_shows_every_image_once_over_all_processes(self):
        parts = [sampler(shuffle=False, processes=3, rank=rank) for rank in range(3)]
        drawn = [draw.index for part in parts for batch in part for draw in batch]
        assert sorted(drawn) == list(range(50))

    @pytest.mark.parametrize("processes", [1, 2])
    def test_an_unshuffled_epoch_pads_nothing(self, processes):
        parts = [sampler(shuffle=False, processes=processes, rank=rank) for rank in range(processes)]
        batches = [batch for part in parts for batch in part]
        assert all(draw.size == draw.padded_size for batch in batches for draw in batch)
        assert len(list(parts[0])) <= len(parts[0])
        if processes == 1:
            assert len(batches) == len(parts[0])

    def test_few_images_are_repeated_to_a_whole_batch(self):
        batches = list(sampler(count=3, batch_size=8))
        assert [len(batch) for batch in batches] == [8]

    def test_epochs_differ_and_repeat(self):
        batches = sampler()
        first = list(batches)
        batches.set_epoch(1)
        second = list(batches)
        batches.set_epoch(0)
        assert list(batches) == first != second

    def test_starting_within_an_epoch_gives_its_rest(self):
        batches = sampler()
        whole = list(batches)
        batches.set_epoch(0, start=5)
        assert list(batches) == whole[5:] and len(batches) == len(whole) - 5

    def test_two_processes_share_the_batch_of_one(self):
        whole = list(sampler(batch_size=8))
        halves = [list(sampler(batch_size=4, processes=2, rank=rank)) for rank in range(2)]
        assert [a + b for a, b in zip(*halves, strict=True)] == whole

    def test_padding_is_small_where_a_bucket_fills_batches(self):
        batches = list(sampler(count=2000, batch_size=8))
        pixels = sum(draw.size[0] * draw.size[1] for batch in batches for draw in batch)
        padded = sum(draw.padded_size[0] * draw.padded_size[1] for batch in batches for draw in batch)
        assert pixels / padded > 0.85

    def test_the_long_side_is_bounded_and_the_short_side_drawn(self):
        draws = [draw for batch in sampler(count=200) for draw in batch]
        assert all(max(draw.size) <= 128 for draw in draws)
        assert {min(draw.size) for draw in draws} >= {48, 64}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One image 80 x 40 with its right quarter white, and the same stored turned by EXIF."""
    folder = tmp_path_factory.mktemp("images")
    upright = marked_image(80, 40, (60, 0, 80, 40))
    upright.save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "b.png", exif=exif)
    return Dataset.from_list(
        [
            {
                "image": str(folder / name),
                "image_id": name,
                "width": 80,
                "height": 40,
                "boxes": [[60.0, 0.0, 80.0, 40.0], [0.0, 0.0, 40.0, 40.0]],
                "scores": [4.5, 2.0],
                "good": [True, False],
                "split": "train",
                "rating_scale": [1.0, 5.0],
                "crop_labels": None,
                "coco_id": None,
            }
            for name in ("a.png", "b.png")
        ],
        features=FEATURES,
    )


def odd_image(folder: Path, kind: str) -> tuple[Path, tuple[int, int]]:
    """An image file of the kind, and its height and width as displayed."""
    ramp = np.linspace(0, 1, 64 * 96).reshape(64, 96)
    if kind == "16 bit":
        path = folder / "deep.png"
        Image.fromarray((ramp * 20_000).astype(np.uint16)).save(path)
    elif kind == "transparent":
        path = folder / "clear.png"
        colours = np.dstack([np.full((64, 96, 3), 90), (ramp > 0.5) * 255]).astype(np.uint8)
        Image.fromarray(colours, "RGBA").save(path)
    elif kind == "turned TIFF":
        path = folder / "turned.tif"
        exif = Image.Exif()
        exif[0x0112] = 6
        upright = Image.fromarray((ramp * 255).astype(np.uint8)).convert("RGB")
        upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    else:
        path = folder / "grey.jpg"
        Image.fromarray((ramp * 255).astype(np.uint8)).save(path)
    return path, (64, 96)


class TestBatches:
    @pytest.mark.parametrize("index", [0, 1], ids=["upright", "turned by EXIF"])
    def test_boxes_frame_the_same_part_after_resizing(self, rows, index):
        item = CropDataset(rows, augment=False)[Draw(index, (20, 40), (20, 40), seed=0)]
        assert item["annotation"]["boxes"][0].tolist() == [30, 0, 40, 20]
        assert item["image"].crop((31, 0, 40, 20)).getextrema() == ((255, 255),) * 3

    @pytest.mark.parametrize("filter", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
    def test_images_are_resized_as_the_image_processor_resizes_them(self, rows, filter):
        processor = SetCropImageProcessorPil(
            size={"shortest_edge": 32, "longest_edge": 64}, resample=filter, do_normalize=False, do_rescale=False
        )
        item = CropDataset(rows, False, processor.resample)[Draw(0, (32, 64), (32, 64), seed=0)]
        expected = processor(images=rows[0]["image"].convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert np.array_equal(np.asarray(item["image"]).transpose(2, 0, 1), expected)

    def test_augmentation_mirrors_half_of_the_draws_and_their_boxes(self, rows):
        images = CropDataset(rows, augment=True)
        lefts = []
        for seed in range(20):
            item = images[Draw(0, (20, 40), (20, 40), seed)]
            box = item["annotation"]["boxes"][0]
            inside = np.asarray(item["image"])[:, int(box[0]) + 1 : int(box[2]) - 1].mean()
            assert inside > np.asarray(item["image"]).mean()
            lefts.append(box[0])
        assert set(lefts) == {0.0, 30.0}

    def test_a_batch_is_padded_to_the_drawn_size_and_its_labels_to_the_image(self, rows):
        collate = CropCollator(SetCropImageProcessorPil())
        images = CropDataset(rows, augment=False)
        batch = collate([images[Draw(0, (32, 64), (40, 64), 0)], images[Draw(1, (40, 60), (40, 64), 0)]])
        assert batch["pixel_values"].shape == (2, 3, 40, 64)
        assert batch["pixel_mask"].sum((1, 2)).tolist() == [32 * 64, 40 * 60]
        for label in batch["labels"]:
            torch.testing.assert_close(label["boxes"], torch.tensor([[0.875, 0.5, 0.25, 1.0]]))
            assert label["scores"].tolist() == [4.5, 2.0]
        assert batch["indices"].tolist() == [0, 1]

    def test_rated_crops_are_jittered_by_the_draws_seed_whatever_the_batch(self, rows):
        collate, images = CropCollator(SetCropImageProcessorPil(), augment=True), CropDataset(rows, augment=True)
        draws = [Draw(0, (32, 64), (40, 64), 5), Draw(1, (40, 60), (40, 64), 6)]
        both = collate([images[draw] for draw in draws])["labels"]
        state = torch.get_rng_state()
        alone = [collate([images[draw]])["labels"][0] for draw in draws]
        assert torch.equal(torch.get_rng_state(), state)
        for label, other in zip(both, alone, strict=True):
            assert torch.equal(label["jittered_boxes"], other["jittered_boxes"])
            assert not torch.equal(label["jittered_boxes"], label["scored_boxes"])
            old, new = (cxcywh_to_xyxy(label[name]).numpy() for name in ("scored_boxes", "jittered_boxes"))
            assert (np.diagonal(pairwise_iou(old, new)) >= 0.9).all()
        plain = CropCollator(SetCropImageProcessorPil())([images[draws[0]]])["labels"][0]
        assert "jittered_boxes" not in plain

    @pytest.mark.parametrize("kind", ["16 bit", "transparent", "turned TIFF", "grey"])
    def test_an_image_of_any_kind_is_seen_as_by_the_pipeline(self, kind, tmp_path: Path):
        path, (height, width) = odd_image(tmp_path, kind)
        row = {"image": {"path": str(path), "bytes": None}, "image_id": kind, "width": width, "height": height}
        row |= {
            "boxes": [[0, 0, width, height]],
            "scores": [4.0],
            "good": [True],
            "split": "test",
            "rating_scale": [1.0, 5.0],
            "crop_labels": None,
            "coco_id": None,
        }
        processor = SetCropImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
        seen = read_any_image(str(path), READ_FACTOR * 32)
        assert seen.size == (height, width) == displayed_size(path)[::-1]
        expected = processor(seen.image, return_tensors="pt")["pixel_values"]
        images = CropDataset(Dataset.from_list([row], features=FEATURES), augment=False)
        batch = CropCollator(processor)([images[Draw(0, (32, 48), (32, 48), 0)]])
        torch.testing.assert_close(batch["pixel_values"], expected)

    def test_a_broken_image_is_named_and_left_out_of_its_batch(self, rows, tmp_path: Path, caplog):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
        broken = Dataset.from_list(
            [{**rows.cast_column("image", FEATURES["image"]).remove_columns("image")[0], "image_id": "broken"}]
        ).add_column("image", [{"path": str(tmp_path / "broken.jpg"), "bytes": None}])
        nothing = CropDataset(broken, augment=False)[Draw(0, (32, 64), (32, 64), 0)]
        assert nothing is None and "left out image 'broken'" in caplog.text
        good = CropDataset(rows, augment=False)[Draw(1, (32, 64), (32, 64), 0)]
        collate = CropCollator(SetCropImageProcessorPil())
        assert collate([nothing, good])["indices"].tolist() == [1]
        assert collate([nothing]) is None

    def test_in_training_the_next_image_stands_in_for_a_broken_one(self, rows, tmp_path: Path, caplog):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
        images = [row["image"] for row in rows.cast_column("image", ImageFeature(decode=False))]
        images[0] = {"path": str(tmp_path / "broken.jpg"), "bytes": None}
        broken = rows.remove_columns("image").add_column("image", images)
        shown = CropDataset(broken, augment=True)
        item = shown[Draw(0, (32, 64), (40, 64), 0)]
        assert item["index"] == 1 and item["padded_size"] == (40, 64)
        height, width = item["image"].height, item["image"].width
        assert height <= 40 and width <= 64 and (height == 40 or width == 64)
        assert height / width == pytest.approx(rows[1]["height"] / rows[1]["width"], abs=0.02)
        shown[Draw(0, (32, 64), (40, 64), 0)]
        assert caplog.text.count("left out image") == 1
