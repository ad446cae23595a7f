"""Training augmentation: the paper's photometric distortion (section 4.3), mirroring, and jitter of rated crops."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE_DEGREES = 18.0
# An edge of a rated crop moves by up to this share of the image's side, and the crop stays where it would overlap
# itself by less than this IoU, so that its rating may stand.
JITTER = 0.015
JITTER_IOU = 0.9

_LEVELS = np.arange(256, dtype=np.float64)


def mirror(image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Mirror an image left to right, and its boxes with it.

    Args:
        image: the image, of any mode.
        boxes: (S, 4) corners x1, y1, x2, y2 in pixels of `image`.

    Returns:
        The mirrored image and the (S, 4) boxes in it: x becomes width - x, and the two x change places.
    """
    mirrored = boxes.copy()
    mirrored[:, 0] = image.width - boxes[:, 2]
    mirrored[:, 2] = image.width - boxes[:, 0]
    return ImageOps.mirror(image), mirrored


def jitter(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the edges of rated crops a little, so that the scoring head sees more places than the labels' grid.

    Args:
        boxes: (S, 4) corners x1, y1, x2, y2, normalised to [0, 1].
        rng: the source of randomness; the same state gives the same result.

    Returns:
        (S, 4) boxes in [0, 1], each overlapping its original by an IoU of at least 0.9.
    """
    moved = (boxes + rng.uniform(-JITTER, JITTER, boxes.shape)).clip(0, 1).astype(boxes.dtype)
    shared = np.minimum(boxes, moved)[:, 2:] - np.maximum(boxes, moved)[:, :2]
    # A move can turn a small box inside out; then it has no area.
    areas = [np.prod((corners[:, 2:] - corners[:, :2]).clip(min=0), axis=1) for corners in (boxes, moved)]
    intersection = np.prod(shared.clip(min=0), axis=1)
    near = intersection >= JITTER_IOU * (areas[0] + areas[1] - intersection)
    return np.where(near[:, None], moved, boxes)


def _lookup(levels: np.ndarray) -> list[int]:
    return np.clip(np.rint(levels), 0, 255).astype(int).tolist()


def _brightness_contrast(image: Image.Image, shift: float, factor: float) -> Image.Image:
    return image.point(_lookup((_LEVELS + shift) * factor) * 3)


def _saturation_hue(image: Image.Image, factor: float, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point(np.mod(np.rint(_LEVELS + shift * 256 / 360), 256).astype(int).tolist())
    saturation = saturation.point(_lookup(_LEVELS * factor))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def photometric_distortion(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue at random, each with probability one half.

    Brightness moves by up to 32 of 255 levels, contrast and saturation are scaled by 0.5 to 1.5 and hue turns by up
    to 18 degrees. Contrast comes before or after saturation and hue, with equal chance (the distortion of SSD, which
    the paper uses). The image stays 8-bit: everything is done by look-up tables.

    Args:
        image: an RGB image.
        rng: the source of randomness; the same state gives the same result.

    Returns:
        An RGB image of the same size.
    """
    use = rng.random(5) < 0.5
    shift = rng.uniform(-BRIGHTNESS, BRIGHTNESS) if use[0] else 0.0
    contrast = rng.uniform(*CONTRAST) if use[1] else 1.0
    saturation = rng.uniform(*SATURATION) if use[2] else 1.0
    hue = rng.uniform(-HUE_DEGREES, HUE_DEGREES) if use[3] else 0.0
    contrast_first = bool(use[4])
    if use[0] or (use[1] and contrast_first):
        image = _brightness_contrast(image, shift, contrast if contrast_first else 1.0)
    if use[2] or use[3]:
        image = _saturation_hue(image, saturation, hue)
    if use[1] and not contrast_first:
        image = _brightness_contrast(image, 0.0, contrast)
    return image
