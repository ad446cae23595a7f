"""Draw docs/web.jpg, the page that crops in the browser, as a headless Chromium shows it.

    PYTHONPATH=tests python docs/web_screenshot.py

Needs Chromium and onnxruntime-web (npm install --ignore-scripts --prefix tests/web).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from browser import PageServer, browser, what_is_missing
from PIL import Image

from modeling_setcrop import DEFAULT_CHECKPOINT

ROOT = Path(__file__).resolve().parents[1]
PHOTO, RATIO, SECONDS = "perched-osprey.jpg", "4:5", 30


def main() -> None:
    missing = what_is_missing()
    if missing:
        sys.exit(missing)
    server = PageServer(Path(DEFAULT_CHECKPOINT), ROOT / "examples" / "photos", hold=SECONDS)
    query = f"photo=/photos/{PHOTO}&ratio={RATIO}&onnxruntime=/ort/ort.wasm.min.mjs&setcrop-model=/model/"
    with tempfile.TemporaryDirectory() as work:
        shot = Path(work, "page.png")
        options = (f"--screenshot={shot}", "--window-size=1180,900", "--hide-scrollbars")
        with browser(f"{server.address}/held.html?{query}", *options) as process:
            process.wait(timeout=SECONDS + 120)
        with Image.open(shot) as image:
            image.convert("RGB").save(ROOT / "docs" / "web.jpg", quality=88)
    server.close()
    print(ROOT / "docs" / "web.jpg")


if __name__ == "__main__":
    main()
