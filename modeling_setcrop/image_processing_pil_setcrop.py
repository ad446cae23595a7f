"""SetCrop's image processor on Pillow and NumPy, and what both backends share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import SizeDict, get_image_size, make_flat_list_of_images
from transformers.models.conditional_detr.image_processing_pil_conditional_detr import (
    ConditionalDetrImageProcessorKwargs,
    ConditionalDetrImageProcessorPil,
)

from .coco_annotations import crops_of_coco
from .crop_geometry import covering_order, cxcywh_to_xyxy, nms, rank, xyxy_to_cxcywh
from .crop_judging import best_probabilities
from .image_preprocessing import resized_size
from .image_reading import to_rgb

# Resizing and annotation tools round: a corner this far outside (pixels) belongs on the edge.
_ROUNDING = 1.0


class SetCropImageProcessorKwargs(ConditionalDetrImageProcessorKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*):
        What the sides of the resized image are rounded to multiples of.
    """

    size_divisor: int | None


class CropProcessingMixin:
    """Crop annotations in, crops out: independent of how pixels are processed."""

    valid_kwargs = SetCropImageProcessorKwargs
    size_divisor: int | None = None
    # Upstream's takes three channels alone.
    do_convert_rgb = True

    def preprocess(
        self, images: Any, annotations: dict[str, Any] | list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Prepare images, and rated crops, for the model.

        Args:
            images: an image or a list of them (PIL, NumPy or torch).
            annotations: a dict per image with `boxes` (S, 4) corner format in pixels of that image, `scores` (S,)
                ratings or None, and `good` (S,) booleans: the crops to be proposed; or COCO's form, a dict with
                `annotations`, see [`crops_of_coco`].
            **kwargs: as upstream's Conditional DETR processor.

        Returns:
            `pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W) and, with annotations, `labels`: a dict per image with
            `boxes` (G, 4) good crops and `scored_boxes` (S, 4), cxcywh in [0, 1] of the image without padding,
            `class_labels` (G,) zeros and `scores` (S,).

        Raises:
            ValueError: annotations that do not fit the images or themselves.
        """
        encoding = super().preprocess(images, **kwargs)
        if annotations is not None:
            annotations = [annotations] if isinstance(annotations, dict) else annotations
            images = make_flat_list_of_images(images)
            if len(images) != len(annotations):
                raise ValueError(f"{len(images)} images, but {len(annotations)} annotations")
            encoding["labels"] = [
                encode_crops(_crops(annotation), _image_size(image))
                for annotation, image in zip(annotations, images, strict=True)
            ]
        return encoding

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        """As upstream's; of a PIL image of any mode what the pipeline sees: transparency is laid over white."""
        return super().process_image(to_rgb(image) if isinstance(image, Image.Image) else image, *args, **kwargs)

    def resize(self, image: Any, size: SizeDict, *args: Any, **kwargs: Any) -> Any:
        """As upstream's, but no side gets shorter than one cell of the backbone's features."""
        if size.shortest_edge and size.longest_edge:
            height, width = resized_size(image.shape[-2:], size.shortest_edge, size.longest_edge, self.size_divisor)
            size = SizeDict(height=height, width=width)
        return super().resize(image, size, *args, **kwargs)

    def post_process_image_cropping(
        self,
        outputs: Any,
        target_sizes: torch.Tensor | list[tuple[int, int]] | None = None,
        threshold: float = 0.0,
        top_k: int | None = None,
        nms_iou: float | None = None,
        as_set: bool = False,
    ) -> list[dict[str, torch.Tensor]]:
        """Turn the model's output into crops.

        Args:
            outputs: of [`SetCropForImageCropping`]: `logits` (B, N, 1), `pred_boxes` (B, N, 4) and, when the model
                re-ranks, `pred_ratings` and `pred_probabilities` (B, N).
            target_sizes: (height, width) of each image in pixels; boxes stay in [0, 1] when left out.
            threshold: crops whose probability is not above it are dropped.
            top_k: at most so many crops per image.
            nms_iou: of crops that overlap by more than this the better one stays.
            as_set: choose the crops together: after the one with the highest probability each next one makes it most
                probable that the image's best crop is among them. The scores of the result then do not fall.

        Returns:
            A dict per image: `scores` (K,) probabilities in [0, 1] that a person would call the crop good, falling,
            and `boxes` (K, 4), corner format, inside the image.

        Raises:
            AttributeError: the output is that of the model without heads.
            ValueError: as many target sizes as images are needed, or there are ratings without probabilities.
        """
        # Of a pipeline's plain output; the model's own says so by itself.
        if not hasattr(outputs, "pred_boxes"):
            raise AttributeError(
                "the output has no 'pred_boxes': AutoModel loads SetCrop without its heads, "
                "AutoModelForObjectDetection with them"
            )
        if target_sizes is not None and len(target_sizes) != len(outputs.pred_boxes):
            raise ValueError(f"{len(outputs.pred_boxes)} images, but {len(target_sizes)} target sizes")
        # To the CPU first: not every device has float64.
        validity = outputs.logits.detach()[..., 0].cpu().double().sigmoid().numpy()
        ratings = getattr(outputs, "pred_ratings", None)
        ratings = None if ratings is None else ratings.detach().cpu().double()
        probabilities = getattr(outputs, "pred_probabilities", None)
        if probabilities is None and ratings is not None:
            raise ValueError("ratings need 'pred_probabilities' beside them: GoodCropProbability.of(config)(ratings)")
        probabilities = validity if probabilities is None else probabilities.detach().cpu().double().numpy()
        boxes = outputs.pred_boxes.detach().cpu().double().numpy()
        device, results = outputs.pred_boxes.device, []
        for row in range(len(boxes)):
            size = (1, 1) if target_sizes is None else tuple(int(side) for side in target_sizes[row])
            corners = cxcywh_to_xyxy(boxes[row]).clip(0, 1) * [size[1], size[0], size[1], size[0]]
            logits = np.log(validity[row].clip(min=1e-9)) if ratings is None else ratings[row].numpy()
            scores = probabilities[row]
            order = rank(logits)
            order = order[scores[order] > threshold]
            if nms_iou is not None:
                order = order[nms(corners[order], logits[order], nms_iou)]
            if as_set:
                order = order[covering_order(corners[order], best_probabilities(logits[order]), top_k)]
            order = order[:top_k]
            found = {"scores": scores[order], "boxes": corners[order]}
            results.append({name: torch.from_numpy(value).float().to(device) for name, value in found.items()})
        return results

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | list[tuple[int, int]] | None = None,
        top_k: int | None = 100,
    ) -> list[dict[str, torch.Tensor]]:
        """Crops in the form of a detector's objects, for `pipeline("object-detection")` and tools made for it.

        As [`post_process_image_cropping`], so ranked as the image-cropping pipeline ranks them; of crops that overlap
        by an IoU of more than 0.8 the better one stays, and every crop has the label 0. The boxes are the model's
        anchors: that pipeline asks the scoring head for better ones around the best of them, which needs the model.

        Returns:
            A dict per image: `scores` (K,), `labels` (K,) and `boxes` (K, 4).
        """
        found = self.post_process_image_cropping(outputs, target_sizes, threshold, top_k, nms_iou=0.8)
        return [{**crops, "labels": torch.zeros_like(crops["scores"], dtype=torch.long)} for crops in found]


def _crops(annotation: dict[str, Any]) -> dict[str, Any]:
    """Return an image's crops as [`encode_crops`] takes them, of either form of annotation."""
    if isinstance(annotation, dict) and "annotations" in annotation:
        return crops_of_coco(annotation["annotations"])
    if not isinstance(annotation, dict) or not {"boxes", "good"} <= annotation.keys():
        raise ValueError("annotations are a dict for each image, with 'annotations' (COCO) or with 'boxes' and 'good'")
    return annotation


def encode_crops(annotation: dict[str, Any], image_size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """One image's crops as the model's labels; see [`CropProcessingMixin.preprocess`].

    Args:
        annotation: `boxes`, `scores` and `good`.
        image_size: (height, width) in pixels.
    """
    height, width = image_size
    boxes = torch.as_tensor(np.asarray(annotation["boxes"], dtype=np.float32)).reshape(-1, 4)
    good = torch.as_tensor(np.asarray(annotation["good"], dtype=bool))
    if len(good) != len(boxes):
        raise ValueError(f"{len(boxes)} crop boxes, but {len(good)} entries in 'good'")
    if not torch.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise ValueError("crop boxes must be x1, y1, x2, y2 with x1 < x2 and y1 < y2")
    if len(boxes) and boxes.max() <= 1 < min(height, width):
        raise ValueError("crop boxes must be in pixels of the image, not normalised to [0, 1]")
    limits = boxes.new_tensor([width, height, width, height]) + _ROUNDING
    if (boxes < -_ROUNDING).any() or (boxes > limits).any():
        raise ValueError(f"crop boxes must lie inside the image of {width} x {height} pixels")
    scores = annotation.get("scores")
    rated = boxes if scores is not None else boxes[:0]
    scores = torch.as_tensor(np.asarray([] if scores is None else scores, dtype=np.float32))
    if len(scores) != len(rated):
        raise ValueError(f"{len(boxes)} crop boxes, but {len(scores)} scores")
    if not torch.isfinite(scores).all():
        raise ValueError("the scores of crops must be finite numbers")
    unit = boxes.new_tensor([width, height, width, height])
    return {
        "boxes": xyxy_to_cxcywh((boxes[good] / unit).clamp(0, 1)),
        "class_labels": torch.zeros(int(good.sum()), dtype=torch.long),
        "scored_boxes": xyxy_to_cxcywh((rated / unit).clamp(0, 1)),
        "scores": scores,
    }


def _image_size(image: Any) -> tuple[int, int]:
    return (image.height, image.width) if hasattr(image, "getbands") else get_image_size(np.asarray(image))


class SetCropImageProcessorPil(CropProcessingMixin, ConditionalDetrImageProcessorPil):
    """Resize, rescale, normalise and pad with Pillow and NumPy; encode crop annotations; decode crops."""


__all__ = ["SetCropImageProcessorPil"]
