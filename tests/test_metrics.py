"""The measures: hand-worked examples, agreement with pycocotools, and the `evaluate` folders."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from modeling_setcrop import metrics
from modeling_setcrop.evaluation.labels import Labels, Predictions
from modeling_setcrop.evaluation.measures import measure, measure_human_agreement
from modeling_setcrop.metrics import catalogue
from modeling_setcrop.metrics.markdown import markdown_table
from modeling_setcrop.training.evaluation import FIGURES, figure_key, is_better

METRICS = Path(metrics.__file__).parent
# Two images of 10 x 10. IoU with image 0's best crop [0, 0, 10, 10]: 0.9, 1.0, 0.5 for its predictions.
PRED_BOXES = [
    np.array([[0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 5, 10]], float),
    np.array([[0, 0, 8, 10], [0, 0, 6, 10]], float),
]
PRED_SCORES = [np.array([0.9, 0.2, 0.6]), np.array([0.8, 0.3])]
BOXES = [
    np.array([[0, 0, 5, 10], [0, 0, 10, 10]], float),
    np.array([[0, 0, 8, 10], [0, 0, 6, 10], [0, 0, 10, 10]], float),
]
SCORES = [np.array([3.0, 4.5]), np.array([4.0, 4.2, 2.0])]
GOOD = [np.array([False, True]), np.array([True, True, False])]
SIZES = np.array([[10, 10], [10, 10]], float)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.concatenate([rng.uniform(0, 40, (count, 2)), rng.uniform(60, 100, (count, 2))], axis=1)


def random_set(seed: int, images: int = 30, predictions: int = 20, candidates: int = 25):
    rng = np.random.default_rng(seed)
    boxes = [random_boxes(rng, candidates) for _ in range(images)]
    scores = [rng.integers(7, 36, candidates) / 7 for _ in range(images)]
    return (
        [random_boxes(rng, predictions) for _ in range(images)],
        [rng.random(predictions) for _ in range(images)],
        boxes,
        scores,
        [values >= 4 for values in scores],
    )


def coco_average_precision(pred_boxes, pred_scores, boxes, good, eps: float, k: int) -> float:
    """The same figure by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    truth, found = [], []
    for image, (crops, flags) in enumerate(zip(boxes, good, strict=True), start=1):
        for box in crops[flags]:
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": xywh(box),
                    "area": area,
                    "iscrowd": 0,
                }
            )
    for image, (crops, scores) in enumerate(zip(pred_boxes, pred_scores, strict=True), start=1):
        found += [
            {"image_id": image, "category_id": 1, "bbox": xywh(box), "score": float(score)}
            for box, score in zip(crops, scores, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(1, len(boxes) + 1)],
            "annotations": truth,
            "categories": [{"id": 1}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.params.iouThrs = np.array([eps])
        evaluation.params.maxDets = [k]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval["precision"][0, :, 0, 0, 0].mean())


def gaic_labels(shared_data: Path, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    with gzip.open(shared_data / "labels" / "gaic_v1.json.gz", "rt") as file:
        tables = [np.array(entry["crops"]) for entry in json.load(file).values() if entry["split"] == split]
    return [table[:, [1, 0, 3, 2]] for table in tables], [table[:, 4] for table in tables]


def test_iou_of_known_boxes():
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 9]], float)
    b = np.array([[5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10]], float)
    # 50 shared of 150; nothing shared; all shared; an empty box overlaps nothing.
    np.testing.assert_allclose(metrics.pairwise_iou(a, b), [[1 / 3, 0, 1], [0, 0, 0]])


def test_accuracy_counts_images_whose_best_crop_is_met():
    # Image 0: the first crop has IoU 0.9 with the best one. Image 1: the first has 6/8, the second 1.
    assert metrics.accuracy(PRED_BOXES, PRED_SCORES, BOXES, SCORES, n=1, eps=0.85).tolist() == [True, False]
    assert metrics.accuracy(PRED_BOXES, PRED_SCORES, BOXES, SCORES, n=1, eps=0.95).tolist() == [False, False]
    assert metrics.accuracy(PRED_BOXES, PRED_SCORES, BOXES, SCORES, n=2, eps=0.95).tolist() == [False, True]
    assert metrics.accuracy(PRED_BOXES, PRED_SCORES, BOXES, SCORES, n=5, eps=0.95).tolist() == [True, True]


