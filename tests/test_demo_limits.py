"""What the demo page refuses, and why it says so. Skipped without Gradio."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from PIL import Image
from transformers import pipeline

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

from modeling_setcrop import DEFAULT_CHECKPOINT, Cropper  # noqa: E402
from modeling_setcrop.integrations.gradio_demo import MAX_UPLOAD, build_demo  # noqa: E402


@pytest.fixture(scope="module")
def address(tiny_checkpoint):
    page = build_demo(pipeline("image-cropping", model=str(tiny_checkpoint)))
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield url
    page.close()


def upload(address: str, size: int) -> int:
    """Send a file of so many bytes; return the status of the answer."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    body = head + bytes(size) + b"\r\n--x--\r\n"
    request = urllib.request.Request(
        f"{address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_file_that_is_too_large_is_refused_while_it_is_sent(address):
    assert upload(address, 1000) == 200
    assert upload(address, MAX_UPLOAD + 1) == 413


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no image", "not an image that can be read"), (b"", "empty file"), (None, "broken or truncated image")],
)
def test_a_bad_file_is_refused_with_its_reason(address, tmp_path, capfd, content, reason):
    path = tmp_path / "photo.jpg"
    if content is None:
        Image.effect_noise((200, 200), 50).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    client = gradio_client.Client(address, verbose=False)
    with pytest.raises(Exception, match=reason) as caught:
        client.predict(gradio_client.handle_file(path), "free", 3, 0.3, api_name="/suggest")
    assert "/tmp" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def tightness_choices(page):
    (choice,) = [part for part in page.blocks.values() if getattr(part, "label", "") == "Tightness"]
    return [name for name, _ in choice.choices], choice.visible


def test_tightness_is_a_choice_where_the_model_has_several(tiny_checkpoint, photos):
    assert tightness_choices(build_demo(pipeline("image-cropping", model=str(tiny_checkpoint))))[1] is False
    cropper = Cropper(DEFAULT_CHECKPOINT)
    page = build_demo(cropper)
    assert tightness_choices(page) == (["loose", "default", "tight"], True)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = gradio_client.Client(url, verbose=False)
        photo = gradio_client.handle_file(str(photos[0]))
        answers = [
            client.predict(photo, "free", 1, 0.3, tightness, api_name="/suggest") for tightness in ("default", "tight")
        ]
    finally:
        page.close()
    for (_, table, _, _), tightness in zip(answers, ("default", "tight"), strict=True):
        (crop,) = cropper(str(photos[0]), top_k=1, diversity=0.3, tightness=tightness)
        assert table["data"][0][2:6] == list(crop["box"].values())
