"""The demo page in a real browser: an image goes in, crops come out. Skipped without Gradio and Chromium."""

from __future__ import annotations

import json
import shutil
import urllib.request

import pytest
from PIL import Image
from transformers import pipeline

gradio = pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from modeling_setcrop.integrations.gradio_demo import build_demo  # noqa: E402

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1300",
)


@pytest.fixture
def address(tiny_checkpoint):
    page = build_demo(pipeline("image-cropping", model=str(tiny_checkpoint)))
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield url
    page.close()


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_an_uploaded_image_comes_back_with_crops_to_download(address, browser, photos, tmp_path):
    browser.get(address)
    wait = WebDriverWait(browser, 120)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "input[type=file]"))
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(photos[0]))
    links = wait.until(
        lambda page: [
            link.get_attribute("href")
            for link in page.find_elements(By.CSS_SELECTOR, "a[download]")
            if "_1.jpg" in (link.get_attribute("href") or "") or ".json" in (link.get_attribute("href") or "")
        ]
    )
    wait.until(lambda page: "focus point" in page.find_element(By.TAG_NAME, "body").text)
    browser.save_screenshot(str(tmp_path / "demo.png"))
    found = {link.rsplit(".", 1)[-1]: link for link in links}
    with urllib.request.urlopen(found["json"]) as answer:
        crops = json.load(answer)["crops"]
    with urllib.request.urlopen(found["jpg"]) as answer, Image.open(answer) as crop:
        box = crops[0]["box"]
        assert crop.size == (box["xmax"] - box["xmin"], box["ymax"] - box["ymin"])