def test_transposed_accuracy_looks_at_one_prediction_and_n_labels():
    assert metrics.transposed_accuracy(PRED_BOXES, PRED_SCORES, BOXES, SCORES, n=1, eps=0.85).tolist() == [True, False]
    # Image 1's first crop is its second-best label.
    assert metrics.transposed_accuracy(PRED_BOXES, PRED_SCORES, BOXES, SCORES, n=2, eps=0.95).tolist() == [False, True]


def test_first_crop_iou_is_with_the_best_rated_crop():
    np.testing.assert_allclose(metrics.first_crop_iou(PRED_BOXES, PRED_SCORES, BOXES, SCORES), [0.9, 0.75])


def test_where_several_crops_share_the_best_score_each_of_them_may_count():
    # The first image's two best crops are [0, 0, 10, 10] and [0, 0, 10, 5]; the prediction is exactly the second.
    boxes = [np.array([[0, 0, 5, 5], [0, 0, 10, 10], [0, 0, 10, 5]], float), np.array([[0, 0, 4, 4]], float)]
    scores = [np.array([3.0, 4.5, 4.5]), np.array([2.0])]
    predicted = [np.array([[0, 0, 10, 5]], float), np.array([[0, 0, 4, 3]], float)], [np.ones(1), np.ones(1)]
    assert metrics.has_equals(scores).tolist() == [True, False]
    np.testing.assert_allclose(metrics.first_crop_iou(*predicted, boxes, scores), [0.5, 0.75])
    np.testing.assert_allclose(metrics.first_crop_iou(*predicted, boxes, scores, equals=True), [1, 0.75])
    assert metrics.accuracy(*predicted, boxes, scores, n=1, eps=0.9).tolist() == [False, False]
    assert metrics.accuracy(*predicted, boxes, scores, n=1, eps=0.9, equals=True).tolist() == [True, False]


@given(st.integers(0, 2**31))
def test_counting_equals_changes_nothing_where_there_are_none_and_never_lowers_a_measure(seed):
    pred_boxes, pred_scores, boxes, scores, _ = random_set(seed, images=4)
    rounded = [np.round(values) for values in scores]
    for rated in (scores, rounded):
        arguments = pred_boxes, pred_scores, boxes, rated
        first, with_equals = metrics.first_crop_iou(*arguments), metrics.first_crop_iou(*arguments, equals=True)
        assert (with_equals >= first).all()
        np.testing.assert_array_equal(first[~metrics.has_equals(rated)], with_equals[~metrics.has_equals(rated)])


def test_two_of_five_images_of_gaic_have_no_single_best_crop(shared_data):
    _, scores = gaic_labels(shared_data, "test")
    assert metrics.has_equals(scores).sum() == 77 and len(scores) == 200


def test_average_precision_by_hand():
    # By validity: p0 0.9 hit (IoU 0.9), p1 0.8 hit, p0 0.6 miss, p1 0.3 hit, p0 0.2 miss (its crop is taken). Three
    # good crops: precision 1 up to recall 2/3 (67 of the 101 levels), then 3/4 for the other 34.
    expected = (67 * 1 + 34 * 0.75) / 101
    value = metrics.average_precision(PRED_BOXES, PRED_SCORES, BOXES, GOOD, eps=0.85, k=5)
    assert value == pytest.approx(expected)
    # With the first crop of each image alone, recall ends at 2/3.
    assert metrics.average_precision(PRED_BOXES, PRED_SCORES, BOXES, GOOD, eps=0.85, k=1) == pytest.approx(67 / 101)


