"""Data sets that `setcrop data convert` (or `save_to_disk`, `to_parquet`) has written, read back."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import DatasetDict, load_dataset, load_from_disk

from modeling_setcrop.data.schema import FEATURES, SPLITS, DataError, Problems


def load_saved(path: str | os.PathLike, *, problems: Problems | None = None) -> DatasetDict:
    """Reads a folder written by `DatasetDict.save_to_disk`, or one with `SPLIT.parquet` or `SPLIT-*.parquet` files.

    Args:
        problems: unused, as only complete entries are ever written.

    Raises:
        DataError: the folder holds neither, or rows of another form.
    """
    root = Path(path).resolve()
    if (root / "dataset_dict.json").is_file():
        splits = load_from_disk(str(root))
    else:
        files = {split: sorted(str(file) for file in root.glob(f"{split}*.parquet")) for split in SPLITS}
        files = {split: found for split, found in files.items() if found}
        if not files:
            raise DataError(f"{root}: layout 'saved' needs 'dataset_dict.json' or SPLIT.parquet files")
        splits = load_dataset("parquet", data_files=files)
    for split, dataset in splits.items():
        if dataset.features != FEATURES:
            raise DataError(f"{root}: the columns of split {split!r} are not those of SetCrop's data sets")
    return splits
