"""Takes `demo.jpg`: the page of `setcrop demo` in headless Chromium, with one of the example images.

pip install -c constraints.txt -e ".[demo]" selenium && python docs/demo_screenshot.py
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from modeling_setcrop.cli.options import load_cropper
from modeling_setcrop.integrations.gradio_demo import build_demo

DOCS = Path(__file__).parent
PHOTO = DOCS.parent / "examples" / "photos" / "kitten-on-lawn.jpg"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1400,1250")


def main() -> None:
    page = build_demo(load_cropper(None, "cpu"))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            browser.get(address)
            wait = WebDriverWait(browser, 300)
            wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "input[type=file]"))
            browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(PHOTO))
            wait.until(lambda page: "focus point" in page.find_element(By.TAG_NAME, "body").text)
            drawn = "return [...document.images].length >= 2 && [...document.images].every(i => i.complete)"
            wait.until(lambda page: page.execute_script(drawn))
            shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        finally:
            browser.quit()
            page.close()
    shot.save(DOCS / "demo.jpg", quality=85)


if __name__ == "__main__":
    main()