def test_average_precision_is_undefined_without_good_crops():
    none = [np.zeros(len(flags), bool) for flags in GOOD]
    assert np.isnan(metrics.average_precision(PRED_BOXES, PRED_SCORES, BOXES, none))


def test_released_matching_takes_the_lowest_rated_crop_in_reach():
    # One prediction in reach of both labels, a second one in reach of the lower-rated only. COCO gives the first its
    # nearest label (the better-rated) and the second hits; the release gives away the lower-rated one first.
    pred_boxes = [np.array([[0, 0, 100, 100], [0, 0, 87, 100]], float)]
    boxes = [np.array([[0, 0, 100, 100], [0, 0, 90, 100]], float)]
    arguments = (pred_boxes, [np.array([0.9, 0.8])], boxes, [np.array([True, True])], 0.88, 10)
    assert metrics.match(*arguments).hit.tolist() == [[True, True]]
    assert metrics.match(*arguments, release_ratings=[np.array([5.0, 4.0])]).hit.tolist() == [[True, False]]


@pytest.mark.parametrize(("eps", "k"), [(0.85, 5), (0.85, 40), (0.9, 10)])
def test_average_precision_agrees_with_pycocotools_on_random_crops(eps, k):
    pred_boxes, pred_scores, boxes, _, good = random_set(k)
    expected = coco_average_precision(pred_boxes, pred_scores, boxes, good, eps, k)
    assert metrics.average_precision(pred_boxes, pred_scores, boxes, good, eps, k) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), eps=st.sampled_from([0.5, 0.75, 0.85]), k=st.integers(1, 12))
def test_average_precision_agrees_with_pycocotools_with_ties(seed, eps, k):
    # Boxes on a coarse lattice and validity in tenths: equal overlaps and equal scores.
    rng = np.random.default_rng(seed)
    pred_boxes, _, boxes, _, good = random_set(seed, images=4, predictions=8, candidates=9)
    pred_boxes, boxes = [(b / 10).round() * 10 for b in pred_boxes], [(b / 10).round() * 10 for b in boxes]
    pred_scores = [rng.integers(0, 11, len(b)) / 10 for b in pred_boxes]
    if not any(flags.any() for flags in good):
        return
    expected = coco_average_precision(pred_boxes, pred_scores, boxes, good, eps, k)
    assert metrics.average_precision(pred_boxes, pred_scores, boxes, good, eps, k) == pytest.approx(expected, abs=1e-6)


def test_average_precision_agrees_with_pycocotools_on_human_labels(shared_data):
    boxes, scores = gaic_labels(shared_data, "test")
    good = [values >= 4 for values in scores]
    rng = np.random.default_rng(0)
    picked = [rng.permutation(len(crops))[:40] for crops in boxes]
    pred_boxes = [crops[index] + rng.normal(0, 8, (len(index), 4)) for crops, index in zip(boxes, picked, strict=True)]
    pred_scores = [
        values[index] + rng.normal(0, 0.3, len(index)) for values, index in zip(scores, picked, strict=True)
    ]
    for eps, k in ((0.85, 10), (0.90, 40)):
        expected = coco_average_precision(pred_boxes, pred_scores, boxes, good, eps, k)
        value = metrics.average_precision(pred_boxes, pred_scores, boxes, good, eps, k)
        assert value == pytest.approx(expected, abs=1e-6)
        assert 0.1 < value < 0.9


def test_weights_repeat_images_in_the_precision_curve():
    pred_boxes, pred_scores, boxes, _, good = random_set(3, images=5)
    weights = np.array([2, 0, 1, 3, 1])
    repeated = np.repeat(np.arange(5), weights)
    expected = metrics.average_precision(
        *[[values[i] for i in repeated] for values in (pred_boxes, pred_scores, boxes, good)], eps=0.6
    )
    matches = metrics.match(pred_boxes, pred_scores, boxes, good, eps=0.6)
    curves = metrics.precision_at_recall(matches, np.stack([weights, np.ones(5)]))
    # Copies of an image tie in validity; their order may move a step of the curve by one crop.
    assert curves[0].mean() == pytest.approx(expected, abs=0.02)
    np.testing.assert_array_equal(curves[1], metrics.precision_at_recall(matches))


