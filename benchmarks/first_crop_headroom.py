"""How much a better ranking could gain over a constant crop, by the measures of the first crop.

    python benchmarks/first_crop_headroom.py --data DIR --layout gaic [--split test] [--model CHECKPOINT]

The model's scores of the labelled crops are mixed with the labels themselves, in growing shares, and the first crop of
each mixture is measured beside the best constant box: an imagined model that ranks better and better.
"Lost" is the mean difference in rating between an image's best crop and the labelled crop nearest to the first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoImageProcessor, AutoModelForObjectDetection
from transformers.utils import logging

from modeling_setcrop import DEFAULT_CHECKPOINT, metrics
from modeling_setcrop.data import load
from modeling_setcrop.evaluation import Labels, baselines, predict

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def _row(name: str, labels: Labels, crops: list[np.ndarray], ranking: list[np.ndarray]) -> list[str]:
    answer = (crops, ranking, labels.boxes, labels.scores)
    first = metrics.ranked(crops, ranking, 1)[0][:, 0]
    nearest = metrics.overlap_scores(labels.boxes, labels.scores, first[:, None])
    lost = np.mean([scores.max() - score[0] for scores, score in zip(labels.scores, nearest, strict=True)])
    srcc = np.nanmean(metrics.spearman(metrics.overlap_scores(crops, ranking, labels.boxes), labels.scores))
    measured = [
        metrics.first_crop_iou(*answer).mean(),
        metrics.accuracy(*answer, n=1, eps=0.90).mean(),
        metrics.accuracy(*answer, n=1, eps=0.90, equals=True).mean(),
    ]
    return [name, f"{srcc:.3f}", *(f"{value:.3f}" for value in measured), f"{lost:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--layout", default="gaic")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT)
    args = parser.parse_args()
    logging.disable_progress_bar()
    splits = load(args.layout, args.data)
    rows = splits[args.split]
    labels = Labels.from_dataset(rows)
    model, processor = (
        AutoModelForObjectDetection.from_pretrained(args.model),
        AutoImageProcessor.from_pretrained(args.model),
    )
    predictions, _ = predict(model, processor, rows, labels)
    constant = baselines.constant(
        baselines.best_box(Labels.from_dataset(splits["train"]))[None], np.ones(1), len(labels)
    )
    table = Table("first crop by", "SRCC", "IoU", "ACC 1/1 (0.90)", "any best", "lost")
    table.add_row(*_row("the best constant box", labels, constant.boxes, constant.scores))
    for share in SHARES:
        mixed = [
            (1 - share) * predicted + share * scores
            for predicted, scores in zip(predictions.candidate_scores, labels.scores, strict=True)
        ]
        table.add_row(*_row(f"{1 - share:.0%} model, {share:.0%} labels", labels, labels.boxes, mixed))
    equals = metrics.has_equals(labels.scores).mean()
    Console().print(f"{len(labels)} images; several crops share the best score on {equals:.0%} of them")
    Console().print(table)


if __name__ == "__main__":
    main()
