"""`setcrop serve`: crops over HTTP, for programs that are not written in Python.

Every request takes one of a bounded number of places, from its first byte to its last; when all are taken the next is
answered with 503 at once, so neither memory nor waiting times grow. Work runs in as many threads as there are
processors.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from ..crop_options import CropOptions, turned_sides
from ..image_reading import ImageFileError, LoadedImage, decode_image, decoding, lift_pixel_limit, open_image
from ..images.formats import FORMAT_OF_SUFFIX, SUFFIX_OF_FORMAT
from ..images.writing import CropFile, write_crops
from .formats import azure, crop_rows
from .shared_cropper import shared_cropper
from .url_fetching import FetchError, fetch_image

AZURE_PATH = "/computervision/imageanalysis:analyze"

_MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "JPEG2000": "image/jp2",
    "TGA": "image/x-tga",
}
# What a query can say, and how its text is read; JSON bodies have the values themselves.
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _readers() -> dict[str, Callable[[str], Any]]:
    """Return how the text of each of `CropOptions` is read, by its type; `details` are always given."""
    simple: dict[type, Callable[[str], Any]] = {
        bool: lambda text: _FLAGS[text.lower()],
        int: int,
        float: float,
        str: str,
    }
    readers: dict[str, Callable[[str], Any]] = {
        "min_size": lambda text: [int(part) for part in text.split(",")],
        "keep": _numbers,
        "avoid": _numbers,
        "aspect_ratio": str,
    }
    for name, kind in get_type_hints(CropOptions).items():
        if name != "details" and name not in readers:
            # Of `int | None` the first.
            readers[name] = simple[(*get_args(kind), kind)[0]]
    return readers


_READERS = _readers()
# A query may say of the crop's file, too, how good it is to be.
_QUERY_READERS = _READERS | {"quality": float}
_SEVERAL = ("keep", "avoid")


@dataclass(frozen=True)
class ServerSettings:
    """What a server allows.

    Attributes:
        root: Folder of images that requests may name; None for none.
        allowed_hosts: Hosts that images may be fetched from.
        max_bytes: Largest image file.
        max_pixels: Largest image, in pixels, over all frames where all are cut.
        timeout: Seconds that a request may take, and its body to arrive.
        queue: Requests that may wait beside those that are worked on.
        workers: Threads that work.
        model: Checkpoint folder or name on the Hub; None for the one that comes with SetCrop.
    """

    root: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_bytes: int = 25_000_000
    max_pixels: int = 100_000_000
    timeout: float = 30.0
    queue: int = 16
    workers: int = os.cpu_count() or 1
    model: str | None = None


class HttpError(Exception):
    """An answer other than 200: its status, a short code, and a line for the caller."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def response(self) -> JSONResponse:
        """In the form of Azure's services, which their clients read."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        content = {"error": {"code": self.code, "message": self.message}}
        return JSONResponse(content, self.status, headers)


class Asked(NamedTuple):
    """A request: the image's file, what to call it in messages, and the options."""

    content: bytes
    name: str
    options: dict[str, Any]


