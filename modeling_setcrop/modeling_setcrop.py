"""SetCrop's model: Conditional DETR that returns a set of crops with validities, and optionally scores any box."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.models.conditional_detr.modeling_conditional_detr import (
    ConditionalDetrDecoder,
    ConditionalDetrEncoder,
    ConditionalDetrForObjectDetection,
    ConditionalDetrMLPPredictionHead,
    ConditionalDetrModel,
    ConditionalDetrModelOutput,
    ConditionalDetrObjectDetectionOutput,
    ConditionalDetrPreTrainedModel,
    inverse_sigmoid,
)

from .configuration_setcrop import SetCropConfig
from .crop_geometry import GoodCropProbability
from .crop_scoring_setcrop import SetCropScorer
from .face_finding_setcrop import SetCropFaceFinder
from .loss_any_box_setcrop import view_scoring_losses, view_subject_map_loss
from .loss_setcrop import crop_scoring_loss, set_crop_loss

# What only the model with heads has.
_OF_THE_HEADS = (
    *("loss", "loss_dict", "logits", "pred_boxes", "pred_ratings", "crop_ratings", "pred_scores", "crop_scores"),
    *("pred_probabilities", "score_crops"),
)
# What only it is asked for: upstream's layers ignore arguments that they do not know.
_ASKED_OF_THE_HEADS = ("labels", "candidate_boxes", "num_good_crops")


@dataclass
class SetCropEncoderOutput(BaseModelOutput):
    """An encoded image: everything that proposing and scoring crops need.

    Args:
        last_hidden_state: (B, H W, D) encoder memory.
        feature_mask: (B, H, W) True where the memory is image, False where it is padding.
        position_embeddings: (B, H W, D) of the memory.
        image_sizes: (B, 2) width and height in the model's pixels, without padding.
        detail: (B, C, H', W') the backbone's finer features, with `crop_scoring_detail`.
        importance: (B, H, W) in [0, 1], how much people look at each cell of the memory, with `subject_map`.
        faces: (B, F, 5) the surest faces, corners and certainty in [0, 1], with `face_finding`.
    """

    feature_mask: torch.Tensor | None = None
    position_embeddings: torch.Tensor | None = None
    image_sizes: torch.Tensor | None = None
    detail: torch.Tensor | None = None
    importance: torch.Tensor | None = None
    faces: torch.Tensor | None = None


@dataclass
class SetCropModelOutput(ConditionalDetrModelOutput):
    """Upstream's output with the encoded image.

    Args:
        encoder_outputs: [`SetCropEncoderOutput`], to be given to later calls.
    """

    encoder_outputs: SetCropEncoderOutput | None = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_without_heads(name, type(self).__name__))

    def __getitem__(self, key: Any) -> Any:
        if key in _OF_THE_HEADS:
            raise KeyError(_without_heads(key, type(self).__name__))
        return super().__getitem__(key)


@dataclass
class SetCropImageCroppingOutput(ConditionalDetrObjectDetectionOutput):
    """Upstream's detection output with the scoring head's.

    `logits` is (B, N, 1), the validity logits; `pred_boxes` is (B, N, 4), cxcywh in [0, 1] of the image without
    padding; `loss` and `loss_dict` come with labels; `auxiliary_outputs` are the other decoder layers' two.

    Args:
        crop_ratings: (B, M) predicted ratings, 1 to 5, of `candidate_boxes`.
        pred_ratings: (B, N) predicted ratings of `pred_boxes`, outside training, when the config has `rerank`.
        pred_probabilities: (B, N) in [0, 1], that a person would call them good, by these ratings.
        encoder_outputs: [`SetCropEncoderOutput`], which `score_crops` takes.
    """

    crop_ratings: torch.Tensor | None = None
    pred_ratings: torch.Tensor | None = None
    pred_probabilities: torch.Tensor | None = None
    encoder_outputs: SetCropEncoderOutput | None = None

    @property
    def crop_scores(self) -> torch.Tensor | None:
        """Former name of `crop_ratings`."""
        return self._renamed("crop_scores", "crop_ratings")

    @property
    def pred_scores(self) -> torch.Tensor | None:
        """Former name of `pred_ratings`."""
        return self._renamed("pred_scores", "pred_ratings")

    def _renamed(self, former: str, name: str) -> torch.Tensor | None:
        warnings.warn(f"{former} is called {name} now", FutureWarning, stacklevel=3)
        return getattr(self, name)


# A prior validity of 1 %, as focal losses need for a steady start (Lin et al., 2017, section 3.3).
_PRIOR_VALIDITY_LOGIT = -4.595


# Parameters that older checkpoints lack, whose start values leave a model as it is without them.
_NEW_KEYS = [r"decoder\.ref_point_head\.centres$"]


class _XavierInitialization:
    """Start linear layers as the authors of DETR and its variants do; upstream draws all of them from N(0, 0.02)."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)


