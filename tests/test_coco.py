"""COCO both ways: files that pycocotools loads, results that it takes, and annotations that are read."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from modeling_setcrop.cli import app
from modeling_setcrop.coco_annotations import coco_image_id, crops_of_coco
from modeling_setcrop.data import DataError, Problems, load

LINES = [
    {
        "file_name": "beach.png",
        "boxes": [[10, 5, 150.25, 100], [0, 0, 80, 60], [20.5, 0, 160, 120]],
        "scores": [4.5, 2.25, 4.1],
        "split": "train",
    },
    {"file_name": "000123.jpg", "boxes": [[1, 2, 90, 80]], "scores": [3.0], "split": "test"},
    {"file_name": "turned.jpg", "boxes": [[5, 5, 100, 140]], "split": "test"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three images in layout 'folder', one of them stored on its side."""
    root = tmp_path_factory.mktemp("own")
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    image, exif = Image.fromarray(noise), Image.Exif()
    image.save(root / "beach.png")
    image.save(root / "000123.jpg")
    exif[ExifTags.Base.Orientation] = 6
    image.save(root / "turned.jpg", exif=exif)
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    return root


def run(*arguments: str):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.output
    return found


def quietly(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("coco") / "coco"
    run("data", "convert", folder, "--layout", "folder", "--to", "coco", "--out", target)
    return target


def test_pycocotools_loads_what_is_written(converted):
    found = quietly(COCO, str(converted / "annotations" / "train.json"))
    (number,) = found.getImgIds()
    assert found.loadImgs(number)[0] | {"id": 0} == {"id": 0, "file_name": "beach.png", "width": 160, "height": 120}
    annotations = found.loadAnns(found.getAnnIds(imgIds=number))
    assert [annotation["bbox"] for annotation in annotations] == [
        [10, 5, 140.25, 95],
        [0, 0, 80, 60],
        [20.5, 0, 139.5, 120],
    ]
    assert [annotation["rating"] for annotation in annotations] == [4.5, 2.25, 4.1]
    assert [annotation["validity"] for annotation in annotations] == [1, 0, 1]
    assert len(found.getAnnIds(catIds=found.getCatIds(catNms="crop"))) == 2
    assert (converted / "train" / "beach.png").is_file()
    test = quietly(COCO, str(converted / "annotations" / "test.json"))
    assert 123 in test.getImgIds()
    turned = next(image for image in test.loadImgs(test.getImgIds()) if image["file_name"] == "turned.jpg")
    with Image.open(converted / "test" / "turned.jpg") as image:
        assert image.size == (turned["width"], turned["height"]) == (120, 160)
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_coco_converted_to_coco_is_the_same(converted, tmp_path):
    run("data", "convert", converted, "--layout", "coco", "--to", "coco", "--out", tmp_path / "again")
    files = sorted(path.relative_to(converted) for path in converted.rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (converted / file).read_bytes(), file


def test_the_layout_reads_what_the_other_one_reads(folder, converted):
    expected, found = load("folder", folder), load("coco", converted)
    assert found.keys() == expected.keys()
    for split in expected:
        for row, other in zip(found[split], expected[split], strict=True):
            for name in ("image_id", "width", "height", "boxes", "scores", "good"):
                assert row[name] == other[name], name


def test_annotations_beside_the_images_are_read(converted, tmp_path):
    """The form that Roboflow exports; a category alone says what is good."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        content = json.loads((converted / "annotations" / f"{split}.json").read_text())
        for annotation in content["annotations"]:
            del annotation["validity"]
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
        for image in (converted / split).iterdir():
            (tmp_path / split / image.name).write_bytes(image.read_bytes())
    found, expected = load("coco", tmp_path), load("coco", converted)
    assert {split: rows["good"][:] for split, rows in found.items()} == {
        split: rows["good"][:] for split, rows in expected.items()
    }


def test_bad_annotations_are_named(converted, tmp_path):
    content = json.loads((converted / "annotations" / "train.json").read_text())
    content["images"].append({"id": 7, "file_name": "lost.png"})
    content["annotations"][0]["bbox"] = [1, 2, 3]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(content))
    (tmp_path / "annotations" / "test.json").write_text("{")
    (tmp_path / "train" / "beach.png").write_bytes((converted / "train" / "beach.png").read_bytes())
    problems = Problems()
    with pytest.raises(DataError, match="no usable"):
        load("coco", tmp_path, problems=problems)
    messages = "\n".join(str(problem) for problem in problems.found)
    assert (
        "lost.png" in messages and "annotation 1: bbox is not" in messages and "test.json: is no COCO file" in messages
    )


def test_the_image_folder_of_datasets_is_read(folder, tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "beach.png").write_bytes((folder / "beach.png").read_bytes())
    objects = {"bbox": [[10, 5, 100, 90], [0, 0, 50, 40]], "categories": [0, 0], "rating": [4.5, 2.0]}
    (tmp_path / "test" / "metadata.jsonl").write_text(json.dumps({"file_name": "beach.png", "objects": objects}))
    (row,) = load("imagefolder", tmp_path)["test"]
    assert row["boxes"] == [[10, 5, 110, 95], [0, 0, 50, 40]]
    assert row["scores"] == [4.5, 2.0]
    assert row["good"] == [True, False]


def test_results_of_suggest_and_evaluate_load_beside_the_annotations(converted, tiny_checkpoint, tmp_path):
    truth = quietly(COCO, str(converted / "annotations" / "test.json"))
    suggested = run("suggest", converted / "test", "--format", "coco", "--model", tiny_checkpoint)
    (tmp_path / "suggested.json").write_text(suggested.stdout)
    run(
        *("evaluate", "--data", converted, "--layout", "coco", "--model", tiny_checkpoint),
        *("--split", "test", "--out", tmp_path),
    )
    for file in ("suggested.json", "predictions.json"):
        results = quietly(truth.loadRes, str(tmp_path / file))
        assert set(results.getImgIds()) == set(truth.getImgIds())
        assert results.getAnnIds()
        scores = COCOeval(truth, results, "bbox")
        scores.params.catIds = [1]
        for step in (scores.evaluate, scores.accumulate, scores.summarize):
            quietly(step)
        assert 0 <= scores.stats[0] <= 1


def test_results_have_the_numbers_of_a_coco_file_of_ones_own(converted, tiny_checkpoint, tmp_path):
    """Whose images need not be called by their numbers; a copy made by `setcrop data convert` has its own."""
    shutil.copytree(converted / "test", tmp_path / "test2017")
    content = json.loads((converted / "annotations" / "test.json").read_text())
    own = {image["id"]: number for number, image in enumerate(content["images"])}
    content["images"] = [image | {"id": own[image["id"]]} for image in content["images"]]
    content["annotations"] = [each | {"image_id": own[each["image_id"]]} for each in content["annotations"]]
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_test2017.json"
    file.write_text(json.dumps(content))
    out = tmp_path / "out"
    run(
        *("evaluate", "--data", tmp_path, "--layout", "coco", "--model", tiny_checkpoint, "--split", "test"),
        "--out",
        out,
    )
    truth = quietly(COCO, str(file))
    results = quietly(truth.loadRes, str(out / "predictions.json"))
    assert sorted(results.getImgIds()) == sorted(own.values()) and results.getAnnIds()


def test_the_image_processor_takes_coco_annotations(tiny_processor, tiny_model):
    image = np.zeros((120, 160, 3), np.uint8)
    annotations = [
        {"id": 1, "bbox": [16, 12, 80, 60], "category_id": 1, "area": 4800, "iscrowd": 0, "rating": 4.5},
        {"id": 2, "bbox": [0, 0, 160, 120], "category_id": 2, "area": 19200, "iscrowd": 0, "rating": 2.5},
    ]
    batch = tiny_processor(image, annotations={"image_id": 3, "annotations": annotations}, return_tensors="pt")
    (label,) = batch["labels"]
    torch.testing.assert_close(label["boxes"], torch.tensor([[0.35, 0.35, 0.5, 0.5]]))
    assert label["class_labels"].tolist() == [0]
    assert label["scores"].tolist() == [4.5, 2.5]
    assert torch.isfinite(tiny_model(**batch).loss)
    for annotation in annotations:
        del annotation["rating"]
    (label,) = tiny_processor(image, annotations={"image_id": 3, "annotations": annotations})["labels"]
    assert len(label["boxes"]) == 1 and len(label["scores"]) == 0


def test_crops_need_a_box_and_all_ratings_or_none():
    with pytest.raises(ValueError, match="annotation 4: bbox is not"):
        crops_of_coco([{"id": 4, "bbox": None}])
    with pytest.raises(ValueError, match="1 of 2 annotations have no rating"):
        crops_of_coco([{"bbox": [0, 0, 1, 1], "rating": 3}, {"bbox": [0, 0, 1, 1]}])


def test_boxes_may_be_arrays():
    """As augmentation libraries and `with_format("numpy")` give them."""
    found = crops_of_coco([{"bbox": np.array([4, 2, 30, 100.5])}, {"bbox": (np.float32(1), 2, 3, np.int64(4))}])
    assert found["boxes"] == [[4, 2, 34, 102.5], [1, 2, 4, 6]]
    for bbox in ("1234", [1, 2, 3, "4"], [[1], 2, 3, 4], [True, False, True, True]):
        with pytest.raises(ValueError, match="bbox is not"):
            crops_of_coco([{"bbox": bbox}])


def test_image_ids_are_numbers_that_a_name_always_has():
    assert coco_image_id("photos/000000397133.jpg") == coco_image_id("000000397133.png") == 397133
    assert coco_image_id("a/beach.v2.jpg") == coco_image_id("beach.v2.png") < 2**53
    assert coco_image_id("beach.jpg") != coco_image_id("bench.jpg")
