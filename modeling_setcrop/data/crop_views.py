"""Training views: a window of an image, boxes of every kind in it, and their ratings, drawn afresh every time.

`ViewChoices` says which view of each image an epoch shows, `draw_view` draws it, `ViewLabels` is what is known of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ..crop_geometry import box_iou, cut_shares, gaic_grid
from .any_box_rating import CropLabels, mirror_boxes, rate_boxes, window_centre, windows_at

# Boxes that are rated in every view.
BOXES = 96
# Families of windows that slide along the view (a square one, a slim one, others of random lengths), and how many
# windows each has.
FAMILIES, WINDOWS = 4, 13
# Longer ones hardly move.
LONGEST_WINDOW = 0.95
# Views other than the whole image: how often, and how far its edges move towards one of the best crops.
_WINDOW_SHARE, _DEEPEST = 0.7, 0.7
_VIEW_RATIOS = (0.5, 2.1)
_JITTER = 0.06
_GRID_BOXES, _JITTERED = 24, 36
# How often an image with a crop that people made is labelled with it, where there are editors' crops as well.
_PEOPLE_SHARE = 0.6
# Changes that leave the crops as they are: how much a view is stretched (standard deviation of the log aspect ratio),
# and how often it becomes grey, is blurred or gets noise.
_STRETCH = 0.07
_GREY_SHARE, _BLUR_SHARE, _NOISE_SHARE = 0.05, 0.15, 0.15
# A window that cuts faces off which another of its size keeps is worth this much less (in IoU).
_LOST_FACES = 0.6


_WHOLE = np.array([0.0, 0.0, 1.0, 1.0])


@dataclass(frozen=True)
class ViewLabels:
    """What is known of a view of an image; boxes are corners in [0, 1] of the view.

    Attributes:
        image: the whole image's labels.
        source: whose crops and ratings, see [`rate_boxes`].
        window: (4,) the view, corners in [0, 1] of the image.
        mirrored: whether the view is mirrored left to right.
    """

    image: CropLabels
    source: str
    window: np.ndarray
    mirrored: bool = False

    def in_view(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (K, 4) of the image in coordinates of the view, where they may lie outside [0, 1]."""
        boxes = (boxes - np.tile(self.window[:2], 2)) / np.tile(self.window[2:] - self.window[:2], 2)
        return mirror_boxes(boxes) if self.mirrored else boxes

    def good_crops(self) -> np.ndarray:
        """Return the crops (K, 4) of the source that the view contains; where it contains none, the whole view."""
        crops = self.image.crops
        if self.source == "people" and self.image.people is not None:
            crops = self.image.people[None]
        inside = _inside(self.in_view(crops))
        return inside if len(inside) else _WHOLE[None]

    def rate_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Rate boxes (M, 4) of the view, 1..5, as those of the whole image are rated."""
        boxes = mirror_boxes(boxes) if self.mirrored else boxes
        offset, scale = np.tile(self.window[:2], 2), np.tile(self.window[2:] - self.window[:2], 2)
        return rate_boxes(boxes * scale + offset, self.image, self.source)

    def importance_map(self, shape: tuple[int, int]) -> np.ndarray:
        """Return a map (rows, columns), in [0, 1]: the largest importance in each cell by the share it covers."""
        subjects = ViewLabels(self.image, self.source, self.window).in_view(self.image.subjects)
        importance = _importance_map(subjects, self.image.importance, shape)
        return importance[:, ::-1] if self.mirrored else importance


@dataclass
class CropView:
    """A view for training; boxes are corners in [0, 1] of the view.

    Attributes:
        image: the view, RGB, at the size that was asked for.
        labels: what is known of it.
        boxes: (BOXES, 4).
        ratings: (BOXES,), 1..5.
        windows: (FAMILIES, WINDOWS, 4) windows of one size a family, along the view.
        window_fit: (FAMILIES, WINDOWS) IoU of each with where the labels want it.
        family_weight: (FAMILIES,) how much a family counts; 0 where the labels say nothing of it.
    """

    image: Image.Image
    labels: ViewLabels
    boxes: np.ndarray
    ratings: np.ndarray
    windows: np.ndarray
    window_fit: np.ndarray
    family_weight: np.ndarray


def draw_source(labels: CropLabels, rng: np.random.Generator) -> str:
    """Draw whose crops an image is labelled with: "people" or "editors", whichever it has."""
    if labels.people is None:
        return "editors"
    return "people" if not len(labels.crops) or rng.random() < _PEOPLE_SHARE else "editors"


def good_crops(labels: CropLabels, source: str) -> np.ndarray:
    """Return the crops (K, 4) that a source calls good, best first."""
    if source == "people" and labels.people is not None:
        return np.concatenate([labels.people[None], labels.crops[:2]])
    return labels.crops


def draw_window(labels: CropLabels, source: str, image_ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a window (4,) of the image that contains one of its three best crops; often it is the whole image."""
    if rng.random() >= _WINDOW_SHARE:
        return _WHOLE
    crops = good_crops(labels, source)[:3]
    for _ in range(10):
        crop = crops[rng.integers(len(crops))]
        pull = rng.uniform(0, _DEEPEST, 4) * (rng.random(4) < 0.6)
        window = _WHOLE + (crop - _WHOLE) * pull
        ratio = image_ratio * (window[2] - window[0]) / (window[3] - window[1])
        if _VIEW_RATIOS[0] < ratio < _VIEW_RATIOS[1]:
            return window
    return _WHOLE


