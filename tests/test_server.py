"""`setcrop serve` on 127.0.0.1: its answers, its limits, and what it refuses. Skipped without FastAPI and uvicorn."""

from __future__ import annotations

import http.client
import http.server
import io
import json
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'setcrop[serve]'")
pytest.importorskip("fastapi", reason="needs FastAPI: pip install 'setcrop[serve]'")

from modeling_setcrop import Cropper  # noqa: E402
from modeling_setcrop.cli import app as command_line  # noqa: E402
from modeling_setcrop.crop_options import CropOptions  # noqa: E402
from modeling_setcrop.integrations import server as module  # noqa: E402
from modeling_setcrop.integrations import url_fetching  # noqa: E402
from modeling_setcrop.integrations.server import ServerSettings, create_app  # noqa: E402
from modeling_setcrop.integrations.url_fetching import FetchError, fetch_image, is_public  # noqa: E402


class Answer:
    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.content = answer.status, answer.headers, answer.read()

    @property
    def json(self):
        return json.loads(self.content)


class Client:
    def __init__(self, port: int, app) -> None:
        self.port, self.app = port, app

    def __call__(self, path: str, body=b"", method: str = "POST", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, named)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self(path, None, "GET")

    def json(self, path: str, /, **fields) -> Answer:
        return self(path, json.dumps(fields).encode(), Content_Type="application/json")


