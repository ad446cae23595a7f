"""The model: config, anchors, encoding once, scoring any box, saving and loading."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
)

from modeling_setcrop import InvertedResidualConfig, SetCropConfig, SetCropForImageCropping


def test_defaults_are_the_papers():
    config = SetCropConfig()
    assert (config.num_queries, config.d_model, config.encoder_layers, config.decoder_layers) == (90, 256, 6, 6)
    assert (config.encoder_attention_heads, config.encoder_ffn_dim, config.num_labels) == (8, 2048, 1)
    assert (config.class_cost, config.bbox_cost, config.giou_cost, config.focal_alpha) == (2, 5, 2, 0.25)
    assert (config.cls_loss_coefficient, config.bbox_loss_coefficient, config.giou_loss_coefficient) == (2, 5, 2)
    assert (config.smoothing_upper_bound, config.quality_lower, config.quality_upper) == (0.5, 2.0, 3.5)
    assert (config.quality_iou_threshold, config.distillation_momentum) == (0.85, 0.5)
    assert config.backbone_config.model_type == "resnet"
    assert not config.crop_scoring and not config.anchor_sizes and config.auxiliary_loss


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_smoothing", "soft"),
        ("smoothing_upper_bound", 1.5),
        ("quality_iou_threshold", -0.1),
        ("distillation_momentum", 0.0),
        ("quality_lower", 4.0),
        ("num_queries", 0),
        ("num_labels", 3),
        ("focal_gamma", -1.0),
        ("rerank", True),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        SetCropConfig(**{field: value})


def test_a_detectors_checkpoint_loads_but_for_class_head_and_queries(tmp_path):
    shape = dict(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        backbone_config=InvertedResidualConfig(out_features=["stage3"]),
    )
    detector = ConditionalDetrForObjectDetection(ConditionalDetrConfig(num_queries=300, num_labels=91, **shape))
    detector.save_pretrained(tmp_path)
    model, report = SetCropForImageCropping.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert (model.config.num_queries, model.config.num_labels, model.config.model_type) == (90, 1, "setcrop")
    fresh = {name for name, *_ in report["mismatched_keys"]}
    assert fresh == {
        "class_labels_classifier.weight",
        "class_labels_classifier.bias",
        "model.query_position_embeddings.weight",
    }
    assert not report["missing_keys"] and not report["unexpected_keys"]
    state = detector.state_dict()
    for name, value in model.state_dict().items():
        if name not in fresh:
            torch.testing.assert_close(value, state[name])


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector as wide as the published ones, its reference points spread as theirs are."""
    shape = dict(encoder_layers=1, decoder_layers=1, backbone_config=InvertedResidualConfig(out_features=["stage3"]))
    model = ConditionalDetrForObjectDetection(ConditionalDetrConfig(num_queries=300, num_labels=91, **shape))
    for layer in model.model.decoder.ref_point_head.layers:
        torch.nn.init.xavier_uniform_(layer.weight)
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("start", ["config", "detector", "checkpoint"])
def test_a_new_model_starts_as_the_papers_does(start, detector, tmp_path):
    torch.manual_seed(0)
    if start == "detector":
        model = SetCropForImageCropping.from_pretrained(detector, ignore_mismatched_sizes=True)
    else:
        backbone = InvertedResidualConfig(out_features=["stage3"])
        model = SetCropForImageCropping(SetCropConfig(encoder_layers=1, decoder_layers=1, backbone_config=backbone))
    if start == "checkpoint":
        model.save_pretrained(tmp_path)
        model = SetCropForImageCropping.from_pretrained(tmp_path)
    model.eval()
    queries = model.model.query_position_embeddings.weight
    assert queries.std().item() == pytest.approx(1, abs=0.02)
    assert model.class_labels_classifier.bias.item() == pytest.approx(-4.595)
    with torch.no_grad():
        centres = model.model.decoder.ref_point_head(queries).sigmoid()
        output = model(torch.zeros(1, 3, 64, 64))
    assert (centres.std(0) > 0.1).all()
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.01)
    if start != "detector":
        torch.testing.assert_close(output.pred_boxes[0, :, :2], centres, atol=1e-5, rtol=0)


