"""What is in a data set: counts, scores, good crops a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict

HISTOGRAM_BINS = 8


@dataclass(frozen=True)
class SplitSummary:
    """One split's numbers.

    sizes: (smallest, median, largest) long side in pixels; crops, good: (smallest, mean, largest) number a picture;
    histogram, edges: counts of scores in equal bins and the bins' limits, None where there are no scores.
    """

    pictures: int
    scored_pictures: int
    sizes: tuple[int, float, int]
    crops: tuple[int, float, int]
    good: tuple[int, float, int]
    histogram: np.ndarray | None
    edges: np.ndarray | None


def summarise(splits: DatasetDict) -> dict[str, SplitSummary]:
    """The numbers of every split; no picture is opened."""
    return {name: _summary(dataset) for name, dataset in splits.items()}


def _summary(dataset: Dataset) -> SplitSummary:
    table = dataset.select_columns(["width", "height", "scores", "good"]).with_format("arrow")[:]
    sides = np.maximum(table["width"].to_numpy(), table["height"].to_numpy())
    good = table["good"].to_pylist()
    scores = [row for row in table["scores"].to_pylist() if row is not None]
    histogram = edges = None
    if scores:
        values = np.concatenate(scores)
        histogram, edges = np.histogram(values, HISTOGRAM_BINS, (np.floor(values.min()), np.ceil(values.max())))
    return SplitSummary(
        pictures=len(dataset),
        scored_pictures=len(scores),
        sizes=(int(sides.min()), float(np.median(sides)), int(sides.max())),
        crops=_range([len(flags) for flags in good]),
        good=_range([sum(flags) for flags in good]),
        histogram=histogram,
        edges=edges,
    )


def _range(counts: list[int]) -> tuple[int, float, int]:
    return min(counts), float(np.mean(counts)), max(counts)
