"""Memory of reading and cutting stays under what is estimated before anything is decoded, whatever mode and format."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from modeling_setcrop.image_reading import (
    MAX_BYTES,
    MAX_PIXELS,
    ImageFileError,
    decoding_bytes,
    lift_pixel_limit,
    load_image_file,
    open_image,
)
from modeling_setcrop.images.writing import CropFile, cutting_bytes, write_crops

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory the Linux way")

WIDTH, HEIGHT = 4000, 3000
# What the interpreter, the decoder's tables and the allocator take besides, however large the image.
CONSTANT = 50_000_000


def peak_of(work: Callable[[], Any]) -> int:
    """Most bytes that a piece of work holds at once, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # Memory that is free already must not hide what the work takes.
            Image.core.clear_cache()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            work()
            os.write(writer, pickle.dumps(_status("VmHWM") - before))
        except BaseException as error:
            os.write(writer, pickle.dumps(repr(error)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = pickle.loads(file.read())
    os.waitpid(child, 0)
    assert isinstance(answer, int), answer
    return answer


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


CASES = {
    "P_clear.png": ("P", {"transparency": 3}), "I16.png": ("I;16", {}), "RGBA.png": ("RGBA", {"compress_level": 1}),
    "RGB.jpg": ("RGB", {}), "progressive.jpg": ("RGB", {"progressive": True}), "RGB.tif": ("RGB", {}),
    "F.tif": ("F", {}), "RGB.webp": ("RGB", {"method": 0}),
}  # fmt: skip


def write_image(path: Path, turned: bool) -> Path:
    mode, options = CASES[path.name]
    image = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    image = image.convert(mode) if mode in ("I;16", "F") else image.convert("RGB").convert(mode)
    exif = Image.Exif()
    if turned and path.suffix in (".jpg", ".png", ".tif", ".webp", ".avif"):
        exif[ExifTags.Base.Orientation] = 6
        options = options | {"exif": exif}
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", CASES)
def test_reading_and_cutting_take_no_more_than_estimated(name, tmp_path):
    source = write_image(tmp_path / name, turned=True)
    with open_image(source) as image:
        reading = decoding_bytes(image)
        width, height = image.size if image.format == "TIFF" else image.size[::-1]
    assert peak_of(lambda: load_image_file(source, 400)) < reading + CONSTANT
    whole = CropFile((10, 10, width - 10, height - 10), tmp_path / "crop.jpg")
    small = CropFile(whole.box, tmp_path / "small.jpg", (width // 10, height // 10))
    for crop in (whole, small):
        with open_image(source) as image:
            cutting = cutting_bytes(image, [crop])
        assert peak_of(lambda crop=crop: write_crops(source, [crop])) < cutting + CONSTANT


@pytest.mark.parametrize(("mode", "is_read"), [("1", True), ("P", True), ("L", True), ("RGB", True)])
def test_the_largest_images_are_within_the_bound_whatever_their_mode(mode, is_read, tmp_path):
    """17,320 x 17,320 pixels: 300 megapixels."""
    side = int(MAX_PIXELS**0.5)
    image = Image.new(mode, (1, 1))
    image.format, image._size, image._mode = "PNG", (side, side), mode
    assert decoding_bytes(image) <= MAX_BYTES
    crop = CropFile((0, 0, side, side), tmp_path / "crop.png")
    assert (cutting_bytes(image, [crop]) <= MAX_BYTES) is is_read


def test_what_would_take_more_than_the_bound_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    lift_pixel_limit()
    source = tmp_path / "wide.webp"
    Image.new("RGB", (200, 100)).save(source)
    monkeypatch.setattr("modeling_setcrop.image_reading.MAX_BYTES", 100_000)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageFileError, match=r"decoding it would take .* of memory, over the limit of"):
        load_image_file(source, 100)
