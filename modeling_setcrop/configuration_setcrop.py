"""SetCrop's model configuration."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import ConditionalDetrConfig

from .backbone_inverted_residual import InvertedResidualConfig  # noqa: F401  (registers its model type)
from .hub_code import AUTO_CLASSES, PIPELINES, write_code

LABEL_SMOOTHING = ("none", "quality", "distillation")

# What a Conditional DETR *detector's* config says about its own task; a cropper started from it keeps its own values.
_DETECTOR_FIELDS = ("id2label", "label2id", "num_labels", "num_queries", "auxiliary_loss", "architectures")

# What every config has, and what means nothing for a backbone inside a model.
_NOT_OF_A_BACKBONE = (
    "_name_or_path",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)
# Of earlier checkpoints; they say nothing any more.
_FORMER_FIELDS = ("crop_choice", "crop_choice_loss_coefficient")


@strict
class SetCropConfig(ConditionalDetrConfig):
    r"""Configuration of [`SetCropForImageCropping`]; the defaults are the paper's model.

    Everything about the backbone and the transformer is [`ConditionalDetrConfig`]'s. The backbone is a ResNet-50
    through `AutoBackbone` unless `backbone_config` (or a timm `backbone`) says otherwise.

    Args:
        num_queries (`int`, defaults to 90):
            Number N of learnable anchors, the largest set of crops that the model can return.
        label_smoothing (`str`, defaults to `"quality"`):
            Validity labels of the anchors that no good crop was matched to (section 3.2 of the paper): `"none"` (0),
            `"quality"` (from the score of the most similar rated crop, for densely rated data) or `"distillation"`
            (a momentum teacher's probabilities, for sparsely rated data).
        smoothing_upper_bound (`float`, defaults to 0.5):
            The paper's mu in [0, 1]: the largest soft label that quality guidance gives.
        quality_lower, quality_upper (`float`, defaults to 2.0 and 3.5):
            The paper's s_l and s_u: the ratings that map to 0 and to mu.
        quality_iou_threshold (`float`, defaults to 0.85):
            A rated crop speaks for an anchor only when their IoU is at least this.
        distillation_momentum (`float`, defaults to 0.5):
            The paper's theta in (0, 1]: average = theta * current + (1 - theta) * average, once a step. Equation 5
            averages the current weights with the previous step's; the authors' release averages them with the previous
            average, and so does this.
        distillation_halved (`bool`, defaults to `False`):
            Halve both terms of equation 6, as the authors' release does.
        cls_loss_coefficient (`float`, defaults to 2):
            Weight of the validity loss. Upstream's Conditional DETR computes its loss with 1 whatever its config says;
            with 1 and `label_smoothing="none"` the loss here equals upstream's.
        focal_gamma (`float`, defaults to 2.0):
            Exponent of the focal loss.
        anchor_sizes (`bool`, defaults to `False`):
            Give every anchor a learnable size beside its learnable centre. Off in the paper's model; with it anchors
            can start from given crops ([`SetCropForImageCropping.initialize_anchors`]).
        crop_scoring (`bool`, defaults to `False`):
            Add the head that predicts the rating of any box from the same encoded image.
        crop_scoring_dim (`int`, defaults to 192):
            Width of that head's hidden layers.
        crop_scoring_detail (`bool`, defaults to `False`):
            Let that head look at the first of the backbone's feature maps too, beside the encoder's memory (which is
            made from the last one): edges of crops are then seen at a finer stride.
        rating_sources (`list[str]`, *optional*):
            Names of those whose crops and ratings the model learned from, for example `["editors", "people"]`; queries
            and scoring head then have an embedding for each, and the first is the default.
        tightness_sources (`dict[str, str]`, *optional*):
            What a caller's `"loose"`, `"default"` and `"tight"` mean, as names of `rating_sources`.
        subject_map (`bool`, defaults to `False`):
            Predict from the encoder's memory how much people look at each of its cells.
        face_finding (`bool`, defaults to `False`):
            Find faces in the features that the scoring head sees; needs `crop_scoring_detail`.
        face_penalty (`float`, defaults to 1.0):
            By how much the rating of a crop falls that cuts a found face or leaves it out.
        crop_score_loss_coefficient, crop_rank_loss_coefficient (`float`, defaults to 1.0):
            Weights of its regression and ranking losses.
        window_loss_coefficient, subject_map_loss_coefficient (`float`, defaults to 0.4 and 0.5):
            Weights of the losses that only views have, which training draws from labels that rate any box: which of
            the windows of one size the scoring head prefers, and the map of subjects.
        rerank (`bool`, defaults to `False`):
            Rank the set by the predicted scores instead of the validities (needs `crop_scoring`).
        probability_slope, probability_middle (`float`, defaults to 4.0):
            A crop with the predicted rating r is good with the probability sigmoid(slope (r - middle)).
            `setcrop calibrate` fits both on images that the model has not learned from (Platt, 1999).
        probability_softening, probability_lowering (`float`, defaults to 0.0):
            How both fall where an aspect ratio is asked for that leaves much of the image out, see
            [`GoodCropProbability`].
    """

    model_type = "setcrop"
    # What `Trainer` would gather over a whole evaluation split, though it is large and differs in shape by image; what
    # is left are `logits`, `pred_boxes` and `pred_ratings`.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "loss_dict",
        "auxiliary_outputs",
        "last_hidden_state",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
        "encoder_outputs",
        "crop_ratings",
        "pred_probabilities",
    ]

    num_queries: int = 90
    auxiliary_loss: bool = True
    class_cost: int | float = 2
    bbox_cost: int | float = 5
    giou_cost: int | float = 2
    cls_loss_coefficient: int | float = 2
    bbox_loss_coefficient: int | float = 5
    giou_loss_coefficient: int | float = 2
    focal_gamma: int | float = 2.0
    label_smoothing: str = "quality"
    smoothing_upper_bound: int | float = 0.5
    quality_lower: int | float = 2.0
    quality_upper: int | float = 3.5
    quality_iou_threshold: int | float = 0.85
    distillation_momentum: int | float = 0.5
    distillation_halved: bool = False
    anchor_sizes: bool = False
    crop_scoring: bool = False
    crop_scoring_dim: int = 192
    crop_scoring_detail: bool = False
    rating_sources: list[str] | None = None
    tightness_sources: dict[str, str] | None = None
    subject_map: bool = False
    face_finding: bool = False
    face_penalty: int | float = 1.0
    crop_score_loss_coefficient: int | float = 1.0
    crop_rank_loss_coefficient: int | float = 1.0
    window_loss_coefficient: int | float = 0.4
    subject_map_loss_coefficient: int | float = 0.5
    rerank: bool = False
    probability_slope: int | float = 4.0
    probability_middle: int | float = 4.0
    probability_softening: int | float = 0.0
    probability_lowering: int | float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        # Upstream falls back to a timm ResNet; the native one loads without an extra package.
        if self.backbone_config is None and kwargs.get("backbone") is None:
            kwargs.setdefault("use_timm_backbone", False)
        if self.id2label is None:
            self.id2label = {0: "crop"}
            self.label2id = {"crop": 0}
        if __package__ == "modeling_setcrop":
            # Of a checkpoint that was exported with its code; the pipeline registered here needs none of it.
            kwargs.pop("custom_pipelines", None)
        for name in _FORMER_FIELDS:
            kwargs.pop(name, None)
        super().__post_init__(**kwargs)

    @property
    def default_source(self) -> int:
        """Index, among `rating_sources`, of the ratings that a caller gets who asks for none."""
        sources = self.rating_sources or []
        chosen = (self.tightness_sources or {}).get("default")
        return sources.index(chosen) if chosen in sources else 0

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> SetCropConfig:
        """As upstream's; of a Conditional DETR detector's config the architecture is taken and the task is not."""
        if config_dict.get("model_type") == ConditionalDetrConfig.model_type:
            config_dict = {k: v for k, v in config_dict.items() if k not in _DETECTOR_FIELDS and k != "model_type"}
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """As upstream's; of the backbone only what makes it, not the empty fields and labels of a classifier."""
        fields = super().to_diff_dict()
        if isinstance(fields.get("backbone_config"), dict):
            fields["backbone_config"] = {
                name: value
                for name, value in fields["backbone_config"].items()
                if value is not None and name not in _NOT_OF_A_BACKBONE
            }
        return fields

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """As upstream's; the config of a checkpoint that came with its code is saved with the code."""
        if getattr(self, "auto_map", None):
            self.auto_map, self.custom_pipelines = dict(AUTO_CLASSES), dict(PIPELINES)
            write_code(save_directory)
        super().save_pretrained(save_directory, **kwargs)

    def validate_setcrop(self) -> None:
        """Part of the validation that runs when a config is made; raises `ValueError` naming the field."""
        if self.label_smoothing not in LABEL_SMOOTHING:
            raise ValueError(f"label_smoothing must be one of {LABEL_SMOOTHING}, not {self.label_smoothing!r}")
        if self.num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, not {self.num_queries}")
        if self.num_labels != 1:
            raise ValueError(f"num_labels must be 1 (validity is one logit), not {self.num_labels}")
        for name in ("smoothing_upper_bound", "quality_iou_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if not 0 < self.distillation_momentum <= 1:
            raise ValueError(f"distillation_momentum must lie in (0, 1], not {self.distillation_momentum}")
        if not self.quality_lower < self.quality_upper:
            raise ValueError(
                f"quality_lower ({self.quality_lower}) must be less than quality_upper ({self.quality_upper})"
            )
        if self.focal_gamma < 0:
            raise ValueError(f"focal_gamma must not be negative, not {self.focal_gamma}")
        if self.rerank and not self.crop_scoring:
            raise ValueError("rerank=True needs the scoring head: set crop_scoring=True")
        if self.crop_scoring_detail and not self.crop_scoring:
            raise ValueError("crop_scoring_detail=True needs the scoring head: set crop_scoring=True")
        if self.face_finding and not self.crop_scoring_detail:
            raise ValueError("face_finding=True needs the finer features: set crop_scoring_detail=True")
        if self.face_penalty < 0:
            raise ValueError(f"face_penalty must not be negative, not {self.face_penalty}")
        if self.probability_slope <= 0:
            raise ValueError(f"probability_slope must be above 0, not {self.probability_slope}")
        for tightness in self.tightness_sources or {}:
            if tightness not in ("loose", "default", "tight"):
                raise ValueError(f"tightness_sources: there are loose, default and tight, not {tightness!r}")
        for tightness, source in (self.tightness_sources or {}).items():
            if source not in (self.rating_sources or []):
                raise ValueError(f"tightness_sources: {tightness!r} names {source!r}, not one of rating_sources")


__all__ = ["SetCropConfig"]
