"""The small model that ships with the package, before training: its shape, backbone weights and first anchors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.cluster.vq import kmeans2
from transformers import set_seed

from ..backbone_inverted_residual import InvertedResidualBackbone, InvertedResidualConfig, fold_batch_norm
from ..configuration_setcrop import SetCropConfig
from ..crop_geometry import gaic_grid, xyxy_to_cxcywh
from ..image_processing_pil_setcrop import SetCropImageProcessorPil
from ..modeling_setcrop import SetCropForImageCropping
from .convert_coco_ssd import load_coco_weights
from .convert_efficientnet_lite import load_imagenet_weights

_KMEANS_CROPS = 100_000
_KMEANS_STEPS = 30
# Nearly every crop that an anchor may be is rated above the paper's thresholds, which are for GAIC's ratings.
_ANY_BOX = {"subject_map": True, "quality_lower": 3.5, "quality_upper": 4.75}
# Of stride 8, for the scoring head, and of strides 16 and 32.
_STAGES = ("stage3", "stage5", "stage7")


def new_setcrop_lite(
    train: Dataset | None = None, seed: int = 0, coco_weights: str | Path | None = None
) -> tuple[SetCropForImageCropping, SetCropImageProcessorPil]:
    """setcrop-lite as training starts it.

    A backbone with folded batch norm; strides 16 and 32 as one map for the transformer, stride 8 for the scoring head
    alone; one encoder layer and three decoder layers of width 128; anchors at the crops of GAIC's grid, where every
    good crop of GAIC lies.

    Args:
        train: training rows of the shared schema, of data with crops elsewhere: the anchors then start at the k-means
            centres of the good crops and of their mirror images. Where their labels rate any box (the layout
            `editor`), the model has the map of subjects, an embedding for each of editors and people if both made
            crops, and the thresholds of quality guidance that suit such ratings.
        seed: of the new weights and of k-means.
        coco_weights: folder of a coco-ssd model (see [`load_coco_weights`]), for a MobileNetV2 that learned to detect
            objects; without it the backbone is EfficientNet-Lite0 with ImageNet weights.

    Returns:
        The model and its image processor.

    Raises:
        ImportError: the package with the ImageNet weights is not installed; the message names it.
        FileNotFoundError: `coco_weights` has no model.
        ValueError: fewer different good crops than anchors, or `coco_weights` holds another model.
    """
    set_seed(seed)
    backbone, middle, spread = _imagenet_backbone() if coco_weights is None else _coco_backbone(coco_weights)
    config = SetCropConfig(
        backbone_config=backbone.config,
        d_model=128,
        encoder_layers=1,
        decoder_layers=3,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        dropout=0.0 if coco_weights is None else 0.1,
        cls_loss_coefficient=2,
        crop_score_loss_coefficient=3,
        crop_rank_loss_coefficient=3,
        anchor_sizes=True,
        crop_scoring=True,
        crop_scoring_dim=224,
        crop_scoring_detail=True,
        rerank=True,
        **_of_any_box(train),
    )
    model = SetCropForImageCropping(config)
    model.model.backbone.model.load_state_dict(backbone.state_dict())
    anchors = (
        xyxy_to_cxcywh(torch.from_numpy(gaic_grid()).float())
        if train is None
        else torch.from_numpy(anchor_boxes(train, config.num_queries, seed))
    )
    model.initialize_anchors(anchors)
    processor = SetCropImageProcessorPil(
        size={"shortest_edge": 256, "longest_edge": 256},
        size_divisor=16,
        image_mean=[middle] * 3,
        image_std=[spread] * 3,
    )
    return model, processor


def _of_any_box(train: Dataset | None) -> dict[str, Any]:
    """Return what a model has whose training rows have labels that rate any box; nothing for others."""
    labels = [] if train is None or "crop_labels" not in train.column_names else train["crop_labels"][:]
    if not any(labels):
        return {}
    known = {"editors": any(each["crops"] for each in labels), "people": any(each["people"] for each in labels)}
    sources = [name for name, there in known.items() if there]
    return {**_ANY_BOX, "rating_sources": sources if len(sources) > 1 else None}


def _imagenet_backbone() -> tuple[InvertedResidualBackbone, float, float]:
    """EfficientNet-Lite0 with the mean and standard deviation of its pixels."""
    config = InvertedResidualConfig(hypercolumn=True, detail=True, out_features=list(_STAGES))
    return fold_batch_norm(load_imagenet_weights(InvertedResidualBackbone(config))), 127 / 255, 128 / 255


def _coco_backbone(folder: str | Path) -> tuple[InvertedResidualBackbone, float, float]:
    """MobileNetV2 with the mean and standard deviation of its pixels."""
    config = InvertedResidualConfig(
        variant="mobilenet_v2", batch_norm=False, hypercolumn=True, detail=True, out_features=list(_STAGES)
    )
    return load_coco_weights(InvertedResidualBackbone(config), folder), 0.5, 0.5


def anchor_boxes(train: Dataset, count: int, seed: int) -> np.ndarray:
    """k-means centres (count, 4), cxcywh in (0, 1), of good crops and their mirror images; small ones last."""
    columns = train.select_columns(["boxes", "good", "width", "height"])[:]
    boxes = np.concatenate(
        [
            np.asarray(crops, dtype=np.float64)[np.asarray(good, dtype=bool)] / [width, height, width, height]
            for crops, good, width, height in zip(*columns.values(), strict=True)
        ]
    )
    return kmeans_anchors(boxes, count, seed)


def kmeans_anchors(crops: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means centres (count, 4), cxcywh in (0, 1), of crops (K, 4) and their mirror images; small ones last.

    Args:
        crops: Corners in [0, 1].
        count: Of the centres.
        seed: Of the drawing of crops and of the first centres.

    Raises:
        ValueError: There are fewer different crops than centres.
    """
    rng = np.random.default_rng(seed)
    points = xyxy_to_cxcywh(crops[rng.permutation(len(crops))[:_KMEANS_CROPS]])
    points = np.concatenate([points, np.abs([1, 0, 0, 0] - points)])
    different = len(np.unique(points.round(3), axis=0))
    if different < count:
        raise ValueError(
            f"{count} anchors need at least as many different good crops, and with their mirror images there are "
            f"{different}: without a data set anchors start on GAIC's grid of crops"
        )
    centres, _ = kmeans2(points, count, iter=_KMEANS_STEPS, minit="++", rng=rng)
    centres = centres[np.argsort(-centres[:, 2] * centres[:, 3], kind="stable")]
    return centres.clip(0.01, 0.99).astype(np.float32)
