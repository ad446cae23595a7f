"""The soak test at small size: `python tests/soak.py` is the full one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills and limits the Linux way")


def test_runs_that_are_killed_starved_and_doubled_end_with_every_crop_whole_and_every_file_named(tmp_path):
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
    soak = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = soak
    spec.loader.exec_module(soak)
    figures = soak.soak(tmp_path, 60, False, [], [8], 20_000)
    assert figures["inputs"] >= 60 and figures["crops"] > 30
    assert {"a pipe, not an image file", "a socket, not an image file", "empty file"} <= set(figures["reasons"])
    assert any("second run beside it: status 1" in line for line in figures["log"])
