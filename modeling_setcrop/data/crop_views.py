"""Training views: a window of an image, boxes of every kind in it, and their ratings, drawn afresh every time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ..crop_geometry import box_iou
from .any_box_rating import CropLabels, cut_shares, mirror_boxes, rate_boxes, window_centre

# Boxes that are rated in every view.
BOXES = 96
# Families of windows that slide along the view (a square one, a slim one, others of random lengths), and how many
# windows each has.
FAMILIES, WINDOWS = 4, 13
# Views other than the whole image: how often, and how far its edges move towards one of the best crops.
_WINDOW_SHARE, _DEEPEST = 0.7, 0.7
_VIEW_RATIOS = (0.5, 2.1)
_JITTER = 0.06
_GRID_BOXES, _JITTERED = 24, 36
# Changes that leave the crops as they are: how much a view is stretched (standard deviation of the log aspect ratio),
# and how often it becomes grey, is blurred or gets noise.
_STRETCH = 0.07
_GREY_SHARE, _BLUR_SHARE, _NOISE_SHARE = 0.05, 0.15, 0.15
# A window that cuts faces off which another of its size keeps is worth this much less (in IoU).
_LOST_FACES = 0.6


@dataclass
class CropView:
    """A view for training; boxes are corners in [0, 1] of the view.

    Attributes:
        image: the view, RGB, at the size that was asked for.
        boxes: (BOXES, 4).
        ratings: (BOXES,), 1..5.
        windows: (FAMILIES, WINDOWS, 4) windows of one size a family, along the view.
        window_fit: (FAMILIES, WINDOWS) IoU of each with where the labels want it.
        family_weight: (FAMILIES,) how much a family counts; 0 where the labels say nothing of it.
        importance: (rows, columns) share of each cell that important subjects cover, in [0, 1].
    """

    image: Image.Image
    boxes: np.ndarray
    ratings: np.ndarray
    windows: np.ndarray
    window_fit: np.ndarray
    family_weight: np.ndarray
    importance: np.ndarray


def good_crops(labels: CropLabels, source: str) -> np.ndarray:
    """Return the crops (K, 4) that a source calls good, best first."""
    if source == "people" and labels.people is not None:
        return np.concatenate([labels.people[None], labels.crops[:2]])
    return labels.crops


def draw_window(labels: CropLabels, source: str, image_ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a window (4,) of the image that contains one of its three best crops; often it is the whole image."""
    whole = np.array([0.0, 0.0, 1.0, 1.0])
    if rng.random() >= _WINDOW_SHARE:
        return whole
    crops = good_crops(labels, source)[:3]
    for _ in range(10):
        crop = crops[rng.integers(len(crops))]
        pull = rng.uniform(0, _DEEPEST, 4) * (rng.random(4) < 0.6)
        window = whole + (crop - whole) * pull
        ratio = image_ratio * (window[2] - window[0]) / (window[3] - window[1])
        if _VIEW_RATIOS[0] < ratio < _VIEW_RATIOS[1]:
            return window
    return whole


