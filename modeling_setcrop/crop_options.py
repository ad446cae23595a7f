"""What a caller may ask of crops: one object with all options, checked before anything is read."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeGuard

TIGHTNESS = ("loose", "default", "tight")
_BOX_KEYS = ("xmin", "ymin", "xmax", "ymax")


def parse_aspect_ratio(value: float | str | tuple[float, float], image_size: tuple[int, int]) -> float | None:
    """Width over height from a number, a pair, "16:9", "16/9", "1.91", "square" or "original"; None for "free".

    Args:
        value: What a caller wrote.
        image_size: Height and width, for "original".

    Raises:
        ValueError: The value is none of these, or not a positive ratio.
    """
    number = math.nan
    if isinstance(value, str):
        text = value.strip().lower()
        if text == "free":
            return None
        if text == "original":
            return image_size[1] / image_size[0]
        if text == "square":
            return 1.0
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)(?:\s*[:/x]\s*(\d+(?:\.\d+)?))?", text):
            number = float(match[1]) / (float(match[2] or 1) or math.nan)
    elif _is_number(value):
        number = float(value)
    elif _is_pair(value) and value[1] != 0:
        number = float(value[0]) / float(value[1])
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f'aspect ratio {value!r}: give a positive number, "W:H", "square", "original" or "free"')
    return number


def turned_with(value: float, image_size: tuple[int, int]) -> float:
    """Return an aspect ratio, or its inverse where only that lies the way that an image (height, width) does."""
    height, width = image_size
    return 1 / value if (width - height) * (value - 1) < 0 else value


def turned_sides(
    width: int | None, height: int | None, aspect_ratio: Any, box: Sequence[int]
) -> tuple[int | None, int | None]:
    """Return width and height at which a crop is shown, turned where `follow_orientation` has turned the crop.

    Args:
        width, height: What was asked for; None for what was not.
        aspect_ratio: The same, for a crop of which one side at most is given.
        box: x1, y1, x2, y2 of the crop in pixels.
    """
    across, down = box[2] - box[0], box[3] - box[1]
    if width is not None and height is not None:
        aspect_ratio = width / height
    asked = None if aspect_ratio is None else parse_aspect_ratio(aspect_ratio, (down, across))
    if asked is None:
        return width, height
    turned = abs(math.log(across / down * asked)) < abs(math.log(across / down / asked))
    return (height, width) if turned else (width, height)


@dataclass(frozen=True)
class CropOptions:
    """Options of one call.

    Attributes:
        top_k: At most so many crops, of each aspect ratio; None for all.
        threshold: Only crops with a score above it, 0..1; there may then be none. 0 leaves none out.
        nms_iou: Of crops that overlap by an IoU of more than this the better one is returned; None for no suppression.
        diversity: 0..1, instead of `nms_iou`: maximal marginal relevance between score and overlap.
        as_set: Instead of both: after the best crop each next one makes it most probable that the crop that a person
            would choose is among them.
        aspect_ratio: Width over height as a number, a pair (16, 9), "16:9", "square", "original" or "free", or a list
            of these.
        width, height: Pixels at which the crop will be shown; both together are also the aspect ratio.
        min_area, max_area: Bounds on the crop's share of the image, 0..1.
        min_size: Least width and height in pixels; one number for both.
        keep: Boxes (x1, y1, x2, y2), dicts with `xmin`, `ymin`, `xmax`, `ymax` as crops have them, or points (x, y),
            in pixels, that must not be cut. With a number 0..1 more, or a `weight` in a dict, it is a wish: crops rank
            higher the more they hold of it.
        avoid: Boxes that must stay outside, or with a weight had better.
        follow_orientation: Aspect ratios, and `width` and `height`, turn with the image: 5:4 is 4:5 for portraits.
        best_of: Of a list of aspect ratios the best crops over all of them, instead of the best of each.
        trim: Bars, mats and passepartouts around the image are no part of any crop.
        strict: Raise where no crop satisfies everything, instead of letting constraints give way.
        details: Also say whether cropping improves the image, and where its weight lies.
        tightness: "loose", "default" or "tight": whose ratings are predicted, for models that learned several sources.

    Raises:
        ValueError: An option is out of its range, naming it.
        TypeError: An option is of another type than it must be, naming it.
    """

    top_k: int | None = 5
    threshold: float = 0.0
    nms_iou: float | None = 0.8
    diversity: float | None = None
    as_set: bool = False
    aspect_ratio: Any = None
    width: int | None = None
    height: int | None = None
    min_area: float | None = None
    max_area: float | None = None
    min_size: Any = None
    keep: Any = ()
    avoid: Any = ()
    strict: bool = False
    details: bool = False
    tightness: str = "default"
    follow_orientation: bool = False
    best_of: bool = False
    trim: bool = False

    def __post_init__(self) -> None:
        for name in ("top_k", "width", "height"):
            check_count(name, getattr(self, name))
        for name in ("threshold", "nms_iou", "diversity", "min_area", "max_area"):
            _check_share(name, getattr(self, name), optional=name != "threshold")
        for name in ("as_set", "strict", "details", "follow_orientation", "best_of", "trim"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.min_area is not None and self.max_area is not None and self.min_area > self.max_area:
            raise ValueError(f"min_area ({self.min_area}) is larger than max_area ({self.max_area})")
        if self.as_set and self.diversity is not None:
            raise ValueError("as_set and diversity both choose how crops differ: give one of them")
        if self.tightness not in TIGHTNESS:
            raise ValueError(f"tightness must be one of {', '.join(TIGHTNESS)}, not {self.tightness!r}")
        freeze = object.__setattr__
        freeze(self, "min_size", _size(self.min_size))
        freeze(self, "keep", tuple(_content(item, "keep", points=True) for item in _items("keep", self.keep)))
        freeze(self, "avoid", tuple(_content(item, "avoid", points=False) for item in _items("avoid", self.avoid)))
        if self.several_ratios:
            freeze(self, "aspect_ratio", tuple(self.aspect_ratio))
        if self.best_of and not self.several_ratios:
            raise ValueError("best_of needs a list of aspect ratios")
        for ratio in self.aspect_ratios:
            self._check_ratio(ratio)

    def _check_ratio(self, ratio: Any) -> None:
        if ratio is None:
            return
        value = parse_aspect_ratio(ratio, (1, 1))
        if self.width is None or self.height is None:
            return
        if value is None or ratio == "original":
            raise ValueError(f"width and height together are an aspect ratio: leave out {ratio!r}, or one of them")
        if abs(self.width - value * self.height) >= 1 and abs(self.height - self.width / value) >= 1:
            raise ValueError(f"width {self.width} and height {self.height} contradict the aspect ratio {ratio}")

    @classmethod
    def from_kwargs(cls, **options: Any) -> CropOptions:
        """Options from a caller's keyword arguments.

        Raises:
            TypeError: There is no such option; the message names the nearest one.
            ValueError: An option is out of its range.
        """
        return cls().updated(**options)

    def updated(self, **options: Any) -> CropOptions:
        """Return the same options with some changed, see [`from_kwargs`]."""
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else f": the options are {', '.join(known)}"
                raise TypeError(f"there is no option {name!r}{hint}")
        return replace(self, **options)

    def changed(self) -> dict[str, Any]:
        """Return the options that are not at their defaults, for a record of what was asked."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}

    @property
    def several_ratios(self) -> bool:
        """Whether a list of aspect ratios was given, be it of one: crops then say which they are of."""
        value = self.aspect_ratio
        return isinstance(value, Sequence) and not isinstance(value, str) and not _is_pair(value)

    @property
    def aspect_ratios(self) -> tuple[Any, ...]:
        """The aspect ratios to answer, as the caller wrote them; None is no ratio."""
        return tuple(self.aspect_ratio) if self.several_ratios else (self.aspect_ratio,)


