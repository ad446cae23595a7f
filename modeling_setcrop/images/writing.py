"""Cut crops from the full file and write them.

Crops are cut upright: the EXIF orientation is applied, and boxes refer to the upright image. What that takes in
memory is estimated before anything is decoded (`cutting_bytes`); one that would take more than `MAX_BYTES` is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageSequence

from ..image_reading import (
    ImageFileError,
    decoding,
    decoding_bytes,
    has_alpha,
    held_bytes,
    one_line,
    open_image,
    orientation,
    refuse_over_limit,
    swaps_sides,
    with_plain_alpha,
)
from .atomic import FileWriteError, atomic_writer
from .formats import fit_mode, format_of, is_animated_in, save_options
from .metadata import Strip, prepare_metadata
from .xmp import Cut

MAX_ANIMATION_PIXELS = 1_000_000_000
"""Pixels of all frames together of the largest animation that is cut."""

# Crops are cut in bands of so many pixels, so that turning and converting them holds no second copy.
_BAND_PIXELS = 1_000_000
# Bytes a pixel of the crop that its encoder takes, measured (AVIF: a guess on the safe side); others take little.
_ENCODING_BYTES = {"WEBP": 16, "AVIF": 24, "JPEG2000": 36, "GIF": 8}


@dataclass(frozen=True)
class CropFile:
    """A crop to be written.

    Attributes:
        box: x1, y1, x2, y2 in whole pixels of the upright image.
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
        return format_of(self.target)

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the file's image."""
        return self.size or (self.box[2] - self.box[0], self.box[3] - self.box[1])


def write_crops(
    source: str | os.PathLike[str],
    crops: Sequence[CropFile],
    quality: int = 92,
    budget: Callable[[int], AbstractContextManager[Any]] = nullcontext,
    strip: Strip = "nothing",
    opened: IO[bytes] | None = None,
) -> None:
    """Cut crops from the full file, decoded once, and write them upright, with colour profile and metadata.

    An animation keeps all its frames, each cut the same, where the target's format can hold them. A target appears
    under its name only when it is complete.

    Args:
        source: The image file.
        crops: What to write.
        quality: 1..100, for JPEG, WebP and AVIF.
        budget: Held with the estimated bytes while they are in use.
        strip: What of the metadata is left out, see `prepare_metadata`.
        opened: The image file where it is open already, at its beginning.

    Raises:
        ImageFileError: The source cannot be read or would take more than `MAX_BYTES`, or a crop cannot be written.
        ValueError: A target's suffix is no known format, or a box is not inside the image.
    """
    with open_image(opened or source, str(source)) as image:
        transpose = orientation(image)
        swapped = swaps_sides(transpose)
        width, height = image.size[::-1] if swapped else image.size
        for crop in crops:
            x1, y1, x2, y2 = crop.box
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError(f"{source}: box {crop.box} is not inside the image ({width} x {height})")
        formats = [crop.format for crop in crops]
        options = [save_options(image, format, quality) for format in formats]
        stored = [stored_box(crop.box, (height, width), image) for crop in crops]
        sizes = [crop.size[::-1] if crop.size and swapped else crop.size for crop in crops]
        with decoding(source):
            needed = cutting_bytes(image, crops)
        refuse_over_limit(source, needed, "cutting")
        with budget(needed):
            places = _draft_for(image, stored, sizes)
            for crop, place, size, option in zip(crops, places, sizes, options, strict=True):
                with decoding(source):
                    image.load()  # a PNG file may have text behind its pixels
                    of_source = Cut(crop.box, (width, height), crop.final_size)
                    option = option | prepare_metadata(image, crop.format, of_source, strip)
                    cut, option = _cut_all(image, crop, place, size, transpose, option)
                _save(source, crop, cut, option)
                del cut


def cutting_bytes(image: Image.Image, crops: Sequence[CropFile]) -> int:
    """Estimate how many bytes of memory it takes to cut crops from an opened image file.

    Raises:
        ImageFileError: An animation has more than `MAX_ANIMATION_PIXELS` in all its frames.
    """
    most = 0
    for crop in crops:
        pixels = math.prod(crop.final_size)
        frames = 1
        if is_animated_in(image, crop.format):
            # Counted from the file's structure, not decoded.
            frames = getattr(image, "n_frames", 1)
            if frames * image.width * image.height > MAX_ANIMATION_PIXELS:
                raise ImageFileError(
                    crop.target,
                    f"an animation of {frames} frames of {image.width} x {image.height} pixels is over "
                    f"{MAX_ANIMATION_PIXELS // 10**6} megapixels in all",
                )
        # Stretching integers and floats to eight bits goes through one more copy.
        held = 8 if image.mode in ("I", "F") else 4
        beside = image.width * image.height * _resizing_bytes(image) if crop.size else 0
        most = max(most, pixels * (held * frames + _ENCODING_BYTES.get(crop.format, 0)) + beside)
    # What the decoder needed is free again when crops are cut.
    return max(decoding_bytes(image), held_bytes(image) + most)


def _resizing_bytes(image: Image.Image) -> int:
    """Return how many bytes a pixel of the image it takes, beside the image, to resize a crop of it."""
    # The crop, converted; and transparent images are multiplied by their alpha in one more copy.
    converted = {"1": 2, "P": 5, "PA": 8, "La": 8, "RGBa": 8}.get(image.mode, 0)
    return converted + (4 if has_alpha(image) else 0)


