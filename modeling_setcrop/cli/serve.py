"""`setcrop serve`: crops over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as shared


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    root: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of images that requests may name.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host that images may be fetched from; may be repeated.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest image file.")] = 25_000_000,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest image.")] = 100_000_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 30.0,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; others are answered with 503.")] = 16,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one a processor.")] = None,
    model: shared.Model = None,
) -> None:
    """Serve crops over HTTP: POST an image to /crops for boxes and scores, or to /crop for the best crop itself."""
    try:
        import uvicorn

        from ..integrations.server import ServerSettings, create_app
        from ..integrations.shared_cropper import shared_cropper
    except ImportError:
        raise shared.fail("setcrop serve: needs FastAPI and uvicorn: pip install 'setcrop[serve]'") from None
    limits: dict[str, Any] = {
        "max_bytes": max_bytes,
        "max_pixels": max_pixels,
        "timeout": timeout,
        "queue": queue,
        "model": model,
    }
    if workers is not None:
        limits["workers"] = workers
    # Found out before anybody's request is.
    with shared.failing("serve", shared.UsageError, ValueError, ImportError):
        shared.check_address(host, port)
        shared_cropper(model)
    settings = ServerSettings(root=root, allowed_hosts=tuple(allow_host or ()), **limits)
    # Connections are bounded too: each may hold a body that has not arrived yet.
    app = create_app(settings)
    connections = 4 * app.state.workplace.capacity + 16
    uvicorn.run(
        app, host=host, port=port, limit_concurrency=connections, timeout_graceful_shutdown=30, access_log=False
    )
