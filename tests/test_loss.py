"""The set loss: the paper's formulas by hand, upstream's loss as an independent implementation, and smoothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss, DeformableDetrHungarianMatcher

from modeling_setcrop import InvertedResidualConfig, SetCropConfig, SetCropForImageCropping
from modeling_setcrop.loss_setcrop import (
    crop_scoring_loss,
    focal_loss,
    match_anchors,
    quality_targets,
    set_crop_loss,
)


def random_boxes(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Boxes cxcywh inside the unit square."""
    corners = torch.rand(*shape, 2, 2, generator=generator).sort(dim=-2).values
    size = (corners[..., 1, :] - corners[..., 0, :]).clamp(min=0.05)
    return torch.cat([corners.mean(-2), size], dim=-1)


def random_problem(seed: int, layers: int = 3, anchors: int = 10, crops=(3, 1, 5)):
    """Outputs of `layers` decoder layers, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, len(crops), anchors, 1, generator=generator)
    boxes = random_boxes(layers, len(crops), anchors, generator=generator)
    labels = []
    for count in crops:
        scored = random_boxes(20, generator=generator)
        labels.append(
            {
                "boxes": scored[:count],
                "class_labels": torch.zeros(count, dtype=torch.long),
                "scored_boxes": scored,
                "scores": 1 + 4 * torch.rand(20, generator=generator),
            }
        )
    return logits, boxes, labels


@given(p=st.floats(0.01, 0.99), v=st.floats(0, 1), alpha=st.floats(0.05, 0.95))
def test_focal_loss_is_the_published_formula(p, v, alpha):
    p_t = p * v + (1 - p) * (1 - v)
    bce = -(v * math.log(p) + (1 - v) * math.log(1 - p))
    expected = (alpha * v + (1 - alpha) * (1 - v)) * (1 - p_t) ** 2 * bce
    logit = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)
    got = focal_loss(logit, torch.tensor(v, dtype=torch.float64), alpha, 2.0)
    assert got.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_hard_labels_give_upstreams_loss(seed):
    logits, boxes, labels = random_problem(seed)
    config = SetCropConfig(label_smoothing="none", decoder_layers=3, cls_loss_coefficient=1)
    ours = set_crop_loss(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)
    theirs = DeformableDetrForObjectDetectionLoss(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, value in theirs[1].items():
        torch.testing.assert_close(ours[1][name], value, msg=name)


def test_the_papers_weights_are_two_five_two():
    logits, boxes, labels = random_problem(0)
    config = SetCropConfig(label_smoothing="none", decoder_layers=3)
    loss, parts, _ = set_crop_loss(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)
    expected = sum(
        2 * parts["loss_ce" + end] + 5 * parts["loss_bbox" + end] + 2 * parts["loss_giou" + end]
        for end in ("", "_0", "_1")
    )
    torch.testing.assert_close(loss, expected)


def test_the_whole_model_equals_upstream_with_hard_labels():
    shape = dict(
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=12,
        auxiliary_loss=True,
        dropout=0.0,
        backbone_config=InvertedResidualConfig(out_features=["stage4"]),
    )
    torch.manual_seed(0)
    upstream = ConditionalDetrForObjectDetection(ConditionalDetrConfig(num_labels=1, **shape)).train()
    ours = SetCropForImageCropping(SetCropConfig(label_smoothing="none", cls_loss_coefficient=1, **shape)).train()
    ours.load_state_dict(upstream.state_dict(), strict=True)
    generator = torch.Generator().manual_seed(1)
    _, _, labels = random_problem(2, crops=(2, 4))
    pixels = torch.randn(2, 3, 96, 128, generator=generator)
    mask = torch.ones(2, 96, 128)  # upstream's features depend on padding, ours do not
    expected = upstream(pixels, mask, labels=labels)
    got = ours(pixels, mask, labels=labels)
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(got.pred_boxes, expected.pred_boxes)
    torch.testing.assert_close(got.loss, expected.loss)
    got.loss.backward()
    expected.loss.backward()
    for (name, a), b in zip(ours.named_parameters(), upstream.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_matching_of_all_layers_is_upstreams_layer_by_layer(seed):
    logits, boxes, labels = random_problem(seed)
    config = SetCropConfig()
    counts = [len(label["boxes"]) for label in labels]
    targets = torch.nn.utils.rnn.pad_sequence([label["boxes"] for label in labels], batch_first=True)
    layer, image, anchor, crop = match_anchors(logits[..., 0], boxes, targets, counts, config)
    ours = set(zip(layer.tolist(), image.tolist(), anchor.tolist(), crop.tolist(), strict=True))
    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    theirs = {
        (number, image, int(i), int(j))
        for number in range(len(logits))
        for image, pairs in enumerate(matcher({"logits": logits[number], "pred_boxes": boxes[number]}, labels))
        for i, j in zip(*pairs, strict=True)
    }
    assert ours == theirs


def _iou(a, b):
    """Intersection over union of two corner boxes, by hand."""
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), mu=st.floats(0, 1), threshold=st.floats(0.2, 0.9))
def test_quality_guidance_is_equation_4(seed, mu, threshold):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(1, 1, 6, generator=generator)
    scored = random_boxes(1, 9, generator=generator)
    scores = 1 + 4 * torch.rand(1, 9, generator=generator)
    config = SetCropConfig(smoothing_upper_bound=mu, quality_iou_threshold=threshold)
    got = quality_targets(boxes, scored, scores, torch.ones(1, 9, dtype=torch.bool), config)[0, 0]

    def corners(box):
        cx, cy, w, h = box.tolist()
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    for anchor, label in zip(boxes[0, 0], got.tolist(), strict=True):
        overlaps = [_iou(corners(anchor), corners(other)) for other in scored[0]]
        best = int(np.argmax(overlaps))
        expected = 0.0
        if overlaps[best] >= threshold:
            expected = min(max(mu * (scores[0, best].item() - 2) / (3.5 - 2), 0), mu)
        assert label == pytest.approx(expected, abs=1e-5)


def test_padding_of_rated_crops_changes_nothing():
    logits, boxes, labels = random_problem(0, crops=(3, 2))
    labels[1]["scored_boxes"], labels[1]["scores"] = labels[1]["scored_boxes"][:5], labels[1]["scores"][:5]
    config = SetCropConfig(quality_iou_threshold=0.3)
    both, _, _ = set_crop_loss(logits[0], labels, logits.device, boxes[0], config, num_good_crops=1.0)
    each = [
        set_crop_loss(
            logits[0, i : i + 1], labels[i : i + 1], logits.device, boxes[0, i : i + 1], config, num_good_crops=1.0
        )
        for i in range(2)
    ]
    torch.testing.assert_close(both, each[0][0] + each[1][0])


def test_soft_labels_are_for_unmatched_anchors_alone():
    scored = torch.tensor([[0.5, 0.5, 0.8, 0.8], [0.5, 0.5, 0.78, 0.8]])
    labels = [
        {
            "boxes": scored[:1],
            "class_labels": torch.zeros(1, dtype=torch.long),
            "scored_boxes": scored,
            "scores": torch.tensor([4.5, 2.75]),
        }
    ]
    boxes = torch.tensor([[[0.5, 0.5, 0.8, 0.8], [0.5, 0.5, 0.78, 0.8], [0.1, 0.1, 0.1, 0.1]]])
    logits = torch.tensor([[[0.3], [-0.2], [0.1]]])
    config = SetCropConfig()
    loss, parts, _ = set_crop_loss(logits, labels, logits.device, boxes, config)
    expected = sum(
        focal_loss(torch.tensor(logit), torch.tensor(target)).item()
        for logit, target in ((0.3, 1.0), (-0.2, 0.25), (0.1, 0.0))
    )
    assert parts["loss_ce"].item() == pytest.approx(expected, rel=1e-5)
    assert parts["loss_bbox"].item() == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize("halved", [False, True])
def test_distillation_adds_the_teachers_term(halved):
    logits, boxes, labels = random_problem(4, layers=2)
    config = SetCropConfig(label_smoothing="distillation", distillation_halved=halved, decoder_layers=2)
    before, parts, _ = set_crop_loss(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)
    teacher = torch.rand(3, 10, generator=torch.Generator().manual_seed(0))
    for label, validity in zip(labels, teacher, strict=True):
        label["teacher_validity"] = validity
    _, after, _ = set_crop_loss(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)
    crops = sum(len(label["boxes"]) for label in labels)
    for name, layer in (("loss_ce", 1), ("loss_ce_0", 0)):
        p = logits[layer, ..., 0].sigmoid()
        p_t = p * teacher + (1 - p) * (1 - teacher)
        weight = 0.25 * teacher + 0.75 * (1 - teacher)
        term = (weight * (1 - p_t) ** 2 * binary_cross_entropy(p, teacher, reduction="none")).sum() / crops
        expected = parts[name] + term
        torch.testing.assert_close(after[name], expected / 2 if halved else expected)
    assert torch.isfinite(before)


def test_a_image_without_a_good_crop_is_all_background():
    logits, boxes, labels = random_problem(1, layers=1, crops=(2, 2))
    labels[1]["boxes"] = labels[1]["boxes"][:0]
    config = SetCropConfig(label_smoothing="none")
    loss, _, _ = set_crop_loss(logits[0], labels, logits.device, boxes[0], config)
    assert torch.isfinite(loss)


def test_scoring_loss_by_hand():
    predicted = torch.tensor([[3.0, 2.0, 4.0], [1.0, 9.0, 9.0]])
    labels = [{"scores": torch.tensor([2.0, 3.0, 3.5])}, {"scores": torch.tensor([1.5])}]
    score, rank = crop_scoring_loss(predicted, labels)
    assert score.item() == pytest.approx(((1 + 1 + 0.25) / 3 + 0.25) / 2)
    # Pairs of image one, better crop first: (1, 0), (2, 0) and (2, 1).
    pairs = [(3 - 2, 2 - 3), (3.5 - 2, 4 - 3), (3.5 - 3, 4 - 2)]
    logistic = sum(weight * math.log1p(math.exp(-gap)) for weight, gap in pairs) / sum(weight for weight, _ in pairs)
    # Image two has one rated crop: nothing to order.
    assert rank.item() == pytest.approx(logistic / 2, rel=1e-5)


def test_scoring_loss_without_ratings_is_zero_and_has_a_gradient():
    predicted = torch.tensor([[3.0, 2.0]], requires_grad=True)
    score, rank = crop_scoring_loss(predicted, [{"scores": torch.tensor([])}])
    (score + rank).backward()
    assert score.item() == rank.item() == 0
    assert torch.equal(predicted.grad, torch.zeros(1, 2))


def test_a_detectors_labels_are_enough(tiny_model):
    """`boxes` and `class_labels`, as other detectors take them: crops that nobody rated give no soft labels."""
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    rated = [
        {**label, "scored_boxes": label["boxes"][:0], "scores": torch.zeros(0)} for label in random_problem(0)[2][:2]
    ]
    plain = [{name: label[name] for name in ("boxes", "class_labels")} for label in rated]
    assert tiny_model.config.label_smoothing == "quality"
    with torch.inference_mode():
        assert torch.equal(tiny_model(pixels, labels=plain).loss, tiny_model(pixels, labels=rated).loss)
        with pytest.raises(ValueError, match="2 images, but labels of 1"):
            tiny_model(pixels, labels=plain[:1])
