"""Many images through one model: read and judged in threads, in batches of one shape.

A bounded window of them is in flight, however many there are, and large ones wait for each other (`MemoryBudget`).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..crop_options import CropOptions
from ..image_reading import (
    MAX_BYTES,
    ImageFileError,
    LoadedImage,
    decode_image,
    decoding,
    decoding_bytes,
    one_line,
    open_image,
    open_regular_file,
)
from ..image_trimming import trimmed
from ..images.formats import own_suffix
from .content import Content
from .identity import FileState
from .sources import Source

if TYPE_CHECKING:
    from ..cropping import CroppingBase


@dataclass(frozen=True)
class Suggestion:
    """What the model says of one image, or why it could not be read.

    Attributes:
        source: The image.
        loaded: Its reduced copy and its size; None with an error.
        result: The pipeline's answer with `details=True`; empty with an error.
        error: Why there is no answer.
        suffix: That of a crop in the file's own format (`own_suffix`).
        state: The file as it was read.
        note: What a person should know of the file, or None.
    """

    source: Source
    loaded: LoadedImage | None
    result: dict[str, Any]
    error: ImageFileError | None = None
    suffix: str = ""
    state: FileState | None = None
    note: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels; of a suggestion without an error."""
        assert self.loaded is not None
        return self.loaded.size


class MemoryBudget:
    """Lets threads hold decoded images of so many bytes in all; a larger one waits until it is alone."""

    def __init__(self, size: int = MAX_BYTES) -> None:
        self.size = self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, needed: int) -> Iterator[None]:
        needed = min(needed, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


def suggest_crops(
    cropper: CroppingBase,
    sources: Iterable[Source],
    options: CropOptions | Mapping[str, Any],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    budget: MemoryBudget | None = None,
    content: Content | None = None,
) -> Iterator[Suggestion]:
    """Suggest crops in threads that read and judge; images come back when they are done, not in order.

    Args:
        cropper: A `Cropper`, or the "image-cropping" pipeline.
        sources: Images, taken only as fast as they are needed.
        options: What to ask; `details` is asked always.
        batch_size: Images of one shape in one forward pass; by default 8 on an accelerator and 1 on the CPU,
            where more gain little speed and cost memory.
        workers: Threads; by default as many as there are processors.
        budget: Bounds the memory of images that are decoded at once.
        content: What single images' crops must or had better keep and avoid.
    """
    workers = workers or os.cpu_count() or 1
    batch_size = batch_size or cropper.default_batch_size
    if isinstance(options, Mapping):
        options = CropOptions.from_kwargs(**options)
    options = replace(options, details=True)
    budget = budget or MemoryBudget()
    in_use = cropper.workers()
    pool = ThreadPoolExecutor(workers, "suggest", in_use.__enter__())
    # Enough for every thread to have a batch while the next ones are being read.
    window = _Window(2 * (workers + 1) * batch_size, batch_size)
    numbered = enumerate(sources)

    def refill() -> None:
        for number, source in itertools.islice(numbered, window.room):
            window.add(number, source, pool.submit(_read, cropper, source, budget, options, content))

    try:
        refill()
        while window:
            yield from window.take_read()
            if members := window.take_batch():
                window.add_judging(pool.submit(_suggest_each, cropper, members), len(members))
            yield from window.take_judged()
            refill()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        in_use.__exit__(None, None, None)


class _Window:
    """The images in flight: being read, waiting for others of their shape, or being judged.

    Args:
        size: At most so many.
        batch_size: So many of one shape are judged together.
    """

    def __init__(self, size: int, batch_size: int) -> None:
        self.size, self.batch_size = size, batch_size
        self._reading: deque[tuple[int, Source, Future[_Decoded]]] = deque()
        # By their shape; the number says how long they wait.
        self._waiting: dict[tuple[int, ...], list[tuple[int, Source, _Decoded]]] = {}
        self._judging: dict[Future[list[Suggestion]], int] = {}

    def __bool__(self) -> bool:
        return bool(self._reading or self._waiting or self._judging)

    @property
    def room(self) -> int:
        """For how many more images there is room."""
        return max(0, self.size - len(self._reading) - self._waiting_count() - sum(self._judging.values()))

    def _waiting_count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, number: int, source: Source, reading: Future[_Decoded]) -> None:
        """Add the image that is `number` in order and is being read."""
        self._reading.append((number, source, reading))

    def take_read(self) -> Iterator[Suggestion]:
        """Have the image that was added first wait for others; yield why it cannot be read, where it cannot."""
        if not self._reading:
            return
        number, source, reading = self._reading.popleft()
        try:
            decoded = reading.result()
        except ImageFileError as error:
            yield Suggestion(source, None, {}, error)
        except Exception as error:
            # One odd image must not end the run.
            yield Suggestion(source, None, {}, unexpected(source, error))
        else:
            self._waiting.setdefault(decoded.pixels.shape, []).append((number, source, decoded))

    def take_batch(self) -> list[tuple[Source, _Decoded]]:
        """Return the images of one shape that wait no longer; none where all do."""
        groups = self._waiting
        ready = next((shape for shape, members in groups.items() if len(members) >= self.batch_size), None)
        # Two batches' worth may wait for company; the rest of the window keeps the threads busy.
        if ready is None and groups and (not self._reading or self._waiting_count() > 2 * self.batch_size):
            ready = min(groups, key=lambda shape: groups[shape][0][0])
        return [] if ready is None else [(source, decoded) for _, source, decoded in groups.pop(ready)]

    def add_judging(self, judging: Future[list[Suggestion]], count: int) -> None:
        """Add a batch of so many images that is being judged."""
        self._judging[judging] = count

    def take_judged(self) -> Iterator[Suggestion]:
        """Yield what is said of the batches that are done; wait for one where nothing is being read."""
        if self._judging and not self._reading:
            wait(self._judging, return_when=FIRST_COMPLETED)
        for batch in [batch for batch in self._judging if batch.done()]:
            del self._judging[batch]
            yield from batch.result()


