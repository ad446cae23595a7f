"""Run a model over a data set."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from torch import nn

from ..crop_geometry import nms, xyxy_to_cxcywh
from ..crop_judging import settled
from ..data.collation import batches_of_one_size, read_image
from ..data.schema import Problems
from ..image_processing_pil_setcrop import resized_size
from ..image_reading import ImageFileError
from .labels import Labels, Predictions


def predict(
    model: Any,
    processor: Any,
    dataset: Dataset,
    labels: Labels,
    batch_size: int = 8,
    device: str = "cpu",
    problems: Problems | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Predictions, list[int]]:
    """All crops that a model proposes for each image, and its scores of the labelled ones if it has a scoring head.

    Images are read as the pipeline reads them. Those of one shape go through the model together, on the CPU each by
    itself, so that no answer depends on the batch (see `ImageCroppingPipeline`).

    Args:
        model: a `SetCropForImageCropping`; processor: its image processor.
        dataset: rows with an `image`; labels: their labels, in the same order.
        problems: receives the images that cannot be decoded, which are left out; None raises.
        progress: called with the number of images done after every batch.

    Returns:
        The predictions, and the index in the data set of each image that they are for.
    """
    model = model.to(device).eval()
    images = dataset.select_columns("image").cast_column("image", ImageFeature(decode=False))
    found: dict[int, _Answer] = {}
    for batch in _batches(labels.sizes, processor, batch_size, model.device):
        pixels: dict[int, torch.Tensor] = {}
        for index in batch:
            try:
                pixels[index] = _pixels(images[index]["image"], processor)
            except ImageFileError as error:
                if problems is None:
                    raise
                problems.add("undecodable image", labels.image_ids[index], f"cannot be decoded ({error.reason})")
        for indices in _of_one_shape(pixels):
            stacked = torch.stack([pixels[index] for index in indices])
            candidates = [labels.boxes[index] for index in indices] if model.config.crop_scoring else None
            for index, answer in zip(indices, _predict_batch(model, processor, stacked, candidates), strict=True):
                found[index] = answer
        if progress is not None:
            progress(len(batch))
    done = sorted(found)
    answers = [found[index] for index in done]
    candidate_scores = [answer.candidate_scores for answer in answers if answer.candidate_scores is not None]
    predictions = Predictions(
        [answer.crops[0] for answer in answers],
        [answer.crops[1] for answer in answers],
        candidate_scores or None,
        _collected([answer.by_validity for answer in answers]),
        _collected([answer.as_set for answer in answers]),
    )
    return predictions, done


def suppress(predictions: Predictions, nms_iou: float) -> Predictions:
    """Return the same predictions without crops that overlap a better one of their image by more than `nms_iou`."""
    kept = [nms(boxes, scores, nms_iou) for boxes, scores in zip(predictions.boxes, predictions.scores, strict=True)]
    return Predictions(
        [boxes[index] for boxes, index in zip(predictions.boxes, kept, strict=True)],
        [scores[index] for scores, index in zip(predictions.scores, kept, strict=True)],
    )


def _collected(rankings: list[tuple[np.ndarray, np.ndarray] | None]) -> Predictions | None:
    """Rankings of all images as predictions, if the model gives them."""
    given = [ranking for ranking in rankings if ranking is not None]
    return Predictions([boxes for boxes, _ in given], [scores for _, scores in given]) if given else None


class _Answer(NamedTuple):
    """A model's answer for one image: (N, 4) crops and (N,) what they rank by, and what `Predictions` has beside."""

    crops: tuple[np.ndarray, np.ndarray]
    candidate_scores: np.ndarray | None
    by_validity: tuple[np.ndarray, np.ndarray] | None
    as_set: tuple[np.ndarray, np.ndarray] | None


def _batches(sizes: np.ndarray, processor: Any, batch_size: int, device: torch.device) -> list[list[int]]:
    """Return the indices of images of one shape together, from their (width, height) (I, 2) in pixels."""
    edges = processor.size
    if not edges.shortest_edge:
        seen = [(edges.height, edges.width)] * len(sizes)
    else:
        longest = edges.longest_edge or 10**9
        seen = [resized_size((int(h), int(w)), edges.shortest_edge, longest, processor.size_divisor) for w, h in sizes]
    return batches_of_one_size(seen, 1 if device.type == "cpu" else batch_size)


def _pixels(image: dict[str, Any], processor: Any) -> torch.Tensor:
    """(3, H, W) pixels of an undecoded image as the model sees them."""
    copy = read_image(image, int(processor.size.shortest_edge or 600)).image
    return processor(copy, do_pad=False, return_tensors="pt")["pixel_values"][0]


def _of_one_shape(pixels: dict[int, torch.Tensor]) -> list[list[int]]:
    """Keys of tensors of the same shape; decoding at a reduced scale can change a side by a pixel."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, tensor in pixels.items():
        groups.setdefault(tuple(tensor.shape), []).append(index)
    return list(groups.values())


@torch.inference_mode()
def _predict_batch(
    model: Any, processor: Any, pixels: torch.Tensor, candidates: list[np.ndarray] | None
) -> list[_Answer]:
    padded = None
    if candidates is not None:
        corners = [torch.as_tensor(boxes, dtype=torch.float32) for boxes in candidates]
        boxes = [xyxy_to_cxcywh(b) for b in corners]
        padded = nn.utils.rnn.pad_sequence(boxes, batch_first=True, padding_value=0.5).to(model.device)
    outputs = model(pixel_values=pixels.to(model.device, model.dtype), candidate_boxes=padded)
    crops = _ranked(outputs, processor)
    by_validity: list[Any] = [None] * len(crops)
    if model.config.rerank:
        by_validity = _ranked(SimpleNamespace(logits=outputs.logits, pred_boxes=outputs.pred_boxes), processor)
    as_set: list[Any] = [None] * len(crops)
    if model.config.crop_scoring:
        chosen = processor.post_process_image_cropping(outputs, threshold=-1.0, as_set=True)
        boxes = [crop["boxes"].cpu().double().numpy() for crop in chosen]
        as_set = [(box, np.linspace(1, 0, len(box), endpoint=False)) for box in boxes]
    scores = [None] * len(crops)
    if candidates is not None:
        # Some labels name one crop twice; without the last bits both have one rating on every runtime.
        predicted = settled(outputs.crop_ratings.cpu().double().numpy())
        scores = [row[: len(boxes)] for row, boxes in zip(predicted, candidates, strict=True)]
    return [_Answer(*parts) for parts in zip(crops, scores, by_validity, as_set, strict=True)]


def _ranked(outputs: Any, processor: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    # Below any probability: nothing is left out.
    crops = processor.post_process_image_cropping(outputs, threshold=-1.0)
    return [(crop["boxes"].cpu().double().numpy(), crop["scores"].cpu().double().numpy()) for crop in crops]
