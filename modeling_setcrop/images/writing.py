"""Cut crops from the full file and write them.

Crops are cut upright: the EXIF orientation is applied, and boxes refer to the upright image. Writing a crop holds the
decoded file and the crop, together at most 8 bytes a pixel of the source.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from ..image_reading import ImageFileError, has_alpha, open_image, orientation, swaps_sides
from .atomic import atomic_writer
from .formats import ANIMATED_FORMATS, FORMAT_OF_SUFFIX, fit_mode, save_options
from .metadata import prepare_metadata


@dataclass(frozen=True)
class CropFile:
    """A crop to be written.

    Attributes:
        box: x1, y1, x2, y2 in whole pixels of the upright picture.
        target: File to write; its suffix says the format.
        size: Width and height to resize the crop to; None keeps its pixels.
    """

    box: tuple[int, int, int, int]
    target: Path
    size: tuple[int, int] | None = None

    @property
    def format(self) -> str:
        """Pillow's name of the target's format.

        Raises:
            ValueError: The suffix is that of no known format.
        """
        format = FORMAT_OF_SUFFIX.get(self.target.suffix.lower())
        if format is None:
            raise ValueError(f"{self.target}: unknown picture format {self.target.suffix!r}")
        return format

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the file's picture."""
        return self.size or (self.box[2] - self.box[0], self.box[3] - self.box[1])


def write_crops(source: str | os.PathLike[str], crops: Sequence[CropFile], quality: int = 92) -> None:
    """Cut crops from the full file, decoded once, and write them upright, with colour profile and cleaned EXIF.

    An animation keeps all its frames, each cut the same, where the target's format can hold them. A target appears
    under its name only when it is complete.

    Args:
        source: The photograph.
        crops: What to write.
        quality: 1..100, for JPEG, WebP and AVIF.

    Raises:
        ImageFileError: The source cannot be read, or a crop cannot be written.
        ValueError: A target's suffix is no known format, or a box is not inside the picture.
    """
    with open_image(source) as image:
        transpose = orientation(image)
        swapped = swaps_sides(transpose)
        width, height = image.size[::-1] if swapped else image.size
        for crop in crops:
            x1, y1, x2, y2 = crop.box
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError(f"{source}: box {crop.box} is not inside the picture ({width} x {height})")
        options = [save_options(image, crop.format, quality) for crop in crops]
        places = [stored_box(crop.box, (height, width), image) for crop in crops]
        sizes = [crop.size[::-1] if crop.size and swapped else crop.size for crop in crops]
        places = _draft_for(image, places, sizes)
        for crop, place, size, option in zip(crops, places, sizes, options, strict=True):
            _write(image, crop, place, size, transpose, option)


def _write(
    image: Image.Image,
    crop: CropFile,
    place: tuple[float, float, float, float],
    size: tuple[int, int] | None,
    transpose: Image.Transpose | None,
    options: dict[str, Any],
) -> None:
    """Write one crop of an opened picture; `place` and `size` are those of the picture as it is stored."""
    format = crop.format
    exif, profile = prepare_metadata(image, crop.final_size), image.info.get("icc_profile")
    if getattr(image, "is_animated", False) and {image.format, format} <= ANIMATED_FORMATS:
        options |= _animation_options(image, format)
        frames = (
            fit_mode(_cut(frame, place, size, transpose), format, profile)[0]
            for frame in ImageSequence.Iterator(image)
        )
        cut = next(frames)
        # The PNG writer goes through its frames twice.
        options["append_images"] = list(frames) if format == "PNG" else frames
    else:
        if getattr(image, "is_animated", False):
            image.seek(0)
        cut, profile = fit_mode(_cut(image, place, size, transpose), format, profile)
    if profile is not None:
        options["icc_profile"] = profile
    if len(exif) > 0 and format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        options["exif"] = exif
    cut.info = {key: value for key, value in cut.info.items() if key == "transparency"}
    with atomic_writer(crop.target) as file:
        try:
            cut.save(file, format=format, **options)
        except (OSError, ValueError) as error:
            raise ImageFileError(crop.target, f"cannot be written ({' '.join(str(error).split())})") from None


def _animation_options(image: Image.Image, format: str) -> dict[str, Any]:
    """How the frames are shown: for how long each, and how often in all."""
    durations = []
    for index in range(image.n_frames):
        image.seek(index)
        image.load()
        durations.append(int(image.info.get("duration", 100)))
    image.seek(0)
    options: dict[str, Any] = {"save_all": True, "duration": durations}
    if format == "GIF":
        options["disposal"] = 2
    if "loop" in image.info:
        options["loop"] = image.info["loop"]
    return options


def _draft_for(
    image: Image.Image, places: Sequence[tuple[int, int, int, int]], sizes: Sequence[tuple[int, int] | None]
) -> list[tuple[float, float, float, float]]:
    """Decode a JPEG file no larger than resized crops need, and say where the crops then lie."""
    if None in sizes:
        return list(places)
    width, height = image.size
    scales = [
        max(size[0] / (x2 - x1), size[1] / (y2 - y1)) for (x1, y1, x2, y2), size in zip(places, sizes, strict=True)
    ]
    scale = min(1.0, 2 * max(scales))
    image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    across, down = image.width / width, image.height / height
    return [(x1 * across, y1 * down, x2 * across, y2 * down) for x1, y1, x2, y2 in places]


def _cut(
    frame: Image.Image,
    place: tuple[float, float, float, float],
    size: tuple[int, int] | None,
    transpose: Image.Transpose | None,
) -> Image.Image:
    if size is None:
        crop = frame.crop(tuple(int(edge) for edge in place))
    else:
        if frame.mode in ("P", "PA", "1"):
            frame = frame.convert("RGBA" if has_alpha(frame) else "L" if frame.mode == "1" else "RGB")
        crop = frame.resize(size, Image.Resampling.LANCZOS, box=place, reducing_gap=3.0)
    return crop if transpose is None else crop.transpose(transpose)


def stored_box(box: tuple[int, int, int, int], size: tuple[int, int], image: Image.Image) -> tuple[int, int, int, int]:
    """Where a box of the upright picture, whose height and width are `size`, lies in the picture as it is stored."""
    x1, y1, x2, y2 = box
    height, width = size
    flipped_x, flipped_y = (width - x2, y1, width - x1, y2), (x1, height - y2, x2, height - y1)
    turned = (width - x2, height - y2, width - x1, height - y1)
    transpose = orientation(image)
    if transpose is None:
        return box
    if transpose == Image.Transpose.FLIP_LEFT_RIGHT:
        return flipped_x
    if transpose == Image.Transpose.FLIP_TOP_BOTTOM:
        return flipped_y
    if transpose == Image.Transpose.ROTATE_180:
        return turned
    # The other four swap the axes: (x, y) as displayed comes from (y, x), each axis perhaps reversed.
    a, b, c, d = {
        Image.Transpose.TRANSPOSE: box,
        Image.Transpose.TRANSVERSE: turned,
        Image.Transpose.ROTATE_270: flipped_x,
        Image.Transpose.ROTATE_90: flipped_y,
    }[transpose]
    return b, a, d, c
