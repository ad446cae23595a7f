"""A bounded load test of `setcrop serve` on 127.0.0.1: mixed and hostile bodies from 8 clients, then it is over.

    python benchmarks/serve_load.py --requests 400

It starts the server itself, and prints how many requests were answered how, the median and the 99th percentile of the
time of those that got crops, what the same images take in this process without a server, and the server's memory
before and after.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = sorted((ROOT / "examples" / "photos").glob("*.jpg"))


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, float]:
    """Status and seconds of one request; status 0 where the connection broke."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, time.perf_counter() - start
    except (OSError, http.client.HTTPException):
        return 0, time.perf_counter() - start
    finally:
        connection.close()


def bodies() -> list[tuple[str, bytes, int]]:
    """Path, body, and the status that is right unless all places are taken."""
    photos = [photo.read_bytes() for photo in PHOTOS]
    good = [("/crops?aspect_ratio=1:1&top_k=1", photo, 200) for photo in photos]
    return [
        *good,
        ("/crop?aspect_ratio=16:9&width=800", photos[0], 200),
        ("/crops", b"no image at all", 400),
        ("/crops", photos[1][:20_000], 400),
        ("/crops", b"\0" * 26_000_000, 413),
        ("/crops?min_area=7", photos[2], 422),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "modeling_setcrop.cli", "serve", "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        end = time.monotonic() + 120
        while request(port, "GET", "/readyz")[0] != 200:
            assert time.monotonic() < end and server.poll() is None, "the server did not start"
            time.sleep(0.2)
        report = measure(port, options, psutil.Process(server.pid))
    finally:
        server.terminate()
        server.wait(60)
    print(json.dumps(report | {"in_this_process_ms": own_time()}, indent=1))


def measure(port: int, options: argparse.Namespace, server: psutil.Process) -> dict[str, object]:
    mixed = bodies()

    def one(number: int) -> tuple[int, int, float]:
        path, body, right = mixed[number % len(mixed)]
        return right, *request(port, "POST", path, body)

    with ThreadPoolExecutor(options.clients) as clients:
        list(clients.map(one, range(options.requests // 4)))  # until buffers have their size
        before = server.memory_info().rss
        start = time.perf_counter()
        answers = list(clients.map(one, range(options.requests)))
        seconds = time.perf_counter() - start
    times = sorted(1000 * taken for _, status, taken in answers if status == 200)
    return {
        "requests": len(answers),
        "answered": dict(Counter(status for _, status, _ in answers)),
        "wrong": sum(status not in (right, 503) for right, status, _ in answers),
        "requests_per_second": round(len(answers) / seconds, 1),
        "crops_median_ms": round(statistics.median(times)),
        "crops_99th_ms": round(times[int(0.99 * (len(times) - 1))]),
        "memory_mb": [round(size / 1e6) for size in (before, server.memory_info().rss)],
    }


def own_time() -> float:
    """Median time of the same question without a server, one image at a time."""
    from modeling_setcrop.integrations.shared_cropper import shared_cropper

    cropper = shared_cropper()
    times = []
    for _ in range(4):
        for photo in PHOTOS:
            start = time.perf_counter()
            cropper(str(photo), aspect_ratio="1:1", top_k=1)
            times.append(time.perf_counter() - start)
    return round(1000 * statistics.median(times))


if __name__ == "__main__":
    main()
