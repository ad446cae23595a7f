"""`python -m modeling_setcrop` is the `setcrop` command."""

from .cli import app

app(prog_name="setcrop")