class Metrics:
    """What `/metrics` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("setcrop_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        buckets = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30)
        self.seconds = Histogram(
            "setcrop_request_seconds", "From a request's first byte to its answer.", ["path"], buckets=buckets,
            registry=self.registry,
        )  # fmt: skip
        self.work = Histogram(
            "setcrop_work_seconds", "Reading, judging and cutting one image.", buckets=buckets, registry=self.registry
        )
        self.places = Gauge("setcrop_requests_in_progress", "Requests waiting or worked on.", registry=self.registry)


class Workplace:
    """Bounded places for requests, threads that work on them, and how long that takes.

    A place is free again when the work is done, also where its request was given up: a thread cannot be stopped.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.capacity = settings.workers + settings.queue
        self.pool = ThreadPoolExecutor(settings.workers, "setcrop")
        self.taken = 0
        self.ready = threading.Event()
        self.why_not_ready = "the model is not loaded"
        self._mean_seconds = 0.2

    def load(self) -> None:
        """Load the model in one of the threads; what it cannot be loaded for is logged and told by `/readyz`."""

        def loaded(loading: Future) -> None:
            if loading.cancelled():
                return
            error = loading.exception()
            if error is None:
                self.ready.set()
                return
            self.why_not_ready = f"the model cannot be loaded: {error}"
            logging.getLogger(__name__).error(self.why_not_ready)

        self.pool.submit(shared_cropper, self.settings.model).add_done_callback(loaded)

    def take(self) -> None:
        """Take a place; called on the event loop alone, like `leave`.

        Raises:
            HttpError: All are taken.
        """
        if self.taken >= self.capacity:
            wait = max(1, round(self.taken * self._mean_seconds / self.settings.workers))
            raise HttpError(503, "Busy", "all places are taken: try again later", retry_after=wait)
        self.taken += 1
        self.metrics.places.set(self.taken)

    def leave(self) -> None:
        self.taken -= 1
        self.metrics.places.set(self.taken)

    async def run(self, work: Callable[[], Any], seconds: float) -> Any:
        """Run work in a thread and leave the place when it is done.

        Raises:
            HttpError: It was not done in time.
        """
        loop = asyncio.get_running_loop()
        future = self.pool.submit(self._timed, work)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self.leave))
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), seconds)
        except TimeoutError:
            if future.cancel():
                raise HttpError(503, "Busy", "waited too long for its turn: try again later", retry_after=1) from None
            raise HttpError(504, "Timeout", f"took longer than {self.settings.timeout:g} seconds") from None

    def _timed(self, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return work()
        finally:
            seconds = time.perf_counter() - start
            self.metrics.work.observe(seconds)
            self._mean_seconds += 0.1 * (seconds - self._mean_seconds)


def create_app(settings: ServerSettings = ServerSettings()) -> FastAPI:
    """Return the service.

    The model is loaded when it starts; `/readyz` answers 200 from then on, and says why where it cannot be loaded.
    """
    lift_pixel_limit()  # the settings' own limit holds
    metrics = Metrics()
    place = Workplace(settings, metrics)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        place.load()
        yield
        place.pool.shutdown(wait=False, cancel_futures=True)

    # The interactive page would load scripts from elsewhere.
    app = FastAPI(title="SetCrop", description=__doc__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.workplace = place

    _add_crop_routes(app, settings, metrics)
    _add_state_routes(app, metrics)
    return app


def _add_crop_routes(app: FastAPI, settings: ServerSettings, metrics: Metrics) -> None:
    """Add what takes an image, and a place while it is worked on."""

    async def answer(request: Request, path: str, work: Callable[[Asked], Response]) -> Response:
        start = time.perf_counter()
        try:
            response = await _handle(request, app.state.workplace, work)
        except HttpError as error:
            response = error.response()
        metrics.requests.labels(path, str(response.status_code)).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - start)
        return response

    @app.post("/crops")
    async def crops(request: Request) -> Response:
        """Return the crops of an image, as JSON."""
        return await answer(request, "/crops", lambda asked: JSONResponse(_suggest(asked, settings)))

    @app.post("/crop")
    async def crop(request: Request) -> Response:
        """Return the best crop, as an image of its own."""
        return await answer(request, "/crop", lambda asked: _cut(asked, settings))

    @app.post(AZURE_PATH)
    async def smart_crops(request: Request) -> Response:
        """Azure Image Analysis 4.0 with the feature smartCrops."""
        return await answer(request, AZURE_PATH, lambda asked: JSONResponse(_smart_crops(asked, settings)))


def _add_state_routes(app: FastAPI, metrics: Metrics) -> None:
    """Add what tells how the server does, which needs no place."""
    place: Workplace = app.state.workplace

    @app.get("/healthz")
    async def healthz() -> Response:
        """200 while the process answers."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 when the model is loaded and a request would find a place, else 503."""
        if not place.ready.is_set():
            return PlainTextResponse(f"{place.why_not_ready}\n", 503)
        free = place.taken < place.capacity
        return PlainTextResponse("ok\n" if free else "all places are taken\n", 200 if free else 503)

    @app.get("/metrics")
    async def measured() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _handle(request: Request, place: Workplace, work: Callable[[Asked], Response]) -> Response:
    """Read a request and have it worked on, all within the time that it has."""
    settings = place.settings
    end = time.monotonic() + settings.timeout
    place.take()
    handed_over = False
    try:
        body = await _within(_body(request, settings.max_bytes), end, "the body took too long to arrive")

        def everything() -> Response:
            return work(_asked(request, body, settings))

        handed_over = True
        return await place.run(everything, end - time.monotonic())
    except (ImageFileError, FetchError) as error:
        raise HttpError(400, "InvalidImage", str(error)) from None
    except (ValueError, TypeError) as error:
        raise HttpError(422, "InvalidRequest", " ".join(str(error).split())) from None
    finally:
        if not handed_over:
            place.leave()


async def _within(waiting: Awaitable[Any], end: float, message: str) -> Any:
    try:
        return await asyncio.wait_for(waiting, end - time.monotonic())
    except TimeoutError:
        raise HttpError(408, "Timeout", message) from None


async def _body(request: Request, max_bytes: int) -> bytes:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HttpError(415, "UnsupportedMediaType", "bodies with a Content-Encoding are not read")
    declared = request.headers.get("content-length", "")
    too_large = HttpError(413, "TooLarge", f"bodies of more than {max_bytes} bytes are not read")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            parts.append(chunk)
    except ClientDisconnect:
        raise HttpError(400, "InvalidRequest", "the body ended early") from None
    return b"".join(parts)


def _asked(request: Request, body: bytes, settings: ServerSettings) -> Asked:
    """Return the image and the options of a request: the body is either the image or JSON that says where it is."""
    query = _query_options(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        if not body:
            raise HttpError(400, "InvalidRequest", "the body is empty: send an image, or JSON with a path")
        return Asked(body, "the image", query)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise HttpError(400, "InvalidRequest", "the body is not JSON") from None
    if not isinstance(fields, dict) or ("path" in fields) == ("url" in fields):
        raise HttpError(400, "InvalidRequest", "the JSON needs either 'path' or 'url'")
    where = fields.pop("path", None), fields.pop("url", None)
    if not all(isinstance(value, str | None) for value in where):
        raise HttpError(400, "InvalidRequest", "'path' and 'url' are texts")
    options = query | fields
    if where[0] is not None:
        return Asked(_read_below(settings, where[0]), where[0], options)
    content = fetch_image(where[1], settings.allowed_hosts, settings.max_bytes, settings.timeout)
    return Asked(content, "the image", options)


def _query_options(request: Request) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        try:
            value = _QUERY_READERS.get(name, str)(text)
        except (ValueError, KeyError):
            raise HttpError(422, "InvalidRequest", f"{name}: {text[:80]!r} cannot be read") from None
        if name in _SEVERAL:
            options.setdefault(name, []).append(value)
        else:
            options[name] = value
    if "," in options.get("aspect_ratio", ""):
        options["aspect_ratio"] = options["aspect_ratio"].split(",")
    return options


def _read_below(settings: ServerSettings, name: str) -> bytes:
    """Return the bytes of a file below the root; links that lead out of it are not followed."""
    if settings.root is None:
        raise HttpError(403, "NotAllowed", "this server reads no files (start it with --root)")
    root = settings.root.resolve()
    try:
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root) or not path.is_file():
            raise FileNotFoundError
        if path.stat().st_size > settings.max_bytes:
            raise HttpError(413, "TooLarge", f"{name}: files of more than {settings.max_bytes} bytes are not read")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError):
        # The same answer for what is not there and what is not for the caller.
        raise HttpError(404, "NotFound", f"{name[:200]}: no such file") from None