@dataclass(frozen=True)
class ViewChoice:
    """Which view of an image an epoch shows.

    Attributes:
        window: (4,) corners in [0, 1] of the image.
        source: whose crops and ratings label it.
        height, width: of the window in pixels of the image; the width is stretched a little.
    """

    window: tuple[float, float, float, float]
    source: str
    height: float
    width: float


class ViewChoices:
    """The views that training shows of a data set's images: a function of the seed, the epoch and the image's row.

    Args:
        labels: of each image.
        heights, widths: (N,) sizes of the images in pixels.
        seed: of all choices.
    """

    def __init__(
        self, labels: Sequence[CropLabels], heights: Sequence[int], widths: Sequence[int], seed: int = 0
    ) -> None:
        self.labels, self.heights, self.widths, self.seed = labels, heights, widths, seed

    def __len__(self) -> int:
        return len(self.labels)

    def choose(self, epoch: int, index: int) -> ViewChoice:
        """Choose the view of one image in an epoch: it contains one of the best crops of whoever labels it."""
        labels, height, width = self.labels[index], self.heights[index], self.widths[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        source = draw_source(labels, rng)
        window = draw_window(labels, source, width / height, rng)
        if source == "people" and labels.people is not None:
            # People made one crop, which the window may have been drawn around another than.
            window = np.concatenate(
                [np.minimum(window[:2], labels.people[:2]), np.maximum(window[2:], labels.people[2:])]
            )
        across, down = window[2:] - window[:2]
        return ViewChoice(tuple(window.tolist()), source, float(height * down), float(stretched(width * across, rng)))


def draw_view(
    image: Image.Image,
    labels: CropLabels,
    window: np.ndarray,
    size: tuple[int, int],
    source: str,
    rng: np.random.Generator,
    augment: bool = True,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> CropView:
    """Draw the boxes of a view, rate them, mirror the view by chance and change its colours.

    Args:
        image: the whole image, RGB.
        labels: the image's.
        window: (4,) the view, corners in [0, 1] of the image.
        size: width and height of the view in pixels.
        source: whose ratings, see [`rate_boxes`].
        rng: the source of randomness.
        augment: mirror half of the views and change their colours; without, the view is the window as it is.
        resample: the filter by which the view is resized.
    """
    width, height = image.size
    box = tuple(window * [width, height, width, height])
    pixels = image.resize(size, resample, box=box)
    scale = window[2:] - window[:2]
    ratio = width * scale[0] / (height * scale[1])

    view = ViewLabels(labels, source, window)
    boxes = _boxes(view.in_view(good_crops(labels, source)), ratio, rng)
    ratings = view.rate_boxes(boxes)
    windows, fit, weight = _window_families(labels, window, width / height, ratio, rng)
    if augment and rng.random() < 0.5:
        view = replace(view, mirrored=True)
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes, windows = mirror_boxes(boxes), mirror_boxes(windows)
    pixels = distort(pixels, rng) if augment else pixels
    return CropView(pixels, view, boxes, ratings, windows, fit, weight)


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
    grid = gaic_grid()
    ratio = (grid[:, 2] - grid[:, 0]) * image_ratio / (grid[:, 3] - grid[:, 1])
    boxes = grid[(ratio >= 0.5) & (ratio <= 2)]
    return boxes if len(boxes) else np.array([[0.0, 0.0, 1.0, 1.0]])


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes (count, 4) of any place, size and shape."""
    area, stretch = rng.uniform(0.1, 1, count), rng.normal(0, 0.35, count)
    width = np.clip(np.sqrt(area) * np.exp(stretch), 0.2, 1)
    height = np.clip(np.sqrt(area) * np.exp(-stretch), 0.2, 1)
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return np.stack([x, y, x + width, y + height], axis=1)


def family_lengths(ratio: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Return the lengths (FAMILIES,) of the windows along a view's long side: a square, a slim one, random ones."""
    long = max(ratio, 1 / ratio)
    return 1 / long, 9 / 16 / long, *np.exp(rng.uniform(np.log(0.2), np.log(0.9), FAMILIES - 2)).tolist()


def _boxes(crops: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Boxes (BOXES, 4) to rate: the crops, jitter around them, the whole view, some of the grid, and random ones."""
    inside = _inside(crops)
    around = inside if len(inside) else _WHOLE[None]
    spread = rng.choice([_JITTER / 2, _JITTER, 2 * _JITTER], size=(_JITTERED, 1))
    jittered = around[rng.integers(len(around), size=_JITTERED)] + rng.normal(0, 1, (_JITTERED, 4)) * spread
    jittered = jittered.clip(0, 1)
    jittered = jittered[((jittered[:, 2:] - jittered[:, :2]) > 0.15).all(axis=1)]
    grid = grid_boxes(ratio)
    grid = grid[rng.permutation(len(grid))[:_GRID_BOXES]]
    return np.concatenate([inside, _WHOLE[None], jittered, grid, random_boxes(BOXES, rng)])[:BOXES]


def _inside(crops: np.ndarray) -> np.ndarray:
    """Return those of the crops (K, 4) that lie in the view, clipped to it: rounding may put an edge outside."""
    return crops[((crops >= -0.02) & (crops <= 1.02)).all(axis=1)].clip(0, 1)


def _window_families(
    labels: CropLabels, window: np.ndarray, image_ratio: float, ratio: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows that slide along the view's long side: a square one, a slim one, and one of a random length."""
    windows, fit = np.tile([0.0, 0.0, 1.0, 1.0], (FAMILIES, WINDOWS, 1)), np.zeros((FAMILIES, WINDOWS))
    weight = np.zeros(FAMILIES)
    axis = 0 if image_ratio >= 1 else 1
    if labels.square is None or (ratio >= 1) != (image_ratio >= 1):
        return windows, fit, weight
    start, size = window[axis], window[2 + axis] - window[axis]
    offset, scale = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    for family, length in enumerate(family_lengths(ratio, rng)):
        if length > LONGEST_WINDOW:
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
        windows[family] = windows_at(low, length, axis)
        fit[family] = box_iou(windows_at(np.array([centre - length / 2]), length, axis), windows[family])[0]
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