class SetCropEncoder(_XavierInitialization, ConditionalDetrEncoder):
    """Upstream's encoder with the authors' start values."""


class SetCropReferencePoints(ConditionalDetrMLPPredictionHead):
    """Reference points of anchors that have a centre each; what the queries say is added to it."""

    def __init__(self, config: SetCropConfig) -> None:
        super().__init__(config.d_model, config.d_model, 2, 2)
        # Logits of x and y. Zero, as of a checkpoint from before there were centres, leaves all to the queries.
        self.centres = nn.Parameter(torch.zeros(config.num_queries, 2))

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., N, 2) of the reference points of queries (..., N, D)."""
        return super().forward(queries) + self.centres


class SetCropDecoder(_XavierInitialization, ConditionalDetrDecoder):
    """Upstream's decoder with the authors' start values, without which all reference points start in one place."""

    def __init__(self, config: SetCropConfig) -> None:
        super().__init__(config)
        if config.anchor_sizes:
            self.ref_point_head = SetCropReferencePoints(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SetCropReferencePoints):
            init.zeros_(module.centres)


class SetCropModel(ConditionalDetrModel):
    """Backbone, encoder and decoder: upstream's, with the encoder callable on its own.

    Every parameter is trainable when the model is made, whether from a config or from a checkpoint; upstream freezes
    some of a ResNet's in the one case and none in the other.
    """

    config: SetCropConfig
    config_class = SetCropConfig
    _keys_to_ignore_on_load_missing = _NEW_KEYS

    def __init__(self, config: SetCropConfig) -> None:
        super().__init__(config)
        self.encoder = SetCropEncoder(config)
        self.decoder = SetCropDecoder(config)
        if config.subject_map:
            self.subject_map = nn.Linear(config.d_model, 1)
        if config.face_finding:
            self.face_finder = SetCropFaceFinder(config, self.backbone.intermediate_channel_sizes[0])
        if config.rating_sources:
            self.source_embeddings = nn.Embedding(len(config.rating_sources), config.d_model)
        self.unfreeze_backbone()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.query_position_embeddings:
            init.normal_(module.weight)
        elif isinstance(module, nn.Conv2d) and any(module is layer for layer in self._face_finder_layers()):
            self.face_finder.start(module)

    def _face_finder_layers(self) -> Iterator[nn.Module]:
        """Give its layers; none while upstream's constructor runs, which starts what it has made."""
        return self.face_finder.modules() if hasattr(self, "face_finder") else iter(())

    def __getattr__(self, name: str) -> Any:
        if name in _OF_THE_HEADS:
            raise AttributeError(_without_heads(name, type(self).__name__))
        return super().__getattr__(name)

    def encode(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SetCropEncoderOutput:
        """Encode images once, for any number of decodings and scorings.

        An image is encoded the same alone and in a padded batch: images of one size run together, without padding, and
        their features are padded instead. (Attentions and hidden states of the encoder are left out of such a batch.)
        A compiled model does so too with several images: it becomes three graphs, as Python looks at the sizes in
        between; for one image, or without a mask, it is one graph.
        An exported model cannot sort images by size, nor does a compiled one with a single image: padding is masked,
        which still changes what the model thinks of the image. Give them images without padding.

        Args:
            pixel_values: (B, 3, H, W) normalised pixels.
            pixel_mask: (B, H, W), 1 for image and 0 for padding at the right and the bottom; all image when left out.
        """
        # Of an exported graph the number of images must stay open: it is not looked at.
        if (
            pixel_mask is None
            or torch.compiler.is_exporting()
            or (torch.compiler.is_compiling() and len(pixel_values) == 1)
        ):
            return self._encode(pixel_values, pixel_mask, **kwargs)
        return self._encode_by_size(pixel_values, pixel_mask, **kwargs)

    @torch.compiler.disable(recursive=False)
    def _encode_by_size(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor, **kwargs: Any
    ) -> SetCropEncoderOutput:
        """Encode images of different sizes, those of one size together."""
        rows, columns = pixel_mask.amax(2).sum(1), pixel_mask.amax(1).sum(1)
        sizes = torch.stack([rows, columns], dim=1).long().tolist()
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            groups.setdefault(tuple(size), []).append(index)
        if len(groups) == 1 and tuple(pixel_values.shape[-2:]) in groups:
            return self._encode(pixel_values, **kwargs)
        parts = [self._encode(pixel_values[group, :, :height, :width]) for (height, width), group in groups.items()]
        return _padded(parts, list(groups.values()))

    def source_index(self, source: torch.Tensor | int | None) -> torch.Tensor:
        """Return an index of `config.rating_sources` for all images, or (B,) one for each; None: the default."""
        source = self.config.default_source if source is None else source
        return torch.as_tensor(source, device=self.device)

    def _encode(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SetCropEncoderOutput:
        """Encode images (B, 3, H, W), without padding or with it masked."""
        # A model in half precision takes the processor's pixels as they are.
        pixel_values = pixel_values.to(self.dtype)
        pixels = torch.ones_like(pixel_values[:, 0]) if pixel_mask is None else pixel_mask.to(pixel_values)
        feature_maps = self.backbone(pixel_values, pixels)
        feature_map, mask = feature_maps[-1]
        position = self.position_embedding(
            shape=feature_map.shape, device=pixel_values.device, dtype=pixel_values.dtype, mask=mask
        )
        position = position.flatten(2).transpose(1, 2)
        encoded = self.encoder(
            inputs_embeds=self.input_projection(feature_map).flatten(2).transpose(1, 2),
            attention_mask=mask.flatten(1),
            spatial_position_embeddings=position,
            **kwargs,
        )
        memory = encoded.last_hidden_state
        importance = None
        if self.config.subject_map:
            importance = self.subject_map(memory)[..., 0].float().sigmoid().unflatten(1, mask.shape[1:])
        detail = feature_maps[0][0] if self.config.crop_scoring_detail else None
        return SetCropEncoderOutput(
            last_hidden_state=memory,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            feature_mask=mask,
            position_embeddings=position,
            # Sums, because an exported graph takes sizes for constants otherwise.
            image_sizes=torch.stack([pixels[:, 0].sum(1), pixels[:, :, 0].sum(1)], dim=-1),
            detail=detail,
            importance=importance,
            faces=self.face_finder(memory.unflatten(1, mask.shape[1:]), detail) if self.config.face_finding else None,
        )

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        encoder_outputs: SetCropEncoderOutput | None = None,
        source: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> SetCropModelOutput:
        """Decode the set of anchors; encodes the images first unless `encoder_outputs` of [`encode`] is given.

        `source` says whose crops are proposed, see [`source_index`].

        Raises:
            TypeError: an argument of the model with heads was given.
            ValueError: neither images nor an encoding was given.
        """
        for name in _ASKED_OF_THE_HEADS:
            if kwargs.pop(name, None) is not None:
                raise TypeError(_without_heads(name, type(self).__name__))
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("give pixel_values, or the encoder_outputs of an earlier call")
            encoder_outputs = self.encode(pixel_values, pixel_mask, **kwargs)
        memory = encoder_outputs.last_hidden_state
        anchors = self.query_position_embeddings.weight.expand(memory.shape[0], -1, -1)
        content = torch.zeros_like(anchors)
        if self.config.rating_sources:
            content = content + self.source_embeddings(self.source_index(source)).unsqueeze(-2)
        decoded = self.decoder(
            inputs_embeds=content,
            attention_mask=None,
            spatial_position_embeddings=encoder_outputs.position_embeddings,
            object_queries_position_embeddings=anchors,
            encoder_hidden_states=memory,
            encoder_attention_mask=encoder_outputs.feature_mask.flatten(1),
            **kwargs,
        )
        return SetCropModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            intermediate_hidden_states=decoded.intermediate_hidden_states,
            reference_points=decoded.reference_points,
            encoder_outputs=encoder_outputs,
        )


class SetCropForImageCropping(ConditionalDetrForObjectDetection):
    """Conditional DETR with one validity logit an anchor, quality guidance, and an optional scoring head.

    Parameter names are upstream's, so a Conditional DETR checkpoint loads with `ignore_mismatched_sizes=True` but for
    the class head and the queries. Source: "Rethinking Image Cropping: Exploring Diverse Compositions from Global
    Views" (CVPR 2022), section 3. The start values are those of the authors' release: a validity of 1 %, queries from
    N(0, 1), Xavier's in the transformer, and a box head that moves no anchor.
    """

    config: SetCropConfig
    config_class = SetCropConfig
    _keys_to_ignore_on_load_missing = _NEW_KEYS

    def __init__(self, config: SetCropConfig) -> None:
        # `from_pretrained(..., id2label=...)` and its like change a config that was found valid.
        config.validate_setcrop()
        # Not upstream's own constructor, which would build a second model only to throw it away.
        ConditionalDetrPreTrainedModel.__init__(self, config)
        self.model = SetCropModel(config)
        self.class_labels_classifier = nn.Linear(config.d_model, config.num_labels)
        self.bbox_predictor = ConditionalDetrMLPPredictionHead(config.d_model, config.d_model, 4, num_layers=3)
        if config.anchor_sizes:
            # Logits of width and height, added to the box head's; zero is the paper's model.
            self.anchor_sizes = nn.Parameter(torch.zeros(config.num_queries, 2))
        if config.crop_scoring:
            channels = self.model.backbone.intermediate_channel_sizes[0] if config.crop_scoring_detail else 0
            self.crop_scorer = SetCropScorer(config, channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # By the layers themselves: of a module without direct parameters, as this class may be, upstream says that it
        # is initialised already and does not ask.
        super()._init_weights(module)
        if module is self.class_labels_classifier:
            init.constant_(module.bias, _PRIOR_VALIDITY_LOGIT)
        elif module is self.bbox_predictor.layers[-1]:
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif module is self and self.config.anchor_sizes:
            init.zeros_(self.anchor_sizes)
        elif self.config.rating_sources and module is self.model.source_embeddings:
            # Every source proposes the same set until training tells them apart.
            init.zeros_(module.weight)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        encoder_outputs: SetCropEncoderOutput | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        candidate_boxes: torch.Tensor | None = None,
        num_good_crops: torch.Tensor | float | None = None,
        source: torch.Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SetCropImageCroppingOutput | tuple:
        """Propose a set of crops, and score boxes where asked.

        Args:
            pixel_values: (B, 3, H, W) normalised pixels.
            pixel_mask: (B, H, W), 1 for image and 0 for padding.
            encoder_outputs: of an earlier call, instead of `pixel_values`.
            labels: a dict per image with `boxes` (G, 4), the good crops, and, where crops were rated, `scored_boxes`
                (S, 4) and `scores` (S,); optionally `teacher_validity` (N,) and `jittered_boxes` (S, 4), places that
                the scoring head learns the scores at instead of `scored_boxes`; boxes cxcywh in [0, 1]. A detector's
                `class_labels` may be there: they are all crops. See [`set_crop_loss`].
                Without scored boxes the scoring head has no loss. Views, whose labels rate any box, have `rate_boxes`,
                `windows`, `window_fit`, `window_weight` and `importance_map` besides.
            candidate_boxes: (B, M, 4) cxcywh in [0, 1], to be rated as `crop_ratings`.
            num_good_crops: what the set loss is divided by; see [`set_crop_loss`].
            source: whose crops and ratings, an index of `config.rating_sources` or (B,) indices; the default source
                where left out.

        Returns:
            [`SetCropImageCroppingOutput`].
        """
        outputs = self.model(pixel_values, pixel_mask, encoder_outputs=encoder_outputs, source=source, **kwargs)
        encoded = outputs.encoder_outputs
        reference = inverse_sigmoid(outputs.reference_points).transpose(0, 1)
        logits = self.class_labels_classifier(outputs.last_hidden_state)
        pred_boxes = self._boxes(outputs.last_hidden_state, reference)

        loss = loss_dict = auxiliary = None
        if labels is not None:
            layer_logits = layer_boxes = None
            if self.config.auxiliary_loss:
                layer_logits = self.class_labels_classifier(outputs.intermediate_hidden_states)
                layer_boxes = self._boxes(outputs.intermediate_hidden_states, reference)
            loss, loss_dict, auxiliary = set_crop_loss(
                logits, labels, logits.device, pred_boxes, self.config, layer_logits, layer_boxes, num_good_crops
            )
            loss_dict |= self._scoring_losses(encoded, labels, source)
            loss = loss + self.scoring_loss(loss_dict)
        crop_ratings = None
        if candidate_boxes is not None:
            crop_ratings = self.score_crops(candidate_boxes, encoded, source=source)
        pred_ratings = pred_probabilities = None
        if self.config.rerank and not self.training:
            pred_ratings = self.score_crops(pred_boxes, encoded, source=source)
            pred_probabilities = GoodCropProbability.of(self.config)(pred_ratings)
        output = SetCropImageCroppingOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits,
            pred_boxes=pred_boxes,
            auxiliary_outputs=auxiliary,
            last_hidden_state=outputs.last_hidden_state,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
            crop_ratings=crop_ratings,
            pred_ratings=pred_ratings,
            pred_probabilities=pred_probabilities,
            encoder_outputs=encoded,
        )
        return output.to_tuple() if return_dict is False else output

    def score_crops(
        self,
        boxes: torch.Tensor,
        encoder_outputs: SetCropEncoderOutput | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        source: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Predict the human rating of any boxes.

        Args:
            boxes: (B, M, 4) cxcywh in [0, 1]; M may be thousands.
            encoder_outputs: of `self.model.encode` or an earlier forward call; or give
            pixel_values, pixel_mask: (B, 3, H, W) and (B, H, W), to be encoded here.
            source: whose ratings, an index of `config.rating_sources` or (B,) indices; the default where left out.

        Returns:
            (B, M) ratings on the labels' scale (GAIC: 1..5). A box's score does not depend on the other boxes.

        Raises:
            ValueError: the model has no scoring head, or neither images nor encodings were given.
        """
        if not self.config.crop_scoring:
            raise ValueError("this model cannot score crops: it was made with crop_scoring=False")
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("give encoder_outputs or pixel_values")
            encoder_outputs = self.model.encode(pixel_values, pixel_mask)
        memory = encoder_outputs.last_hidden_state
        mask = encoder_outputs.feature_mask
        return self.crop_scorer(
            boxes.to(memory),
            memory.unflatten(1, mask.shape[1:]),
            mask,
            encoder_outputs.image_sizes,
            encoder_outputs.detail,
            self.model.source_index(source) if self.config.rating_sources else None,
            encoder_outputs.faces,
        )

    @torch.no_grad()
    def initialize_anchors(self, boxes: torch.Tensor) -> None:
        """Start the anchors from given boxes, for example [`gaic_grid`] or k-means centres of the good crops.

        The reference points and sizes reproduce the boxes exactly before training: queries and box head
        add nothing yet.

        Args:
            boxes: (N, 4) cxcywh in (0, 1), N = `num_queries`.

        Raises:
            ValueError: another number of boxes, or the config has no `anchor_sizes`.
        """
        if not self.config.anchor_sizes:
            raise ValueError("anchors can start from boxes only with anchor_sizes=True")
        if boxes.shape != (self.config.num_queries, 4):
            raise ValueError(f"expected {self.config.num_queries} boxes, got a tensor of shape {tuple(boxes.shape)}")
        logits = inverse_sigmoid(boxes.to(self.anchor_sizes))
        points = self.model.decoder.ref_point_head
        points.centres.copy_(logits[:, :2])
        self.anchor_sizes.copy_(logits[:, 2:])
        for head in (points, self.bbox_predictor):
            head.layers[-1].weight.zero_()
            head.layers[-1].bias.zero_()

    def _boxes(self, hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Box head on hidden states (..., B, N, D) with reference points (B, N, 2) in logits: (..., B, N, 4)."""
        size = self.anchor_sizes.expand_as(reference) if self.config.anchor_sizes else torch.zeros_like(reference)
        return (self.bbox_predictor(hidden) + torch.cat([reference, size], dim=-1)).sigmoid()

    def scoring_weights(self) -> dict[str, float]:
        """Return the weight of every loss, by name, that is a mean over rated images: not the set's."""
        return {
            "loss_crop_score": self.config.crop_score_loss_coefficient,
            "loss_crop_rank": self.config.crop_rank_loss_coefficient,
            "loss_crop_windows": self.config.window_loss_coefficient,
            "loss_subject_map": self.config.subject_map_loss_coefficient,
        }

    def scoring_loss(self, loss_dict: dict[str, torch.Tensor]) -> torch.Tensor | float:
        """Return the share of the loss, a mean over rated images, that [`scoring_weights`] names."""
        return sum(weight * loss_dict[name] for name, weight in self.scoring_weights().items() if name in loss_dict)

    def _scoring_losses(
        self, encoded: SetCropEncoderOutput, labels: list[dict[str, Any]], source: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        """Return the separate losses of the scoring head and the subject map, as far as model and labels have them.

        The head learns the ratings of crops, moved by augmentation in training; of views, those of drawn boxes and
        which windows of one size are best.
        """
        losses: dict[str, torch.Tensor] = {}
        views = "windows" in labels[0]
        if self.config.subject_map and views:
            losses["loss_subject_map"] = view_subject_map_loss(encoded.importance, encoded.feature_mask, labels)
        if not self.config.crop_scoring or "scored_boxes" not in labels[0]:
            return losses
        moved = [label.get("jittered_boxes", label["scored_boxes"]) for label in labels]
        boxes = nn.utils.rnn.pad_sequence(moved, batch_first=True).to(encoded.last_hidden_state)
        if not views:
            score, rank = crop_scoring_loss(self.score_crops(boxes, encoded, source=source), labels)
            return {**losses, "loss_crop_score": score, "loss_crop_rank": rank}
        # Faces are labelled for few images: a head that saw the penalty would learn to make up for it elsewhere.
        encoded = SetCropEncoderOutput(**{name: value for name, value in encoded.items() if name != "faces"})
        windows = torch.stack([label["windows"] for label in labels]).to(boxes)
        predicted = self.score_crops(torch.cat([boxes, windows.flatten(1, 2)], dim=1), encoded, source=source)
        rated, slid = predicted.split([boxes.shape[1], predicted.shape[1] - boxes.shape[1]], dim=1)
        return losses | view_scoring_losses(rated, slid.unflatten(1, windows.shape[1:3]), labels)


def _without_heads(name: str, holder: str) -> str:
    """Return what to say to code that asks the model without heads, which `AutoModel` loads, for theirs."""
    if name not in (*_OF_THE_HEADS, *_ASKED_OF_THE_HEADS):
        return f"{holder!r} object has no attribute {name!r}"
    return (
        f"{holder} has no {name!r}: AutoModel loads SetCrop without its heads, AutoModelForObjectDetection with them"
    )


def _padded(parts: list[SetCropEncoderOutput], rows: list[list[int]]) -> SetCropEncoderOutput:
    """Put encodings of images of different sizes into one, padded with zeros at the right and the bottom."""
    order = torch.tensor([row for group in rows for row in group]).argsort()

    def joined(maps: list[torch.Tensor]) -> torch.Tensor:
        """Return maps (b, h, w, ...) of every group as (B, H, W, ...), in the order of the batch."""
        height, width = (max(part.shape[axis] for part in maps) for axis in (1, 2))
        padded = []
        for part in maps:
            target = part.new_zeros(len(part), height, width, *part.shape[3:])
            target[:, : part.shape[1], : part.shape[2]] = part
            padded.append(target)
        return torch.cat(padded)[order.to(padded[0].device)]

    def grids(name: str) -> list[torch.Tensor]:
        return [getattr(part, name).unflatten(1, part.feature_mask.shape[1:]) for part in parts]

    detail = None
    if parts[0].detail is not None:
        detail = joined([part.detail.permute(0, 2, 3, 1) for part in parts]).permute(0, 3, 1, 2)

    def listed(name: str) -> torch.Tensor:
        rows_of = torch.cat([getattr(part, name) for part in parts])
        return rows_of[order.to(rows_of.device)]

    return SetCropEncoderOutput(
        last_hidden_state=joined(grids("last_hidden_state")).flatten(1, 2),
        feature_mask=joined([part.feature_mask for part in parts]),
        position_embeddings=joined(grids("position_embeddings")).flatten(1, 2),
        image_sizes=listed("image_sizes"),
        detail=detail,
        importance=None if parts[0].importance is None else joined([part.importance for part in parts]),
        faces=None if parts[0].faces is None else listed("faces"),
    )


# Checkpoints of Conditional DETR are stored under older names that transformers translates by class; here as there.
register_checkpoint_conversion_mapping(
    "SetCropModel", get_checkpoint_conversion_mapping("ConditionalDetrModel"), overwrite=True
)
# `pipeline("object-detection")` looks a model's class up by its name, and complains of one that it does not find.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[SetCropConfig.model_type] = SetCropForImageCropping.__name__

__all__ = ["SetCropForImageCropping", "SetCropModel"]
