"""What people ask for besides a crop: turned ratios, the best of several, plain borders off, content kept, faces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw
from transformers import pipeline

from modeling_setcrop import CropOptions, Cropper
from modeling_setcrop.cli import options
from modeling_setcrop.crop_options import turned_with
from modeling_setcrop.image_reading import decode_image
from modeling_setcrop.image_trimming import content_box
from modeling_setcrop.runs.content import Content
from modeling_setcrop.runs.sources import Source

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def cropper(tiny_checkpoint):
    return Cropper(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def photo(photos) -> Image.Image:
    with Image.open(photos[2]) as image:
        return image.convert("RGB").resize((480, 320))


def box_of(crop) -> tuple[int, int, int, int]:
    return tuple(crop["box"].values())


def ratio_of(crop) -> float:
    x1, y1, x2, y2 = box_of(crop)
    return (x2 - x1) / (y2 - y1)


def held(crop, box) -> float:
    """Share of a box inside a crop."""
    x1, y1, x2, y2 = box_of(crop)
    across = max(0, min(x2, box[2]) - max(x1, box[0]))
    return across * max(0, min(y2, box[3]) - max(y1, box[1])) / ((box[2] - box[0]) * (box[3] - box[1]))


def test_ratios_turn_with_the_image(cropper, photo):
    upright = photo.transpose(Image.Transpose.ROTATE_90)
    for ratio in ("5:4", "4:5"):
        options = {"aspect_ratio": ratio, "follow_orientation": True, "top_k": 1}
        assert ratio_of(cropper(photo, **options)[0]) == pytest.approx(5 / 4, abs=0.02)
        assert ratio_of(cropper(upright, **options)[0]) == pytest.approx(4 / 5, abs=0.02)
    assert ratio_of(cropper(upright, aspect_ratio="5:4", top_k=1)[0]) == pytest.approx(5 / 4, abs=0.02)
    sized = cropper(upright, width=150, height=120, follow_orientation=True, top_k=1)[0]
    assert ratio_of(sized) == pytest.approx(4 / 5, abs=0.02) and "gave_way" not in sized
    assert turned_with(1.5, (100, 100)) == 1.5 and turned_with(1.0, (200, 100)) == 1.0


def test_best_of_gives_the_best_over_all_ratios(cropper, photo):
    ratios = ["16:9", "3:2", "1:1", "2:3"]
    each = cropper(photo, aspect_ratio=ratios, top_k=1)
    best = cropper(photo, aspect_ratio=ratios, best_of=True, top_k=1)
    assert len(best) == 1 and best[0] in each and best[0]["score"] == max(crop["score"] for crop in each)
    three = cropper(photo, aspect_ratio=ratios, best_of=True, top_k=3, nms_iou=None)
    assert [crop["score"] for crop in three] == sorted((crop["score"] for crop in three), reverse=True)
    with pytest.raises(ValueError, match="best_of needs a list"):
        CropOptions(best_of=True, aspect_ratio="1:1")


@pytest.mark.parametrize("options", [{"diversity": 0.0}, {"nms_iou": None}, {"as_set": True}])
def test_best_of_has_as_many_crops_as_are_asked_for(options, cropper, photo):
    ratios = ["3:2", "4:3"]
    assert len(cropper(photo, aspect_ratio=ratios, best_of=True, top_k=4, **options)) == 4
    assert len(cropper(photo, aspect_ratio="3:2", top_k=4, **options)) == 4


def test_a_size_beside_no_ratio_of_its_own_is_refused():
    for ratio in ("original", "free", ["1:1", "original"]):
        with pytest.raises(ValueError, match="width"):
            CropOptions(aspect_ratio=ratio, width=100, height=300)


def framed(photo: Image.Image, *rings: tuple[int, str]) -> Image.Image:
    for width, colour in rings:
        whole = Image.new("RGB", (photo.width + 2 * width, photo.height + 2 * width), colour)
        whole.paste(photo, (width, width))
        photo = whole
    return photo


def test_bars_mats_and_passepartouts_are_found(photo):
    letterbox = Image.new("RGB", (480, 420))
    letterbox.paste(photo, (0, 50))
    assert content_box(letterbox) == (0, 50, 480, 370)
    pillarbox = Image.new("RGB", (600, 320), "white")
    pillarbox.paste(photo, (60, 0))
    assert content_box(pillarbox) == (60, 0, 540, 320)
    assert content_box(framed(photo, (40, "white"), (6, "black"), (30, "ivory"))) == (76, 76, 556, 396)
    noisy = np.asarray(framed(photo, (40, "gray")), int)
    noisy = (noisy + np.random.default_rng(0).integers(-4, 5, noisy.shape)).clip(0, 255).astype(np.uint8)
    assert content_box(Image.fromarray(noisy)) == (40, 40, 520, 360)


def test_images_keep_their_skies_and_backdrops(photos):
    for path in photos:
        with Image.open(path) as image:
            image.draft("RGB", (400, 400))
            image.load()
            assert content_box(image) == (0, 0, *image.size)
    product = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(product).ellipse((120, 60, 300, 240), fill="brown")
    assert content_box(product) == (0, 0, 400, 300)
    assert content_box(Image.new("RGB", (90, 60), "navy")) == (0, 0, 90, 60)
    assert content_box(Image.new("RGB", (1, 1))) == (0, 0, 1, 1)


def test_trimmed_crops_are_those_of_the_image_alone(cropper, tiny_checkpoint, photo):
    # Of sizes that are read at the same scale with and without the mat.
    photo = photo.resize((480, 384))
    mat = framed(photo, (32, "white"))
    options = {"aspect_ratio": "1:1", "top_k": 2, "keep": [(300, 100, 340, 160)], "details": True}
    inside = options | {"keep": [(268, 68, 308, 128)]}
    alone = cropper(photo, **inside)
    for asked in (cropper, pipeline("image-cropping", model=str(tiny_checkpoint))):
        found = asked(mat, trim=True, **options)
        for crop, wanted in zip(found["crops"], alone["crops"], strict=True):
            assert box_of(crop) == tuple(edge + 32 for edge in box_of(wanted))
            assert crop["score"] == pytest.approx(wanted["score"], abs=1e-4)
        assert found["focus_point"]["x"] == pytest.approx((32 + 480 * alone["focus_point"]["x"]) / 544, abs=1e-3)
        assert found["focus_point"]["y"] == pytest.approx((32 + 384 * alone["focus_point"]["y"]) / 448, abs=1e-3)
    assert cropper(photo, trim=True, top_k=1) == cropper(photo, top_k=1)


def test_content_in_a_border_counts_as_far_as_it_reaches_into_the_image(cropper, photo):
    whole = framed(photo, (80, "black"))
    options = {"trim": True, "top_k": 1, "aspect_ratio": 1}
    plain = cropper(whole, **options)[0]
    # The border is out of every crop anyway.
    assert cropper(whole, avoid=[(0, 0, 60, 60)], **options)[0] == plain
    assert cropper(whole, keep=[(0, 0, 60, 60, 0.5), (5, 5, 1.0)], **options)[0] == plain
    corner = cropper(whole, keep=[(0, 0, 180, 180)], **options)[0]
    assert held(corner, (80, 80, 180, 180)) == 1 and "gave_way" not in corner
    for keep in ((0, 0, 60, 60), (5, 5)):
        with pytest.raises(ValueError, match=r"keep: .* lies in the border that trim leaves out"):
            cropper(whole, keep=[keep], **options)
    with pytest.raises(ValueError, match=r"avoid: .*900.* lies outside the image \(640 x 480\)"):
        cropper(whole, avoid=[(900, 0, 950, 10)], **options)


def test_wishes_lift_crops_and_break_nothing(cropper, photo):
    corner = (0, 200, 120, 320)
    options = {"aspect_ratio": "1:1", "max_area": 0.3, "top_k": 1}
    plain = cropper(photo, **options)[0]
    shares = [held(cropper(photo, keep=[(*corner, weight)], **options)[0], corner) for weight in (0, 0.5, 1)]
    assert shares[0] == held(plain, corner) <= shares[1] <= shares[2] and shares[2] > 0.9
    place = box_of(plain)
    avoided = cropper(photo, avoid=[{"box": list(place), "weight": 1}], **options)[0]
    assert held(avoided, place) < 0.6 and "gave_way" not in avoided
    # A wish gives way to what must be, without a word.
    both = cropper(photo, keep=[(470, 10), (*corner, 1.0)], strict=True, **options)[0]
    assert held(both, (470, 10, 471, 11)) == 1 and "gave_way" not in both
    assert cropper(photo, keep=[{"point": [10, 310], "weight": 1}], **options) != []
    for wrong in ((1, 2, 3, 4, 1.5), {"box": [1, 2, 3, 4], "weight": -1}):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
            CropOptions(keep=[wrong])


def run(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modeling_setcrop.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_enlarge_gives_the_exact_size(photo, tmp_path, tiny_checkpoint):
    (tmp_path / "in").mkdir()
    photo.save(tmp_path / "in" / "wide.jpg")
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "tall.jpg")
    common = ["crop", tmp_path / "in", "--model", tiny_checkpoint, "--out"]
    size = ["--width", 1080, "--height", 720]
    assert run(*common, tmp_path / "plain", *size).returncode == 0
    assert Image.open(tmp_path / "plain" / "wide.jpg").width <= 480
    large = run(*common, tmp_path / "large", *size, "--enlarge", "--follow-orientation")
    assert large.returncode == 0, large.stderr
    assert Image.open(tmp_path / "large" / "wide.jpg").size == (1080, 720)
    assert Image.open(tmp_path / "large" / "tall.jpg").size == (720, 1080)
    assert "--enlarge needs" in run(*common, tmp_path / "none", "--enlarge").stderr


def test_content_comes_from_a_file_for_each_image(photo, tmp_path, tiny_checkpoint):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "in" / "trip").mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / "in" / "trip" / name)
    file = tmp_path / "content.jsonl"
    corner = [0, 200, 120, 320]
    file.write_text(json.dumps({"photo": "trip/a.jpg", "keep": [corner], "avoid": []}) + "\n\n")
    common = ["suggest", tmp_path / "in", "--model", tiny_checkpoint, "--aspect-ratio", "1:1", "--max-area", 0.3]
    answer = run(*common, "--top-k", 1, "--json", "--content", file)
    assert answer.returncode == 0, answer.stderr
    first, second = (json.loads(line)["crops"][0] for line in answer.stdout.splitlines())
    assert held(first, corner) == 1 and held(second, corner) < 1
    for line, part in (
        ("no json", "content.jsonl:1: is not JSON"),
        ('{"keep": []}', "content.jsonl:1: has no 'photo'"),
        ('{"photo": "a", "kept": []}', "content.jsonl:1: 'kept' is neither"),
        ('{"photo": "a", "keep": [[3, 3, 1, 1]]}', "content.jsonl:1: keep: box"),
    ):
        file.write_text(line)
        failed = run(*common, "--content", file)
        assert failed.returncode == 1 and part in failed.stderr and failed.stderr.count("\n") == 1
    missing = run(*common, "--content", "none.jsonl")
    assert missing.stderr == "setcrop suggest: --content none.jsonl: cannot be read (No such file or directory)\n"
    assert "--keep 'face': expected \"faces\" or 2 or 3" in run(*common, "--keep", "face").stderr


def test_faces_are_wishes_or_with_strict_must_be_kept(tmp_path):
    with Image.open(PORTRAIT) as image:
        loaded = decode_image(image, 400)
    portrait = Source(tmp_path / "a.jpg", tmp_path, "a")
    content = Content.read(None, faces=True)
    wish = content.options(CropOptions(), portrait, loaded).keep
    must = content.options(CropOptions(strict=True), portrait, loaded).keep
    assert len(wish) == len(must) == 1 and wish[0][:4] == must[0] and 0 < wish[0][4] <= 1


@pytest.mark.parametrize("ratio", [(16, 9), (2, 1), (3, 1)])
def test_the_command_keeps_a_face_where_the_ratio_leaves_room(ratio, tmp_path):
    """The head at the upper edge, the lower edge and a side, where crops of wide ratios like to cut."""
    head = (150, 90, 385, 360)
    with Image.open(PORTRAIT) as image:
        face = image.convert("RGB").crop(head).resize((140, 160))
    (tmp_path / "in").mkdir()
    places = {"top": (400, 0), "bottom": (400, 640), "left": (0, 320)}
    for name, place in places.items():
        photo = Image.new("RGB", (1000, 800), (110, 130, 150))
        photo.paste(face, place)
        photo.save(tmp_path / "in" / f"{name}.jpg", quality=95)
    asked = ["--keep", "faces", "--strict", "--top-k", 1, "--aspect-ratio", "{}:{}".format(*ratio)]
    manifest = tmp_path / "manifest.jsonl"
    answer = run("crop", tmp_path / "in", "--out", tmp_path / "out", "--manifest", manifest, *asked)
    assert answer.returncode == 0, answer.stderr
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(rows) == len(places)
    for row in rows:
        x, y = places[Path(row["source"]).stem]
        crop = {"box": {name: row[name] for name in ("xmin", "ymin", "xmax", "ymax")}}
        # Brow to chin, between the temples.
        assert held(crop, (x + 27, y + 50, x + 107, y + 137)) == 1
        assert ratio_of(crop) == pytest.approx(ratio[0] / ratio[1], rel=0.01)


def test_faces_go_with_other_content_to_keep():
    assert options.selection_options({"keep": ["faces", "1,2"]}).keep == ((1.0, 2.0),)
    assert options.content_options({"keep": ["faces", "1,2"]}).faces
    assert not options.content_options({"keep": ["1,2"]}).faces
