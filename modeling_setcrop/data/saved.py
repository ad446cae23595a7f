"""Self-contained copies of data sets: written by `setcrop data convert`, and read back."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.table import embed_table_storage

from ..images.atomic import atomic_folder
from .schema import FEATURES, OPTIONAL, SPLITS, DataError, Problems

_ROWS_PER_GROUP = 100


def load_saved(path: str | os.PathLike, *, problems: Problems | None = None) -> DatasetDict:
    """Read a folder written by `DatasetDict.save_to_disk`, or one with `SPLIT.parquet` or `SPLIT-*.parquet` files.

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
        needed = {name: kind for name, kind in FEATURES.items() if name not in OPTIONAL}
        if any(dataset.features.get(name) != kind for name, kind in needed.items()):
            raise DataError(f"{root}: the columns of split {split!r} are not those of SetCrop's data sets")
    return splits


def save(splits: DatasetDict, path: str | os.PathLike, form: str) -> None:
    """Write a self-contained copy, images included, to a new folder, whole or not at all.

    Args:
        form: "disk" (`DatasetDict.save_to_disk`) or "parquet" (`SPLIT.parquet` a split).

    Raises:
        DataError: the folder exists already and is not empty.
        OSError: it cannot be written, or an image cannot be read.
    """
    target = Path(path).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: exists already")
    with atomic_folder(target) as work:
        if form == "disk":
            splits.save_to_disk(str(work))
        else:
            for split, dataset in splits.items():
                _write_parquet(dataset, work / f"{split}.parquet")


def _write_parquet(dataset: Dataset, path: Path) -> None:
    # `Dataset.to_parquet` keeps paths to the images; their bytes are wanted here, a few rows at a time.
    with pq.ParquetWriter(path, dataset.features.arrow_schema) as writer:
        for batch in dataset.with_format("arrow").iter(_ROWS_PER_GROUP):
            writer.write_table(embed_table_storage(batch))
