"""The `"image-cropping"` pipeline: an image in, ranked crops out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
from transformers import Pipeline
from transformers.modeling_outputs import ModelOutput

from .crop_options import CropOptions
from .crop_prediction import EncodedImage, encode_images, one_thread_each
from .cropping import CroppingBase
from .hub_code import AUTO_CLASSES, IMAGE_PROCESSORS
from .image_preprocessing import ImagePreprocessing
from .image_sources import is_several, read_any_image
from .image_trimming import trimmed

# What a call takes beside the options of cropping.
_CALL = ("batch_size", "num_workers", "timeout")


class ImageCroppingPipeline(CroppingBase, Pipeline):
    """Suggests crops of images.

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

    def _sanitize_parameters(
        self, options: CropOptions | None = None, timeout: float | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        options = CropOptions.from_kwargs(**kwargs) if options is None else options
        preprocess = {"options": options} | ({} if timeout is None else {"timeout": timeout})
        return preprocess, {"options": options}, {"options": options}

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Suggest crops.

        Args:
            inputs (or `images`): an image: a path, an http(s) or data URL, base64 text, bytes, a file object, a PIL
                image, a NumPy array, a row `{"bytes": ...}` of `datasets` or a [`LoadedImage`] already read (see
                [`read_any_image`]); or a list of these, a column of a dataset (`dataset["image"]`, `KeyDataset`) or a
                generator.
            top_k (`int`, defaults to 5): at most so many crops, of each aspect ratio; None for all.
            threshold (`float`, defaults to 0): only crops with a score above it; the list may then be empty.
            nms_iou (`float`, defaults to 0.8): of crops that overlap by an IoU of more than this the better one is
                returned; None for no suppression.
            diversity (`float`): 0..1, instead of `nms_iou`: maximal marginal relevance between score and overlap.
            as_set (`bool`): instead of both, after the best crop each next one makes it most probable that the crop
                that a person would choose is among them.
            aspect_ratio: width over height as a number, a pair (16, 9), "16:9", "square" or "original", or a list of
                these. Crops have the ratio to one pixel and are chosen from all places and sizes.
            width, height (`int`): pixels at which the crop will be shown; both together are also the aspect ratio.
            min_area, max_area (`float`): bounds on the crop's share of the image.
            min_size (`int` or pair): least width and height in pixels.
            keep: boxes (xmin, ymin, xmax, ymax), also as dicts, or points (x, y), in pixels, that must not be cut.
                With a number 0..1 more (a `weight` in a dict) it is a wish that lifts crops that hold it.
            avoid: boxes that must stay outside, or with a weight had better.
            strict (`bool`): raise a [`ConstraintError`] where no crop satisfies everything. Otherwise the crops that
                break least are returned, each with the constraints that `gave_way`.
            details (`bool`): return a dict with `crops`, `keep_original` (the probability that the whole image is a
                good crop), `improves` (that of the best crop minus it) and `focus_point` ({"x", "y"} in 0..1).
            follow_orientation (`bool`): aspect ratios, and `width` and `height`, are turned with the image: 5:4 is 4:5
                for portraits.
            best_of (`bool`): of a list of aspect ratios the best crops over all of them, not the best of each.
            trim (`bool`): bars, mats and passepartouts around the image are no part of any crop.
            tightness (`str`): "loose", "default" or "tight", of models that learned several sources.
            timeout (`float`): seconds to wait for a URL.
            batch_size (`int`): images handled together. On the CPU the result does not depend on it, to the last bit;
                on an accelerator scores may differ by rounding (1e-4).

        Returns:
            A list per image, best crop first, of `{"score": probability, "label": "crop", "box": {"xmin", "ymin",
            "xmax", "ymax"}}` in pixels of the image as displayed (EXIF orientation applied). With a list of aspect
            ratios the crops of the first come first, and each says its `aspect_ratio`.

        Raises:
            TypeError, ValueError: an option is unknown or out of its range, found before any image is read.
        """
        images = kwargs.pop("images", None)
        call = {name: kwargs.pop(name) for name in _CALL if name in kwargs}
        options = self.options.updated(**kwargs)
        self.source(options)
        if (inputs is None) == (images is None):
            raise ValueError("no images were given" if inputs is None else "images were given twice, also as images=")
        inputs = images if inputs is None else inputs
        if isinstance(inputs, list) and not inputs:
            return []
        if is_several(inputs) and not isinstance(inputs, list):
            # Of tuples, columns of `datasets` and iterators transformers knows nothing, of generators it does.
            answers = super().__call__((image for image in inputs), options=options, **call)
            return list(answers) if isinstance(inputs, Sequence) else answers
        return super().__call__(inputs, options=options, **call)

    @property
    def options(self) -> CropOptions:
        return self._postprocess_params["options"]

    @property
    def config(self) -> Any:
        return self.model.config

    @cached_property
    def preprocessing(self) -> ImagePreprocessing:
        return ImagePreprocessing.from_dict(self.image_processor.to_dict())

    @property
    def default_batch_size(self) -> int:
        return 1 if self.device.type == "cpu" else 8

    def encode(self, images: Sequence[np.ndarray], source: int | None = None) -> list[EncodedImage]:
        return encode_images(self.model, images, source)

    def workers(self) -> AbstractContextManager[Callable[[], None]]:
        return one_thread_each()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save model, image processor and code: the folder loads wherever transformers is, with
        `trust_remote_code=True`, and where SetCrop is installed without it."""
        self.model.config.auto_map = dict(AUTO_CLASSES)
        self.image_processor.auto_map = {"AutoImageProcessor": dict(IMAGE_PROCESSORS)}
        super().save_pretrained(save_directory, **kwargs)

    def preprocess(
        self, image: Any, timeout: float | None = None, options: CropOptions | None = None
    ) -> dict[str, Any]:
        loaded = read_any_image(image, self.short_side, timeout)
        if options is not None and options.trim:
            loaded = trimmed(loaded)
        # Lists, so that batching keeps images of different shapes apart instead of padding them.
        return {"images": [self.prepare(loaded)], "sizes": [(loaded.size, loaded.inside)]}

    def _forward(self, model_inputs: dict[str, Any], options: CropOptions) -> ModelOutput:
        images = [i for item in model_inputs["images"] for i in (item if isinstance(item, list) else [item])]
        sizes = [s for item in model_inputs["sizes"] for s in (item if isinstance(item, list) else [item])]
        return ModelOutput(encoded=list(zip(self.encode(images, self.source(options)), sizes, strict=True)))

    def postprocess(self, model_outputs: ModelOutput, options: CropOptions) -> Any:
        found = model_outputs["encoded"]
        encoded, (size, inside) = found[0] if isinstance(found, list) else found
        return self.answer(encoded, size, options, inside)


__all__ = ["ImageCroppingPipeline"]
