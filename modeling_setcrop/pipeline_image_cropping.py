"""The `"image-cropping"` pipeline: a photograph in, ranked crops out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Pipeline
from transformers.modeling_outputs import ModelOutput

from .crop_selection import CropConstraints, CropJudge, judge_picture, select_crops
from .hub_code import AUTO_CLASSES, IMAGE_PROCESSORS
from .image_processing_pil_setcrop import crop_ranking
from .image_reading import READ_FACTOR
from .image_sources import read_any_image
from .modeling_setcrop import SetCropEncoderOutput

_CONSTRAINTS = ("width", "height", "min_area", "max_area", "min_size", "keep", "avoid")
# Of the model's output, a row a picture.
_PREDICTED = ("logits", "pred_boxes", "pred_scores", "choice_probabilities")
_SELECTION = ("top_k", "threshold", "nms_iou", "diversity", "as_set", "strict", "aspect_ratio", "details")


class ImageCroppingPipeline(Pipeline):
    """Suggests crops of photographs.

    ```python
    >>> from transformers import pipeline
    >>> import modeling_setcrop
    >>> cropper = pipeline("image-cropping")
    >>> cropper("photo.jpg", top_k=1)
    [{'score': 0.87, 'label': 'crop', 'box': {'xmin': 96, 'ymin': 40, 'xmax': 2210, 'ymax': 1480}}]
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {name: kwargs[name] for name in ("timeout",) if name in kwargs}
        postprocess = {name: kwargs[name] for name in (*_SELECTION, *_CONSTRAINTS) if name in kwargs}
        return preprocess, {}, postprocess

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Suggest crops.

        Args:
            inputs (or `images`): an image: a path, an http(s) or data URL, base64 text, bytes, a file object, a PIL
                image, a NumPy array, a row `{"bytes": ...}` of `datasets` or a [`Picture`] already read (see
                [`read_any_image`]); or a list of these, or a dataset of them (`KeyDataset`).
            top_k (`int`, defaults to 5): at most so many crops, of each aspect ratio; None for all.
            threshold (`float`, defaults to 0): only crops with a probability above it; the list may then be empty.
            nms_iou (`float`, defaults to 0.8): of crops that overlap by more than this the better one is returned.
            diversity (`float`): 0..1, instead of `nms_iou`: maximal marginal relevance between score and overlap.
            as_set (`bool`): instead of both, after the best crop each next one makes it most probable that the crop
                that a person would choose is among them (models with `crop_choice`, no aspect ratio or bounds).
            aspect_ratio: width over height as a number, "16:9", "square" or "original", or a list of these. Crops have
                the ratio to one pixel and are chosen from all places and sizes.
            width, height (`int`): pixels at which the crop will be shown; both together are also the aspect ratio.
            min_area, max_area (`float`): bounds on the crop's share of the picture.
            min_size (`int` or pair): least width and height in pixels.
            keep: boxes (xmin, ymin, xmax, ymax) or points (x, y), in pixels, that must not be cut.
            avoid: boxes that must stay outside.
            strict (`bool`): raise a [`ConstraintError`] where no crop satisfies everything. Otherwise the crops that
                break least are returned, each with the constraints that `gave_way`.
            details (`bool`): return a dict with `crops`, `keep_original` (the probability that the whole picture is a
                good crop), `improves` (that of the best crop minus it) and `focus_point` ({"x", "y"} in 0..1).
            timeout (`float`): seconds to wait for a URL.
            batch_size (`int`): photographs handled together. On the CPU the result does not depend on it, to the last
                bit; on an accelerator scores may differ by rounding (1e-4).

        Returns:
            A list a photograph, best crop first, of `{"score": probability, "label": "crop", "box": {"xmin", "ymin",
            "xmax", "ymax"}}` in pixels of the image as displayed (EXIF orientation applied). With a list of aspect
            ratios the crops of the first come first, and each says its `aspect_ratio`.
        """
        if inputs is None and "images" in kwargs:
            inputs = kwargs.pop("images")
        if inputs is None:
            raise ValueError("no images were given")
        return super().__call__(inputs, **kwargs)

    @property
    def short_side(self) -> int:
        """Pixels on the short side that a photograph needs; a larger one can be decoded at reduced scale."""
        return READ_FACTOR * int(self.image_processor.size.shortest_edge or 600)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save model, image processor and code: the folder loads wherever transformers is, with
        `trust_remote_code=True`, and where SetCrop is installed without it."""
        self.model.config.auto_map = dict(AUTO_CLASSES)
        self.image_processor.auto_map = {"AutoImageProcessor": dict(IMAGE_PROCESSORS)}
        super().save_pretrained(save_directory, **kwargs)

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        picture = read_any_image(image, self.short_side, timeout)
        pixels = self.image_processor(picture.image, do_pad=False, return_tensors="pt")["pixel_values"][0]
        # A list, so that batching keeps pictures of different shapes apart instead of padding them.
        return {"pictures": [pixels], "target_size": torch.tensor([picture.size])}

    def _forward(self, model_inputs: dict[str, Any]) -> ModelOutput:
        pictures = [p for item in model_inputs["pictures"] for p in (item if isinstance(item, list) else [item])]
        shapes = [tuple(picture.shape) for picture in pictures]
        results: list[Any] = [None] * len(pictures)
        encodings: list[Any] = [None] * len(pictures)
        for members in self._batches(shapes):
            output = self.model(pixel_values=torch.stack([pictures[i] for i in members]).to(self.dtype))
            kept = {name: output[name] for name in _PREDICTED if output.get(name) is not None}
            encoded = output.encoder_outputs if self.model.config.crop_scoring else {}
            for row, i in enumerate(members):
                results[i] = {name: value[row] for name, value in kept.items()}
                encodings[i] = {name: value[row : row + 1] for name, value in encoded.items() if value is not None}
        stacked = {name: torch.stack([result[name] for result in results]) for name in results[0]}
        return ModelOutput(target_size=model_inputs["target_size"], encodings=encodings, **stacked)

    def _batches(self, shapes: list[tuple[int, ...]]) -> list[list[int]]:
        """Which pictures go through the model together: those of one shape; on the CPU each by itself.

        A batch is rounded otherwise than its members, and a crop's place may hang on the last bit. On the CPU, where
        batches gain little speed, the answer is therefore the same to the bit whatever the batch.
        """
        if self.device.type == "cpu":
            return [[i] for i in range(len(shapes))]
        return [[i for i, other in enumerate(shapes) if other == shape] for shape in dict.fromkeys(shapes)]

    def postprocess(
        self,
        model_outputs: ModelOutput,
        top_k: int | None = 5,
        threshold: float = 0.0,
        nms_iou: float | None = 0.8,
        diversity: float | None = None,
        as_set: bool = False,
        strict: bool = False,
        aspect_ratio: float | str | Sequence[float | str] | None = None,
        details: bool = False,
        **constraints: Any,
    ) -> Any:
        judge = self._judge(model_outputs)
        several = isinstance(aspect_ratio, Sequence) and not isinstance(aspect_ratio, str)
        label = self.model.config.id2label[0]
        crops = []
        for ratio in aspect_ratio if several else [aspect_ratio]:
            wanted = CropConstraints.from_options(judge.picture_size, aspect_ratio=ratio, **constraints)
            selection = select_crops(
                judge,
                wanted,
                top_k=top_k,
                threshold=threshold,
                nms_iou=nms_iou,
                diversity=diversity,
                as_set=as_set,
                strict=strict,
            )
            ratio_of = {"aspect_ratio": ratio} if several else {}
            crops += [
                {"score": crop.pop("score"), "label": label, **crop, **ratio_of} for crop in selection.as_dicts()
            ]
        if not details:
            return crops
        return {"crops": crops, **judge_picture(judge, _best_box(crops))}

    def _judge(self, model_outputs: ModelOutput) -> CropJudge:
        """The one picture's prediction, with the scoring head where the model has it."""
        validity = model_outputs["logits"][..., 0].float().sigmoid()
        ranking = crop_ranking(validity, model_outputs.get("pred_scores"))[0]
        encoding = model_outputs["encodings"]
        encoding = encoding[0] if isinstance(encoding, list) else encoding
        size = tuple(model_outputs["target_size"][0].tolist())
        score = self._scorer(encoding) if encoding else None
        choices = model_outputs.get("choice_probabilities")
        return CropJudge.from_prediction(
            model_outputs["pred_boxes"][0], ranking, size, score, None if choices is None else choices[0]
        )

    def _scorer(self, encoding: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Human scores (M,) of boxes (M, 4) of one encoded picture."""
        encoded = SetCropEncoderOutput(**self._ensure_tensor_on_device(encoding, self.device))

        def score(boxes: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return self.model.score_crops(boxes[None].to(self.device, self.dtype), encoded)[0].float()

        return score


def _best_box(crops: list[dict[str, Any]]) -> torch.Tensor | None:
    if not crops:
        return None
    best = max(crops, key=lambda crop: crop["score"])
    return torch.tensor(list(best["box"].values()), dtype=torch.float64)


__all__ = ["ImageCroppingPipeline"]
