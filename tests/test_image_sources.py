"""What the pipeline reads: files, addresses, bytes, arrays and rows of data sets, all with the same answer."""

from __future__ import annotations

import base64
import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from modeling_setcrop import Cropper
from modeling_setcrop.image_reading import ImageFileError
from modeling_setcrop.image_sources import read_any_image


@pytest.fixture(scope="module")
def cropper(tiny_checkpoint):
    return pipeline("image-cropping", model=str(tiny_checkpoint))


@pytest.fixture(scope="module")
def file(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("sources") / "image.png"
    with Image.open(photos[0]) as image:
        image.convert("RGB").resize((240, 160)).save(path)
    return path


@pytest.fixture(scope="module")
def address(file):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(file.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_whatever_holds_the_image_gives_its_crops(cropper, file, address):
    content = file.read_bytes()
    text = base64.b64encode(content).decode()
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    long_url = f"{address}/image.png?signature={'0123456789' * 40}"
    sources = {
        "path": file,
        "PIL": image,
        "base64": text,
        "base64 in lines": base64.encodebytes(content).decode(),
        "data URL": f"data:image/png;base64,{text}",
        "URL": f"{address}/image.png",
        "URL over 255 characters": long_url,
        "bytes": content,
        "file object": io.BytesIO(content),
        "array": np.asarray(image),
        "floats": np.asarray(image) / np.float32(255),
        "row": {"bytes": content, "path": None},
        "row of a file": {"bytes": None, "path": str(file)},
    }
    expected = cropper(str(file), top_k=3)
    for name, source in sources.items():
        assert cropper(source, top_k=3) == expected, name
    assert cropper([content, np.asarray(image)], top_k=3) == [expected, expected]


def test_the_answer_is_a_detectors_and_images_is_the_arguments_name(cropper, file):
    crops = cropper(images=str(file), top_k=2)
    assert crops == cropper(str(file), top_k=2)
    assert [crop["label"] for crop in crops] == ["crop", "crop"]
    assert list(crops[0])[:3] == ["score", "label", "box"]
    with pytest.raises(ValueError, match="no images were given"):
        cropper()


@pytest.mark.parametrize(
    ("values", "pixel"),
    [
        (np.full((8, 9), 200, np.uint8), (200, 200, 200)),
        (np.full((8, 9, 1), 200, np.uint8), (200, 200, 200)),
        (np.full((8, 9), 200 * 257, np.uint16), (200, 200, 200)),
        (np.full((8, 9, 3), 200 * 257, np.uint16), (200, 200, 200)),
        (np.ones((8, 9), bool), (255, 255, 255)),
        (np.full((8, 9, 3), 0.2), (51, 51, 51)),
        (np.zeros((8, 9, 4), np.uint8), (255, 255, 255)),  # transparent over white
    ],
)
def test_arrays_of_every_depth(values, pixel):
    read = read_any_image(values, 64)
    assert read.size == (8, 9)
    assert read.image.getpixel((0, 0)) == pixel


def test_what_holds_no_image_is_named_in_one_line(address, tmp_path):
    cases = {
        "missing.jpg: no such file": str(tmp_path / "missing.jpg"),
        "bytes: not a": b"plain text, not an image",
        "not a data URL": "data:image/png;base64,###",
        "missing.png: HTTP 404": f"{address}/missing.png",
        "cannot be fetched": "http://127.0.0.1:1/image.png",
        r"array of shape \(5,\)": np.zeros(5),
        "expected values in": np.full((4, 4), 7.0),
        "array of int64": np.zeros((4, 4), np.int64),
    }
    for message, source in cases.items():
        with pytest.raises(ImageFileError, match=message) as caught:
            read_any_image(source, 64, timeout=5)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(TypeError, match="set is no image"):
        read_any_image({1, 2}, 64)


def test_several_images_come_in_whatever_holds_them(cropper, file, tiny_checkpoint):
    """Lists and tuples, columns of `datasets`, which are decoded one by one, and iterators, whose answers wait."""
    column = datasets.Dataset.from_dict({"image": [str(file)] * 2}).cast_column("image", datasets.Image())["image"]
    expected = [cropper(str(file), top_k=2)] * 2
    for images in ([file, file], (file, file), column):
        assert cropper(images, top_k=2) == expected
        assert cropper(images, top_k=2, batch_size=2) == expected
    assert cropper(()) == []
    answers = iter(cropper(map(str, [file, file, "missing.jpg"]), top_k=2))
    assert [next(answers), next(answers)] == expected
    with pytest.raises(ImageFileError, match=r"missing\.jpg: no such file"):
        next(answers)
    light = Cropper(tiny_checkpoint, runtime="torch")
    assert light(column, top_k=2) == light([file, file], top_k=2) == light(iter([file, file]), top_k=2)


def test_what_was_meant_is_said(cropper, file):
    with pytest.raises(TypeError, match="there is no option 'image'"):
        cropper(image=str(file))
    with pytest.raises(ValueError, match="given twice, also as images="):
        cropper(str(file), images=str(file))
    with pytest.raises(ImageFileError, match=r"^s3://bucket/image.jpg: addresses are http, https or data URLs"):
        cropper("s3://bucket/image.jpg")
    with pytest.raises(ImageFileError, match="an empty text"):
        cropper("")
    with pytest.raises(TypeError, match=r"dict is no image: .*of a data set, its column of images"):
        cropper({"image": str(file)})
