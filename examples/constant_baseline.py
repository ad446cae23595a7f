"""How far constant boxes get on GAICD version 1: fitted on the training labels, measured on the test labels.

Needs no image. The labels come as one JSON file (or .json.gz): file name -> {"split": "train" or "test", "crops":
[[y1, x1, y2, x2, score], ...]}; an image's size follows from GAICD's grid, whose last corners lie at 11.5 / 12 of it.

    python examples/constant_baseline.py gaic_v1.json.gz
"""

from __future__ import annotations

import argparse
import gzip
import json

import numpy as np

from modeling_setcrop import metrics
from modeling_setcrop.data.schema import GOOD_RATING, good_or_best
from modeling_setcrop.evaluation import Labels, baselines


def read(path: str, split: str) -> Labels:
    """Return the labels of one split, boxes normalised to [0, 1]."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        entries = {name: entry for name, entry in json.load(file).items() if entry["split"] == split}
    tables = [np.array(entry["crops"], dtype=np.float64) for entry in entries.values()]
    tables = [table[table[:, 4] != -2] for table in tables]
    boxes = [table[:, [1, 0, 3, 2]] for table in tables]
    scores = [table[:, 4] for table in tables]
    sizes = np.array([crops[:, 2:].max(axis=0) * 12 / 11.5 for crops in boxes])
    return Labels(
        image_ids=list(entries),
        sizes=sizes,
        boxes=[crops / np.tile(size, 2) for crops, size in zip(boxes, sizes, strict=True)],
        scores=scores,
        good=[good_or_best(values, values >= GOOD_RATING) for values in scores],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels")
    path = parser.parse_args().labels
    train, test = read(path, "train"), read(path, "test")
    print(f"fitted on {len(train)} training images, measured on {len(test)} test images")
    for eps in (0.85, 0.90):
        answer = baselines.constant(*baselines.cover_set(train, eps), len(test))
        shares = [
            100 * metrics.accuracy(answer.boxes, answer.scores, test.boxes, test.scores, n, eps).mean()
            for n in (1, 5, 10)
        ]
        print("cover at {:.2f}: ACC 1/1 {:.1f}, ACC 1/5 {:.1f}, ACC 1/10 {:.1f}".format(eps, *shares))
    answer = baselines.constant(*baselines.frequent_set(train), len(test))
    for eps in (0.85, 0.90):
        values = [
            100 * metrics.average_precision(answer.boxes, answer.scores, test.boxes, test.good, eps, k)
            for k in (5, 10, 40)
        ]
        print("frequency: AP at {:.2f}: K = 5 {:.1f}, K = 10 {:.1f}, K = 40 {:.1f}".format(eps, *values))
    answer = baselines.constant(*baselines.mean_score_set(train), len(test))
    candidates = metrics.overlap_scores(answer.boxes, answer.scores, test.boxes)
    print(f"mean score of the place: SRCC {np.nanmean(metrics.spearman(candidates, test.scores)):.3f}")


if __name__ == "__main__":
    main()
