"""COCO's words for crops: annotations, predictions and image ids; boxes are x, y, width, height in pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

# A detector learns the first; the second are crops that were rated and are not good ones.
CATEGORIES = ({"id": 1, "name": "crop"}, {"id": 2, "name": "rejected crop"})
GOOD, REJECTED = (category["id"] for category in CATEGORIES)


def coco_image_id(file_name: str) -> int:
    """Return the id of an image in annotations and predictions, the same wherever its file lies.

    The number that the file's name is, as in COCO itself, or 48 bits that stand for the name; the ending does not
    count.
    """
    stem = PurePosixPath(file_name).name
    stem = stem.rpartition(".")[0] or stem
    if stem.isascii() and stem.isdecimal() and len(stem) <= 15:
        return int(stem)
    return int.from_bytes(hashlib.sha256(stem.encode("utf-8", "surrogateescape")).digest()[:6], "big")


def coco_file_name(image_id: str, suffix: str) -> str:
    """Return the file's name in a folder without folders of an image of a data set; an empty suffix ends it too."""
    return image_id.replace("/", "__") + (suffix or ".")


def coco_box(box: Sequence[float]) -> list[float]:
    """`bbox` of a box x1, y1, x2, y2, to a hundredth of a pixel."""
    x1, y1, x2, y2 = (round(float(edge), 2) for edge in box)
    return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]


def corners(bbox: Sequence[float]) -> list[float]:
    """x1, y1, x2, y2 of a `bbox`."""
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def coco_prediction(image_id: int, box: Sequence[float], score: float) -> dict[str, Any]:
    """Return a crop as `pycocotools.coco.COCO.loadRes` takes results."""
    return {
        "image_id": image_id,
        "category_id": GOOD,
        "bbox": coco_box(box),
        "score": round(float(score), 6),
    }


def crops_of_coco(annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the crops of one image: `boxes` (S, 4) corners, `scores` (S,) or None, `good` (S,), of COCO annotations.

    `rating` and `validity` are extra fields: with a rating on every annotation these are the scores; good are those
    with a validity of at least 0.5 or, without one, those of another category than "rejected crop" (id 2).

    Raises:
        ValueError: an annotation has no `bbox` of four numbers, a rating or validity is no number, or only some have a
            rating.
    """
    for name in ("rating", "validity"):
        for annotation in annotations:
            value = annotation.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"annotation {annotation.get('id')}: {name} {value!r} is not a number")
    boxes: list[list[float]] = []
    good: list[bool] = []
    for annotation in annotations:
        try:
            bbox = np.asarray(annotation.get("bbox"))
        except ValueError:  # lists of different lengths
            bbox = np.zeros(0)
        if bbox.shape != (4,) or bbox.dtype.kind not in "iuf":
            raise ValueError(f"annotation {annotation.get('id', len(boxes))}: bbox is not [x, y, width, height]")
        boxes.append(corners(bbox.tolist()))
        validity = annotation.get("validity")
        good.append(validity >= 0.5 if validity is not None else annotation.get("category_id", GOOD) != REJECTED)
    ratings = [annotation.get("rating") for annotation in annotations]
    if all(rating is None for rating in ratings):
        return {"boxes": boxes, "scores": None, "good": good}
    if any(rating is None for rating in ratings):
        raise ValueError(f"{ratings.count(None)} of {len(ratings)} annotations have no rating")
    return {"boxes": boxes, "scores": ratings, "good": good}
