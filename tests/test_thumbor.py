"""A thumbor server on 127.0.0.1 gives SetCrop's crops. Skipped without thumbor."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from local_server import fetch, free_port, serving
from PIL import Image, ImageOps

from modeling_setcrop import Cropper
from modeling_setcrop.crop_geometry import largest_area

pytest.importorskip("thumbor", reason="needs thumbor: pip install 'setcrop[thumbor]'")


@pytest.fixture(scope="module")
def album(tmp_path_factory, photos):
    """The kitten upright, and as a camera held upright would have stored it."""
    folder = tmp_path_factory.mktemp("album")
    kitten = next(photo for photo in photos if photo.stem == "kitten-on-lawn")
    (folder / kitten.name).write_bytes(kitten.read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(kitten) as image:
        image.resize((900, 609)).save(folder / "turned.jpg", exif=exif, quality=95)
    return folder


def server(album, tmp_path, checkpoint, tight: bool):
    port = free_port()
    settings = {
        "DETECTORS": ["modeling_setcrop.integrations.thumbor"],
        "LOADER": "thumbor.loaders.file_loader",
        "FILE_LOADER_ROOT_PATH": str(album),
        "STORAGE": "thumbor.storages.file_storage",
        "FILE_STORAGE_ROOT_PATH": str(tmp_path / "storage"),
        "RESPECT_ORIENTATION": True,
        "SETCROP_MODEL": str(checkpoint),
        "SETCROP_TIGHT": tight,
    }
    conf = tmp_path / "thumbor.conf"
    conf.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    command = [sys.executable, "-m", "thumbor.server", "--ip", "127.0.0.1", "--port", str(port), "--conf", str(conf)]
    return serving(command, port, tmp_path / "thumbor.log", "/healthcheck")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


def expected(photo, box, size) -> np.ndarray:
    with Image.open(photo) as image:
        crop = ImageOps.exif_transpose(image).crop(tuple(box.values()))
    return np.asarray(crop.resize(size, Image.Resampling.LANCZOS), dtype=int)


def check(address, album, name, size, cropper, bounds) -> None:
    """A smart request gives the pipeline's crop, to the pixel."""
    width, height = size
    with Image.open(album / name) as image:
        # thumbor decodes an image whole before it turns it; one that stands upright is read as a file is.
        source = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else str(album / name)
    box = cropper(source, aspect_ratio=width / height, top_k=1, **bounds)[0]["box"]
    answer = fetch(f"{address}/unsafe/{width}x{height}/smart/filters:format(png)/{name}")
    assert np.abs(pixels(answer) - expected(album / name, box, size)).max() <= 1, name


def test_smart_requests_give_the_best_of_the_largest_crops(album, tmp_path, tiny_checkpoint):
    cropper = Cropper(str(tiny_checkpoint))
    with server(album, tmp_path, tiny_checkpoint, False) as address:
        # One image in several shapes, so that what a server kept of one request would show in the next.
        for size in ((400, 400), (160, 320), (400, 400)):
            with Image.open(album / "kitten-on-lawn.jpg") as image:
                bounds = {"min_area": largest_area(size[0] / size[1], image.size[::-1])}
            check(address, album, "kitten-on-lawn.jpg", size, cropper, bounds)


def test_tight_requests_give_the_pipelines_crop(album, tmp_path, tiny_checkpoint):
    cropper = Cropper(str(tiny_checkpoint))
    with server(album, tmp_path, tiny_checkpoint, True) as address:
        check(address, album, "kitten-on-lawn.jpg", (400, 400), cropper, {})
        check(address, album, "turned.jpg", (300, 200), cropper, {})

        # A crop in the address comes first, and its best part is chosen.
        region = (100, 50, 900, 850)
        cut = fetch(f"{address}/unsafe/100x50:900x850/200x100/smart/filters:format(png)/kitten-on-lawn.jpg")
        with Image.open(album / "kitten-on-lawn.jpg") as image:
            part = image.crop(region)
        box = cropper(part, aspect_ratio=2.0, top_k=1)[0]["box"]
        wanted = part.crop(tuple(box.values())).resize((200, 100), Image.Resampling.LANCZOS)
        assert np.abs(pixels(cut) - np.asarray(wanted, dtype=int)).max() <= 1

        whole = pixels(fetch(f"{address}/unsafe/fit-in/240x240/smart/filters:format(png)/kitten-on-lawn.jpg"))
        assert whole.shape[1] == 240 and whole.shape[0] < 240, "requests without a crop stay thumbor's"
