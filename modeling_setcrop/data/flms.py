"""FLMS, "Automatic Image Cropping using Visual Composition, Boundary Simplicity and Content Preservation Models" (Fang
et al., ACM Multimedia 2014), as distributed: `image/NAME.jpg` and `500_image_dataset.mat`.

The MATLAB file holds the struct array `img_gt`: the first field is the file name, the second the annotators' crops,
one row `y1 x1 y2 x2` each, negative where an annotator failed. Coordinates are taken as they stand: of the 4,988 crops
927 start at 0 and 13 at 1, so they count from 0. Some crops reach over the image's edge: they are clipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from scipy.io import loadmat

from .cache import build
from .reading import boxes_inside, image_size
from .schema import DataError, Problems, Row

LABELS = "500_image_dataset.mat"


def load_flms(path: str | os.PathLike, *, problems: Problems | None = None) -> DatasetDict:
    """Read FLMS: some ten crops per image by different annotators, all of them good, without scores.

    Args:
        path: the folder with `image` and `500_image_dataset.mat`.
        problems: receives the bad entries, which are left out; None logs a summary.

    Returns:
        Split "test", rows as in `schema.FEATURES` with null scores.

    Raises:
        DataError: the folder is not laid out so, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    if not (root / "image").is_dir() or not (root / LABELS).is_file():
        raise DataError(f"{root}: layout 'flms' needs the folder 'image' and the file '{LABELS}'")
    return build("flms", root, [root / "image", root / LABELS], lambda found: _rows(root, found), problems)


def read_labels(path: str | os.PathLike) -> list[tuple[str, np.ndarray]]:
    """File name and (K, 4) crops `y1 x1 y2 x2` of each image.

    Raises:
        DataError: the file is not a MATLAB file with `img_gt` as described above.
    """
    try:
        entries = loadmat(path)["img_gt"].reshape(-1)
        name_field, crops_field = entries.dtype.names[:2]
        names = [str(np.asarray(entry[name_field]).reshape(-1)[0]) for entry in entries]
        crops = [np.asarray(entry[crops_field], dtype=np.float64) for entry in entries]
    except (OSError, KeyError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise DataError(f"{path}: not a MATLAB file with the struct array img_gt ({error!r})") from error
    return list(zip(names, crops, strict=True))


def _rows(root: Path, problems: Problems) -> Iterator[Row]:
    file = root / LABELS
    for number, (name, crops) in enumerate(read_labels(file), start=1):
        image = root / "image" / name
        if not image.is_file():
            problems.add("annotation without image", file, f"entry {number}: no such image: image/{name}")
            continue
        size = image_size(image, problems)
        if size is None:
            continue
        if crops.ndim != 2 or crops.shape[1] != 4:
            message = f"entry {number} ({name}): crops have shape {crops.shape}, not (K, 4)"
            problems.add("wrong number of fields", file, message)
            continue
        failed = (crops < 0).any(axis=1)
        for crop in np.flatnonzero(failed):
            message = f"entry {number} ({name}), crop {crop + 1}: negative numbers, the annotator failed"
            problems.add("annotator failed", file, message)
        boxes = crops[~failed][:, [1, 0, 3, 2]]
        place = f"{file}, entry {number} ({name})"
        boxes, keep = boxes_inside(boxes, size, place, [None] * len(boxes), problems, draw_in=True)
        if not keep.any():
            problems.add("no usable crop", file, f"entry {number} ({name}): has no crop inside the image")
            continue
        boxes = boxes[keep]
        yield Row(str(image), Path(name).stem, *size, boxes, None, np.ones(len(boxes), bool), "test")
