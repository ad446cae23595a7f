"""A plug-in for Willow: `detect_features` answers with the crop that holds what must not be cut.

    from willow.registry import registry
    from modeling_setcrop.integrations import willow
    registry.register_plugin(willow)

For Wagtail this is done by the application `modeling_setcrop.integrations.wagtail.SetCropConfig`.
"""

from __future__ import annotations

from willow.plugins.pillow import PillowImage

from ..image_reading import decode_image
from ..images.writing import stored_box
from .shared_cropper import shared_cropper

# The largest share of an image that its focal content may be: Wagtail makes it a fifth larger on both axes, and then a
# rendition of 2:3 of an image of 3:2 can still hold it.
_MOST = 1 / 6


def detect_features(image: PillowImage) -> list[tuple[int, int]]:
    """Return the upper left and the lower right corner of the best small square crop with the focus point.

    Like Willow's own, they are pixels of the image as it is stored; the crop is at most a sixth of it.
    """
    cropper = shared_cropper()
    loaded = decode_image(image.image, cropper.short_side)
    height, width = loaded.size
    focus = cropper(loaded, top_k=1, details=True)["focus_point"]
    point = (focus["x"] * width, focus["y"] * height)
    box = cropper(loaded, top_k=1, aspect_ratio="square", max_area=_MOST, keep=[point])[0]["box"]
    left, top, right, bottom = stored_box(tuple(box.values()), loaded.size, image.image)
    return [(left, top), (right, bottom)]


def detect_no_faces(image: PillowImage) -> list[tuple[int, int, int, int]]:
    """Return no faces, so that Wagtail, which asks for faces first, takes the features for its focal point."""
    return []


willow_operations = [
    (PillowImage, "detect_features", detect_features),
    (PillowImage, "detect_faces", detect_no_faces),
]
"""What `registry.register_plugin` reads."""
