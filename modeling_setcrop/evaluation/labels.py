"""What people said about a data set's images, and what a method answers, both normalised to [0, 1]."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """The labels of I images; boxes are corners normalised to [0, 1], where IoU is the same as in pixels.

    image_ids: (I,) names; sizes: (I, 2) width and height in pixels; boxes: (S, 4) per image; scores: (S,) ratings
    an image, or None where the data set has none; good: (S,) flags per image.
    """

    image_ids: list[str]
    sizes: np.ndarray
    boxes: list[np.ndarray]
    scores: list[np.ndarray] | None
    good: list[np.ndarray]

    def ratings(self) -> list[np.ndarray]:
        """Return the scores of a data set that has them.

        Raises:
            ValueError: It has none.
        """
        if self.scores is None:
            raise ValueError("the data set has no ratings")
        return self.scores

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> Labels:
        """Return the labels of a data set with the columns of `modeling_setcrop.data.FEATURES`; no image is opened."""
        columns = ["image_id", "width", "height", "boxes", "scores", "good"]
        table = dataset.select_columns(columns).with_format("arrow")[:]
        sizes = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1).astype(np.float64)
        unrated = table["scores"].null_count
        if 0 < unrated < len(table):
            logger.warning("%d of %d images have no ratings: what needs ratings is not measured", unrated, len(table))
        boxes = [corners.reshape(-1, 4) for corners in _lists(table["boxes"])]
        return cls(
            image_ids=table["image_id"].to_pylist(),
            sizes=sizes,
            boxes=[box / np.tile(size, 2) for box, size in zip(boxes, sizes, strict=True)],
            scores=None if unrated else _lists(table["scores"]),
            good=[flags.astype(bool) for flags in _lists(table["good"])],
        )

    def select(self, indices: Sequence[int]) -> Labels:
        """Return the labels of some of the images."""

        def pick(values: list) -> list:
            return [values[index] for index in indices]

        return Labels(
            pick(self.image_ids),
            self.sizes[list(indices)],
            pick(self.boxes),
            None if self.scores is None else pick(self.scores),
            pick(self.good),
        )


@dataclass(frozen=True)
class Predictions:
    """A method's answer for I images: (N, 4) boxes normalised to [0, 1] and (N,) scores of them.

    candidate_scores: (S,) the method's own score of every labelled crop, when it can score given crops; by_validity:
    the same crops ranked by validity, of a model that ranks them by predicted rating; as_set: the same crops in the
    order in which they are chosen as a set, of a model that can (their scores say the order and nothing else).
    """

    boxes: list[np.ndarray]
    scores: list[np.ndarray]
    candidate_scores: list[np.ndarray] | None = None
    by_validity: Predictions | None = None
    as_set: Predictions | None = None


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Return the lists of an Arrow column as arrays (nested fixed-size lists flattened)."""
    lengths = pc.list_value_length(column).to_numpy()
    flat = pc.list_flatten(column)
    width = 1
    if pa.types.is_fixed_size_list(flat.type):
        width = flat.type.list_size
        flat = pc.list_flatten(flat)
    values = flat.to_numpy()
    return np.split(values, np.cumsum(lengths)[:-1] * width)
