"""A model's answer on images, on torch, in the form that the selection of crops takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from .crop_judging import Prediction


class EncodedImage:
    """One image through the network: its set of crops, and its encoding, by which any box can be rated.

    Args:
        model: A `SetCropForImageCropping`.
        output: What the model returned for the image alone.
        source: Whose crops and ratings they are; None for the model's default.
    """

    def __init__(self, model: Any, output: Any, source: int | None = None) -> None:
        self.model = model
        self._source_input = {} if source is None else {"source": source}
        self.encoded = output.encoder_outputs
        self.pred_boxes = _array(output.pred_boxes[0])
        self.validity = 1 / (1 + np.exp(-_array(output.logits[0, :, 0])))
        ratings = output.get("pred_ratings")
        self.ratings = None if ratings is None else _array(ratings[0])
        importance = self.encoded.get("importance")
        self.importance = None if importance is None else _array(importance[0])

    def prediction(self, image_size: tuple[int, int]) -> Prediction:
        """Return what the model says of the image of this height and width in pixels, in which boxes are."""

        @torch.inference_mode()
        def rate(boxes: np.ndarray) -> np.ndarray:
            asked = torch.from_numpy(boxes)[None].to(self.model.device, self.model.dtype)
            return _array(self.model.score_crops(asked, self.encoded, **self._source_input)[0])

        config = self.model.config
        scored = rate if config.crop_scoring else None
        return Prediction.from_output(
            self.pred_boxes, self.validity, image_size, scored, self.ratings, self.importance, config
        )


@contextmanager
def one_thread_each() -> Iterator[Callable[[], None]]:
    """While many threads each work on images of their own: gives what each of them calls first.

    So they fill all processors. If every operation were spread over the processors too, its parts would wait for one
    another behind the other threads' work. The number of threads is as before afterwards.
    """
    threads = torch.get_num_threads()
    try:
        yield partial(torch.set_num_threads, 1)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def encode_images(model: Any, images: Sequence[np.ndarray], source: int | None = None) -> list[EncodedImage]:
    """Run the model over images of any shapes.

    On an accelerator those of one shape go together. On the CPU, where batches gain little speed, each goes by itself:
    a batch is rounded otherwise than its members, and a crop's place may hang on the last bit, so that only this way
    the answer is the same, to the bit, whatever the batch.

    Args:
        model: A `SetCropForImageCropping` in evaluation mode.
        images: Pixels (3, H, W) of each.
        source: Whose crops and ratings, an index of the config's `rating_sources`; None for the model's default.
    """
    shapes = [image.shape for image in images]
    groups = [[i for i, other in enumerate(shapes) if other == shape] for shape in dict.fromkeys(shapes)]
    if model.device.type == "cpu":
        groups = [[i] for i in range(len(images))]
    results: list[Any] = [None] * len(images)
    for members in groups:
        pixels = torch.from_numpy(np.stack([images[i] for i in members])).to(model.device, model.dtype)
        output = model(pixel_values=pixels, **({} if source is None else {"source": source}))
        for row, i in enumerate(members):
            results[i] = EncodedImage(model, _row(output, row), source)
    return results


def _row(output: Any, row: int) -> Any:
    """One image of a batch of outputs, still with a batch dimension."""
    kept = {
        name: _row(value, row) if hasattr(value, "items") else value[row : row + 1]
        for name, value in output.items()
        if (isinstance(value, torch.Tensor) and value.ndim > 0) or hasattr(value, "items")
    }
    return type(output)(**kept)


def _array(values: torch.Tensor) -> np.ndarray:
    """Return a tensor of any device and precision as float64; to the CPU first, as not every device has float64."""
    return values.detach().cpu().to(torch.float64).numpy()
