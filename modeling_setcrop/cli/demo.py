"""`setcrop demo`: a page in the browser to try the crops on."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared


def demo(
    model: shared.Model = None,
    device: shared.Device = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
) -> None:
    """Open a page to try SetCrop on: drop an image, see its crops, download them."""
    try:
        from ..integrations.gradio_demo import build_demo
    except ImportError:
        raise shared.fail("setcrop demo: needs Gradio: pip install 'setcrop[demo]'") from None
    try:
        shared.check_address(host, port)
        cropper = shared.load_cropper(model, device)
        build_demo(cropper).launch(server_name=host, server_port=port)
    except (shared.UsageError, OSError) as error:
        raise shared.fail(f"setcrop demo: {error}") from None
