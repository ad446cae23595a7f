"""The contact sheet: a row per image, its crops in the wanted ratios; broken files are named and left out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from modeling_setcrop.image_reading import LoadedImage
from modeling_setcrop.images.drawing import contact_sheet, image_and_crops

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "contact_sheet.py"


def crop(x1: int, y1: int, x2: int, y2: int, ratio: str) -> dict:
    return {"score": 0.5, "aspect_ratio": ratio, "box": {"xmin": x1, "ymin": y1, "xmax": x2, "ymax": y2}}


def load_example():
    spec = importlib.util.spec_from_file_location("contact_sheet_example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_crops_stand_beside_their_image_at_one_height():
    photo = Image.new("RGB", (300, 200), "red")
    photo.paste("blue", (200, 0, 300, 200))
    # The copy has half the size of the image that the boxes are given in.
    loaded = LoadedImage(photo, (400, 600))
    crops = [crop(400, 0, 600, 400, "1:2"), crop(0, 0, 400, 400, "1:1")]
    sheet = contact_sheet([image_and_crops(loaded, crops)] * 2, height=100)
    gap, label = 5, 15
    assert sheet.size == (150 + 50 + 100 + 4 * gap, 2 * (100 + label) + gap)
    middle = label + 50
    assert sheet.getpixel((gap + 150 + gap + 25, middle)) == (0, 0, 255)
    assert sheet.getpixel((gap + 150 + gap + 50 + gap + 50, middle)) == (255, 0, 0)
    assert sheet.getpixel((gap + 150 + 2, middle)) == (255, 255, 255)


def test_the_example_makes_a_sheet_of_a_folder_and_names_what_is_broken(tiny_checkpoint, tmp_path, capsys):
    example = load_example()
    album = tmp_path / "album"
    album.mkdir()
    for number, size in enumerate([(120, 80), (80, 120)]):
        Image.linear_gradient("L").resize(size).convert("RGB").save(album / f"{number}.jpg")
    (album / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "sheet.jpg"
    options = ["--model", str(tiny_checkpoint), "--aspect-ratio", "1:1,2:1", "--height", "100"]
    assert example.main([str(album), "--out", str(out), *options]) == 1
    printed = capsys.readouterr()
    assert "broken.jpg" in printed.err and str(out) in printed.out
    with Image.open(out) as sheet:
        # The wider row: 3:2 beside a square and two to one, with gaps.
        assert sheet.width == pytest.approx(150 + 100 + 200 + 4 * 5, abs=2)
        assert sheet.format == "JPEG"


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (["--aspect-ratio", "wide"], "'wide'"),
        (["--height", "0"], "--height 0"),
        (["--out", "{photo}"], "would overwrite one of the images"),
        (["--model", "{photo}"], "cannot load the model"),
    ],
)
def test_the_example_says_in_a_line_what_is_wrong_and_spares_its_images(tmp_path, capsys, wrong, part):
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (120, 80)).save(photo)
    before = photo.read_bytes()
    options = ["--out", str(tmp_path / "sheet.jpg"), *(text.format(photo=photo) for text in wrong)]
    with pytest.raises(SystemExit) as ended:
        load_example().main([str(photo), *options])
    assert ended.value.code == 2 and part in capsys.readouterr().err.splitlines()[-1]
    assert photo.read_bytes() == before and sorted(tmp_path.iterdir()) == [photo]
