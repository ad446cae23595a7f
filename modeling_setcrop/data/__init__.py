"""Crop data sets as their authors distribute them, as `datasets.DatasetDict` with one schema (`schema.FEATURES`)."""

from __future__ import annotations

import os
from collections.abc import Callable

from datasets import DatasetDict

from modeling_setcrop.data.coco import load_coco
from modeling_setcrop.data.cpc import load_cpc
from modeling_setcrop.data.cvat import load_cvat
from modeling_setcrop.data.editor import load_editor
from modeling_setcrop.data.fcdb import load_fcdb
from modeling_setcrop.data.flms import load_flms
from modeling_setcrop.data.folder import load_folder
from modeling_setcrop.data.gaic import load_gaic
from modeling_setcrop.data.imagefolder import load_imagefolder
from modeling_setcrop.data.label_studio import load_label_studio
from modeling_setcrop.data.saved import load_saved
from modeling_setcrop.data.schema import FEATURES, DataError, Problem, Problems

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


def load(layout: str, path: str | os.PathLike, *, problems: Problems | None = None) -> DatasetDict:
    """Reads the data set at `path`, laid out as `layout` (a key of `LAYOUTS`).

    Args:
        problems: receives the bad entries, which are left out, or, with `Problems(strict=True)`, raises at the first
            one; None logs a summary.

    Raises:
        DataError: unknown layout, nothing readable at `path`, or, with `problems.strict`, a bad entry.
    """
    if layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout](path, problems=problems)


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
]