def test_candidate_accuracy_by_hand():
    rated = [np.array([5.0, 4.0, 3.0, 2.0, 1.0, 3.0])]
    predicted = [np.array([0.1, 0.9, 0.8, 0.7, 0.0, 0.2])]
    # Ranked first: candidates 1, 2, 3. Among the three best (5, 4, 3 and, by its tie, the other 3): 1 and 2.
    assert metrics.candidate_accuracy(predicted, rated, k=1, n=3) == pytest.approx([1.0])
    assert metrics.candidate_accuracy(predicted, rated, k=2, n=1) == pytest.approx([0.0])
    assert metrics.candidate_accuracy(predicted, rated, k=3, n=3) == pytest.approx([2 / 3])
    assert metrics.candidate_accuracy(predicted, rated, k=4, n=10) == pytest.approx([1.0])


def test_candidate_accuracy_is_each_images_own_whatever_the_others_have():
    rng = np.random.default_rng(1)
    rated = [rng.integers(7, 36, count) / 7 for count in (90, 12, 40)]
    predicted = [rng.random(len(values)) for values in rated]
    together = metrics.candidate_accuracy(predicted, rated, k=4, n=10)
    alone = [metrics.candidate_accuracy([p], [r], k=4, n=10)[0] for p, r in zip(predicted, rated, strict=True)]
    np.testing.assert_allclose(together, alone)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_spearman_agrees_with_scipy(pairs):
    predicted, rated = np.array(pairs, float).T
    (value,) = metrics.spearman([predicted], [rated])
    if len(set(rated)) == 1:
        assert np.isnan(value)
    elif len(set(predicted)) == 1:
        assert value == 0
    else:
        assert value == pytest.approx(spearmanr(predicted, rated).statistic)


def test_candidates_take_the_validity_of_the_crop_they_overlap_most():
    rated = metrics.overlap_scores(PRED_BOXES, PRED_SCORES, BOXES)
    np.testing.assert_allclose(rated[0], [0.6, 0.2])
    # [0, 0, 10, 10] overlaps [0, 0, 8, 10] most.
    np.testing.assert_allclose(rated[1], [0.8, 0.3, 0.8])


def test_iou_and_displacement_with_annotators_by_hand():
    iou, iou_all = metrics.iou_with_annotators(PRED_BOXES, PRED_SCORES, BOXES)
    # Image 0, first crop [0, 0, 10, 9]: with [0, 0, 5, 10] 45 / 95, with [0, 0, 10, 10] 0.9.
    np.testing.assert_allclose(iou, [0.9, 1.0])
    np.testing.assert_allclose(iou_all, [(45 / 95 + 0.9) / 2, (1 + 6 / 8 + 8 / 10) / 3])
    bde, bde_all = metrics.boundary_displacement(PRED_BOXES, PRED_SCORES, BOXES, SIZES)
    # To [0, 0, 10, 10] one edge is off by 0.1; to [0, 0, 5, 10] two, by 0.5 and 0.1.
    np.testing.assert_allclose(bde, [0.1 / 4, 0])
    np.testing.assert_allclose(bde_all, [(0.1 / 4 + 0.6 / 4) / 2, (0 + 0.2 / 4 + 0.2 / 4) / 3])


def test_displacement_is_in_parts_of_each_side():
    crop, label = [np.array([[10, 0, 200, 50]], float)], [np.array([[0, 0, 200, 100]], float)]
    nearest, _ = metrics.boundary_displacement(crop, [np.ones(1)], label, np.array([[200, 100]]))
    assert nearest == pytest.approx([(10 / 200 + 50 / 100) / 4])


def test_annotator_measures_refuse_a_image_without_labels():
    with pytest.raises(ValueError, match="at least one labelled crop"):
        metrics.iou_with_annotators(PRED_BOXES, PRED_SCORES, [BOXES[0], np.zeros((0, 4))])


