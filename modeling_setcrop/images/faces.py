"""Faces, found by OpenCV's own detector, as content to keep."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np

from ..image_reading import LoadedImage

# Detection runs on a copy with this long side, in pixels: smaller faces decide no crop.
_SIDE = 640
_SCALE_STEP, _NEIGHBOURS, _LEAST = 1.1, 3, 24
_CASCADE = "haarcascade_frontalface_alt2.xml"
_threads = threading.local()


class FacesUnavailable(ImportError):
    """OpenCV is missing, or a version without the detector; the message says what to install."""


@cache
def _cascade_file() -> str:
    try:
        import cv2
    except ImportError:
        raise FacesUnavailable("faces need OpenCV 4: pip install 'setcrop[faces]'") from None
    if not hasattr(cv2, "CascadeClassifier"):
        raise FacesUnavailable(f"OpenCV {cv2.__version__} has no face detector: pip install 'setcrop[faces]'")
    return cv2.data.haarcascades + _CASCADE


def check_faces() -> None:
    """Raise FacesUnavailable where faces cannot be found."""
    _cascade_file()


def find_faces(loaded: LoadedImage) -> list[tuple[float, float, float, float]]:
    """Return the boxes x1, y1, x2, y2 of faces seen from the front, in pixels of the whole image, largest first.

    Raises:
        FacesUnavailable: OpenCV is missing, or has no detector.
    """
    path = _cascade_file()
    import cv2

    # A classifier must not be used by two threads at once.
    detector: Any = getattr(_threads, "detector", None)
    if detector is None:
        detector = _threads.detector = cv2.CascadeClassifier(path)
    image = loaded.image.convert("L")
    image.thumbnail((_SIDE, _SIDE))
    found = detector.detectMultiScale(np.asarray(image), _SCALE_STEP, _NEIGHBOURS, minSize=(_LEAST, _LEAST))
    x, y, x2, y2 = loaded.inside or (0, 0, loaded.size[1], loaded.size[0])
    across, down = (x2 - x) / image.width, (y2 - y) / image.height
    boxes = [(x + a * across, y + b * down, x + (a + w) * across, y + (b + h) * down) for a, b, w, h in found]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
