"""Crops labelled in Label Studio and CVAT come back as data sets."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_setcrop.cli import app
from modeling_setcrop.data import DataError, Problems, load
from modeling_setcrop.integrations.formats import crop_rows, label_studio


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what the tests read out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def image(path: Path, size: tuple[int, int] = (120, 80), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "teal").save(path, exif=exif)
    return path


def rectangle(name: str, box: tuple[float, float, float, float], size: tuple[int, int] = (120, 80), **value) -> dict:
    (x1, y1, x2, y2), (width, height) = box, size
    shares = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
    return {
        "id": name,
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "value": {key: 100 * share for key, share in shares.items()} | {"rotation": 0} | value,
    }


def rating(name: str, stars: int) -> dict:
    return {"id": name, "type": "rating", "value": {"rating": stars}}


def task(name: str, *annotations: list[dict], **data) -> dict:
    found = [{"result": result, "was_cancelled": False} for result in annotations]
    return {"data": {"image": name} | data, "annotations": found}


def export(root: Path, *tasks: dict) -> Path:
    (root / "project-1.json").write_text(json.dumps(tasks))
    return root


def test_label_studio_crops_without_ratings_are_good(tmp_path):
    image(tmp_path / "beach.jpg")
    image(tmp_path / "cat.jpg")
    export(
        tmp_path,
        task("/data/upload/1/0a1b2c3d-beach.jpg", [rectangle("a", (12, 8, 108, 72)), rectangle("b", (0, 0, 60, 40))]),
        task("/data/local-files/?d=album/cat.jpg", [rectangle("a", (10, 10, 50, 50))], split="test"),
    )
    problems = Problems(strict=True)
    splits = load("label-studio", tmp_path, problems=problems)
    row = splits["train"][0]
    assert row["image_id"] == "beach" and row["scores"] is None and row["good"] == [True, True]
    assert np.allclose(row["boxes"], [(12, 8, 108, 72), (0, 0, 60, 40)], atol=1e-3)
    assert splits["test"]["image_id"] == ["cat"]


def test_label_studio_ratings_of_several_annotators_are_averaged(tmp_path):
    image(tmp_path / "beach.jpg")
    first = [rectangle("a", (12, 8, 108, 72)), rating("a", 5), rectangle("b", (0, 0, 60, 40)), rating("b", 2)]
    second = [rectangle("x", (12, 8.4, 108, 72)), rating("x", 4), rectangle("y", (5, 5, 70, 70))]
    export(tmp_path, task("beach.jpg", first, second) | {"predictions": []})
    problems = Problems()
    row = load("label-studio", tmp_path, problems=problems)["train"][0]
    assert row["scores"] == [4.5, 2.0] and row["good"] == [True, False]
    assert [problem.kind for problem in problems.found] == ["crop without rating"]


def test_label_studio_predictions_that_were_accepted_come_back(tmp_path):
    image(tmp_path / "beach.jpg", (2400, 1600))
    crop = {"score": 0.8, "box": {"xmin": 301, "ymin": 99, "xmax": 1507, "ymax": 1305}}
    answer = {"crops": [crop], "focus_point": {"x": 0.5, "y": 0.5}}
    sent = label_studio(crop_rows("beach.jpg", (1600, 2400), answer))
    sent["annotations"] = sent.pop("predictions")
    export(tmp_path, sent)
    row = load("label-studio", tmp_path, problems=Problems(strict=True))["train"][0]
    assert np.allclose(row["boxes"], [(301, 99, 1507, 1305)], atol=0.01)


def test_label_studio_says_what_it_cannot_use(tmp_path):
    image(tmp_path / "turned.jpg", orientation=6)
    image(tmp_path / "good.jpg")
    export(
        tmp_path,
        task("good.jpg", [rectangle("a", (12, 8, 108, 72))]),
        task("turned.jpg", [rectangle("a", (12, 8, 108, 72))]),
        task("good.jpg", [rectangle("a", (12, 8, 108, 72), rotation=15)]),
        task("missing.jpg", [rectangle("a", (12, 8, 108, 72))]),
        task("good.jpg", []),
        task("good.jpg", [rectangle("a", (12, 8, 108, 72))], split="holiday"),
        {"image": "good.jpg", "label": []},
    )
    problems = Problems()
    assert len(load("label-studio", tmp_path, problems=problems)["train"]) == 1
    messages = " | ".join(str(problem) for problem in problems.found)
    for part in (
        "annotated at 120 x 80 pixels but is displayed at 80 x 120",
        "turned by 15 degrees",
        "no such image: missing.jpg",
        "no annotation of good.jpg has a rectangle",
        "split 'holiday'",
        "not JSON-MIN",
    ):
        assert part in messages
    with pytest.raises(DataError, match="needs a JSON export"):
        load("label-studio", image(tmp_path / "other" / "a.jpg").parent)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <image id="0" name="trip/beach.jpg" width="120" height="80">
    <box label="crop" source="manual" occluded="0" xtl="12.00" ytl="8.00" xbr="108.00" ybr="72.00" z_order="0">
      <attribute name="rating">4</attribute></box>
    <box label="crop" source="manual" occluded="0" xtl="0.00" ytl="0.00" xbr="60.00" ybr="40.00" z_order="0">
      <attribute name="rating">2</attribute></box>
  </image>
  <image id="1" name="cat.jpg" subset="Validation" width="120" height="80">
    <box label="crop" xtl="10" ytl="10" xbr="50" ybr="50"></box>
  </image>
  <image id="2" name="unseen.jpg" width="120" height="80"></image>
</annotations>"""


def test_cvat_boxes_ratings_and_subsets(tmp_path):
    image(tmp_path / "images" / "trip" / "beach.jpg")
    image(tmp_path / "cat.jpg")
    (tmp_path / "annotations.xml").write_text(CVAT)
    splits = load("cvat", tmp_path, problems=Problems(strict=True))
    row = splits["train"][0]
    assert row["scores"] == [4.0, 2.0] and row["good"] == [True, False]
    assert np.allclose(row["boxes"], [(12, 8, 108, 72), (0, 0, 60, 40)])
    assert splits["validation"]["image_id"] == ["cat"] and splits["validation"][0]["scores"] is None


def test_cvat_says_what_it_cannot_use(tmp_path):
    image(tmp_path / "images" / "trip" / "beach.jpg", (80, 120))
    image(tmp_path / "cat.jpg")
    text = CVAT.replace('subset="Validation"', 'subset="Validation" rotation="0"')
    (tmp_path / "annotations.xml").write_text(text.replace('xbr="50"', 'xbr="wide"').replace("unseen", "cat"))
    with pytest.raises(DataError, match=r"annotated at 120 x 80 pixels but is displayed at 80 x 120"):
        load("cvat", tmp_path, problems=Problems(strict=True))
    (tmp_path / "annotations.xml").write_text("<coco/>")
    with pytest.raises(DataError, match="CVAT for images"):
        load("cvat", tmp_path)


def test_data_convert_reads_them(tmp_path):
    image(tmp_path / "in" / "beach.jpg")
    export(tmp_path / "in", task("beach.jpg", [rectangle("a", (12, 8, 108, 72)), rating("a", 4)]))
    arguments = ["data", "convert", str(tmp_path / "in"), "--layout", "label-studio", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert load("saved", tmp_path / "out")["train"][0]["scores"] == [4.0]
