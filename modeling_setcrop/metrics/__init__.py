"""The measures of image cropping.

Plain functions over NumPy arrays, in `modeling_setcrop.metrics.functional`, where their common arguments are described
and importable from here:

- `accuracy`, `transposed_accuracy`, `first_crop_iou`: the first crops against the best-rated ones
  (`has_equals`: where several crops share the highest rating);
- `average_precision` (over `match` and `precision_at_recall`): against the good crops;
- `spearman`, `candidate_accuracy`: rankings of fixed candidates; `overlap_scores` ranks them with a set prediction;
- `iou_with_annotators`, `boundary_displacement`: FLMS and FCDB;
- `recall`, `mean_pairwise_iou`: of the returned set; `edge_spread`: of the first crop over images.

Each folder beside is the same for `evaluate.load`: `crop_accuracy`, `crop_average_precision`, `crop_ranking`,
`crop_overlap` and `crop_set`.
"""

from __future__ import annotations

from .functional import (
    Matches,
    accuracy,
    average_precision,
    best_rated,
    boundary_displacement,
    candidate_accuracy,
    edge_spread,
    first_crop_iou,
    has_equals,
    iou_with_annotators,
    match,
    mean_pairwise_iou,
    overlap_scores,
    pairwise_iou,
    precision_at_recall,
    ranked,
    recall,
    spearman,
    transposed_accuracy,
)

__all__ = [
    "Matches",
    "accuracy",
    "average_precision",
    "best_rated",
    "boundary_displacement",
    "candidate_accuracy",
    "edge_spread",
    "first_crop_iou",
    "has_equals",
    "iou_with_annotators",
    "match",
    "mean_pairwise_iou",
    "overlap_scores",
    "pairwise_iou",
    "precision_at_recall",
    "ranked",
    "recall",
    "spearman",
    "transposed_accuracy",
]
