"""From dataset rows to padded batches: sampling by aspect ratio, decoding, augmentation and encoding."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from ..crop_geometry import cxcywh_to_xyxy, xyxy_to_cxcywh
from ..image_processing_pil_setcrop import encode_crops, resized_size
from ..image_reading import READ_FACTOR, ImageFileError, LoadedImage, decode_image, decoding, open_image
from .any_box_rating import CropLabels
from .augmentation import jitter, mirror, photometric_distortion
from .crop_views import CropView, ViewChoice, ViewChoices, draw_view

logger = logging.getLogger(__name__)

BUCKETS_PER_OCTAVE = 4
_JITTER_STREAM = 1


class Draw(NamedTuple):
    """One image of a batch, as drawn by the sampler.

    Attributes:
        index: row of the dataset.
        size: (height, width) in pixels to which the image is resized.
        padded_size: (height, width) of the whole batch, over all processes.
        seed: seeds the image's augmentation; the same draw always gives the same pixels.
        view: the part of the image that is shown, and whose labels it gets; the whole image where it is None.
    """

    index: int  # type: ignore[assignment]  # the tuple's method is not used
    size: tuple[int, int]
    padded_size: tuple[int, int]
    seed: int
    view: ViewChoice | None = None


class AspectRatioBatchSampler:
    """Batches of images of about the same aspect ratio, so that little of a batch is padding.

    Images are put into buckets a quarter of an octave of width / height wide. Each global batch (over all
    processes) has one short side, drawn from `short_sides` when shuffling; every process takes its own part of it and
    pads to the size of the whole, so that the result does not depend on the number of processes. A shuffled epoch
    shows every image once; images drawn first fill up the last batch. An unshuffled epoch keeps every image
    exactly once over all processes, fills nothing up and pads nothing: a batch is of one size.

    Args:
        heights, widths: (N,) sizes of the dataset's images in pixels.
        batch_size: images in a batch of one process.
        short_sides: short sides in pixels to draw from; an unshuffled sampler uses the first.
        long_side: the largest long side in pixels.
        shuffle: a new order and new augmentation seeds every epoch (training); otherwise grouped by size.
        seed: of the order, the short sides and the augmentation.
        processes, rank: number of processes and which of them this is.
        size_divisor: what the sides are rounded to multiples of, see [`resized_size`].
        views: of the images, chosen anew for every epoch; None shows whole images.
    """

    def __init__(
        self,
        heights: Sequence[int],
        widths: Sequence[int],
        batch_size: int,
        short_sides: Sequence[int],
        long_side: int,
        shuffle: bool = True,
        seed: int = 0,
        processes: int = 1,
        rank: int = 0,
        size_divisor: int | None = None,
        views: ViewChoices | None = None,
    ) -> None:
        self.views = views
        self.size_divisor = size_divisor
        self.heights = np.asarray(heights)
        self.widths = np.asarray(widths)
        self.batch_size = batch_size
        self.short_sides = list(short_sides)
        self.long_side = long_side
        self.shuffle = shuffle
        self.seed = seed
        self.processes = processes
        self.rank = rank
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (counted from 0) and the first batch of it to give, to resume within an epoch."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        whole = self.batch_size * self.processes
        count = -(-len(self.heights) // whole) if self.shuffle else len(self._batches_of_one_size())
        return count - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        views, sides = self._epoch_views()
        batches: Iterable[Any] = self._shuffled_batches(*sides, rng) if self.shuffle else self._batches_of_one_size()
        for number, indices in enumerate(batches):
            batch_rng = np.random.default_rng((self.seed, self.epoch, number))
            short_side = int(batch_rng.choice(self.short_sides)) if self.shuffle else self.short_sides[0]
            seeds = batch_rng.integers(2**31, size=len(indices))
            if number >= self.start:
                sizes = [self._resized(sides[0][i], sides[1][i], short_side) for i in indices]
                padded = (max(height for height, _ in sizes), max(width for _, width in sizes))
                draws = [
                    Draw(int(i), size, padded, int(seed), None if views is None else views[i])
                    for i, size, seed in zip(indices, sizes, seeds, strict=True)
                ]
                if part := draws[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]:
                    yield part

    def _epoch_views(self) -> tuple[list[ViewChoice] | None, tuple[np.ndarray, np.ndarray]]:
        """Return the epoch's views, if there are any, and the heights and widths (N,) of what the epoch shows."""
        if self.views is None or not self.shuffle:
            return None, (self.heights, self.widths)
        views = [self.views.choose(self.epoch, index) for index in range(len(self.views))]
        return views, (np.array([view.height for view in views]), np.array([view.width for view in views]))

    def _shuffled_batches(self, heights: np.ndarray, widths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        whole = self.batch_size * self.processes
        order = rng.permutation(len(heights))
        buckets = np.rint(np.log2(widths / heights) * BUCKETS_PER_OCTAVE).astype(int)
        batches, rest = [], []
        for bucket in np.unique(buckets):
            members = order[buckets[order] == bucket]
            full = len(members) // whole * whole
            batches.extend(members[:full].reshape(-1, whole))
            rest.append(members[full:])
        # What is left of the buckets, in order of aspect ratio, makes the mixed batches.
        left = np.concatenate(rest)
        if len(left) % whole:
            left = np.concatenate([left, np.resize(order, whole - len(left) % whole)])
        batches.extend(left.reshape(-1, whole))
        return [batches[i] for i in rng.permutation(len(batches))]

    def _resized(self, height: float, width: float, short_side: int) -> tuple[int, int]:
        return resized_size((height, width), short_side, self.long_side, self.size_divisor)

    def _batches_of_one_size(self) -> list[list[int]]:
        sides = zip(self.heights, self.widths, strict=True)
        sizes = [self._resized(height, width, self.short_sides[0]) for height, width in sides]
        return batches_of_one_size(sizes, self.batch_size * self.processes)


def batches_of_one_size(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Return the indices of images in batches that need no padding, which would change what a model answers.

    Args:
        sizes: (height, width) of each image as the model sees it.
        batch_size: at most so many indices in a batch.

    Returns:
        Every index once, in order of aspect ratio and then of size; all of a batch have the same size.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault((size[0], size[1]), []).append(index)
    order = sorted(groups, key=lambda size: (size[1] / size[0], size))
    return [groups[size][i : i + batch_size] for size in order for i in range(0, len(groups[size]), batch_size)]


def read_image(value: dict[str, Any], short_side: int) -> LoadedImage:
    """Read an undecoded `datasets.Image` value as the pipeline reads a file.

    Args:
        value: `path` and `bytes`, of which bytes come first.
        short_side: of the copy that the model will see, in pixels.

    Raises:
        ImageFileError: it cannot be read; the message names the file.
    """
    name = value["path"] or "an image without a name"
    source = name if value["bytes"] is None else io.BytesIO(value["bytes"])
    with open_image(source, name) as image, decoding(name):
        return decode_image(image, READ_FACTOR * short_side, draft=True)


class CropDataset(torch.utils.data.Dataset):
    """Decoded, resized and (in training) augmented images with their annotations in pixels of the resized image.

    Items are asked for by `Draw`, which says the size and the seed. An item has the keys `image` (PIL), `annotation`
    (`boxes` (S, 4) corners in pixels, `scores` (S,) or None, `good` (S,)) and `index`. Of an image with `crop_labels`
    a view is drawn, which with `augment` depends on the draw's seed alone, and without on nothing but the image's row;
    its item has `drawn` (a [`CropView`]) instead of `annotation`. Of an image that cannot be decoded, a warning tells
    once; with `augment` the whole of the next one that can be is shown instead, without, the item is None.

    Args:
        dataset: rows of the shared schema (`modeling_setcrop.data.schema`).
        augment: mirror half of the images and distort their colours.
        resample: Pillow's number of the filter by which images are resized, the image processor's.
    """

    def __init__(self, dataset: Dataset, augment: bool, resample: int = Image.Resampling.BILINEAR) -> None:
        self.rows = dataset.cast_column("image", ImageFeature(decode=False))
        self.augment = augment
        self.resample = Image.Resampling(resample)
        self.undecodable: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any] | None:
        item = self._item(draw)
        if item is None and self.augment:
            # A batch of training has to have an image: several processes wait for each other's gradients.
            others = (self._item(self._instead(draw, step)) for step in range(1, len(self.rows)))
            item = next((other for other in others if other is not None), None)
        return item

    def _instead(self, draw: Draw, step: int) -> Draw:
        """Return a draw of all of the image `step` rows further, as large as the first one's batch lets it be."""
        index = (draw.index + step) % len(self.rows)
        row = self.rows[index]
        scale = min(draw.padded_size[0] / row["height"], draw.padded_size[1] / row["width"])
        size = tuple(max(1, round(row[side] * scale)) for side in ("height", "width"))
        return draw._replace(index=index, size=size, view=None)

    def _item(self, draw: Draw) -> dict[str, Any] | None:
        if draw.index in self.undecodable:
            return None
        row = self.rows[draw.index]
        window = np.array([0.0, 0.0, 1.0, 1.0] if draw.view is None else draw.view.window)
        across, down = window[2:] - window[:2]
        try:
            image = read_image(row["image"], math.ceil(min(draw.size[0] / down, draw.size[1] / across))).image
        except ImageFileError as error:
            self.undecodable.add(draw.index)
            logger.warning("left out image %r, which cannot be decoded: %s", row["image_id"], error)
            return None
        if row.get("crop_labels") is not None:
            return {**self._view(image, CropLabels.from_dict(row["crop_labels"]), window, draw), **draw._asdict()}
        image = image.resize((draw.size[1], draw.size[0]), self.resample)
        scale = np.array([draw.size[1] / row["width"], draw.size[0] / row["height"]] * 2, dtype=np.float32)
        boxes = np.asarray(row["boxes"], dtype=np.float32).reshape(-1, 4) * scale
        if self.augment:
            rng = np.random.default_rng(draw.seed)
            if rng.random() < 0.5:
                image, boxes = mirror(image, boxes)
            image = photometric_distortion(image, rng)
        scores = None if row["scores"] is None else np.asarray(row["scores"], dtype=np.float32)
        annotation = {"boxes": boxes, "scores": scores, "good": np.asarray(row["good"], dtype=bool)}
        return {"image": image, "annotation": annotation, **draw._asdict()}

    def _view(self, image: Image.Image, labels: CropLabels, window: np.ndarray, draw: Draw) -> dict[str, Any]:
        source = ("editors" if len(labels.crops) else "people") if draw.view is None else draw.view.source
        rng = np.random.default_rng(draw.seed if self.augment else draw.index)
        height, width = draw.size
        drawn = draw_view(image, labels, window, (width, height), source, rng, self.augment, self.resample)
        return {"image": drawn.image, "drawn": drawn}


class CropCollator:
    """Encode items of `CropDataset` into one batch with the model's image processor.

    Args:
        processor: a SetCrop image processor.
        sources: the model's `rating_sources`, if it has any.
        augment: add `jittered_boxes` (S, 4) to every label: the rated crops moved a little ([`augmentation.jitter`]),
            by a generator that the image's draw seeds, so that they do not depend on the batch or the process.

    Returns (when called):
        `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W) padded to the draw's padded size, `labels` (a list of B
        dicts), `indices` (B,), the rows of the dataset, and, of views and a model that knows editors and people,
        `source` (B,), whose labels they are. Items that are None are left out; of nothing else, the batch is None.
    """

    def __init__(self, processor: Any, augment: bool = False, sources: Sequence[str] | None = None) -> None:
        self.processor = processor
        self.augment = augment
        self.sources = list(sources or [])

    def __call__(self, items: list[dict[str, Any] | None]) -> dict[str, Any] | None:
        found = [item for item in items if item is not None]
        if not found:
            return None
        height, width = (max(sides) for sides in zip(*(item["padded_size"] for item in found), strict=True))
        batch = self.processor(
            images=[item["image"] for item in found],
            do_resize=False,
            pad_size={"height": height, "width": width},
            return_tensors="pt",
        )
        batch = {**batch, "labels": [self._label(item) for item in found]}
        batch["indices"] = torch.tensor([item["index"] for item in found])
        sources = [item["drawn"].labels.source for item in found if "drawn" in item]
        if len(sources) == len(found) and set(sources) <= set(self.sources):
            batch["source"] = torch.tensor([self.sources.index(source) for source in sources])
        return batch

    def _label(self, item: dict[str, Any]) -> dict[str, Any]:
        if "drawn" in item:
            return view_label(item["drawn"])
        label = encode_crops(item["annotation"], (item["image"].height, item["image"].width))
        if self.augment:
            # Another stream than the one that distorts the image.
            rng = np.random.default_rng((item["seed"], _JITTER_STREAM))
            moved = jitter(cxcywh_to_xyxy(label["scored_boxes"]).numpy(), rng)
            label["jittered_boxes"] = xyxy_to_cxcywh(torch.from_numpy(moved))
        return label


def view_label(view: CropView) -> dict[str, Any]:
    """Return the model's labels of a view.

    Returns:
        `boxes` (G, 4), `class_labels` (G,), `scored_boxes` (96, 4) and `scores` (96,) as of other images; `windows`
        (F, W, 4), `window_fit` (F, W) and `window_weight` (F,), see [`CropView`]; and two functions, `rate_boxes` and
        `importance_map`, see [`ViewLabels`]. Boxes are cxcywh in [0, 1].
    """
    good = view.labels.good_crops()
    boxes = {"boxes": good, "scored_boxes": view.boxes, "windows": view.windows}
    values = {"scores": view.ratings, "window_fit": view.window_fit, "window_weight": view.family_weight}
    return {
        **{name: xyxy_to_cxcywh(torch.from_numpy(value).float()) for name, value in boxes.items()},
        **{name: torch.from_numpy(value).float() for name, value in values.items()},
        "class_labels": torch.zeros(len(good), dtype=torch.long),
        "rate_boxes": view.labels.rate_boxes,
        "importance_map": view.labels.importance_map,
    }