def test_recall_is_the_share_of_good_crops_met():
    np.testing.assert_allclose(metrics.recall(PRED_BOXES, PRED_SCORES, BOXES, GOOD, eps=0.85, k=1), [1, 0.5])
    np.testing.assert_allclose(metrics.recall(PRED_BOXES, PRED_SCORES, BOXES, GOOD, eps=0.85, k=2), [1, 1])


def test_diversity_is_the_mean_over_pairs():
    # Image 0: 0.9, 45/95 and 0.5; image 1: one pair.
    np.testing.assert_allclose(metrics.mean_pairwise_iou(PRED_BOXES, PRED_SCORES), [(0.9 + 45 / 95 + 0.5) / 3, 6 / 8])
    assert np.isnan(metrics.mean_pairwise_iou(PRED_BOXES, PRED_SCORES, k=1)).all()


def test_spread_of_a_constant_crop_is_zero_and_of_a_moving_one_is_not():
    sizes = np.array([[100, 50], [200, 100]])
    np.testing.assert_allclose(metrics.edge_spread(np.array([[10, 5, 90, 45], [20, 10, 180, 90]]), sizes), 0)
    # Left edges at 0.1 and 0.3 of the width: standard deviation 0.1.
    np.testing.assert_allclose(
        metrics.edge_spread(np.array([[10, 0, 100, 50], [60, 0, 200, 100]]), sizes), [0.1, 0, 0, 0]
    )


@given(st.integers(0, 2**31))
def test_measures_do_not_depend_on_the_unit(seed):
    pred_boxes, pred_scores, boxes, scores, good = random_set(seed, images=3)
    scaled = [b * 7 for b in pred_boxes], pred_scores, [b * 7 for b in boxes]
    for eps in (0.7, 0.85):
        np.testing.assert_array_equal(
            metrics.accuracy(pred_boxes, pred_scores, boxes, scores, eps=eps),
            metrics.accuracy(*scaled, scores, eps=eps),
        )
    np.testing.assert_allclose(
        metrics.recall(pred_boxes, pred_scores, boxes, good, eps=0.7), metrics.recall(*scaled, good, eps=0.7)
    )


def test_all_measures_of_500_images_take_less_than_two_seconds():
    pred_boxes, pred_scores, boxes, scores, good = random_set(0, images=500, predictions=90, candidates=90)
    start = time.process_time()
    for eps in (0.85, 0.90):
        for n in (1, 5, 10):
            metrics.accuracy(pred_boxes, pred_scores, boxes, scores, n, eps)
            metrics.transposed_accuracy(pred_boxes, pred_scores, boxes, scores, n, eps)
        for k in (5, 10, 40):
            metrics.average_precision(pred_boxes, pred_scores, boxes, good, eps, k)
            metrics.recall(pred_boxes, pred_scores, boxes, good, eps, k)
    candidates = metrics.overlap_scores(pred_boxes, pred_scores, boxes)
    metrics.spearman(candidates, scores)
    for k in (1, 2, 3, 4):
        for n in (5, 10):
            metrics.candidate_accuracy(candidates, scores, k, n)
    metrics.mean_pairwise_iou(pred_boxes, pred_scores)
    metrics.iou_with_annotators(pred_boxes, pred_scores, boxes)
    metrics.boundary_displacement(pred_boxes, pred_scores, boxes, np.ones((500, 2)))
    assert time.process_time() - start < 2


