"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the research data sets' files; the tests that need them are skipped where it is absent."""
    folder = Path(os.environ.get("SETCROP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder} (set SETCROP_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The six photographs that ship with the repository."""
    return sorted((ROOT / "examples" / "photos").glob("*.jpg"))