def test_all_of_the_backbone_trains_in_a_new_model_and_in_a_loaded_one(tmp_path):
    resnet = {"model_type": "resnet", "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8}
    shape = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    model = SetCropForImageCropping(SetCropConfig(backbone_config={**resnet, "layer_type": "basic"}, **shape))
    model.save_pretrained(tmp_path)
    for found in (model, SetCropForImageCropping.from_pretrained(tmp_path)):
        assert all(parameter.requires_grad for parameter in found.parameters())


def test_saving_and_loading_is_exact(tiny_model, tiny_checkpoint):
    assert AutoConfig.from_pretrained(tiny_checkpoint).to_dict().keys() == tiny_model.config.to_dict().keys()
    loaded = AutoModelForObjectDetection.from_pretrained(tiny_checkpoint).eval()
    assert type(loaded) is SetCropForImageCropping
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, again = tiny_model(pixels), loaded(pixels)
    assert torch.equal(ours.logits, again.logits)
    assert torch.equal(ours.pred_boxes, again.pred_boxes)
    assert torch.equal(ours.pred_ratings, again.pred_ratings)


def test_ratings_are_found_under_their_former_names_with_a_warning(tiny_model):
    pixels, boxes = torch.zeros(1, 3, 64, 64), torch.full((1, 2, 4), 0.5)
    with torch.no_grad():
        output = tiny_model(pixels, candidate_boxes=boxes)
    assert not {"pred_scores", "crop_scores"} & output.keys()
    for former, name in (("pred_scores", "pred_ratings"), ("crop_scores", "crop_ratings")):
        with pytest.warns(FutureWarning, match=f"{former} is called {name} now") as caught:
            assert getattr(output, former) is output[name]
        assert caught[0].filename == __file__


def test_anchors_start_at_the_boxes_they_are_given(tiny_model):
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(12, 4, generator=generator) * 0.4 + 0.3
    model = SetCropForImageCropping(tiny_model.config).eval()
    model.initialize_anchors(boxes)
    with torch.no_grad():
        predicted = model(torch.randn(2, 3, 64, 64, generator=generator)).pred_boxes
    torch.testing.assert_close(predicted, boxes.expand(2, -1, -1), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="12 boxes"):
        model.initialize_anchors(boxes[:3])


def test_centres_of_anchors_are_a_parameter_and_older_checkpoints_load_without(tiny_model, tmp_path):
    boxes = torch.rand(12, 4, generator=torch.Generator().manual_seed(3)) * 0.4 + 0.3
    model = SetCropForImageCropping(tiny_model.config)
    queries = model.model.query_position_embeddings.weight.detach().clone()
    model.initialize_anchors(boxes)
    assert torch.equal(model.model.query_position_embeddings.weight, queries)
    torch.testing.assert_close(model.model.decoder.ref_point_head.centres.sigmoid(), boxes[:, :2])
    # Before there were centres, the queries and the reference head said all of it.
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    older = SetCropForImageCropping(tiny_model.config).eval()
    assert not older.model.decoder.ref_point_head.centres.any()
    older.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.decoder.ref_point_head.centres"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = SetCropForImageCropping.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(loaded(pixels).pred_boxes, older(pixels).pred_boxes)


def test_encoding_once_gives_the_same_as_the_whole_model(tiny_model):
    pixels = torch.randn(2, 3, 80, 96, generator=torch.Generator().manual_seed(0))
    boxes = torch.rand(2, 7, 4, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3
    with torch.no_grad():
        whole = tiny_model(pixels, candidate_boxes=boxes)
        encoded = tiny_model.model.encode(pixels)
        assert torch.equal(tiny_model(encoder_outputs=encoded).pred_boxes, whole.pred_boxes)
        assert torch.equal(tiny_model.score_crops(boxes, encoded), whole.crop_ratings)
        assert torch.equal(tiny_model.score_crops(boxes, pixel_values=pixels), whole.crop_ratings)
    assert whole.logits.shape == (2, 12, 1) and whole.pred_boxes.shape == (2, 12, 4)
    assert whole.crop_ratings.shape == (2, 7) and whole.pred_ratings.shape == (2, 12)
    with pytest.raises(ValueError, match="pixel_values"):
        tiny_model()


def test_a_crops_score_does_not_depend_on_its_company(tiny_model):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 80, 96, generator=generator)
    boxes = torch.rand(1, 5000, 4, generator=generator) * 0.4 + 0.3
    with torch.no_grad():
        encoded = tiny_model.model.encode(pixels)
        together = tiny_model.score_crops(boxes, encoded)
        for i in (0, 2047, 2048, 4999):
            alone = tiny_model.score_crops(boxes[:, i : i + 1], encoded)
            torch.testing.assert_close(alone[:, 0], together[:, i], atol=1e-5, rtol=0)


def test_a_model_without_the_head_says_so(tiny_model):
    without = {"crop_scoring": False, "rerank": False}
    config = SetCropConfig.from_dict({**tiny_model.config.to_dict(), **without})
    model = SetCropForImageCropping(config)
    assert not any("crop_scorer" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="crop_scoring"):
        model.score_crops(torch.rand(1, 1, 4), pixel_values=torch.rand(1, 3, 32, 32))


def test_training_step_reports_every_loss(tiny_model):
    model = SetCropForImageCropping(tiny_model.config).train()
    labels = [
        {
            "boxes": torch.tensor([[0.5, 0.5, 0.8, 0.8]]),
            "class_labels": torch.zeros(1, dtype=torch.long),
            "scored_boxes": torch.tensor([[0.5, 0.5, 0.8, 0.8], [0.4, 0.5, 0.6, 0.8]]),
            "scores": torch.tensor([4.2, 2.5]),
        }
    ]
    output = model(torch.randn(1, 3, 64, 64), labels=labels)
    parts = output.loss_dict
    config = model.config
    expected = config.crop_score_loss_coefficient * parts["loss_crop_score"]
    expected = expected + config.crop_rank_loss_coefficient * parts["loss_crop_rank"]
    for end in ("", "_0"):
        expected = expected + 2 * parts["loss_ce" + end] + 5 * parts["loss_bbox" + end] + 2 * parts["loss_giou" + end]
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.anchor_sizes.grad.abs().sum() > 0 and model.crop_scorer.reduce.weight.grad.abs().sum() > 0
    assert len(output.auxiliary_outputs) == 1


def test_a_checkpoint_cannot_be_loaded_with_several_labels(tiny_checkpoint):
    """As fine-tuning a detector begins; validity is one logit, and other labels would silently not be learnt."""
    with pytest.raises(ValueError, match="num_labels must be 1"):
        AutoModelForObjectDetection.from_pretrained(
            tiny_checkpoint, id2label={0: "tight", 1: "wide"}, ignore_mismatched_sizes=True
        )