def test_every_metric_loads_with_evaluate_and_equals_its_function(tmp_path):
    evaluate = pytest.importorskip("evaluate")

    def compute(name, predictions, references, **options):
        loaded = evaluate.load(str(METRICS / name), cache_dir=str(tmp_path))
        return loaded.compute(predictions=predictions, references=references, **options)

    predictions = [{"boxes": b.tolist(), "scores": s.tolist()} for b, s in zip(PRED_BOXES, PRED_SCORES, strict=True)]
    rated = [{"boxes": b.tolist(), "scores": s.tolist()} for b, s in zip(BOXES, SCORES, strict=True)]
    good = [{"boxes": b[g].tolist()} for b, g in zip(BOXES, GOOD, strict=True)]
    result = compute("crop_accuracy", predictions, rated, n=[1], eps=[0.85])
    assert result == {
        "iou": pytest.approx(0.825),
        "acc_1/1@0.85": 0.5,
    }
    tied = [{"boxes": row["boxes"], "scores": [4.0] * len(row["boxes"])} for row in rated]
    equal = metrics.first_crop_iou(PRED_BOXES, PRED_SCORES, BOXES, [np.full(len(b), 4.0) for b in BOXES], equals=True)
    result = compute("crop_accuracy", predictions, tied, n=[1], eps=[0.85], equals=True)
    assert result["iou_any"] == pytest.approx(equal.mean())
    result = compute("crop_average_precision", predictions, good, k=[1], eps=[0.85])
    assert result == {"ap_1@0.85": pytest.approx(67 / 101)}
    result = compute("crop_ranking", [[1.0, 2.0, 3.0]], [[1.0, 3.0, 2.0]], k=[1], n=[1])
    assert result == {"srcc": pytest.approx(0.5), "acc_1/1": 0.0}
    sized = [{"boxes": b.tolist(), "size": [10, 10]} for b in BOXES]
    assert compute("crop_overlap", predictions, sized)["iou"] == pytest.approx(0.95)
    result = compute("crop_set", predictions, good, k=[2], eps=[0.85])
    assert result["recall_2@0.85"] == pytest.approx(1.0)


def test_every_measure_is_in_the_one_table():
    boxes, scores = [np.array([[0, 0, 1, 1], [0, 0, 0.5, 1]])] * 2, [np.array([4.0, 3.0])] * 2
    good = [np.array([True, False])] * 2
    predictions = Predictions(boxes, scores)
    rated = Labels(["a", "b"], np.ones((2, 2)), boxes, scores, good)
    unrated = Labels(["a", "b"], np.ones((2, 2)), boxes, None, good)
    found = measure(rated, predictions).keys() | measure(unrated, predictions).keys()
    assert found == catalogue.MEASURES.keys()
    needed = {key for key, one in catalogue.MEASURES.items() if one.needs_ratings}
    assert not needed & measure(unrated, predictions).keys()
    for_unrated = {key for key, one in catalogue.MEASURES.items() if one.needs_ratings is False}
    assert not for_unrated & measure(rated, predictions).keys()
    assert measure_human_agreement(unrated).keys() <= catalogue.MEASURES.keys()
    assert set(catalogue.OLD_KEYS.values()) | set(FIGURES) - {"loss"} <= catalogue.MEASURES.keys()


def test_tables_show_what_there_is_in_one_order():
    assert catalogue.main_measures({"srcc", "bde", "iou", "iou_any"}) == ["iou", "bde", "srcc"]
    assert catalogue.main_measures({"pairwise_iou_5", "iou"}) == ["iou", "pairwise_iou_5"]
    assert catalogue.main_measures({"pairwise_iou_5", "iou"}, with_neutral=False) == ["iou"]


def test_a_markdown_table_has_equal_rows():
    table = markdown_table(["", "IoU"], [["whole image", "0.5"], ["model", ""]])
    assert table.splitlines() == ["| | IoU |", "|---|---:|", "| whole image | 0.5 |", "| model | |"]
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        markdown_table(["", "IoU"], [["x"]])


@pytest.mark.parametrize(
    ("key", "value", "best", "better"),
    [("loss", 1.0, 2.0, True), ("loss", 2.0, 1.0, False), ("srcc", 0.5, 0.4, True), ("srcc", 0.4, None, True)],
)
def test_which_figure_is_better_stands_in_the_table(key, value, best, better):
    assert is_better(key, value, best) is better


def test_recipes_may_call_figures_as_before():
    assert figure_key("ap_k10_090") == figure_key("ap_10@0.90") == "ap_10@0.90"
