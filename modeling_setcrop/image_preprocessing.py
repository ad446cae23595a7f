"""From an upright RGB image to the network's input, in NumPy and Pillow, the same for every runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

MIN_SIDE = 32
"""The coarsest stride of the backbones: a thinner image would leave less than one cell of features."""


def resized_size(
    image_size: tuple[float, float], shortest_edge: int, longest_edge: int, divisor: int | None = None
) -> tuple[int, int]:
    """(height, width) at which the model sees an image: the short side as asked unless the long one would pass its
    bound, and no side under one cell of features (images thinner than that are widened).

    With a `divisor` each side becomes the nearest multiple of it, so that an image fills its cells of features; it is
    stretched a little for that.
    """
    scale = min(shortest_edge / min(image_size), longest_edge / max(image_size))
    step = divisor or 1
    height, width = (max(MIN_SIDE, round(side * scale / step) * step) for side in image_size)
    return height, width


@dataclass(frozen=True)
class ImagePreprocessing:
    """Resize, rescale and normalise, as a checkpoint's `preprocessor_config.json` says.

    Attributes:
        size: `shortest_edge` and `longest_edge`, or `height` and `width`, in pixels; None leaves images as they are.
        resample: Pillow's number of the resampling filter.
        rescale_factor: What pixel values are multiplied with; None leaves 0..255.
        size_divisor: What the sides are rounded to multiples of, see [`resized_size`].
        mean, std: Of each channel, subtracted and divided by after rescaling; None leaves them.

    Raises:
        ValueError: A field is out of its range, naming it.
    """

    size: Mapping[str, int] | None
    resample: int
    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size_divisor: int | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ImagePreprocessing:
        """From the content of `preprocessor_config.json`, or an image processor's `to_dict()`.

        Raises:
            ValueError: A field is missing or out of its range, naming it.
        """
        normalize, resample = config.get("do_normalize", True), config.get("resample", Image.Resampling.BILINEAR)
        size = dict(config.get("size") or {}) if config.get("do_resize", True) else None
        return cls(
            size={name: side for name, side in size.items() if side is not None} if size is not None else None,
            resample=int(resample) if isinstance(resample, int) else Image.Resampling.BILINEAR.value,
            rescale_factor=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else None,
            mean=_channels("image_mean", config.get("image_mean")) if normalize else None,
            std=_channels("image_std", config.get("image_std")) if normalize else None,
            size_divisor=config.get("size_divisor"),
        )

    def __post_init__(self) -> None:
        if self.size is not None:
            if not ({"shortest_edge", "longest_edge"} <= self.size.keys() or {"height", "width"} <= self.size.keys()):
                raise ValueError(f"size must have shortest_edge and longest_edge, or height and width: {self.size}")
            for name, side in self.size.items():
                if not isinstance(side, int) or isinstance(side, bool) or side < 1:
                    raise ValueError(f"size: {name} must be a whole number of pixels, not {side!r}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"image_std must be above 0, not {list(self.std)}")
        divisor = self.size_divisor
        if divisor is not None and (not isinstance(divisor, int) or isinstance(divisor, bool) or divisor < 1):
            raise ValueError(f"size_divisor must be a whole number of pixels, not {divisor!r}")
        factor = self.rescale_factor
        if factor is not None and not (isinstance(factor, int | float) and math.isfinite(factor) and factor > 0):
            raise ValueError(f"rescale_factor must be a positive number, not {factor!r}")

    @property
    def short_side(self) -> int:
        """Pixels that the short side of an image needs; one that has more can be decoded at reduced scale."""
        if self.size is None:
            return 10**9
        return min(self.size.get("shortest_edge", 10**9), *(self.size.get(n, 10**9) for n in ("height", "width")))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Pixels (3, H, W), float32, of an RGB image."""
        if self.size is not None:
            height, width = self._resized_size(image.height, image.width)
            if (width, height) != image.size:
                image = image.resize((width, height), self.resample)
        pixels = np.asarray(image).transpose(2, 0, 1)
        scale = np.float32(1 if self.rescale_factor is None else self.rescale_factor)
        mean = np.zeros(3) if self.mean is None else np.array(self.mean)
        std = np.ones(3) if self.std is None else np.array(self.std)
        # One multiplication and one addition, in place: a new array of this size costs more than either.
        factor, offset = (scale / std).astype(np.float32), (-mean / std).astype(np.float32)
        values = np.empty(pixels.shape, dtype=np.float32)
        np.multiply(pixels, factor[:, None, None], out=values)
        values += offset[:, None, None]
        return values

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if "shortest_edge" in self.size:
            edges = self.size["shortest_edge"], self.size["longest_edge"]
            return resized_size((height, width), *edges, self.size_divisor)
        return self.size["height"], self.size["width"]


def _channels(name: str, values: Any) -> tuple[float, ...]:
    numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if len(numbers) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
        raise ValueError(f"{name} must be three numbers, not {values!r}")
    return tuple(float(value) for value in numbers)