def _is_number(value: Any) -> TypeGuard[float]:
    return hasattr(value, "__float__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0


def _is_pair(value: Any) -> TypeGuard[tuple[float, float]]:
    """Whether a value is a pair of numbers, width and height; a list of numbers is a list of ratios."""
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))


def check_count(name: str, value: Any) -> None:
    """Raise TypeError or ValueError, naming the option, where a value is neither None nor a whole number above 0."""
    if value is None:
        return
    if not (hasattr(value, "__index__") and not isinstance(value, bool)):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _check_share(name: str, value: Any, optional: bool) -> None:
    if value is None and optional:
        return
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in 0..1, not {value}")


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = (value, value) if _is_number(value) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(map(_is_number, pair)):
        raise ValueError(f"min_size must be one number, or width and height, not {value!r}")
    if min(pair) < 1:
        raise ValueError(f"min_size must be at least one pixel, not {value!r}")
    return pair


def _items(name: str, value: Any) -> list[Any]:
    if isinstance(value, str | Mapping) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must be a list of boxes{' or points' if name == 'keep' else ''}, not {value!r}")
    return list(value)


def _content(item: Any, name: str, points: bool) -> tuple[float, ...]:
    """Return a box x1, y1, x2, y2 or, where allowed, a point x, y, either perhaps with a weight behind it."""
    if isinstance(item, Mapping) and "weight" in item:
        rest = {key: value for key, value in item.items() if key != "weight"}
        place = rest.get("point", rest.get("box", rest))
        return _content((*_content(place, name, points), item["weight"]), name, points)
    if isinstance(item, Mapping):
        item = item.get("box", item)
    if isinstance(item, Mapping):
        if missing := [key for key in _BOX_KEYS if key not in item]:
            raise ValueError(f"{name}: box {dict(item)} has no {missing[0]}")
        item = [item[key] for key in _BOX_KEYS]
    values = tuple(item) if hasattr(item, "__iter__") and not isinstance(item, str) else ()
    if len(values) not in ((2, 3, 4, 5) if points else (4, 5)) or not all(map(_is_number, values)):
        raise ValueError(f"{name}: expected x1,y1,x2,y2{' or x,y' if points else ''}, not {item!r}")
    values = tuple(map(float, values))
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name}: {list(values)} is not finite")
    if len(values) in (3, 5) and not 0 <= values[-1] <= 1:
        raise ValueError(f"{name}: the weight {values[-1]:g} must lie in 0..1")
    if len(values) >= 4 and not (values[0] < values[2] and values[1] < values[3]):
        raise ValueError(f"{name}: box {list(values)} needs x1 < x2 and y1 < y2")
    return values