def _cut_all(
    image: Image.Image,
    crop: CropFile,
    place: tuple[float, float, float, float],
    size: tuple[int, int] | None,
    transpose: Image.Transpose | None,
    options: dict[str, Any],
) -> tuple[Image.Image, dict[str, Any]]:
    """Cut one crop, of every frame where the target is an animation, and return it with the options to save it.

    `place` and `size` are those of the image as it is stored.
    """
    format = crop.format
    profile = image.info.get("icc_profile")
    if is_animated_in(image, format):
        options = options | _animation_options(image, format)
        frames = [_cut(frame, place, size, transpose, format, profile)[0] for frame in ImageSequence.Iterator(image)]
        cut, *options["append_images"] = _alike(frames, format)
    else:
        if getattr(image, "is_animated", False):
            image.seek(0)
        cut, profile = _cut(image, place, size, transpose, format, profile)
    if profile is not None:
        options["icc_profile"] = profile
    cut.info = {key: value for key, value in cut.info.items() if key == "transparency"}
    return cut, options


def _alike(frames: list[Image.Image], format: str) -> list[Image.Image]:
    """Return the frames in one mode, without which Pillow writes no PNG animation; GIF has a palette for each."""
    modes = {frame.mode for frame in frames}
    if format == "GIF" or len(modes) == 1:
        return frames
    mode = "RGBA" if any(has_alpha(frame) for frame in frames) else "RGB"
    return [frame.convert(mode) for frame in frames]


def _save(source: str | os.PathLike[str], crop: CropFile, cut: Image.Image, options: dict[str, Any]) -> None:
    try:
        with atomic_writer(crop.target) as file:
            cut.save(file, format=crop.format, **options)
    except FileWriteError as error:
        raise ImageFileError(source, str(error)) from None
    except Exception as error:
        # An encoder refuses what its format cannot hold by any exception.
        raise ImageFileError(source, f"{crop.target}: cannot be written ({one_line(error)})") from None


def _animation_options(image: Image.Image, format: str) -> dict[str, Any]:
    """Return how the frames are shown: for how long each, and how often in all."""
    durations = []
    for index in range(getattr(image, "n_frames", 1)):
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
    """Decode a JPEG file no larger than resized crops need, and return where the crops then lie."""
    wanted = [size for size in sizes if size is not None]
    if len(wanted) < len(sizes):
        return list(places)
    width, height = image.size
    scales = [
        max(size[0] / (x2 - x1), size[1] / (y2 - y1)) for (x1, y1, x2, y2), size in zip(places, wanted, strict=True)
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
    format: str,
    profile: bytes | None,
) -> tuple[Image.Image, bytes | None]:
    """Return one crop of a frame, upright and in a mode that the format can hold, and its colour profile."""
    frame.load()
    if size is not None:
        crop, profile = fit_mode(_resized(frame, place, size), format, profile)
        return _turned(crop, transpose), profile
    x1, y1, x2, y2 = (int(edge) for edge in place)
    rows = max(1, _BAND_PIXELS // (x2 - x1))
    first, kept = fit_mode(frame.crop((x1, y1, x2, min(y2, y1 + rows))), format, profile)
    if y2 - y1 <= rows:
        return _turned(first, transpose), kept
    if frame.mode in ("I", "F") or first.mode == "P":
        # Stretched by the whole crop's extremes; or of one byte a pixel, with a palette.
        crop, kept = fit_mode(frame.crop((x1, y1, x2, y2)), format, profile)
        return _turned(crop, transpose), kept
    upright = (y2 - y1, x2 - x1) if swaps_sides(transpose) else (x2 - x1, y2 - y1)
    crop = Image.new(first.mode, upright)
    for top in range(y1, y2, rows):
        band, _ = fit_mode(frame.crop((x1, top, x2, min(y2, top + rows))), format, profile)
        crop.paste(_turned(band, transpose), _place_of_band(top - y1, band.height, y2 - y1, transpose))
    crop.info = dict(first.info)
    return crop, kept


def _turned(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return image if transpose is None else image.transpose(transpose)


def _place_of_band(top: int, rows: int, height: int, transpose: Image.Transpose | None) -> tuple[int, int]:
    """Return the left upper corner, in the turned image, of a band of an image of `height` rows."""
    backwards = (
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
    )
    offset = height - top - rows if transpose in backwards else top
    return (offset, 0) if swaps_sides(transpose) else (0, offset)


def _resized(frame: Image.Image, place: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    if frame.mode in ("P", "PA", "1", "La", "RGBa"):
        # Converted where the crop lies alone.
        left, top, right, bottom = math.floor(place[0]), math.floor(place[1]), math.ceil(place[2]), math.ceil(place[3])
        frame = with_plain_alpha(frame.crop((left, top, right, bottom)))
        place = (place[0] - left, place[1] - top, place[2] - left, place[3] - top)
        if frame.mode in ("P", "PA", "1"):
            frame = frame.convert("RGBA" if has_alpha(frame) else "L" if frame.mode == "1" else "RGB")
    # Pillow cannot average whole pixels of 16-bit integers.
    gap = None if frame.mode.startswith("I;16") else 3.0
    return frame.resize(size, Image.Resampling.LANCZOS, box=place, reducing_gap=gap)


def stored_box(box: tuple[int, int, int, int], size: tuple[int, int], image: Image.Image) -> tuple[int, int, int, int]:
    """Where a box of the upright image, whose height and width are `size`, lies in the image as it is stored."""
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
