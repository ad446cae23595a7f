"""The web page: its module gives Python's crops, in a browser, on images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import ROOT, WEB, PageServer, ask_page, browser, what_is_missing
from conftest import with_former_outputs
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
    ({"tightness": "tight"}, {"tightness": "tight"}),
    ({"tightness": "loose", "aspectRatio": 1}, {"tightness": "loose", "aspect_ratio": 1}),
    ({"tightness": "default"}, {}),
]
PHOTO_QUESTIONS = QUESTIONS[:5]
# How an upright image is stored for each EXIF orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
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


def assert_same(found: list[dict], expected: list[dict], name: object) -> None:
    """The same crops, to two pixels."""
    assert len(found) == len(expected), name
    for crop, other in zip(found, expected, strict=True):
        assert edges(crop) == pytest.approx(edges(other), abs=2), name
        assert crop["score"] == pytest.approx(other["score"], abs=2e-3), name
        assert crop.get("gaveWay", []) == other.get("gave_way", []), name


@needs_browser
def test_the_search_is_pythons(small, cropper):
    """Of the same pixels every question gets the same crops, to the pixel, and says what gave way."""
    names = sorted(path.name for path in small.iterdir())
    task = {"photos": names, "options": [question for question, _ in QUESTIONS], "repeats": 0}
    found = ask_page(Path(DEFAULT_CHECKPOINT), small, task)
    for name in names:
        for (_, options), crops in zip(QUESTIONS, found[name]["answers"], strict=True):
            assert_same(crops, cropper(small / name, **options), (name, options))


@needs_browser
def test_photos_get_pythons_boxes_in_a_browser(photos, cropper):
    """Whole files, as cameras make them, and images that are decoded already, which differ a little."""
    names = [photo.name for photo in photos]
    task = {"photos": names, "options": [question for question, _ in PHOTO_QUESTIONS], "repeats": 1}
    found = ask_page(Path(DEFAULT_CHECKPOINT), photos[0].parent, task)
    for photo in photos:
        answer = found[photo.name]
        with Image.open(photo) as opened:
            assert answer["size"] == [opened.height, opened.width]
        for (_, options), crops in zip(PHOTO_QUESTIONS, answer["answers"], strict=True):
            assert_same(crops, cropper(photo, **options), (photo.name, options))
        assert all(1 <= rating <= 5 for rating in answer["ratings"]) and len(answer["ratings"]) == 3
        for tightness in ("default", "tight"):
            top = answer["smartcrop"][tightness]["topCrop"]
            least = (top["width"], top["height"])
            assert top["width"] / top["height"] == pytest.approx(1.5, abs=0.01)
            (expected,) = cropper(photo, aspect_ratio="3:2", min_size=least, top_k=1, tightness=tightness)
            corner = [top["x"], top["y"]]
            assert [*corner, corner[0] + least[0], corner[1] + least[1]] == pytest.approx(edges(expected), abs=2)
        boxes = np.array([edges(other) for other in cropper(photo, top_k=20)], dtype=np.float64)
        decoded = np.array([edges(answer["decoded"][0])], dtype=np.float64)
        assert box_iou(decoded, boxes).max() > 0.8


@needs_browser
def test_files_of_every_orientation_and_kind_get_pythons_boxes(photos, tmp_path):
    """By the other filter too, bilinear, with which a checkpoint may have its images made smaller."""
    model = shutil.copytree(DEFAULT_CHECKPOINT, tmp_path / "model", ignore=shutil.ignore_patterns("examples"))
    settings = model / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"resample": Image.Resampling.BILINEAR.value}))
    cropper, folder = pipeline("image-cropping", model=model), tmp_path / "images"
    folder.mkdir()
    with Image.open(photos[0]) as opened:
        image = opened.convert("RGB").resize((1043, 701))
    for name in ("plain.png", "plain.webp", "plain.gif"):
        image.save(folder / name)
    image.convert("CMYK").save(folder / "print.jpg")
    image.convert("L").save(folder / "grey.jpg")
    image.resize((480, 323)).save(folder / "small.jpg")
    image.save(folder / "progressive.jpg", progressive=True, subsampling="4:4:4")
    for orientation, transpose in STORED.items():
        stored = image if transpose is None else image.transpose(transpose)
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(folder / f"turned-{orientation}.jpg", exif=exif, quality=90)
    names = sorted(path.name for path in folder.iterdir())
    found = ask_page(model, folder, {"photos": names, "options": [{}], "repeats": 0})
    for name in names:
        assert found[name]["size"] == ([323, 480] if name == "small.jpg" else [701, 1043]), name
        assert_same(found[name]["answers"][0], cropper(folder / name), name)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node (apt-get install nodejs npm)")
@pytest.mark.parametrize("former", [False, True])
def test_the_example_for_node_works(photos, cropper, tmp_path, former):
    """That of docs/javascript.md, in a folder with what it imports; graphs that name outputs as before will do."""
    packages = Path(__file__).with_name("web") / "node_modules"
    if not (packages / "onnxruntime-node").is_dir():
        pytest.skip("needs onnxruntime-node (npm install --ignore-scripts --prefix tests/web)")
    page = (ROOT / "docs" / "javascript.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```js\n(.*?)```", page, flags=re.DOTALL) if "node:fs" in block]
    (tmp_path / "example.mjs").write_text(example)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(WEB / "setcrop.js", tmp_path)
    (tmp_path / "node_modules").symlink_to(packages)
    if former:
        with_former_outputs(Path(DEFAULT_CHECKPOINT), tmp_path / "model")
    else:
        (tmp_path / "model").symlink_to(DEFAULT_CHECKPOINT)
    shutil.copy(photos[0], tmp_path / "photo.jpg")
    found = subprocess.run(["node", "example.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0 and found.stderr == ""
    crops, boxes = json.loads(found.stdout), cropper(photos[0], aspect_ratio=1, top_k=20)
    assert 1 <= len(crops) <= 3
    expected = np.array([edges(crop) for crop in boxes], dtype=np.float64)
    assert box_iou(np.array([edges(crops[0])], dtype=np.float64), expected).max() > 0.8


@pytest.fixture(scope="module")
def ask_module(photos, tmp_path_factory):
    """What calls of the module give in Node, of an image of 64 x 48 pixels; errors are texts."""
    if shutil.which("node") is None:
        pytest.skip("needs Node (apt-get install nodejs npm)")
    here = Path(__file__).with_name("web")
    if not (here / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("needs onnxruntime-node (npm install --ignore-scripts --prefix tests/web)")
    module = shutil.copyfile(WEB / "setcrop.js", tmp_path_factory.mktemp("module") / "setcrop.mjs")
    with Image.open(photos[0]) as opened:
        small = opened.convert("RGB").resize((64, 48))
    image = {"bytes": [*small.tobytes()], "width": 64, "height": 48, "channels": 3}

    def ask(*calls: tuple[str, object]) -> list:
        question = {"module": str(module), "folder": DEFAULT_CHECKPOINT, "image": image, "calls": calls}
        command = ["node", str(here / "calls.mjs")]
        found = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, timeout=300)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    ask.image = image
    return ask


WRONG_CALLS = [
    ("suggest", {"aspect_ratio": 1}, "TypeError: there is no option aspect_ratio: the options are aspectRatio, topK,"),
    ("suggest", "16:9", "TypeError: options must be an object"),
    ("suggest", {"aspectRatio": "16:9"}, 'aspectRatio must be width over height, a number above 0, not "16:9"'),
    ("suggest", {"aspectRatio": 0}, "RangeError: aspectRatio must be"),
    ("suggest", {"topK": 0}, "RangeError: topK must be a whole number of at least 1, not 0"),
    ("suggest", {"topK": "3"}, 'RangeError: topK must be a whole number of at least 1, not "3"'),
    ("suggest", {"width": -4, "height": 3}, "RangeError: width must be a whole number"),
    ("suggest", {"threshold": 2}, "RangeError: threshold must be a number in 0..1, not 2"),
    ("suggest", {"minArea": 0.8, "maxArea": 0.2}, "RangeError: minArea (0.8) is larger than maxArea (0.2)"),
    ("suggest", {"minSize": [9]}, "RangeError: minSize must be one number, or [width, height]"),
    ("suggest", {"width": 40, "height": 30, "aspectRatio": 2}, "RangeError: width 40 and height 30 contradict"),
    ("suggest", {"keep": [1, 2]}, "TypeError: keep must be a list of [x1, y1, x2, y2] or [x, y]; 1 is none"),
    ("suggest", {"keep": [[1, 2, 0.5]]}, "TypeError: keep must be a list of"),
    ("suggest", {"keep": [[90, 2]]}, "RangeError: keep: [90,2] lies outside the image (64 x 48)"),
    ("suggest", {"keep": [[9, 9, 1, 1]]}, "RangeError: keep: [9,9,1,1] needs x1 < x2 and y1 < y2"),
    ("suggest", {"avoid": [[1, 2]]}, "TypeError: avoid must be a list of [x1, y1, x2, y2]; [1,2] is none"),
    ("suggest", {"tightness": "snug"}, "RangeError: tightness snug is none of this model's: default, loose, tight"),
    ("rate", [1, 2, 3, 4], "TypeError: rate: expected [x1, y1, x2, y2], not 1"),
    ("rate", [[9, 9, 1, 1]], "RangeError: rate: [9,9,1,1] needs x1 < x2"),
    ("rate", [[0, 0, 65, 9]], "RangeError: rate: [0,0,65,9] reaches outside the image (64 x 48)"),
    ("read", None, "TypeError: an image must be a File or Blob"),
    ("read", "photo.jpg", "TypeError: an image must be a File or Blob"),
    ("read", {"width": 4, "height": 4}, "nothing decodes images here: give { data, width, height, channels }"),
    ("read", {"bytes": [0] * 16, "width": 4, "height": 4, "channels": 1}, "RangeError: channels must be 3 (RGB) or 4"),
    ("read", {"bytes": [0] * 48, "width": 4, "height": 4}, "RangeError: data has 48 bytes, not 4 x 4 x 4"),
    ("load", {"config.json": "<html>"}, "config.json: Unexpected token"),
    ("load", {"config.json": '{"model_type": "bert"}'}, 'config.json: model_type is "bert", not "setcrop"'),
    ("load", {"onnx/scorer.onnx": "half"}, "onnx/scorer.onnx: "),
]  # fmt: skip


def test_wrong_arguments_are_named(ask_module):
    """Python refuses the same; the module took them for others, or told of something far from the fault."""
    answers = ask_module(*((name, argument) for name, argument, _ in WRONG_CALLS))
    for (name, argument, message), answer in zip(WRONG_CALLS, answers, strict=True):
        assert isinstance(answer, str) and message in answer, (name, argument, answer)


def test_what_python_takes_the_module_takes(ask_module):
    """None for no limit and one number for both sides; transparent parts are white; other options of smartcrop.js."""
    image, all_crops = ask_module.image, {"topK": None, "nmsIou": None}
    pixels = np.array(image["bytes"], dtype=np.uint8).reshape(48, 64, 3)
    pixels[:20] = 255
    clear = np.dstack([np.where(pixels == 255, 0, pixels), np.where((pixels == 255).all(axis=2), 0, 255)])
    wide = {"aspect": 1.5, "ruleOfThirds": True}
    found, both, one, white, transparent, aspect, sides = ask_module(
        ("suggest", all_crops),
        ("suggest", {"minSize": [40, 40]}),
        ("suggest", {"minSize": 40}),
        ("read", {**image, "bytes": pixels.flatten().tolist()}),
        ("read", {**image, "bytes": clear.flatten().tolist(), "channels": 4}),
        ("crop", wide),
        ("crop", {"width": 30, "height": 20}),
    )
    assert len(found) == 90 and set(found[0]) == {"score", "label", "box"}
    assert both == one and white == transparent and aspect == sides


@needs_browser
def test_images_that_are_cropped_at_once_load_the_model_once(photos, cropper):
    names, options = [photo.name for photo in photos[:2]], [{"width": 3, "height": 2}, {"aspect": 1}]
    found = ask_page(Path(DEFAULT_CHECKPOINT), photos[0].parent, {"photos": names, "options": options}, "usual.html")
    assert found["loads"] == 1
    asked = [(photo, ratio) for photo in photos[:2] for ratio in ("3:2", "1:1")]
    for top, (photo, ratio) in zip(found["crops"], asked, strict=True):
        least = (top["width"], top["height"])
        (expected,) = cropper(photo, aspect_ratio=ratio, min_size=least, top_k=1)
        assert [top["x"], top["y"], top["x"] + least[0], top["y"] + least[1]] == pytest.approx(edges(expected), abs=2)


@needs_browser
@pytest.mark.parametrize("tightness", ["default", "tight", None])
def test_the_page_shows_the_crops_of_the_tightness_that_is_chosen(photos, cropper, tightness, tmp_path):
    """Of a model that knows only one (None) those."""
    model = Path(DEFAULT_CHECKPOINT)
    if tightness is None:
        model = shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("examples"))
        config = json.loads((model / "config.json").read_text()) | {"tightness_sources": None}
        (model / "config.json").write_text(json.dumps(config))
    server = PageServer(model, photos[0].parent, hold=120)
    query = f"photo=/photos/{photos[0].name}&ratio=16:9" + (f"&tightness={tightness}" if tightness else "")
    address = f"{server.address}/held.html?{query}&onnxruntime=/ort/ort.wasm.min.mjs&setcrop-model=/model/"
    with browser(address, "--dump-dom") as process:
        page, _ = process.communicate(timeout=300)
    server.close()
    shown = re.findall(r"<small>(\d+), (\d+), (\d+) x (\d+)</small>", page.decode())
    cropper = cropper if tightness else pipeline("image-cropping", model=model)
    expected = [edges(crop) for crop in cropper(photos[0], aspect_ratio="16:9", tightness=tightness or "default")]
    assert len(shown) == len(expected)
    for texts, box in zip(shown, expected, strict=True):
        x, y, width, height = map(int, texts)
        assert [x, y, x + width, y + height] == pytest.approx(box, abs=2)


def test_the_page_needs_no_build_and_names_its_model():
    assert {path.name for path in WEB.iterdir()} == {"README.md", "index.html", "setcrop.js"}
    page = (WEB / "index.html").read_text(encoding="utf-8")
    assert 'import { SetCrop } from "./setcrop.js"' in page
    assert '<meta name="setcrop-model" content="{{address}}">' in page
