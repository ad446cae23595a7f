"""What the light installation can do, run in it: `python light_example.py PHOTOS`."""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
import sysconfig
from pathlib import Path

from modeling_setcrop import Cropper

photos = sorted(Path(sys.argv[1]).glob("*.jpg"))
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("transformers") is None

answers = Cropper()(photos, aspect_ratio=["16:9", "1:1", "4:5", "9:16"], top_k=1)
for photo, crops in zip(photos, answers, strict=True):
    assert [crop["aspect_ratio"] for crop in crops] == ["16:9", "1:1", "4:5", "9:16"], (photo, crops)

command = Path(sysconfig.get_path("scripts")) / "setcrop"
for arguments in (
    ["suggest", photos[0], "--json"],
    ["score", photos[0], "--box", "10,10,400,300"],
    ["crop", photos[0], "--out", "light-crops"],
):
    subprocess.run([command, *map(str, arguments)], check=True)
most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
assert most < 200e6, f"a command of the light installation takes {most / 1e6:.0f} MB of memory"

size = sum(path.stat().st_size for path in Path(sys.prefix).rglob("*") if path.is_file() and not path.is_symlink())
assert size < 250e6, f"the light installation takes {size / 1e6:.0f} MB"
print(f"the light installation works, takes {size / 1e6:.0f} MB and up to {most / 1e6:.0f} MB of memory")
