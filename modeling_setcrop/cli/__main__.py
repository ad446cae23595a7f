"""`python -m modeling_setcrop.cli`, the same as `setcrop`."""

from __future__ import annotations

from . import app

app(prog_name="setcrop")
