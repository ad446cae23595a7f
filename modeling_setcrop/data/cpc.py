"""CPC, "Good View Hunting: Learning Photo Composition from Dense View Pairs" (Wei et al., CVPR 2018), as distributed.

Images are in `images/NAME.jpg`, of which some have no labels; `CollectedAnnotationsRaw/NAME.jpg.txt` has one line:
a JSON string that itself holds JSON,

    {"scores": [[24 votes 0..4], ... 6 annotators], "bboxes": [[x1, y1, x2, y2], ... 24]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from ..crop_geometry import nms
from .cache import build
from .reading import boxes_inside, files_in, held_out, image_size, read_annotation_text
from .schema import DataError, Problems, Row, good_or_best

GOOD_SCORE = 2.0
VOTE_SCALE = (0.0, 4.0)
NMS_IOU = 0.8
HIGHEST_VOTE = 4
# There is no official split: 1,000 of the 10,797 labelled images are held out.
TEST_SHARE = 1000 / 10797
TEST_SEED = 0
# Nor one for validation: 500 of the 9,797 that are left.
VALIDATION_SHARE = 500 / 9797
VALIDATION_SEED = 0


def load_cpc(path: str | os.PathLike, *, problems: Problems | None = None) -> DatasetDict:
    """Read CPC. A crop's score is the mean of its votes, 0..4, mapped to 1..5.

    Good crops have a mean of at least 2; an image that has none takes its best-scored crops; of good crops that
    overlap by more than 0.8 IoU the better-scored one stays (as Jia et al., CVPR 2022, train on it).

    Args:
        path: the folder with `images` and `CollectedAnnotationsRaw`.
        problems: receives the bad entries, which are left out; None logs a summary.

    Returns:
        Splits "test", a seeded sample of 1,000 in 10,797 images, "validation", one of 500 of the others, and "train";
        rows as in `schema.FEATURES`.

    Raises:
        DataError: the folder is not laid out so, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    images, annotations = root / "images", root / "CollectedAnnotationsRaw"
    if not images.is_dir() or not annotations.is_dir():
        raise DataError(f"{root}: layout 'cpc' needs the folders 'images' and 'CollectedAnnotationsRaw'")
    return build(
        "cpc",
        root,
        [images, annotations],
        lambda found: _rows(images, annotations, found),
        problems,
        rating_scale=VOTE_SCALE,
    )


def read_annotation(path: str | os.PathLike, problems: Problems) -> tuple[np.ndarray, np.ndarray] | None:
    """(S, 4) boxes in pixels and (S, A) votes of A annotators, or None after noting why there are none."""
    try:
        content = json.loads(read_annotation_text(path))
        content = json.loads(content) if isinstance(content, str) else content
        votes = np.array(content["scores"], dtype=np.float64)
        boxes = np.array(content["bboxes"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.add("undecodable annotation", path, f"is not a JSON string of scores and bboxes ({error!r})", 1)
        return None
    if boxes.ndim != 2 or boxes.shape[1] != 4 or votes.ndim != 2 or votes.shape[1] != len(boxes):
        message = f"has scores of shape {votes.shape} for bboxes of shape {boxes.shape}, not (A, S) for (S, 4)"
        problems.add("wrong number of fields", path, message, 1)
        return None
    return boxes, votes.T


def _rows(images: Path, annotations: Path, problems: Problems) -> Iterator[Row]:
    files = files_in(annotations)
    labelled = {name.removesuffix(".txt"): entry.path for name, entry in files.items() if name.endswith(".txt")}
    test = held_out(labelled, TEST_SHARE, TEST_SEED)
    validation = held_out(labelled.keys() - test, VALIDATION_SHARE, VALIDATION_SEED)
    for name, annotation in labelled.items():
        image = images / name
        if not image.is_file():
            problems.add("annotation without image", annotation, f"no such image: images/{name}")
            continue
        size = image_size(image, problems)
        content = read_annotation(annotation, problems)
        if size is None or content is None:
            continue
        boxes, votes = content
        valid = ((votes >= 0) & (votes <= HIGHEST_VOTE)).all(axis=1)
        for index in np.flatnonzero(~valid):
            problems.add("score out of range", annotation, f"crop {index + 1} has a vote that is not in 0..4", 1)
        boxes, inside = boxes_inside(boxes, size, annotation, [1] * len(boxes), problems)
        keep = valid & inside
        if not keep.any():
            problems.add("no usable crop", annotation, "has no rated crop inside the image")
            continue
        boxes, scores = boxes[keep], votes[keep].mean(axis=1)
        stem = os.path.splitext(name)[0]
        split = "test" if name in test else "validation" if name in validation else "train"
        yield Row(str(image), stem, *size, boxes, scores, _good(boxes, scores), split)


def _good(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    candidates = np.flatnonzero(good_or_best(scores, scores >= GOOD_SCORE))
    kept = nms(boxes[candidates], scores[candidates], NMS_IOU)
    good = np.zeros(len(scores), bool)
    good[candidates[kept]] = True
    return good
