"""Faces, found by MediaPipe's BlazeFace detector on onnxruntime, as content to keep.

The detector is "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs" (Bazarevsky et al., 2019), the
short-range one. It sees 128 x 128 pixels, so it looks at the whole image and at overlapping squares of two sizes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from ..crop_geometry import cxcywh_to_xyxy, nms
from ..image_reading import LoadedImage

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Written by examples/convert_blazeface.py.
_GRAPH = Path(__file__).with_name("blazeface.onnx")
# Detection runs on a copy with this long side, in pixels: smaller faces decide no crop.
_SIDE = 640
_INPUT = 128
# Squares looked at: their side as a share of the image's long side, and the least score of a face in them. The more
# squares, the more chances of a false alarm, so the small ones have to be surer. Chosen on 198 validation images.
_SQUARES = ((1.0, 0.65), (1 / 2, 0.8), (1 / 3, 0.8))
# Neighbouring squares share at least so much of their side.
_OVERLAP = 0.35
_NMS_IOU = 0.3
# The detector's boxes run from brow to chin. So much of the width or height is added left, top, right and bottom to
# hold the hair.
_GROWN = np.array([-0.04, -0.25, 0.04, 0.02])


class _Square(NamedTuple):
    """Pixels of the copy; what sticks out of it is black."""

    x: int
    y: int
    side: int
    least_score: float


def find_faces(loaded: LoadedImage) -> list[tuple[float, float, float, float]]:
    """Return the boxes x1, y1, x2, y2 of faces with their hair, in pixels of the whole image, largest first.

    Faces wider than about 4 % of the image are found.
    """
    image = loaded.image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    x1, y1, x2, y2 = loaded.inside or (0, 0, loaded.size[1], loaded.size[0])
    boxes = _detected(image)
    # Clipped to the image, and to shares of it.
    boxes = with_hair(boxes) / np.tile(image.size, 2)
    boxes = boxes.clip(0, 1) * [x2 - x1, y2 - y1, x2 - x1, y2 - y1] + [x1, y1, x1, y1]
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes[order]]


def with_hair(boxes: np.ndarray) -> np.ndarray:
    """Return MediaPipe's boxes (F, 4) of faces, corners, grown to hold the hair; they may leave the image."""
    return boxes + np.tile(boxes[:, 2:] - boxes[:, :2], 2) * _GROWN


def _detected(image: Image.Image) -> np.ndarray:
    """Return the boxes (F, 4) of the faces in an image, from brow to chin, in its pixels."""
    found = [_in_square(image, square) for square in _squares(image.width, image.height)]
    boxes, scores = (np.concatenate(part) for part in zip(*found, strict=True))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > 0) & (centres < image.size)).all(axis=1)
    boxes, scores = boxes[inside], scores[inside]
    return boxes[nms(boxes, scores, _NMS_IOU)]


def _squares(width: int, height: int) -> list[_Square]:
    """Return the squares of an image of this size that are looked at."""
    squares = []
    for share, least_score in _SQUARES:
        side = max(1, round(share * max(width, height)))
        across, down = (_starts(length, side) for length in (width, height))
        squares += [_Square(x, y, side, least_score) for y in down for x in across]
    return squares


def _starts(length: int, side: int) -> list[int]:
    """Return where pieces of a side start that cover a length evenly; a single one lies in its middle."""
    if length <= side:
        return [(length - side) // 2]
    gaps = int(np.ceil((length - side) / (side * (1 - _OVERLAP))))
    return [round(i * (length - side) / gaps) for i in range(gaps + 1)]


def _in_square(image: Image.Image, square: _Square) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes (F, 4) of the faces in one square, in the image's pixels, and their scores (F,)."""
    x, y, side, least_score = square
    seen = image.crop((x, y, x + side, y + side)).resize((_INPUT, _INPUT), Image.Resampling.BILINEAR)
    pixels = np.asarray(seen, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    regressors, logits = _session().run(["regressors", "classificators"], {"input": pixels})
    scores = 1 / (1 + np.exp(-logits[0, :, 0].astype(np.float64).clip(-80, 80)))
    sure = scores >= least_score
    boxes = _decoded(regressors[0, sure], _anchors()[sure])
    return boxes * side + [x, y, x, y], scores[sure]


def _decoded(regressors: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return boxes (N, 4), corners in 0..1, of regressors (N, 16) at anchors (N, 2).

    The first four numbers are the centre's distance from the anchor and the size, in pixels of the input; the rest
    are eyes, nose, mouth and ears.
    """
    boxes = regressors[:, :4].astype(np.float64) / _INPUT
    boxes[:, :2] += anchors
    return cxcywh_to_xyxy(boxes)


@cache
def _anchors() -> np.ndarray:
    """Return the anchors (896, 2), x and y in 0..1: two in each cell of 16 by 16, six in each of 8 by 8."""
    grids = []
    for cells, each in ((16, 2), (8, 6)):
        middles = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(middles, middles, indexing="ij")
        grids.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), each, axis=0))
    return np.concatenate(grids)


@cache
def _session() -> InferenceSession:
    """Return the detector, one for all threads of the process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(_GRAPH, options, providers=["CPUExecutionProvider"])