def in_order(suggestions: Iterable[Suggestion], sources: Iterable[Source]) -> Iterator[Suggestion]:
    """Suggestions in the order of their images, each as soon as those before it are there."""
    arrived: dict[Source, Suggestion] = {}
    expected = iter(sources)
    source = next(expected, None)
    for suggestion in suggestions:
        arrived[suggestion.source] = suggestion
        while source in arrived:
            yield arrived.pop(source)
            source = next(expected, None)


class _Decoded(NamedTuple):
    loaded: LoadedImage
    pixels: np.ndarray
    options: CropOptions
    facts: dict[str, Any]


def unexpected(source: Source, error: Exception) -> ImageFileError:
    """Return what is reported of an image with which something went wrong that nobody thought of."""
    return ImageFileError(source.path, f"{type(error).__name__}: {one_line(error)}")


def _read(
    cropper: CroppingBase, source: Source, budget: MemoryBudget, options: CropOptions, content: Content | None
) -> _Decoded:
    with open_regular_file(source.path) as file:
        state = FileState.of(file, with_content=False)
        with open_image(file, str(source.path)) as image, decoding(source.path):
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            note = f"page 1 of {pages}" if pages > 1 else None
            facts = {"suffix": own_suffix(source.path, image), "state": state, "note": note}
            with budget(decoding_bytes(image)):
                loaded = decode_image(image, cropper.short_side, draft=True)
    if options.trim:
        loaded = trimmed(loaded)
    if content:
        options = content.options(options, source, loaded)
    return _Decoded(loaded, cropper.prepare(loaded), options, facts)


def _suggest_each(cropper: CroppingBase, members: list[tuple[Source, _Decoded]]) -> list[Suggestion]:
    """Suggest crops of a batch; where that fails, of its members one by one."""
    try:
        return _suggest_batch(cropper, members)
    except Exception as error:
        if len(members) == 1:
            source, decoded = members[0]
            return [Suggestion(source, decoded.loaded, {}, unexpected(source, error))]
        return [suggestion for member in members for suggestion in _suggest_each(cropper, [member])]


def _suggest_batch(cropper: CroppingBase, members: list[tuple[Source, _Decoded]]) -> list[Suggestion]:
    # What one image is asked and not another concerns its crops alone, never whose ratings rank them.
    ratings_of = cropper.source(members[0][1].options)
    encodings = cropper.encode([decoded.pixels for _, decoded in members], ratings_of)
    suggestions = []
    for (source, decoded), encoded in zip(members, encodings, strict=True):
        try:
            loaded = decoded.loaded
            result = cropper.answer(encoded, loaded.size, decoded.options, loaded.inside)
            suggestions.append(Suggestion(source, decoded.loaded, result, **decoded.facts))
        except ValueError as error:
            # A constraint that cannot hold for this image: a box outside it, or `strict`.
            suggestions.append(Suggestion(source, decoded.loaded, {}, ImageFileError(source.path, one_line(error))))
    return suggestions
