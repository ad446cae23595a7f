"""Crops in other systems' words say the same as the rows that they come from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from urllib.parse import parse_qs

import pytest
from conftest import ROOT

from modeling_setcrop.cli.options import CropFormat
from modeling_setcrop.integrations.formats import (
    FORMATS,
    LABEL_STUDIO_CONFIG,
    azure,
    crop_rows,
    css,
    format_lines,
    imgix,
    label_studio,
    sanity,
    thumbor,
    write_formatted,
)

SIZE = (1600, 2400)
BOXES = [(300, 100, 1500, 1300), (0, 0, 2400, 1350), (1700, 900, 2400, 1600)]


@pytest.fixture
def rows():
    crops = [
        {"score": 0.9 - 0.1 * n, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))}
        for n, box in enumerate(BOXES)
    ]
    return crop_rows("trip/beach.jpg", SIZE, {"crops": crops, "focus_point": {"x": 0.4, "y": 0.55}})


def test_sanity_cuts_the_crop_and_keeps_its_hotspot_inside(rows):
    for value, box in zip(sanity(rows), BOXES, strict=True):
        crop, spot = value["crop"], value["hotspot"]
        edges = (crop["left"] * 2400, crop["top"] * 1600, (1 - crop["right"]) * 2400, (1 - crop["bottom"]) * 1600)
        assert edges == pytest.approx(box, abs=0.05)
        assert spot["x"] - spot["width"] / 2 >= crop["left"] - 1e-4
        assert spot["x"] + spot["width"] / 2 <= 1 - crop["right"] + 1e-4
        assert spot["y"] - spot["height"] / 2 >= crop["top"] - 1e-4 and spot["height"] > 0 and spot["width"] > 0
    first = sanity(rows)[0]["hotspot"]
    assert (first["x"], first["y"]) == (0.4, 0.55)


def test_imgix_cuts_with_rect_and_counts_the_focal_point_from_there(rows):
    value = imgix(rows)[0]
    assert value["rect"] == "300,100,1200,1200"
    assert 300 + value["fp-x"] * 1200 == pytest.approx(0.4 * 2400, abs=0.1)
    assert 100 + value["fp-y"] * 1200 == pytest.approx(0.55 * 1600, abs=0.1)
    query = parse_qs(value["query"])
    assert query["rect"] == ["300,100,1200,1200"] and query["crop"] == ["focalpoint"] and query["fit"] == ["crop"]


def test_thumbor_has_the_crop_and_a_focal_box_inside_it(rows):
    for value, box in zip(thumbor(rows), BOXES, strict=True):
        left, top, right, bottom = map(int, re.fullmatch(r"(\d+)x(\d+):(\d+)x(\d+)", value["crop"]).groups())
        assert (left, top, right, bottom) == box
        focal = re.fullmatch(r"filters:focal\((\d+)x(\d+):(\d+)x(\d+)\)", value["focal"])
        x1, y1, x2, y2 = map(int, focal.groups())
        assert left <= x1 < x2 <= right and top <= y1 < y2 <= bottom


def test_css_shows_the_crop_and_without_view_boxes_the_window_about_it(rows):
    for value, (left, top, right, bottom) in zip(css(rows), BOXES, strict=True):
        inset = [float(part) for part in re.findall(r"([\d.]+)%", value["object-view-box"])]
        expected = (100 * top / 1600, 100 * (1 - right / 2400), 100 * (1 - bottom / 1600), 100 * left / 2400)
        assert inset == pytest.approx(expected, abs=0.05)
        # What a browser does for object-fit: cover in an element of the crop's shape.
        scale = min(2400 / (right - left), 1600 / (bottom - top))
        window = (scale * (right - left), scale * (bottom - top))
        x, y = (float(part.rstrip("%")) / 100 for part in value["object-position"].split())
        begin = ((2400 - window[0]) * x, (1600 - window[1]) * y)
        for start, length, low, high in zip(begin, window, (left, top), (right, bottom), strict=True):
            assert start <= low + 1 and start + length >= high - 1, "the crop lies in the window"


def test_azure_answers_with_the_best_crop_of_each_aspect_ratio(rows):
    assert azure(rows)["smartCropsResult"]["values"] == [
        {"aspectRatio": 1.0, "boundingBox": {"x": 300, "y": 100, "w": 1200, "h": 1200}}
    ]
    ratios = [row | {"aspect_ratio": ratio} for row, ratio in zip(rows, ("1:1", "16:9", "1:1"), strict=True)]
    answer = azure(ratios)
    assert [value["aspectRatio"] for value in answer["smartCropsResult"]["values"]] == [1.0, 1.78]
    assert answer["metadata"] == {"width": 2400, "height": 1600}


def test_label_studio_accepts_the_predictions(rows):
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="needs label-studio-sdk")
    labels = interface.LabelInterface(LABEL_STUDIO_CONFIG)
    task = label_studio(rows)
    assert labels.validate_prediction(task["predictions"][0], return_errors=True) == []
    broken = json.loads(json.dumps(task["predictions"][0]).replace('"crop"', '"cat"'))
    assert not labels.validate_prediction(broken)


def test_label_studio_boxes_are_percentages_of_the_image(rows):
    for region, box in zip(label_studio(rows)["predictions"][0]["result"], BOXES, strict=True):
        value = region["value"]
        edges = (value["x"] * 24, value["y"] * 16)
        assert (*edges, edges[0] + value["width"] * 24, edges[1] + value["height"] * 16) == pytest.approx(box, abs=0.1)


def test_the_command_knows_every_format(rows, tmp_path):
    assert set(CropFormat.__origin__.__args__[0].__args__) == set(FORMATS)
    others = [row | {"source": "b.jpg"} for row in rows]
    for name in FORMATS:
        file = tmp_path / f"{name}.json"
        write_formatted(file, rows + others, name)
        text = file.read_text()
        assert "trip/beach.jpg" in text or name in ("azure", "coco")
        if name == "coco":
            assert len(json.loads(text)) == 2 * len(rows)
        elif name == "label-studio":
            assert [task["data"]["image"] for task in json.loads(text)] == ["trip/beach.jpg", "b.jpg"]
        else:
            assert len([json.loads(line) for line in text.splitlines()]) == 2
    assert json.loads("\n".join(format_lines("label-studio", []))) == []


def test_suggest_prints_and_crop_writes_them(photos, tiny_checkpoint, tmp_path):
    common = [str(photos[0]), "--model", str(tiny_checkpoint), "--aspect-ratio", "1:1", "--top-k", "1"]
    run = [sys.executable, "-m", "modeling_setcrop.cli"]
    shown = subprocess.run([*run, "suggest", *common, "--format", "imgix"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    out = ["--out", str(tmp_path / "out"), "--manifest", str(tmp_path / "m.jsonl"), "--manifest-format", "imgix"]
    done = subprocess.run([*run, "crop", *common, *out], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(shown.stdout) == json.loads((tmp_path / "m.jsonl").read_text())
    _, _, width, height = map(int, json.loads(shown.stdout)["crops"][0]["rect"].split(","))
    assert width == height > 0


def test_an_image_without_a_crop_is_an_error(photos, tiny_checkpoint):
    arguments = ["suggest", str(photos[0]), "--model", str(tiny_checkpoint), "--threshold", "1", "--format", "css"]
    run = subprocess.run(
        [sys.executable, "-m", "modeling_setcrop.cli", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 1 and run.stdout == "" and "no crop is above the threshold" in run.stderr
