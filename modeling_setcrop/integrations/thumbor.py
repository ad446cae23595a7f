"""A detector for thumbor: smart crops are SetCrop's.

    DETECTORS = ['modeling_setcrop.integrations.thumbor']

in thumbor.conf. A smart request for a width and a height gets the best crop of that aspect ratio among the largest
that the image holds; with `SETCROP_TIGHT = True` the best of all sizes, which may leave more of the image out.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from PIL import Image
from thumbor.config import Config
from thumbor.detectors import BaseDetector
from thumbor.utils import logger

from ..crop_geometry import largest_area
from ..image_reading import decode_image, orientation
from .shared_cropper import shared_cropper, without_orientation

Config.define("SETCROP_TIGHT", False, "Let SetCrop leave out more than the aspect ratio asks for.", "SetCrop")
Config.define("SETCROP_MODEL", None, "Checkpoint folder or Hub name of SetCrop's model, if not its own.", "SetCrop")

# Requests wait here instead of each starting threads of its own.
_executor = ThreadPoolExecutor(os.cpu_count() or 1, "setcrop")


class Detector(BaseDetector):
    """Sets the crop of a smart request; where there is nothing to choose, the next detector is asked."""

    async def detect(self) -> list[dict[str, Any]] | None:
        """Set the request's crop.

        The crop is set rather than a focal point returned: thumbor keeps focal points for every later request for the
        same image, and the best place depends on the aspect ratio.
        """
        request = self.context.request
        target = self._target_size()
        if target is None:
            return await self.next()
        image = _undecoded(request.engine.image)
        region = _region(request, image.size)
        loop = asyncio.get_running_loop()
        tight, model = self.context.config.SETCROP_TIGHT, self.context.config.SETCROP_MODEL
        try:
            box = await loop.run_in_executor(_executor, _choose, image, region, target, tight, model)
        except (OSError, ValueError) as error:
            logger.warning("SetCrop cannot crop %s: %s", request.image_url, error)
            return await self.next()
        request.crop = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
        request.should_crop = True
        return []

    def _target_size(self) -> tuple[int, int] | None:
        """Width and height that the request asks for; None where its shape is the image's own."""
        request, (width, height) = self.context.request, self.context.request.engine.size
        if request.fit_in or request.stretch or not (request.width and request.height):
            return None
        across = width if request.width == "orig" else int(request.width)
        down = height if request.height == "orig" else int(request.height)
        return across, down


def _undecoded(image: Image.Image) -> Image.Image:
    """Return the engine's image to read from, without turning it: where thumbor turns images it has done so already.

    One that is not decoded yet is opened anew, so that decoding it at reduced scale leaves the engine's own alone.
    """
    source = getattr(image, "fp", None)
    if isinstance(source, BytesIO) and orientation(image) is None:
        return Image.open(BytesIO(source.getbuffer()))
    return without_orientation(image)


def _region(request: Any, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the part of the image that the address itself has cut; None for the whole."""
    if not request.should_crop:
        return None
    left, right = (min(max(int(request.crop[edge]), 0), size[0]) for edge in ("left", "right"))
    top, bottom = (min(max(int(request.crop[edge]), 0), size[1]) for edge in ("top", "bottom"))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _choose(
    image: Image.Image,
    region: tuple[int, int, int, int] | None,
    target: tuple[int, int],
    tight: bool,
    model: str | None,
) -> tuple[int, int, int, int]:
    """Return the crop, left, top, right and bottom in pixels of the engine's image."""
    cropper = shared_cropper(model)
    image = image if region is None else image.crop(region)
    loaded = decode_image(image, cropper.short_side, draft=region is None)
    ratio = target[0] / target[1]
    options: dict[str, Any] = {} if tight else {"min_area": largest_area(ratio, loaded.size)}
    box = cropper(loaded, aspect_ratio=ratio, top_k=1, **options)[0]["box"]
    x, y = (0, 0) if region is None else region[:2]
    return box["xmin"] + x, box["ymin"] + y, box["xmax"] + x, box["ymax"] + y