@contextmanager
def served(until=lambda client: client.get("/readyz").status == 200, **settings):
    """The service in a thread of this process, from the time on when a condition holds."""
    app = create_app(ServerSettings(**settings))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        runner = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
        thread.start()
        client = Client(listener.getsockname()[1], app)
        try:
            wait_for(lambda: runner.started)
            wait_for(lambda: until(client))
            yield client
        finally:
            runner.should_exit = True
            thread.join(30)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def album(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("server")
    with Image.open(photos[0]) as image:
        exif = image.getexif()
        exif[0x013B] = "An Author"
        image.resize((600, 400)).save(folder / "photo.jpg", exif=exif)
    (folder / "below").mkdir()
    (folder / "below" / "photo.jpg").write_bytes((folder / "photo.jpg").read_bytes())
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.jpg").write_bytes((folder / "photo.jpg").read_bytes())
    (folder / "link.jpg").symlink_to(outside / "secret.jpg")
    return folder


@pytest.fixture(scope="module")
def client(tiny_checkpoint, album):
    with served(model=str(tiny_checkpoint), root=album, max_bytes=2_000_000, max_pixels=1_000_000) as client:
        yield client


@pytest.fixture(scope="module")
def photo(album) -> bytes:
    return (album / "photo.jpg").read_bytes()


@pytest.fixture(scope="module")
def cropper(tiny_checkpoint):
    return Cropper(str(tiny_checkpoint))


def test_crops_are_the_pipelines(client, cropper, album, photo):
    expected = cropper(str(album / "photo.jpg"), top_k=2, aspect_ratio=["1:1", "16:9"], details=True)
    got = client("/crops?top_k=2&aspect_ratio=1:1,16:9", photo, Content_Type="image/jpeg")
    assert got.status == 200
    assert got.json == {"width": 600, "height": 400} | json.loads(json.dumps(expected))

    options = {"aspect_ratio": "1:1", "top_k": 1, "keep": [[10, 20, 60, 80], [30, 40]], "min_area": 0.2}
    expected = cropper(str(album / "photo.jpg"), details=True, **options)
    query = "/crops?aspect_ratio=1:1&top_k=1&keep=10,20,60,80&keep=30,40&min_area=0.2"
    by_path = client.json("/crops", path="below/photo.jpg", **options)
    assert by_path.json["crops"] == client(query, photo).json["crops"] == json.loads(json.dumps(expected["crops"]))


def test_a_crop_comes_as_an_image_with_its_metadata(client, cropper, album, photo):
    box = cropper(str(album / "photo.jpg"), top_k=1, aspect_ratio="1:1")[0]["box"]
    got = client("/crop?aspect_ratio=1:1", photo)
    assert got.headers["content-type"] == "image/jpeg"
    assert got.headers["setcrop-box"] == ",".join(map(str, box.values()))
    with Image.open(io.BytesIO(got.content)) as image:
        assert image.size == (box["xmax"] - box["xmin"], box["ymax"] - box["ymin"])
        assert image.getexif()[0x013B] == "An Author"
    small = client.json("/crop", path="photo.jpg", width=80, height=60, format="webp")
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.size == (80, 60) and image.format == "WEBP"


def test_sizes_turn_with_the_image_and_every_named_format_is_written(client, photo):
    answer = client("/crop?width=40&height=50&follow_orientation=true", photo)
    with Image.open(io.BytesIO(answer.content)) as crop:
        assert answer.status == 200 and crop.size == (50, 40)
    answer = client("/crop?format=tga", photo)
    assert answer.status == 200 and answer.headers["Content-Type"] == "image/x-tga"
    sizes = [len(client(f"/crop?format=jpg&quality={quality}", photo).content) for quality in (10, 95)]
    assert 1000 < sizes[0] < sizes[1]
    assert {client(f"/crop?quality={quality}", photo).status for quality in ("101", "nan", "high")} == {422}
    answer = client("/crop", b'{"path": "photo.jpg", "quality": 1e999}', Content_Type="application/json")
    assert answer.status == 422


def test_azures_client_gets_smart_crops(client, cropper, album, photo):
    azure = pytest.importorskip("azure.ai.vision.imageanalysis", reason="needs azure-ai-vision-imageanalysis")
    from azure.core.credentials import AzureKeyCredential
    from azure.core.exceptions import HttpResponseError

    analysis = azure.ImageAnalysisClient(f"http://127.0.0.1:{client.port}", AzureKeyCredential("none"))
    feature = azure.models.VisualFeatures.SMART_CROPS
    result = analysis.analyze(photo, visual_features=[feature], smart_crops_aspect_ratios=[0.9, 1.33])
    expected = cropper(str(album / "photo.jpg"), top_k=1, aspect_ratio=["0.9", "1.33"])
    for crop, wanted in zip(result.smart_crops.list, expected, strict=True):
        found, box = crop.bounding_box, wanted["box"]
        assert (found.x, found.y) == (box["xmin"], box["ymin"])
        assert (found.width, found.height) == (box["xmax"] - box["xmin"], box["ymax"] - box["ymin"])
    assert (result.metadata.width, result.metadata.height) == (600, 400)
    assert len(analysis.analyze(photo, visual_features=[feature]).smart_crops.list) == 1
    with pytest.raises(HttpResponseError, match="not allowed"):
        analysis.analyze_from_url("http://127.0.0.1/photo.jpg", visual_features=[feature])
    with pytest.raises(HttpResponseError, match="smartCrops"):
        analysis.analyze(photo, visual_features=[azure.models.VisualFeatures.TAGS])


def test_health_and_metrics(client, photo):
    assert client.get("/healthz").status == client.get("/readyz").status == 200
    client("/crops?top_k=1", photo)
    text = client.get("/metrics").content.decode()
    assert 'setcrop_requests_total{path="/crops",status="200"}' in text
    assert "setcrop_work_seconds_count" in text and "setcrop_requests_in_progress 0.0" in text


def test_a_model_that_cannot_be_loaded_is_told(tmp_path):
    def told(client):
        answer = client.get("/readyz")
        return answer.status == 503 and "the model cannot be loaded: " in answer.content.decode()

    with served(told, model=str(tmp_path / "none")) as client:
        assert str(tmp_path / "none") in client.get("/readyz").content.decode()


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_an_address_that_cannot_be_had_is_one_line(command):
    pytest.importorskip("gradio" if command == "demo" else "uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for options, part in ((["--port", port], f"--port {port}: cannot"), (["--host", "no host"], "--host no host")):
            ended = CliRunner().invoke(command_line, [command, *options])
            assert ended.exit_code == 1 and ended.stderr.count("\n") == 1, ended.output
            assert ended.stderr.startswith(f"setcrop {command}: ") and part in ended.stderr


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says it is so large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def animation(frames: int) -> bytes:
    buffer = io.BytesIO()
    images = [Image.new("L", (400, 400), shade) for shade in range(frames)]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:])
    return buffer.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "part"),
    [
        ("/crops", b"", {}, 400, "empty"),
        ("/crops", b"no image", {}, 400, "not an image"),
        ("/crops", POSTSCRIPT, {}, 400, "not an image"),
        ("/crops", png_of(60_000, 60_000), {}, 400, "over 300 megapixels"),
        ("/crops", png_of(4_000, 4_000), {}, 413, "more than the 1000000 allowed"),
        ("/crops", png_of(300, 300), {}, 400, "broken or truncated"),
        ("/crops", b"x" * 2_000_001, {}, 413, "2000000 bytes"),
        ("/crop", animation(8), {}, 413, "more than the 1000000 allowed"),
        ("/crops", b"x", {"Content_Encoding": "gzip"}, 415, "Content-Encoding"),
        ("/crops", b"[" * 100_000, {"Content_Type": "application/json"}, 400, "not JSON"),
        ("/crops", b'{"path": 3}', {"Content_Type": "application/json"}, 400, "are texts"),
        ("/crops", b"{}", {"Content_Type": "application/json"}, 400, "either 'path' or 'url'"),
        ("/crops?top_k=many", b"x", {}, 422, "top_k: 'many'"),
        ("/crop?format=exe", b"x", {}, 422, "'exe'"),
    ],
)
def test_hostile_bodies_are_refused_in_a_line(client, path, body, headers, status, part):
    got = client(path, body, **headers)
    assert (got.status, part in got.json["error"]["message"]) == (status, True), got.content


