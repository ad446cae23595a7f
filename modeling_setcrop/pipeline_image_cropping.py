"""The `"image-cropping"` pipeline: a photograph in, ranked crops out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import Pipeline
from transformers.image_utils import load_image
from transformers.modeling_outputs import ModelOutput

# A JPEG is decoded at no more than this many times the model's size on each side.
_DRAFT_FACTOR = 2


class ImageCroppingPipeline(Pipeline):
    """Suggests crops of photographs.

    ```python
    >>> from transformers import pipeline
    >>> import modeling_setcrop
    >>> cropper = pipeline("image-cropping")
    >>> cropper("photo.jpg", top_k=1)
    [{'score': 0.87, 'box': {'xmin': 96, 'ymin': 40, 'xmax': 2210, 'ymax': 1480}}]
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {name: kwargs[name] for name in ("timeout",) if name in kwargs}
        postprocess = {name: kwargs[name] for name in ("top_k", "threshold", "nms_iou") if name in kwargs}
        return preprocess, {}, postprocess

    def __call__(self, inputs: Any, **kwargs: Any) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Suggest crops.

        Args:
            inputs: a photograph, a path, a URL, a list of these, or a dataset of them (`KeyDataset`).
            top_k (`int`, defaults to 5): at most so many crops.
            threshold (`float`, defaults to 0): only crops with a probability above it; the list may then be empty.
            nms_iou (`float`, defaults to 0.8): of crops that overlap by more than this the better one is returned.
            timeout (`float`): seconds to wait for a URL.
            batch_size (`int`): photographs in one forward pass; the result does not depend on it.

        Returns:
            A list a photograph, best crop first, of `{"score": probability, "box": {"xmin", "ymin", "xmax", "ymax"}}`
            in pixels of the photograph as displayed (EXIF orientation applied).
        """
        return super().__call__(inputs, **kwargs)

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        image, size = self._read(image, timeout)
        pixels = self.image_processor(image, do_pad=False, return_tensors="pt")["pixel_values"][0]
        # A list, so that batching keeps pictures of different shapes apart instead of padding them.
        return {"pictures": [pixels], "target_size": torch.tensor([size])}

    def _read(self, image: Any, timeout: float | None) -> tuple[Image.Image, tuple[int, int]]:
        """The photograph upright, in RGB, possibly reduced, and its full (height, width)."""
        if isinstance(image, str | Path) and Path(image).is_file():
            with Image.open(image) as opened:
                width, height = opened.size
                edge = _DRAFT_FACTOR * (self.image_processor.size.longest_edge or max(opened.size))
                opened.draft("RGB", (edge, edge))
                upright = ImageOps.exif_transpose(opened).convert("RGB")
            if (upright.width > upright.height) != (width > height):
                width, height = height, width
            return upright, (height, width)
        image = load_image(image, timeout=timeout)
        return image, (image.height, image.width)

    def _forward(self, model_inputs: dict[str, Any]) -> ModelOutput:
        pictures = [p for item in model_inputs["pictures"] for p in (item if isinstance(item, list) else [item])]
        shapes = [tuple(picture.shape) for picture in pictures]
        results: list[Any] = [None] * len(pictures)
        for shape in dict.fromkeys(shapes):
            members = [i for i, other in enumerate(shapes) if other == shape]
            output = self.model(pixel_values=torch.stack([pictures[i] for i in members]).to(self.dtype))
            kept = {k: output[k] for k in ("logits", "pred_boxes", "pred_scores") if output.get(k) is not None}
            for row, i in enumerate(members):
                results[i] = {name: value[row] for name, value in kept.items()}
        stacked = {name: torch.stack([result[name] for result in results]) for name in results[0]}
        return ModelOutput(target_size=model_inputs["target_size"], **stacked)

    def postprocess(
        self, model_outputs: ModelOutput, top_k: int | None = 5, threshold: float = 0.0, nms_iou: float | None = 0.8
    ) -> list[dict[str, Any]]:
        result = self.image_processor.post_process_image_cropping(
            model_outputs, model_outputs["target_size"], threshold=threshold, top_k=top_k, nms_iou=nms_iou
        )[0]
        names = ("xmin", "ymin", "xmax", "ymax")
        return [
            {"score": score, "box": dict(zip(names, box, strict=True))}
            for score, box in zip(result["scores"].tolist(), result["boxes"].round().int().tolist(), strict=True)
        ]


__all__ = ["ImageCroppingPipeline"]
