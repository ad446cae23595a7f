"""FCDB, "Quantitative Analysis of Automatic Image Cropping Algorithms: A Dataset and Comparative Study" (Chen et al.,
WACV 2017): `cropping_training_set.json` and `cropping_testing_set.json` as distributed, and the images from Flickr.

Each entry is `{"url", "flickr_photo_id", "crop": [x, y, width, height]}`. Images are looked for under the url's last
part, in `images` or beside the JSON files. Some have gone from Flickr since: entries without an image are passed
over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from .cache import build
from .reading import boxes_inside, image_size
from .schema import DataError, Problems, Row

LABELS = {"train": "cropping_training_set.json", "test": "cropping_testing_set.json"}


def load_fcdb(path: str | os.PathLike, *, problems: Problems | None = None) -> DatasetDict:
    """Read FCDB: one good crop per image, without a score, in its official splits "train" and "test".

    Args:
        path: the folder with the two JSON files (one is enough) and the images.
        problems: receives the bad entries, which are left out; None logs a summary.

    Returns:
        Rows as in `schema.FEATURES` with null scores.

    Raises:
        DataError: the folder is not laid out so, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    files = {split: root / name for split, name in LABELS.items() if (root / name).is_file()}
    if not files:
        raise DataError(f"{root}: layout 'fcdb' needs {' or '.join(LABELS.values())}")
    images = root / "images" if (root / "images").is_dir() else root
    return build("fcdb", root, [images, *files.values()], lambda found: _rows(files, images, found), problems)


def _rows(files: dict[str, Path], images: Path, problems: Problems) -> Iterator[Row]:
    for split, file in files.items():
        try:
            entries = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not a JSON list ({error})") from error
        if not isinstance(entries, list):
            raise DataError(f"{file}: not a JSON list")
        for number, entry in enumerate(entries, start=1):
            try:
                name = str(entry["url"]).rsplit("/", 1)[-1]
                x, y, width, height = (float(value) for value in entry["crop"])
            except (KeyError, TypeError, ValueError) as error:
                problems.add("wrong number of fields", file, f"entry {number}: needs url and crop ({error!r})")
                continue
            image = images / name
            if not image.is_file():
                continue
            size = image_size(image, problems)
            if size is None:
                continue
            box = np.array([[x, y, x + width, y + height]])
            box, keep = boxes_inside(box, size, f"{file}, entry {number} ({name})", [None], problems)
            if keep.all():
                yield Row(str(image), image.stem, *size, box, None, np.ones(1, bool), split)