def draw_view(
    image: Image.Image,
    labels: CropLabels,
    window: np.ndarray,
    size: tuple[int, int],
    stride: int,
    source: str,
    rng: np.random.Generator,
) -> CropView:
    """Draw the boxes of a view, rate them, mirror the view by chance and change its colours.

    Args:
        image: the whole image, RGB.
        labels: the image's.
        window: (4,) the view, corners in [0, 1] of the image.
        size: width and height of the view in pixels.
        stride: pixels a cell of the importance map.
        source: whose ratings, see [`rate_boxes`].
        rng: the source of randomness.
    """
    width, height = image.size
    box = tuple(window * [width, height, width, height])
    pixels = image.resize(size, Image.Resampling.BILINEAR, box=box)
    offset, scale = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    ratio = width * scale[0] / (height * scale[1])

    crops = (good_crops(labels, source) - offset) / scale
    boxes = _boxes(crops, ratio, rng)
    ratings = rate_boxes(boxes * scale + offset, labels, source)
    windows, fit, weight = _window_families(labels, window, width / height, ratio, rng)
    subjects = (labels.subjects - offset) / scale
    importance = _importance_map(subjects, labels.importance, (size[1] // stride, size[0] // stride))
    if rng.random() < 0.5:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes, windows, importance = mirror_boxes(boxes), mirror_boxes(windows), importance[:, ::-1]
    return CropView(distort(pixels, rng), boxes, ratings, windows, fit, weight, importance)


def distort(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and colour; some images become grey, some are blurred, some get noise."""
    if rng.random() < _GREY_SHARE:
        image = image.convert("L").convert("RGB")
    for enhancer, spread in ((ImageEnhance.Brightness, 0.3), (ImageEnhance.Contrast, 0.3), (ImageEnhance.Color, 0.4)):
        image = enhancer(image).enhance(rng.uniform(1 - spread, 1 + spread))
    if rng.random() < _BLUR_SHARE:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < _NOISE_SHARE:
        noise = rng.normal(0, rng.uniform(2, 10), (image.height, image.width, 1))
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    return image


def stretched(ratio: float, rng: np.random.Generator) -> float:
    """Return an aspect ratio near the given one, at which a view is drawn."""
    return ratio * math.exp(rng.normal(0, _STRETCH))


def grid_boxes(image_ratio: float) -> np.ndarray:
    """Return the candidate crops (M, 4) of grid-anchor cropping (Zeng et al., 2019) for an aspect ratio."""
    lines = (np.arange(12) + 0.5) / 12
    x1, y1, x2, y2 = (axis.ravel() for axis in np.meshgrid(lines[:4], lines[:4], lines[-4:], lines[-4:]))
    ratio = (x2 - x1) * image_ratio / (y2 - y1)
    keep = ((x2 - x1) * (y2 - y1) > 0.5 - 1e-9) & (ratio >= 0.5) & (ratio <= 2)
    boxes = np.stack([x1, y1, x2, y2], axis=1)[keep]
    return boxes if len(boxes) else np.array([[0.0, 0.0, 1.0, 1.0]])


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes (count, 4) of any place, size and shape."""
    area, stretch = rng.uniform(0.1, 1, count), rng.normal(0, 0.35, count)
    width = np.clip(np.sqrt(area) * np.exp(stretch), 0.2, 1)
    height = np.clip(np.sqrt(area) * np.exp(-stretch), 0.2, 1)
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return np.stack([x, y, x + width, y + height], axis=1)


def _boxes(crops: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Boxes (BOXES, 4) to rate: the crops, jitter around them, the whole view, some of the grid, and random ones."""
    inside = crops[((crops >= -0.02) & (crops <= 1.02)).all(axis=1)].clip(0, 1)
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    around = inside if len(inside) else whole
    spread = rng.choice([_JITTER / 2, _JITTER, 2 * _JITTER], size=(_JITTERED, 1))
    jittered = around[rng.integers(len(around), size=_JITTERED)] + rng.normal(0, 1, (_JITTERED, 4)) * spread
    jittered = jittered.clip(0, 1)
    jittered = jittered[((jittered[:, 2:] - jittered[:, :2]) > 0.15).all(axis=1)]
    grid = grid_boxes(ratio)
    grid = grid[rng.permutation(len(grid))[:_GRID_BOXES]]
    return np.concatenate([inside, whole, jittered, grid, random_boxes(BOXES, rng)])[:BOXES]


def _window_families(
    labels: CropLabels, window: np.ndarray, image_ratio: float, ratio: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows that slide along the view's long side: a square one, a slim one, and one of a random length."""
    windows, fit = np.tile([0.0, 0.0, 1.0, 1.0], (FAMILIES, WINDOWS, 1)), np.zeros((FAMILIES, WINDOWS))
    weight = np.zeros(FAMILIES)
    axis = 0 if image_ratio >= 1 else 1
    if labels.square is None or (ratio >= 1) != (image_ratio >= 1):
        return windows, fit, weight
    long = max(ratio, 1 / ratio)
    start, size = window[axis], window[2 + axis] - window[axis]
    offset, scale = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    random_lengths = np.exp(rng.uniform(np.log(0.2), np.log(0.9), FAMILIES - 2))
    lengths = (1 / long, 9 / 16 / long, *random_lengths)
    for family, length in enumerate(lengths):
        if length > 0.95:
            continue
        centre = (window_centre(length * size, image_ratio, labels) - start) / size
        # Too much of where the window belongs lies outside the view.
        if not length / 2 - 0.05 < centre < 1 - length / 2 + 0.05:
            continue
        centre = min(max(centre, length / 2), 1 - length / 2)
        low = np.linspace(0, 1 - length, WINDOWS)
        if family >= 2:
            low = np.sort(rng.uniform(0, 1 - length, WINDOWS))
            low[rng.integers(WINDOWS)] = centre - length / 2
        windows[family, :, axis], windows[family, :, 2 + axis] = low, low + length
        wanted = np.array([[0.0, 0.0, 1.0, 1.0]])
        wanted[0, axis], wanted[0, 2 + axis] = centre - length / 2, centre + length / 2
        fit[family] = box_iou(wanted, windows[family])[0]
        if len(labels.faces):
            cut = cut_shares((labels.faces - offset) / scale, windows[family]).sum(0)
            fit[family] -= _LOST_FACES * (cut - cut.min()).clip(0, 1)
        if fit[family].max() - fit[family].min() > 0.05:
            weight[family] = 1.0 if size > 0.999 else 0.5
    return windows, fit, weight


def _importance_map(subjects: np.ndarray, importance: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return importance (rows, columns): each cell has the largest of the subjects', by the share that they cover."""
    result = np.zeros(shape)
    covered = [
        (
            np.minimum(subjects[:, 2 + axis, None], np.arange(1, n + 1) / n)
            - np.maximum(subjects[:, axis, None], np.arange(n) / n)
        ).clip(0)
        * n
        for axis, n in ((0, shape[1]), (1, shape[0]))
    ]
    for across, down, value in zip(*covered, importance, strict=True):
        result = np.maximum(result, value * down[:, None] * across[None])
    return result
