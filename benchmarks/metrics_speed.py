"""Time every measure on 500 images with 90 predicted and 90 labelled crops each.

    python benchmarks/metrics_speed.py [--images 500] [--rounds 5]

The median of the rounds, in milliseconds of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from modeling_setcrop import metrics

CROPS = 90


def _boxes(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rng.uniform(0, 0.4, (CROPS, 2)), rng.uniform(0.6, 1, (CROPS, 2))], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = range(options.images)
    crops = [_boxes(rng) for _ in images], [rng.random(CROPS) for _ in images]
    boxes, scores = [_boxes(rng) for _ in images], [rng.integers(7, 36, CROPS) / 7 for _ in images]
    good = [values >= 4 for values in scores]
    candidates = metrics.overlap_scores(*crops, boxes)
    sizes = np.ones((options.images, 2))
    measures = {
        "ACC 1/N, N = 1, 5, 10, two eps": lambda: [
            metrics.accuracy(*crops, boxes, scores, n, eps) for n in (1, 5, 10) for eps in (0.85, 0.90)
        ],
        "its transpose": lambda: [
            metrics.transposed_accuracy(*crops, boxes, scores, n, eps) for n in (1, 5, 10) for eps in (0.85, 0.90)
        ],
        "AP, K = 5, 10, 40, two eps": lambda: [
            metrics.average_precision(*crops, boxes, good, eps, k) for k in (5, 10, 40) for eps in (0.85, 0.90)
        ],
        "recall, K = 5, 10, two eps": lambda: [
            metrics.recall(*crops, boxes, good, eps, k) for k in (5, 10) for eps in (0.85, 0.90)
        ],
        "scores of candidates by overlap": lambda: metrics.overlap_scores(*crops, boxes),
        "SRCC": lambda: metrics.spearman(candidates, scores),
        "Acc K/N, K = 1..4, N = 5, 10": lambda: [
            metrics.candidate_accuracy(candidates, scores, k, n) for k in (1, 2, 3, 4) for n in (5, 10)
        ],
        "IoU with annotators": lambda: metrics.iou_with_annotators(*crops, boxes),
        "boundary displacement": lambda: metrics.boundary_displacement(*crops, boxes, sizes),
        "diversity": lambda: metrics.mean_pairwise_iou(*crops, 5),
    }
    total = 0.0
    for name, run in measures.items():
        times = []
        for _ in range(options.rounds):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        total += statistics.median(times)
        print(f"{name:34} {1000 * statistics.median(times):8.1f}")
    print(f"{'all':34} {1000 * total:8.1f}")


if __name__ == "__main__":
    main()