def _read(asked: Asked, settings: ServerSettings, short_side: int) -> LoadedImage:
    """Return the image, decoded only after its size has been found small enough."""
    with open_image(io.BytesIO(asked.content), asked.name) as image:
        _check_pixels(image.width * image.height, asked.name, settings)
        with decoding(asked.name):
            return decode_image(image, short_side, draft=True)


def _check_pixels(pixels: int, name: str, settings: ServerSettings) -> None:
    if pixels > settings.max_pixels:
        raise HttpError(413, "TooLarge", f"{name}: {pixels} pixels are more than the {settings.max_pixels} allowed")


def _suggest(asked: Asked, settings: ServerSettings) -> dict[str, Any]:
    unknown = sorted(asked.options.keys() - _READERS.keys())
    if unknown:
        raise HttpError(422, "InvalidRequest", f"unknown option {unknown[0][:80]!r}: use {', '.join(_READERS)}")
    cropper = shared_cropper(settings.model)
    loaded = _read(asked, settings, cropper.short_side)
    height, width = loaded.size
    return {"width": width, "height": height, **cropper(loaded, details=True, **asked.options)}


def _cut(asked: Asked, settings: ServerSettings) -> Response:
    format, quality = asked.options.pop("format", None), asked.options.pop("quality", 92)
    if format is not None and f".{format}" not in FORMAT_OF_SUFFIX:
        known = ", ".join(suffix[1:] for suffix in FORMAT_OF_SUFFIX)
        raise HttpError(422, "InvalidRequest", f"format {str(format)[:80]!r}: use one of {known}")
    if not isinstance(quality, int | float) or not 1 <= quality <= 100:
        raise HttpError(422, "InvalidRequest", f"quality lies in 1..100, not {str(quality)[:80]!r}")
    answer = _suggest(Asked(asked.content, asked.name, asked.options | {"top_k": 1}), settings)
    if not answer["crops"]:
        raise HttpError(404, "NoCrop", "no crop is above the threshold")
    crop = answer["crops"][0]
    box = tuple(crop["box"].values())
    with open_image(io.BytesIO(asked.content), asked.name) as image:
        with decoding(asked.name):
            frames = getattr(image, "n_frames", 1)
        _check_pixels(image.width * image.height * frames, asked.name, settings)
        suffix = f".{format}" if format else SUFFIX_OF_FORMAT.get(image.format or "", ".jpg")
    with tempfile.TemporaryDirectory(prefix="setcrop-") as folder:
        source, target = Path(folder, "source"), Path(folder, f"crop{suffix}")
        source.write_bytes(asked.content)
        write_crops(source, [CropFile(box, target, _shown_size(crop, asked.options))], int(quality))
        content = target.read_bytes()
    headers = {"SetCrop-Box": ",".join(map(str, box)), "SetCrop-Score": f"{crop['score']:.5f}"}
    return Response(content, media_type=_MEDIA_TYPES[FORMAT_OF_SUFFIX[suffix]], headers=headers)


def _shown_size(crop: dict[str, Any], options: dict[str, Any]) -> tuple[int, int] | None:
    """Return the pixels to which a crop is resized; None where it is no larger than asked for."""
    box, width, height = tuple(crop["box"].values()), options.get("width"), options.get("height")
    if options.get("follow_orientation"):
        ratio = crop.get("aspect_ratio", options.get("aspect_ratio"))
        width, height = turned_sides(width, height, ratio, box)
    across, down = box[2] - box[0], box[3] - box[1]
    scale = max((width or 0) / across, (height or 0) / down)
    if not 0 < scale < 1:
        return None
    return width or max(1, round(across * scale)), height or max(1, round(down * scale))


def _smart_crops(asked: Asked, settings: ServerSettings) -> dict[str, Any]:
    features = str(asked.options.get("features", "")).lower()
    if features != "smartcrops":
        raise HttpError(400, "InvalidRequest", "only features=smartCrops is answered")
    ratios = asked.options.get("smartcrops-aspect-ratios")
    options = {} if ratios is None else {"aspect_ratio": str(ratios).split(",")}
    answer = _suggest(Asked(asked.content, asked.name, options | {"top_k": 1}), settings)
    return azure(crop_rows(asked.name, (answer["height"], answer["width"]), answer))
