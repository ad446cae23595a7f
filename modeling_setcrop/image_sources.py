"""Anything that may hold an image: a file, an address, bytes, an array, a row of a data set."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from .image_reading import ImageFileError, LoadedImage, decode_image, decoding, load_image_file, open_image

_OTHER_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]+://")


def read_any_image(source: Any, short_side: int, timeout: float | None = None) -> LoadedImage:
    """Read an image for a suggestion, whatever it comes in.

    Args:
        source: A path; an http(s) or data URL; the base64 text of a file; a file's bytes or a binary file object; a
            PIL image; a NumPy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 or bool, or of floats
            in [0, 1]; a row `{"bytes": ..., "path": ...}` of `datasets`; or a [`LoadedImage`] already read.
        short_side: See [`decode_image`].
        timeout: Seconds to wait for an address.

    Raises:
        ImageFileError: No image can be read from it; the message is one line that names the source.
        TypeError: None of these.
    """
    if isinstance(source, LoadedImage):
        return source
    if isinstance(source, Image.Image):
        return decode_image(source, short_side)
    if isinstance(source, str | os.PathLike):
        return _read_text(os.fspath(source), short_side, timeout)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_bytes(bytes(source), short_side, f"{len(source)} bytes")
    if isinstance(source, np.ndarray):
        return decode_image(_from_array(source), short_side)
    if isinstance(source, dict) and ("bytes" in source or "path" in source):
        if source.get("bytes") is not None:
            name = source.get("path") or f"{len(source['bytes'])} bytes"
            return _read_bytes(source["bytes"], short_side, name)
        if source.get("path") is not None:
            return read_any_image(source["path"], short_side, timeout)
    if hasattr(source, "read"):
        return _read_bytes(source.read(), short_side, str(getattr(source, "name", "a file object")))
    raise TypeError(
        f"{type(source).__name__} is no image: give a path, an address, base64 text, bytes, a file object, a PIL "
        "image, a NumPy array or a row with 'bytes' or 'path'; of a data set, its column of images"
    )


def is_several(images: Any) -> bool:
    """Whether something holds images and is none itself: a list, a tuple, a column of `datasets` or an iterator.

    Texts, bytes, arrays, rows of data sets and open files are one image.
    """
    if isinstance(images, str | bytes | bytearray | memoryview) or hasattr(images, "read"):
        return False
    return isinstance(images, Sequence | Iterator)


def _read_text(text: str, short_side: int, timeout: float | None) -> LoadedImage:
    if text.startswith(("http://", "https://")):
        return _read_bytes(_download(text, timeout), short_side, _shorten(text))
    if text.startswith("data:"):
        return _read_bytes(_data_url(text), short_side, _shorten(text))
    if not text.strip():
        raise ImageFileError("an image", "an empty text")
    if _exists(text):
        return load_image_file(text, short_side)
    content = _base64(text)
    if content is None and _OTHER_SCHEME.match(text):
        raise ImageFileError(_shorten(text), "addresses are http, https or data URLs")
    if content is None:
        raise ImageFileError(_shorten(text, 255), "no such file")
    return _read_bytes(content, short_side, _shorten(text))


def _read_bytes(content: bytes, short_side: int, name: str) -> LoadedImage:
    with open_image(io.BytesIO(content), name) as image, decoding(name):
        return decode_image(image, short_side, draft=True)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # longer than a file name may be, or with a null character
        return False


def _base64(text: str) -> bytes | None:
    """Return the bytes that a base64 text stands for, or None where it is none."""
    try:
        # Nothing as short as a file's name holds an image.
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if len(content) > 32 else None


def _data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    content = _base64(unquote_to_bytes(data).decode("ascii", "replace")) if head.endswith(";base64") else None
    if content is None and not head.endswith(";base64"):
        content = unquote_to_bytes(data)
    if not comma or content is None:
        raise ImageFileError(_shorten(url), "not a data URL that can be read")
    return content


def _download(url: str, timeout: float | None) -> bytes:
    # Only here, because few are asked for an address, and these imports take as long as all others here.
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    try:
        # Some servers refuse requests that do not say what asks.
        request = urllib.request.Request(url, headers={"User-Agent": "setcrop"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise ImageFileError(_shorten(url), f"HTTP {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise ImageFileError(_shorten(url), f"cannot be fetched ({reason})") from None


def _from_array(array: np.ndarray) -> Image.Image:
    """Return an image of an array's values, in the array's own depth."""
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    if 0 in shape or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))):
        raise ImageFileError(f"array of shape {shape}", "expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.nanmin(array) >= 0 and np.nanmax(array) <= 1) or np.isnan(array).any():
            raise ImageFileError(f"array of {array.dtype}", "expected values in [0, 1]")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16 and array.ndim == 3:
        array = (array // 257).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype not in (np.uint8, np.uint16):
        raise ImageFileError(f"array of {array.dtype}", "expected uint8, uint16, bool, or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
