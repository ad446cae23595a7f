"""What is in a data set, and what is wrong with it that its reader cannot see."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature

from ..image_reading import ImageFileError
from .collation import read_image
from .schema import RATING_SCALE, Problems

HISTOGRAM_BINS = 8
# Decoded at no more than twice this many pixels on the short side: enough to meet every byte of the file.
_DECODED_SIDE = 32


@dataclass(frozen=True)
class SplitSummary:
    """One split's numbers.

    sizes: (smallest, median, largest) long side in pixels; crops, good: (smallest, mean, largest) number per image;
    histogram, edges: counts of ratings in equal bins and the bins' limits, None where there are none; scales: the
    scales, (lowest, highest), on which people gave them before they were mapped to 1..5; labelled: of how many images
    each field of `crop_labels` says something, empty where no image has them.
    """

    images: int
    rated_images: int
    sizes: tuple[int, float, int]
    crops: tuple[int, float, int]
    good: tuple[int, float, int]
    histogram: np.ndarray | None
    edges: np.ndarray | None
    scales: list[tuple[float, float]]
    labelled: dict[str, int]


def summarise(splits: DatasetDict) -> dict[str, SplitSummary]:
    """Return the numbers of every split; no image is opened."""
    return {name: _summary(dataset) for name, dataset in splits.items()}


def check(splits: DatasetDict, problems: Problems, progress: Callable[[int], None] | None = None) -> None:
    """Decode every image, and compare the entries of all splits.

    Args:
        problems: Receives images that do not decode, images that are in several splits (by the bytes of their files),
            images with several entries in one split, and crops with two ratings.
        progress: Called with the number of images done, now and then.

    Raises:
        DataError: With `problems.strict`, at the first problem.
    """
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:
        for split, dataset in splits.items():
            rows = dataset.cast_column("image", ImageFeature(decode=False))
            for batch in rows.select_columns(["image", "boxes", "scores"]).iter(64):
                entries = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
                for entry, (digest, error) in zip(entries, pool.map(_decode, batch["image"]), strict=True):
                    name = entry["image"]["path"] or "an image without a name"
                    if error is not None:
                        problems.add("undecodable image", name, f"cannot be decoded ({error})")
                    places[digest].append((split, name))
                    _check_ratings(entry, name, problems)
                if progress is not None:
                    progress(len(entries))
    for found in places.values():
        _check_places(found, problems)


def _decode(image: dict[str, Any]) -> tuple[str, str | None]:
    """Return a digest of the file's bytes, and why it does not decode."""
    try:
        content = image["bytes"]
        if content is None:
            with open(image["path"], "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            digest = hashlib.sha256(content).hexdigest()
        read_image(image, _DECODED_SIDE)
    except ImageFileError as error:
        return digest, error.reason
    except OSError as error:
        return str(image["path"]), error.strerror or str(error)
    return digest, None


def _check_ratings(entry: dict[str, Any], name: str, problems: Problems) -> None:
    if entry["scores"] is None:
        return
    ratings: dict[tuple[float, ...], float] = {}
    for box, score in zip(entry["boxes"], entry["scores"], strict=True):
        first = ratings.setdefault(tuple(box), score)
        if first != score:
            shown = ", ".join(f"{value:g}" for value in box)
            problems.add("conflicting ratings", name, f"box [{shown}] is rated {first:g} and {score:g}")


def _check_places(found: list[tuple[str, str]], problems: Problems) -> None:
    """Problems of one image's entries, each a split and a file name."""
    names: dict[str, str] = {}
    for split, name in found:
        if split in names:
            other = names[split]
            beside = "has several entries" if other == name else f"is the same image as {os.path.basename(other)}"
            problems.add("image given twice", name, f"{beside} in {split}")
        names.setdefault(split, name)
    if len(names) > 1:
        held = ", ".join(f"{split} ({os.path.basename(name)})" for split, name in names.items())
        problems.add("image in several splits", found[0][1], f"is in {held}")


def _summary(dataset: Dataset) -> SplitSummary:
    columns = ["width", "height", "scores", "good"]
    scaled = "rating_scale" in dataset.column_names
    table = dataset.select_columns([*columns, *["rating_scale"] * scaled]).with_format("arrow")[:]
    sides = np.maximum(table["width"].to_numpy(), table["height"].to_numpy())
    good = table["good"].to_pylist()
    scores = [row for row in table["scores"].to_pylist() if row is not None]
    histogram = edges = None
    if scores:
        histogram, edges = np.histogram(np.concatenate(scores), HISTOGRAM_BINS, RATING_SCALE)
    scales = {tuple(scale) for scale in table["rating_scale"].to_pylist() if scale} if scaled else set()
    return SplitSummary(
        images=len(dataset),
        rated_images=len(scores),
        sizes=(int(sides.min()), float(np.median(sides)), int(sides.max())),
        crops=_range([len(flags) for flags in good]),
        good=_range([sum(flags) for flags in good]),
        histogram=histogram,
        edges=edges,
        scales=sorted(scales),
        labelled=_labelled(dataset),
    )


def _labelled(dataset: Dataset) -> dict[str, int]:
    """Count the images of which each field of `crop_labels` says something; ratings go with crops."""
    labels = dataset["crop_labels"][:] if "crop_labels" in dataset.column_names else []
    labels = [each for each in labels if each]
    names = ("crops", "people", "whole", "subjects", "faces", "square", "slim")
    return {name: sum(each[name] not in (None, []) for each in labels) for name in names} if labels else {}


def _range(counts: list[int]) -> tuple[int, float, int]:
    return min(counts), float(np.mean(counts)), max(counts)
