"""Answers that do not look at the image, or hardly: what every figure of a model has to be read beside."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ..metrics import best_rated, pairwise_iou
from .labels import Labels, Predictions

# Corners of constant boxes lie on multiples of a twenty-fourth: GAIC's grid has its corners on the odd ones.
LATTICE = 24
_POOL_CHUNK = 1024
# Enough training images to choose constant boxes by; more are sampled.
_FITTING_IMAGES = 4000
# Weight, in crops, of the overall mean score in the mean score of a place.
_PRIOR_CROPS = 5
# Saliency is a matter of regions; a long side of this many pixels keeps smartcrop's cost down.
_SALIENCY_SIDE = 512


def constant(boxes: np.ndarray, scores: np.ndarray, images: int) -> Predictions:
    """Return the same (N, 4) boxes with the same (N,) scores for every image."""
    return Predictions([boxes] * images, [scores] * images)


def whole_image(images: int) -> Predictions:
    """Return the uncropped image."""
    return constant(np.array([[0.0, 0.0, 1.0, 1.0]]), np.ones(1), images)


def centre_crop(images: int, scale: float) -> Predictions:
    """Return the middle of the image, `scale` of its width and height."""
    margin = (1 - scale) / 2
    return constant(np.array([[margin, margin, 1 - margin, 1 - margin]]), np.ones(1), images)


def cover_set(train: Labels, eps: float, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return the constant set that greedy cover fits for ACC_{1/N}(eps).

    Each box in turn is the one on the lattice that meets, with IoU >= eps, most of the training images whose
    best-rated crop no earlier box meets. Where crops have no scores, every good crop counts for its share of its
    image.

    Returns:
        (count, 4) boxes, (count,) scores that fall in the order of choice.
    """
    targets, weights = _targets(train)
    pool = _lattice()
    meets = np.concatenate([pairwise_iou(part, targets) >= eps for part in _chunks(pool)])
    unmet = np.ones(len(targets), bool)
    chosen = []
    for _ in range(count):
        gains = meets[:, unmet] @ weights[unmet].astype(np.float32)
        chosen.append(int(gains.argmax()))
        unmet &= ~meets[chosen[-1]]
    return pool[chosen], 1 - np.arange(count) / count


def best_box(train: Labels) -> np.ndarray:
    """(4,) the constant box on the lattice with the highest mean IoU with the training images' best-rated crops."""
    targets, weights = _targets(train)
    pool = _lattice()
    return pool[np.concatenate([pairwise_iou(part, targets) @ weights for part in _chunks(pool)]).argmax()]


def frequent_set(train: Labels, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Return the constant set for AP: the lattice's boxes that are good most often in the training images.

    Returns:
        (up to count, 4) boxes, and as scores the share of images in which each is good.
    """
    places, place = _places(np.concatenate(train.boxes))
    image = np.repeat(np.arange(len(train)), [len(crops) for crops in train.boxes])
    good = np.concatenate(train.good)
    # An image counts once for a place, whatever number of its good crops are there.
    pairs = np.unique(image[good] * len(places) + place[good])
    counts = np.bincount(pairs % len(places), minlength=len(places))
    order = np.argsort(-counts, kind="stable")[: min(count, np.count_nonzero(counts))]
    return places[order], counts[order] / len(train)


def mean_score_set(train: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Every box of the lattice that training images have a crop at, scored by its mean rating there.

    Rank given crops without looking at the image: each takes the mean score of the place that it overlaps most.

    Raises:
        ValueError: the training labels have no scores.
    """
    if train.scores is None:
        raise ValueError("the training labels have no scores")
    scores = np.concatenate(train.scores).astype(np.float64)
    places, place = _places(np.concatenate(train.boxes))
    counts = np.bincount(place)
    # A place that few images have would have an accidental mean: it is drawn to the overall one.
    return places, (np.bincount(place, weights=scores) + scores.mean() * _PRIOR_CROPS) / (counts + _PRIOR_CROPS)


def saliency_croppers() -> dict[str, Callable[[Dataset, float], Predictions]]:
    """Return the image-dependent classics whose packages are installed, by name: libvips' attention and smartcrop."""
    croppers: dict[str, Callable[[Any, float], Predictions]] = {}
    if importlib.util.find_spec("pyvips"):
        croppers["libvips attention"] = libvips_attention
    if importlib.util.find_spec("smartcrop"):
        croppers["smartcrop"] = smartcrop
    return croppers


def libvips_attention(dataset: Dataset, scale: float) -> Predictions:
    """libvips' attention strategy, asked for `scale` of the image's width and height."""
    import pyvips

    def crop(image: Image.Image) -> tuple[float, float, float, float]:
        width, height = round(image.width * scale), round(image.height * scale)
        found = pyvips.Image.new_from_array(np.asarray(image)).smartcrop(width, height, interesting="attention")
        left, top = -found.xoffset, -found.yoffset
        return left, top, left + found.width, top + found.height

    return _crop_each(dataset, crop)


def smartcrop(dataset: Dataset, scale: float) -> Predictions:
    """smartcrop.py, asked for `scale` of the image's width and height."""
    from smartcrop import SmartCrop

    cropper = SmartCrop()

    def crop(image: Image.Image) -> tuple[float, float, float, float]:
        width, height = round(image.width * scale), round(image.height * scale)
        found = cropper.crop(image, width, height, min_scale=scale, max_scale=scale)["top_crop"]
        return found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"]

    return _crop_each(dataset, crop)


def _crop_each(dataset: Dataset, crop: Callable[[Image.Image], tuple[float, float, float, float]]) -> Predictions:
    boxes = []
    for row in dataset.select_columns("image"):
        image = row["image"].convert("RGB")
        image.thumbnail((_SALIENCY_SIDE, _SALIENCY_SIDE))
        sides = np.tile([image.width, image.height], 2)
        boxes.append(np.clip(np.array([crop(image)], np.float64) / sides, 0, 1))
    return Predictions(boxes, [np.ones(1)] * len(boxes))


def _lattice() -> np.ndarray:
    """(M, 4) the boxes with corners on the lattice that keep at least the image's middle sixth of each side."""
    near = np.arange(LATTICE // 2 - 1) / LATTICE
    return np.stack(np.meshgrid(near, near, 1 - near, 1 - near, indexing="ij"), axis=-1).reshape(-1, 4)


def _chunks(pool: np.ndarray) -> list[np.ndarray]:
    return np.array_split(pool, range(_POOL_CHUNK, len(pool), _POOL_CHUNK))


def _places(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, 4) the different places on the lattice that boxes (N, 4) are nearest to, and (N,) the place of each box."""
    base = LATTICE + 1
    corners = np.round(boxes * LATTICE).clip(0, LATTICE).astype(np.int64)
    codes, inverse = np.unique(corners @ base ** np.arange(4), return_inverse=True)
    return codes[:, None] // base ** np.arange(4) % base / LATTICE, inverse


def _targets(train: Labels) -> tuple[np.ndarray, np.ndarray]:
    """(T, 4) crops to be met and (T,) the share of an image that each stands for, of a sample of the images."""
    sample = np.random.default_rng(0).permutation(len(train))[:_FITTING_IMAGES]
    some = train.select(sample.tolist())
    if some.scores is not None:
        return best_rated(some.boxes, some.scores), np.ones(len(some))
    wanted = [crops[flags] for crops, flags in zip(some.boxes, some.good, strict=True)]
    return np.concatenate(wanted), np.concatenate([np.full(len(crops), 1 / len(crops)) for crops in wanted])
