"""The one cropper of a process in which many requests want crops."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from .. import Cropper

_lock = threading.Lock()
_croppers: dict[str, Cropper] = {}


def shared_cropper(model: str | None = None) -> Cropper:
    """Return the process's cropper, loaded when it is first asked for; it may be called from several threads.

    Args:
        model: Checkpoint folder or name on the Hub; None for what the environment variable SETCROP_MODEL names, or the
            one that comes with SetCrop.
    """
    from .. import DEFAULT_CHECKPOINT, Cropper

    name = model or os.environ.get("SETCROP_MODEL") or DEFAULT_CHECKPOINT
    with _lock:
        if name not in _croppers:
            _croppers[name] = Cropper(name)
        return _croppers[name]


def without_orientation(image: Image.Image) -> Image.Image:
    """Return a copy of an image that says nothing of which way is up, for images that were turned already."""
    copy = image.copy()
    copy.info = {key: value for key, value in copy.info.items() if key == "transparency"}
    copy.getexif().clear()
    return copy
