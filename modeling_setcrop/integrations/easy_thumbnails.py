"""A processor for easy-thumbnails: `crop="setcrop"` cuts SetCrop's crop of the thumbnail's shape.

THUMBNAIL_PROCESSORS = (
    "modeling_setcrop.integrations.easy_thumbnails.setcrop",
    "easy_thumbnails.processors.colorspace",
    "easy_thumbnails.processors.autocrop",
    "easy_thumbnails.processors.scale_and_crop",
    "easy_thumbnails.processors.filters",
    "easy_thumbnails.processors.background",
)
"""

from __future__ import annotations

from typing import Any

from easy_thumbnails.processors import FrameAware
from PIL import Image

from ..crop_geometry import largest_area
from ..image_reading import decode_image
from .shared_cropper import shared_cropper, without_orientation


def setcrop(im: Image.Image, size: tuple[int, int], crop: Any = False, tight: bool = False, **kwargs: Any) -> Any:
    """Cut an image to the best crop of the thumbnail's aspect ratio, before `scale_and_crop` brings it to size.

    Args:
        im: The source, upright as easy-thumbnails hands it on; every frame of an animation is cut the same.
        size: Width and height of the thumbnail in pixels; with a 0 there is no shape to cut to.
        crop: "setcrop", or the image stays as it is.
        tight: Choose among crops of all sizes rather than among the largest.
        **kwargs: Options of other processors.
    """
    if crop != "setcrop" or not all(size):
        return im
    cropper = shared_cropper()
    # easy-thumbnails has turned the pixels but may have left the tag that says so.
    loaded = decode_image(without_orientation(im), cropper.short_side)
    ratio = int(size[0]) / int(size[1])
    bounds: dict[str, Any] = {} if tight else {"min_area": largest_area(ratio, loaded.size)}
    box = cropper(loaded, aspect_ratio=ratio, top_k=1, **bounds)[0]["box"]
    return FrameAware(im).crop(tuple(box.values()))
