"""The measures of image cropping as plain functions over NumPy arrays.

Common arguments, one entry per image in each sequence; boxes are corners x1, y1, x2, y2 in any unit that predictions
and labels share (pixels, or normalised to [0, 1]):

- `pred_boxes`: (N, 4) predicted crops, in any order; `pred_scores`: (N,) their scores. N may differ from image to
  image. The first K crops are those with the K highest scores; equal scores keep their order.
- `boxes`: (S, 4) labelled crops; `ratings`: (S,) what people rated them; `good`: (S,) flags of the good crops.

A measure that is a mean over images comes as its value for each image, (I,), so that means, intervals and worst
cases are the caller's. Average precision pools all images and comes as one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

Arrays = Sequence[np.ndarray] | np.ndarray

RECALL_LEVELS = np.linspace(0.0, 1.0, 101)


class Matches(NamedTuple):
    """The first K crops of I images as hits and misses, for precision and recall.

    scores: (I, K), -inf where an image has fewer crops; hit: (I, K) whether the crop was matched to a good
    crop; positives: (I,) number of good crops.
    """

    scores: np.ndarray
    hit: np.ndarray
    positives: np.ndarray


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., N, 4) with (..., M, 4): (..., N, M) in [0, 1], 0 for empty boxes."""
    a, b = np.asarray(a, np.float64)[..., :, None, :], np.asarray(b, np.float64)[..., None, :, :]
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    intersection = width.clip(min=0) * height.clip(min=0)
    union = _area(a) + _area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def ranked(pred_boxes: Arrays, pred_scores: Arrays, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `k` crops of each image (None: all), best first.

    Returns:
        (I, K, 4) boxes and (I, K) scores; an image with fewer crops is filled with empty boxes scored -inf.
    """
    counts = [len(scores) for scores in pred_scores]
    longest = max(counts, default=0)
    boxes = _padded(pred_boxes, longest, 0.0, (4,))
    scores = _padded(pred_scores, longest, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(boxes, order[..., None], axis=1), np.take_along_axis(scores, order, axis=1)


def best_rated(boxes: Arrays, ratings: Arrays) -> np.ndarray:
    """(I, 4) the crop with the highest rating of each image, the first one of equals."""
    return ranked(boxes, ratings, 1)[0][:, 0]


def has_equals(ratings: Arrays) -> np.ndarray:
    """(I,) whether several crops of an image share its highest rating, so that no single one is the best.

    Means of a few votes often coincide: 77 of the 200 test images of GAIC version 1 are such.
    """
    return np.array([len(values) > 0 and (values == np.max(values)).sum() > 1 for values in ratings], bool)


def first_crop_iou(
    pred_boxes: Arrays, pred_scores: Arrays, boxes: Arrays, ratings: Arrays, equals: bool = False
) -> np.ndarray:
    """(I,) IoU of the first crop with the best-rated one, the first of equals.

    With `equals` the overlap counts with whichever of the crops that share the highest rating is nearest.
    """
    first = ranked(pred_boxes, pred_scores, 1)[0]
    return _iou_with_best(first, boxes, ratings, equals)[:, 0]


def accuracy(
    pred_boxes: Arrays,
    pred_scores: Arrays,
    boxes: Arrays,
    ratings: Arrays,
    n: int = 5,
    eps: float = 0.85,
    equals: bool = False,
) -> np.ndarray:
    """ACC_{1/N}(eps): (I,) whether one of the first N crops has IoU >= eps with the single best-rated crop.

    The measure of Jia et al., "Rethinking Image Cropping" (CVPR 2022), with N = 5, 10 and eps = 0.85, 0.90. Of crops
    that share the highest rating the first in the labels' order is the best one, which is chance; with `equals` each
    of them is.
    """
    top = ranked(pred_boxes, pred_scores, n)[0]
    return np.any(_iou_with_best(top, boxes, ratings, equals) >= eps, axis=1)


def transposed_accuracy(
    pred_boxes: Arrays, pred_scores: Arrays, boxes: Arrays, ratings: Arrays, n: int = 5, eps: float = 0.85
) -> np.ndarray:
    """(I,) whether the first crop has IoU >= eps with one of the N best-rated crops.

    What GAIC's Acc_{1/N} (Zeng et al., CVPR 2019) becomes for methods that are not tied to its candidates, and what
    later papers, which set such methods beside ranking networks, print as ACC_{1/N}: the transpose of `accuracy`,
    although it has the same name.
    """
    first = ranked(pred_boxes, pred_scores, 1)[0]
    return np.any(pairwise_iou(first, ranked(boxes, ratings, n)[0])[:, 0] >= eps, axis=1)


def candidate_accuracy(candidate_scores: Arrays, ratings: Arrays, k: int = 1, n: int = 5) -> np.ndarray:
    """Acc_{K/N} over fixed candidates: (I,) share of the K highest-ranked candidates among the N best-rated.

    The measure of Zeng et al., "Reliable and Efficient Image Cropping: A Grid Anchor Based Approach" (CVPR 2019), with
    K = 1..4 and N = 5, 10. As in the evaluation code in use since, a candidate rated as high as the N-th best is in.

    Args:
        candidate_scores: (S,) predicted score of each labelled crop.
        ratings: (S,) its rating.
    """
    longest = max((len(values) for values in ratings), default=0)
    predicted = _padded(candidate_scores, longest, -np.inf)
    rated = _padded(ratings, longest, -np.inf)
    threshold = -np.sort(-rated, axis=1)[:, min(n, longest) - 1]
    counts = np.isfinite(rated).sum(axis=1)
    # An image with fewer than N crops has them all among its N best.
    threshold = np.where(counts < n, np.where(np.isfinite(rated), rated, np.inf).min(axis=1), threshold)
    order = np.argsort(-predicted, axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(rated, order, axis=1) >= threshold[:, None]
    return hits.sum(axis=1) / np.minimum(k, counts)


def spearman(candidate_scores: Arrays, ratings: Arrays) -> np.ndarray:
    """SRCC: (I,) Spearman's rank correlation, in [-1, 1], of an image's candidates as predicted and as rated.

    Equal values share their mean rank. A prediction that is the same for all candidates ranks nothing and gets 0; an
    image whose ratings are all equal cannot be ranked and gets NaN (take `numpy.nanmean`). Zeng et al. (GAIC,
    CVPR 2019) report the mean over images.
    """
    return np.array(
        [_correlation(rankdata(a), rankdata(b)) for a, b in zip(candidate_scores, ratings, strict=True)], np.float64
    )


def overlap_scores(pred_boxes: Arrays, pred_scores: Arrays, candidates: Arrays) -> list[np.ndarray]:
    """Rate given crops with a set prediction: each takes the score of the predicted crop it overlaps most.

    Args:
        candidates: (S, 4) boxes to rate.

    Returns:
        (S,) scores for each image, for `spearman` and `candidate_accuracy`.
    """
    top, scores = ranked(pred_boxes, pred_scores)
    longest = max((len(values) for values in candidates), default=0)
    nearest = pairwise_iou(_padded(candidates, longest, 0.0, (4,)), top).argmax(axis=2)
    rated = np.take_along_axis(scores, nearest, axis=1)
    return [rated[index, : len(values)] for index, values in enumerate(candidates)]


def match(
    pred_boxes: Arrays,
    pred_scores: Arrays,
    boxes: Arrays,
    good: Arrays,
    eps: float = 0.85,
    k: int = 10,
    release_ratings: Arrays | None = None,
) -> Matches:
    """Match the first K crops of each image with its good crops, the way COCO's evaluation does.

    In order of score, a crop takes the free good crop with the highest IoU, if that is at least `eps`.

    Args:
        release_ratings: (S,) ratings; given, crops are matched as in the evaluation code that Jia et al. (CVPR
            2022) released: of the free good crops with IoU >= eps, whatever the IoU, the lowest-rated one.
    """
    top, scores = ranked(pred_boxes, pred_scores, k)
    wanted = _good_crops(boxes, good)
    positives = np.array([len(values) for values in wanted], dtype=np.int64)
    hit = np.zeros(scores.shape, bool)
    if not positives.any():
        return Matches(scores, hit, positives)
    if release_ratings is not None:
        rated = [np.asarray(s)[np.asarray(g, bool)] for s, g in zip(release_ratings, good, strict=True)]
        wanted = [crops[np.argsort(-values, kind="stable")] for crops, values in zip(wanted, rated, strict=True)]
    # Reversed, so that argmax takes the last of equals, as both loops do.
    iou = pairwise_iou(top, _padded(wanted, positives.max(), 0.0, (4,)))[..., ::-1]
    threshold = min(eps, 1 - 1e-10)
    if release_ratings is not None:
        iou = (iou >= threshold).astype(np.float64)
    free = np.ones(iou[:, 0].shape, bool)
    images = np.arange(len(iou))
    for rank in range(iou.shape[1]):
        candidates = np.where(free, iou[:, rank], -1.0)
        best = candidates.argmax(axis=1)
        hit[:, rank] = candidates[images, best] >= threshold
        free[images[hit[:, rank]], best[hit[:, rank]]] = False
    return Matches(scores, hit, positives)


def precision_at_recall(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """(101,) interpolated precision at recall 0, 0.01, ... 1 of all images pooled; NaN when nothing is good.

    Args:
        weights: (I,) how often each image counts, or (R, I) for R bootstrap samples, whose curves come as (R, 101);
            None: once.
    """
    if weights is None:
        weights = np.ones(len(matches.positives))
    used = np.isfinite(matches.scores)
    order = np.argsort(-matches.scores[used], kind="stable")
    image = np.broadcast_to(np.arange(len(used))[:, None], used.shape)[used][order]
    hit = matches.hit[used][order]
    samples = np.atleast_2d(np.asarray(weights, np.float64))
    curves = np.array([_precision_curve(hit, sample[image], sample @ matches.positives) for sample in samples])
    return curves if np.ndim(weights) == 2 else curves[0]


def average_precision(
    pred_boxes: Arrays,
    pred_scores: Arrays,
    boxes: Arrays,
    good: Arrays,
    eps: float = 0.85,
    k: int = 10,
    release_ratings: Arrays | None = None,
) -> float:
    """AP(eps, K): 101-point average precision of the first K crops of each image, pooled over images.

    The measure of Jia et al. (CVPR 2022), with K = 5, 10, 40 and eps = 0.85, 0.90: COCO's average precision at one IoU
    threshold with `maxDets` = K. In [0, 1]; NaN when no image has a good crop. With `release_ratings` the crops are
    matched as in the authors' code (see `match`), which is what their printed figures come from.
    """
    return float(precision_at_recall(match(pred_boxes, pred_scores, boxes, good, eps, k, release_ratings)).mean())


def iou_with_annotators(pred_boxes: Arrays, pred_scores: Arrays, boxes: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """IoU of the first crop with the annotators' crops: (I,) with the nearest one and (I,) the mean over all.

    The nearest one is the figure that papers print for FLMS (Fang et al., ACM MM 2014), Jia et al. (CVPR 2022) among
    them; FCDB has one crop per image, where both are the same.
    """
    iou, present = _first_against(pred_boxes, pred_scores, boxes)
    return iou.max(axis=1), iou.sum(axis=1) / present.sum(axis=1)


def boundary_displacement(
    pred_boxes: Arrays, pred_scores: Arrays, boxes: Arrays, sizes: Arrays
) -> tuple[np.ndarray, np.ndarray]:
    """BDE: mean distance of the first crop's four edges to an annotator's, normalised to [0, 1].

    Returns:
        (I,) to the annotator's crop with the highest IoU, and (I,) the mean over all annotators; lower is better. The
        first is printed for FLMS; with one crop per image (FCDB: Chen et al., WACV 2017) both are the same.

    Args:
        sizes: (I, 2) width and height of each image in the boxes' unit (ones where boxes are parts of it).
    """
    iou, present = _first_against(pred_boxes, pred_scores, boxes)
    first = ranked(pred_boxes, pred_scores, 1)[0]
    sides = np.tile(np.asarray(sizes, np.float64), 2)[:, None]
    labelled = _padded(boxes, present.shape[1], 0.0, (4,))
    displacement = (np.abs(first - labelled) / sides).mean(axis=2)
    nearest = np.take_along_axis(displacement, iou.argmax(axis=1)[:, None], axis=1)[:, 0]
    return nearest, (displacement * present).sum(axis=1) / present.sum(axis=1)


def recall(
    pred_boxes: Arrays, pred_scores: Arrays, boxes: Arrays, good: Arrays, eps: float = 0.85, k: int = 10
) -> np.ndarray:
    """(I,) share of the good crops that one of the first K crops meets with IoU >= eps; NaN with no good crop."""
    top = ranked(pred_boxes, pred_scores, k)[0]
    wanted = _good_crops(boxes, good)
    counts = np.array([len(values) for values in wanted])
    met = (pairwise_iou(_padded(wanted, counts.max(initial=0), 0.0, (4,)), top) >= eps).any(axis=2).sum(axis=1)
    return np.divide(met, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def mean_pairwise_iou(pred_boxes: Arrays, pred_scores: Arrays, k: int = 5) -> np.ndarray:
    """(I,) mean IoU between the first K crops, the lower the more diverse; NaN with fewer than two crops."""
    top, scores = ranked(pred_boxes, pred_scores, k)
    present = np.isfinite(scores)
    pairs = np.triu(present[:, :, None] & present[:, None, :], 1)
    counts = pairs.sum(axis=(1, 2))
    total = (pairwise_iou(top, top) * pairs).sum(axis=(1, 2))
    return np.divide(total, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def edge_spread(crops: np.ndarray, sizes: Arrays) -> np.ndarray:
    """(4,) standard deviation over images of the left, top, right and bottom edge, normalised to [0, 1].

    A model that answers with much the same crop whatever it sees has a far smaller spread than the labels' best crops.

    Args:
        crops: (I, 4) one crop per image.
        sizes: (I, 2) width and height of each image in the crops' unit.
    """
    return (np.asarray(crops, np.float64) / np.tile(np.asarray(sizes, np.float64), 2)).std(axis=0)


def mean_where_defined(values: np.ndarray) -> float:
    """Mean over the images where a measure is defined (not NaN); NaN when there is none."""
    defined = np.asarray(values, np.float64)
    defined = defined[~np.isnan(defined)]
    return float(defined.mean()) if len(defined) else float("nan")


def _precision_curve(hit: np.ndarray, weight: np.ndarray, positives: float) -> np.ndarray:
    """(101,) precision of crops in falling order of score, each a hit or not and counted `weight` times."""
    if positives == 0:
        return np.full(len(RECALL_LEVELS), np.nan)
    hits = np.cumsum(weight * hit)
    returned = np.cumsum(weight)
    precision = np.divide(hits, returned, out=np.zeros_like(hits), where=returned > 0)
    # Best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(hits / positives, RECALL_LEVELS, side="left")
    return np.append(precision, 0.0)[first]


def _good_crops(boxes: Arrays, good: Arrays) -> list[np.ndarray]:
    return [np.asarray(b).reshape(-1, 4)[np.asarray(g, bool)] for b, g in zip(boxes, good, strict=True)]


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]).clip(min=0) * (boxes[..., 3] - boxes[..., 1]).clip(min=0)


def _padded(values: Arrays, length: int, fill: float, shape: tuple[int, ...] = ()) -> np.ndarray:
    padded = np.full((len(values), length, *shape), fill, dtype=np.float64)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = np.asarray(value, np.float64).reshape(-1, *shape)
    return padded


def _iou_with_best(crops: np.ndarray, boxes: Arrays, ratings: Arrays, equals: bool) -> np.ndarray:
    """(I, N) overlap of crops (I, N, 4) with the best-rated crop of their image, or the nearest of its equals."""
    if not equals:
        return pairwise_iou(crops, best_rated(boxes, ratings)[:, None])[..., 0]
    longest = max((len(values) for values in ratings), default=0)
    rated = _padded(ratings, longest, -np.inf)
    best = np.isfinite(rated) & (rated == rated.max(axis=1, keepdims=True))
    return np.where(best[:, None], pairwise_iou(crops, _padded(boxes, longest, 0.0, (4,))), 0.0).max(axis=-1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    if not b.any():
        return np.nan
    return float(a @ b / np.sqrt((a @ a) * (b @ b))) if a.any() else 0.0


def _first_against(pred_boxes: Arrays, pred_scores: Arrays, boxes: Arrays) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(values) for values in boxes])
    if not counts.all():
        raise ValueError("every image needs at least one labelled crop")
    present = np.arange(counts.max(initial=0)) < counts[:, None]
    labelled = _padded(boxes, present.shape[1], 0.0, (4,))
    return pairwise_iou(ranked(pred_boxes, pred_scores, 1)[0], labelled)[:, 0], present
