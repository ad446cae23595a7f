"""Label files whose parts are of another kind than they must be: each is named, and the others are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_setcrop.cli import app
from modeling_setcrop.coco_annotations import coco_image_id
from modeling_setcrop.data import Problems, load
from modeling_setcrop.evaluation.tables import _coco_ids

BOX = [2, 2, 60, 40]
GOOD_IMAGE = {"id": 1, "file_name": "a.jpg", "width": 90, "height": 60}
GOOD_CROP = {"id": 1, "image_id": 1, "bbox": BOX, "rating": 4.5}
TASK = {"data": {"image": "a.jpg"}, "annotations": [{"result": []}]}
RECTANGLE = {
    "id": "r",
    "type": "rectanglelabels",
    "original_width": 90,
    "original_height": 60,
    "value": {"x": 10, "y": 10, "width": 50, "height": 50},
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two images; the second one's labels are right in every test."""
    for name in ("a.jpg", "b.jpg"):
        Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(tmp_path / name)
    return tmp_path


def loaded(layout: str, folder: Path) -> tuple[list[str], Problems]:
    problems = Problems()
    splits = load(layout, folder, problems=problems)
    return [name for split in splits.values() for name in split["image_id"]], problems


@pytest.mark.parametrize(
    ("image", "crop"),
    [
        (GOOD_IMAGE, GOOD_CROP | {"rating": "abc"}),
        (GOOD_IMAGE, GOOD_CROP | {"rating": [4]}),
        (GOOD_IMAGE, GOOD_CROP | {"rating": float("nan")}),
        (GOOD_IMAGE, GOOD_CROP | {"validity": "yes"}),
        (GOOD_IMAGE, {"id": 1, "image_id": 1, "bbox": BOX, "category_id": 2}),
        (["a.jpg"], GOOD_CROP),
        (GOOD_IMAGE | {"id": [1]}, GOOD_CROP | {"image_id": [1]}),
        (GOOD_IMAGE, "a crop"),
    ],
)
def test_a_coco_entry_of_another_kind_is_named(image, crop, folder):
    other, its = GOOD_IMAGE | {"id": 2, "file_name": "b.jpg"}, GOOD_CROP | {"id": 2, "image_id": 2}
    (folder / "annotations").mkdir()
    content = {"images": [image, other], "annotations": [crop, its]}
    (folder / "annotations" / "train.json").write_text(json.dumps(content))
    names, problems = loaded("coco", folder)
    assert names == ["b"] and problems.found


def test_an_id_that_is_no_number_is_no_id(folder):
    (folder / "annotations").mkdir()
    content = {"images": [GOOD_IMAGE | {"id": True}], "annotations": [GOOD_CROP | {"image_id": True}]}
    (folder / "annotations" / "train.json").write_text(json.dumps(content))
    assert load("coco", folder)["train"]["coco_id"] == [None]


@pytest.mark.parametrize(
    "task",
    [
        TASK | {"annotations": ["by me"]},
        TASK | {"annotations": [{"result": ["a rectangle"]}]},
        TASK | {"annotations": [{"result": [RECTANGLE | {"value": 3}]}]},
        TASK | {"data": {"image": "http://[bad/a.jpg"}},
        TASK
        | {
            "annotations": [
                {"result": [RECTANGLE, {"id": "r", "type": "rating", "value": {"rating": float("nan")}}]},
            ]
        },
    ],
)
def test_a_task_of_another_kind_is_named(task, folder):
    other = {"data": {"image": "b.jpg"}, "annotations": [{"result": [RECTANGLE]}]}
    (folder / "export.json").write_text(json.dumps([task, other]))
    names, problems = loaded("label-studio", folder)
    assert names == ["b"] and len(problems.found) == 1


@pytest.mark.parametrize(
    ("layout", "name", "line"),
    [
        ("imagefolder", "metadata.jsonl", {"file_name": "a.jpg", "objects": [{"bbox": BOX}]}),
        ("folder", "metadata.jsonl", {"file_name": "a" * 5000 + ".jpg", "boxes": [[2, 2, 60, 40]]}),
        ("folder", "metadata.jsonl", {"file_name": "a.jpg", "boxes": [[2, 2, 60, 10**400]]}),
        ("folder", "metadata.jsonl", {"file_name": "a.jpg", "boxes": [[2, 2, 60, 40]], "good": [False]}),
        ("editor", "labels.jsonl", {"photo": "a\0.jpg", "crops": [[0, 0, 1, 0.9, 4]]}),
        ("editor", "labels.jsonl", {"photo": "a.jpg", "crops": [[0, 0, 1, 0.9, 10**400]]}),
    ],
)
def test_a_line_of_another_kind_is_named_with_its_number(layout, name, line, folder):
    right = {
        "imagefolder": {"file_name": "b.jpg", "objects": {"bbox": [BOX]}},
        "folder": {"file_name": "b.jpg", "boxes": [[2, 2, 60, 40]]},
        "editor": {"photo": "b.jpg", "crops": [[0, 0, 1, 0.9, 4]]},
    }[layout]
    (folder / name).write_text(f"{json.dumps(line)}\n{json.dumps(right)}")
    names, problems = loaded(layout, folder)
    assert names == ["b"] and len(problems.found) == 1
    assert problems.found[0].line == 1 or "'a'" in str(problems.found[0])


def test_inspect_names_a_rating_that_is_no_number(folder):
    rating = {"id": "r", "type": "rating", "value": {"rating": float("nan")}}
    tasks = [TASK | {"annotations": [{"result": [RECTANGLE, rating]}]}]
    tasks.append({"data": {"image": "b.jpg"}, "annotations": [{"result": [RECTANGLE]}]})
    (folder / "export.json").write_text(json.dumps(tasks))
    result = CliRunner().invoke(app, ["data", "inspect", str(folder), "--layout", "label-studio"])
    assert "is not a finite number" in result.output and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_images_of_one_name_in_two_folders_are_two_images(folder):
    """In layout `editor` as in `folder`, with points in their names, and with the numbers that a COCO file has."""
    lines = []
    for name in ("x/lake.2023.jpg", "y/lake.2023.jpg", "y/lake.2024.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "a.jpg", folder / name)
        lines.append({"photo": name, "split": "val", "crops": [[0, 0, 1, 0.9, 4]]})
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    names, problems = loaded("editor", folder)
    assert names == ["x/lake.2023", "y/lake.2023", "y/lake.2024"] and not problems.found
    result = CliRunner().invoke(
        app, ["data", "convert", str(folder), "--layout", "editor", "--to", "coco", "--out", str(folder / "coco")]
    )
    assert result.exit_code == 0, result.output
    images = json.loads((folder / "coco" / "annotations" / "validation.json").read_text())["images"]
    assert [image["id"] for image in images] == [coco_image_id(name.replace("/", "__") + ".jpg") for name in names]
    assert _coco_ids(load("editor", folder)["validation"]) == [image["id"] for image in images]
    assert len({image["id"] for image in images}) == 3
