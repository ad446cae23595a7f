"""A local server and a headless Chromium, for tests and screenshots of the web page."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "hub_card" / "web"
HERE = Path(__file__).with_name("web")
ORT = HERE / "node_modules" / "onnxruntime-web" / "dist"


def what_is_missing() -> str | None:
    """Why the browser tests cannot run here, or None."""
    if chromium() is None:
        return "needs Chromium (apt-get install chromium)"
    if not ORT.is_dir():
        return "needs onnxruntime-web (npm install --ignore-scripts --prefix tests/web)"
    return None


def chromium() -> str | None:
    """The browser's command."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Keeps a page "loading", and so the browser from taking its image, until the page says that it is ready.
_HOLD = """
<img src="/wait" hidden>
<script>
const waiting = setInterval(() => {
  if (!document.documentElement.dataset.ready) return;
  clearInterval(waiting);
  fetch("/results", { method: "POST", body: "{}" });
}, 100);
</script>
"""


class PageServer:
    """Serves the page with a model, onnxruntime-web and images, and takes what a page sends to `/results`.

    Attributes:
        address: Where it listens; `/held.html` is the page, loading until it has shown the image it was given.
        results: What was sent, once `arrived` is set.
    """

    def __init__(self, model: Path, photos: Path, task: Mapping[str, Any] | None = None, hold: float = 0) -> None:
        self.arrived, self.results = threading.Event(), None
        folders = {"model": model, "ort": ORT, "photos": photos, "test": HERE}
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def translate_path(self, path: str) -> str:
                parts = path.split("?")[0].strip("/").split("/")
                if parts[0] in folders:
                    return str(folders[parts[0]].joinpath(*parts[1:]))
                return str(WEB.joinpath(*parts))

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path == "/task.json":
                    self._answer(json.dumps(task).encode(), "application/json")
                elif path == "/held.html":
                    page = (WEB / "index.html").read_text(encoding="utf-8")
                    self._answer(page.replace("</body>", f"{_HOLD}</body>").encode(), "text/html; charset=utf-8")
                elif path == "/wait":
                    outer.arrived.wait(hold)
                    self.send_error(404)
                else:
                    super().do_GET()

            def _answer(self, content: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self) -> None:
                outer.results = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.arrived.set()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        Handler.extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def browser(address: str, *options: str) -> Iterator[subprocess.Popen]:
    """A headless Chromium that opens an address, with a profile of its own, closed at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={profile}", *options, address]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def ask_page(
    model: Path, photos: Path, task: Mapping[str, Any], page: str = "harness.html", timeout: float = 600
) -> dict[str, Any]:
    """What a page of `tests/web` finds for a task: `photos` (names), `options` (of `suggest`), `repeats` (for timing).

    Raises:
        RuntimeError: The page failed, or did not answer in time.
    """
    server = PageServer(model, photos, task)
    try:
        with browser(f"{server.address}/test/{page}", "--remote-debugging-port=0"):
            if not server.arrived.wait(timeout):
                raise RuntimeError("the page did not answer")
    finally:
        server.close()
    if "error" in server.results:
        raise RuntimeError(server.results["error"])
    return server.results["results"]
