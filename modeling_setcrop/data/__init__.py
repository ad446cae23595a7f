"""Crop data sets as their authors distribute them, as `datasets.DatasetDict` with one schema (`schema.FEATURES`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from datasets import DatasetDict

from .coco import load_coco
from .cpc import load_cpc
from .cvat import load_cvat
from .editor import load_editor
from .fcdb import load_fcdb
from .flms import load_flms
from .folder import load_folder
from .gaic import load_gaic
from .imagefolder import load_imagefolder
from .label_studio import load_label_studio
from .reading import held_out
from .saved import load_saved
from .schema import FEATURES, DataError, Problem, Problems

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of the training images that are held out for validation where a data set has no validation split."""
LAYOUTS: dict[str, Callable[..., DatasetDict]] = {
    "gaic": load_gaic,
    "cpc": load_cpc,
    "flms": load_flms,
    "fcdb": load_fcdb,
    "editor": load_editor,
    "folder": load_folder,
    "coco": load_coco,
    "imagefolder": load_imagefolder,
    "saved": load_saved,
    "label-studio": load_label_studio,
    "cvat": load_cvat,
}


# The scale of ratings is the layout's own in the others.
RATED_ON_ANY_SCALE = ("folder", "imagefolder", "coco", "label-studio", "cvat")


def load(
    layout: str,
    path: str | os.PathLike,
    *,
    problems: Problems | None = None,
    rating_scale: Sequence[float] | None = None,
) -> DatasetDict:
    """Read the data set at `path`, laid out as `layout` (a key of `LAYOUTS`).

    Args:
        rating_scale: lowest and highest rating that people could give, where that is not 1 and 5; ratings are mapped
            to 1..5, on which models are trained and judged.
        problems: receives the bad entries, which are left out, or, with `Problems(strict=True)`, raises at the first
            one; None logs a summary.

    Raises:
        DataError: unknown layout, nothing readable at `path`, a rating that is not on its scale, a scale given for a
            layout that has its own, or, with `problems.strict`, a bad entry.
    """
    if layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if not os.path.isdir(path):
        raise DataError(f"{os.fspath(path)}: {'not a' if os.path.exists(path) else 'no such'} folder")
    if rating_scale is None:
        return LAYOUTS[layout](path, problems=problems)
    if layout not in RATED_ON_ANY_SCALE:
        raise DataError(f"rating_scale: layout {layout!r} has its own scale of ratings")
    return LAYOUTS[layout](path, problems=problems, rating_scale=rating_scale)


def with_validation(splits: DatasetDict) -> DatasetDict:
    """Return the splits, a tenth of the training images as the validation split where there is none.

    It is the same tenth every time, at least one image, so that a model is calibrated on what it was not trained on.
    """
    train = splits.get("train")
    if "validation" in splits or train is None or len(train) < 2:
        return splits
    names = train["image_id"][:]
    chosen = held_out(names, max(HELD_OUT, 1 / len(names)), seed=0)
    held = [number for number, name in enumerate(names) if name in chosen]
    kept = [number for number, name in enumerate(names) if name not in chosen]
    logger.warning("no validation split: %d of the %d training images are held out for it", len(held), len(names))
    return DatasetDict({**splits, "train": train.select(kept), "validation": train.select(held)})


__all__ = [
    "FEATURES",
    "LAYOUTS",
    "DataError",
    "Problem",
    "Problems",
    "load",
    "load_coco",
    "load_cpc",
    "load_cvat",
    "load_editor",
    "load_fcdb",
    "load_flms",
    "load_folder",
    "load_gaic",
    "load_imagefolder",
    "load_label_studio",
    "load_saved",
    "with_validation",
]