def test_wrong_options_are_named(client, photo):
    for query, part in (("aspect_ratio=wide", "wide"), ("min_area=2", "min_area"), ("zoom=2", "zoom")):
        got = client(f"/crops?{query}", photo)
        assert got.status == 422 and part in got.json["error"]["message"]
    assert client("/crops?keep=5000,5000,6000,6000", photo).status == 422


def test_every_option_of_the_pipeline_can_be_asked_for(client, photo, cropper):
    query = "aspect_ratio=1:1,3:2&best_of=true&follow_orientation=1&trim=0&tightness=default&top_k=2&min_size=20,30"
    options = {"aspect_ratio": ["1:1", "3:2"], "best_of": True, "follow_orientation": True, "min_size": (20, 30)}
    assert client(f"/crops?{query}", photo).json["crops"] == cropper(io.BytesIO(photo), top_k=2, **options)
    for field in fields(CropOptions):
        if field.name != "details":  # always given
            got = client(f"/crops?{field.name}=none-of-these", photo)
            assert got.status == 422 and "unknown option" not in got.json["error"]["message"], field.name
    assert "unknown option 'details'" in client("/crops?details=1", photo).json["error"]["message"]


def test_chunked_and_cut_off_bodies(client, photo):
    with socket.create_connection(("127.0.0.1", client.port)) as wire:
        wire.sendall(b"POST /crops HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(30):
            wire.sendall(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", client.port)) as wire:
        wire.sendall(b"POST /crops HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + photo[:100])
    wait_for(lambda: client.app.state.workplace.taken == 0)


def test_files_outside_the_root_are_not_there(client, album, tiny_checkpoint):
    for path in ("../photo.jpg", "/etc/passwd", "link.jpg", "missing.jpg", "below", "a\0b", "below/../../x", "~"):
        got = client.json("/crops", path=path)
        assert got.status == 404 and "no such file" in got.json["error"]["message"], path
    with served(model=str(tiny_checkpoint)) as rootless:
        assert rootless.json("/crops", path="photo.jpg").status == 403


class Slow:
    """A cropper that does not answer until it is let."""

    short_side = 100

    def __init__(self) -> None:
        self.let, self.started = threading.Event(), threading.Semaphore(0)

    def __call__(self, *_, **__):
        self.started.release()
        assert self.let.wait(60)
        return {"crops": []}


def test_more_than_the_places_are_answered_with_503_at_once(monkeypatch, photo):
    slow = Slow()
    monkeypatch.setattr(module, "shared_cropper", lambda model=None: slow)
    with served(workers=1, queue=2) as client, ThreadPoolExecutor(3) as others:
        waiting = [others.submit(client, "/crops", photo) for _ in range(3)]
        wait_for(lambda: client.app.state.workplace.taken == 3)
        start = time.monotonic()
        refused = client("/crops", photo)
        assert refused.status == 503 and int(refused.headers["retry-after"]) >= 1 and time.monotonic() - start < 5
        assert client.get("/readyz").status == 503 and client.get("/healthz").status == 200
        slow.let.set()
        assert [answer.result().status for answer in waiting] == [200, 200, 200]
        assert client("/crops", photo).status == 200


def test_a_request_that_takes_too_long_is_given_up_and_its_place_freed(monkeypatch, photo):
    slow = Slow()
    monkeypatch.setattr(module, "shared_cropper", lambda model=None: slow)
    with served(workers=1, queue=2, timeout=0.5) as client, ThreadPoolExecutor(2) as others:
        working = others.submit(client, "/crops", photo)
        assert slow.started.acquire(timeout=30)
        waited = others.submit(client, "/crops", photo)
        assert working.result().status == 504
        assert waited.result().status == 503 and waited.result().headers["retry-after"] == "1"
        assert client.app.state.workplace.taken == 1, "a thread that still works keeps its place"
        slow.let.set()
        wait_for(lambda: client.app.state.workplace.taken == 0)
        with socket.create_connection(("127.0.0.1", client.port)) as wire:
            wire.sendall(b"POST /crops HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nxx")
            assert wire.recv(100).startswith(b"HTTP/1.1 408")


def test_eight_clients_lose_nothing_and_memory_stays(client, photo):
    """Bounded: 8 clients, 15 requests each, then it is over."""
    bodies = [
        ("/crops?top_k=1", photo, {200, 503}),
        ("/crop?aspect_ratio=1:1", photo, {200, 503}),
        ("/crops", b"no image", {400, 503}),
        ("/crops", png_of(4_000, 4_000), {413, 503}),
        ("/crops?top_k=x", photo, {422, 503}),
    ]

    def one(number: int) -> tuple[int, bool]:
        path, body, allowed = bodies[number % len(bodies)]
        answer = client(path, body)
        assert answer.status != 503 or int(answer.headers["retry-after"]) >= 1
        return answer.status, answer.status in allowed

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(one, range(40)))
        before = psutil.Process().memory_info().rss
        answers = list(clients.map(one, range(120)))
    assert len(answers) == 120 and all(right for _, right in answers)
    assert sum(status == 200 for status, _ in answers) >= 24
    assert psutil.Process().memory_info().rss - before < 60 << 20
    assert client.app.state.workplace.taken == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("not an address", False),
    ],
)
def test_private_addresses_are_told_from_public_ones(address, public):
    assert is_public(address) is public


