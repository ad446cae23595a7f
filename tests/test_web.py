"""The web page: its module gives Python's crops, in a browser, on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import WEB, ask_page, what_is_missing
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from modeling_setcrop import DEFAULT_CHECKPOINT
from modeling_setcrop.crop_geometry import box_iou

MISSING = what_is_missing()
if MISSING is None and not Path(DEFAULT_CHECKPOINT, "onnx", "model.onnx").is_file():
    MISSING = "needs the graphs of the embedded checkpoint"
needs_browser = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
# The same questions, in the words of the module and of the pipeline.
QUESTIONS = [
    ({}, {}),
    ({"aspectRatio": 1, "topK": 3}, {"aspect_ratio": "1:1", "top_k": 3}),
    ({"aspectRatio": 16 / 9}, {"aspect_ratio": "16:9"}),
    ({"aspectRatio": 9 / 16, "keep": [[40, 30]]}, {"aspect_ratio": "9:16", "keep": [(40, 30)]}),
    ({"minArea": 0.3, "maxArea": 0.5}, {"min_area": 0.3, "max_area": 0.5}),
    (
        {"keep": [[10, 10, 90, 70]], "avoid": [[120, 0, 130, 10]]},
        {"keep": [(10, 10, 90, 70)], "avoid": [(120, 0, 130, 10)]},
    ),
    ({"aspectRatio": 2 / 3, "minSize": [60, 90]}, {"aspect_ratio": "2:3", "min_size": (60, 90)}),
    ({"aspectRatio": 3, "keep": [[0, 0, 90, 150]]}, {"aspect_ratio": 3, "keep": [(0, 0, 90, 150)]}),
    ({"width": 5000, "height": 4000}, {"width": 5000, "height": 4000}),
]
# Of images as they are, which browser and Python decode a little differently.
PHOTO_QUESTIONS = QUESTIONS[:3]
EDGES = ("xmin", "ymin", "xmax", "ymax")


@pytest.fixture(scope="module")
def cropper():
    return pipeline("image-cropping", model=DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def small(photos, tmp_path_factory) -> Path:
    """The images at the model's own size, so that both see the same pixels."""
    folder = tmp_path_factory.mktemp("small")
    processor = AutoImageProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    for photo in photos:
        with Image.open(photo) as opened:
            image = opened.convert("RGB")
        height, width = processor(image, return_tensors="pt")["pixel_values"].shape[-2:]
        image.resize((width, height), Image.Resampling.BOX).save(folder / f"{photo.stem}.png")
    return folder


def edges(crop: dict) -> list[int]:
    return [crop["box"][edge] for edge in EDGES]


@needs_browser
def test_the_search_is_pythons(small, cropper):
    """Of the same pixels every question gets the same crops, to the pixel, and says what gave way."""
    names = sorted(path.name for path in small.iterdir())
    task = {"photos": names, "options": [question for question, _ in QUESTIONS], "repeats": 0}
    found = ask_page(Path(DEFAULT_CHECKPOINT), small, task)
    for name in names:
        for (_, options), crops in zip(QUESTIONS, found[name]["answers"], strict=True):
            expected = cropper(small / name, **options)
            assert len(crops) == len(expected), (name, options)
            for crop, other in zip(crops, expected, strict=True):
                assert edges(crop) == pytest.approx(edges(other), abs=2), (name, options)
                assert crop["score"] == pytest.approx(other["score"], abs=2e-3)
                assert crop.get("gaveWay", []) == other.get("gave_way", [])


@needs_browser
def test_images_get_pythons_boxes_in_a_browser(photos, cropper):
    """One of Python's crops, mostly the first to a hair: the two decode JPEG files a little differently."""
    names = [photo.name for photo in photos]
    task = {"photos": names, "options": [question for question, _ in PHOTO_QUESTIONS], "repeats": 1}
    found = ask_page(Path(DEFAULT_CHECKPOINT), photos[0].parent, task)
    exact = 0
    for photo in photos:
        answer = found[photo.name]
        with Image.open(photo) as opened:
            assert answer["size"] == [opened.height, opened.width]
        for (_, options), crops in zip(PHOTO_QUESTIONS, answer["answers"], strict=True):
            expected = cropper(photo, **options | {"top_k": 20})
            boxes = np.array([edges(other) for other in expected], dtype=np.float64)
            overlap = box_iou(np.array([edges(crops[0])], dtype=np.float64), boxes)[0]
            near = [other for other, shared in zip(expected, overlap, strict=True) if shared >= 0.8]
            assert near, (photo.name, options)
            exact += overlap[0] >= 0.98
        top = answer["smartcrop"]["topCrop"]
        assert top["width"] / top["height"] == pytest.approx(1.5, abs=0.01)
        assert 0 <= top["x"] <= answer["size"][1] - top["width"] and 0 <= top["y"] <= answer["size"][0] - top["height"]
        assert all(1 <= rating <= 5.5 for rating in answer["ratings"])
    assert exact >= 0.5 * len(photos) * len(PHOTO_QUESTIONS)


def test_the_page_needs_no_build_and_names_its_model():
    assert {path.name for path in WEB.iterdir()} == {"README.md", "index.html", "setcrop.js"}
    page = (WEB / "index.html").read_text(encoding="utf-8")
    assert 'import { SetCrop } from "./setcrop.js"' in page
    assert '<meta name="setcrop-model" content="{{address}}">' in page