def test_addresses_are_fetched_from_allowed_public_hosts_alone(monkeypatch):
    resolved: list[str] = ["93.184.216.34"]

    def getaddrinfo(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in resolved]

    monkeypatch.setattr(url_fetching.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(url_fetching.socket, "create_connection", lambda *_: pytest.fail("a connection was made"))
    hosts = ["images.example.com"]
    for url, part in (
        ("http://other.example.com/a.jpg", "not allowed"),
        ("http://127.0.0.1/a.jpg", "not allowed"),
        ("ftp://images.example.com/a.jpg", "only http"),
        ("file:///etc/passwd", "only http"),
        ("http://user@images.example.com/a.jpg", "user names"),
        ("http://images.example.com:6379/a.jpg", "port 6379"),
        ("http://images.example.com/a\r\nHost: b", "percent-encoded"),
        ("http://[::1", "not an address"),
    ):
        with pytest.raises(FetchError, match=part):
            fetch_image(url, hosts, 1000, 5)
    # A name with a private address among public ones is refused as a whole.
    resolved.append("127.0.0.1")
    with pytest.raises(FetchError, match="not on the public network"):
        fetch_image("http://images.example.com/a.jpg", hosts, 1000, 5)


class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        redirect = self.path == "/moved"
        self.send_response(302 if redirect else 200)
        if redirect:
            self.send_header("Location", "http://127.0.0.1/")
        self.end_headers()
        self.wfile.write(b"x" * (10 if self.path == "/small?v=1" else 5000))

    def log_message(self, *_) -> None:
        pass


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    asked = []
    connect = socket.create_connection
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()

        def create_connection(address, timeout):
            asked.append(address)
            return connect(("127.0.0.1", files.server_port), timeout)

        monkeypatch.setattr(url_fetching, "public_address", lambda host, port: "93.184.216.34")
        monkeypatch.setattr(url_fetching.socket, "create_connection", create_connection)
        assert fetch_image("http://IMAGES.example.com/small?v=1", ["images.example.com"], 1000, 5) == b"x" * 10
        assert asked == [("93.184.216.34", 80)]
        with pytest.raises(FetchError, match="more than 1000 bytes"):
            fetch_image("http://images.example.com/large", ["images.example.com"], 1000, 5)
        with pytest.raises(FetchError, match="HTTP 302"):
            fetch_image("http://images.example.com/moved", ["images.example.com"], 10_000, 5)
        files.shutdown()
