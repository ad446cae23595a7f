"""What the transformers pipeline and the light `Cropper` have in common: from an image to its crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from .crop_options import CropOptions
from .crop_selection import suggest
from .image_preprocessing import ImagePreprocessing
from .image_reading import READ_FACTOR, LoadedImage
from .image_trimming import answer_outside, options_inside


class CroppingBase:
    """Reads images, asks the network and selects crops; subclasses say which network on which runtime.

    Attributes:
        preprocessing: From an image to the network's input.
        options: The caller's defaults.
    """

    preprocessing: ImagePreprocessing
    options: CropOptions

    @property
    def short_side(self) -> int:
        """Pixels on the short side that an image needs; a larger one can be decoded at reduced scale."""
        return READ_FACTOR * self.preprocessing.short_side

    @property
    def config(self) -> Any:
        """The checkpoint's configuration."""
        raise NotImplementedError

    @property
    def default_batch_size(self) -> int:
        """Images of one shape in one forward pass, unless a caller says otherwise: more gain nothing on a CPU."""
        raise NotImplementedError

    def encode(self, images: Sequence[np.ndarray], source: int | None = None) -> list[Any]:
        """Run the network over prepared images (3, H, W), for the source of ratings that [`source`] says.

        Each result has `prediction(image_size)`, which makes a [`Prediction`].
        """
        raise NotImplementedError

    def workers(self) -> AbstractContextManager[Callable[[], None]]:
        """While many threads use this: gives what each of them calls first, so that they do not fight for cores."""
        return nullcontext(lambda: None)

    @property
    def label(self) -> str:
        """What crops are labelled."""
        return next(iter(dict(self.config.id2label or {0: "crop"}).values()))

    def prepare(self, loaded: LoadedImage) -> np.ndarray:
        """Return the network's input (3, H, W) for an image."""
        return self.preprocessing(loaded.image)

    def answer(
        self,
        encoded: Any,
        image_size: tuple[int, int],
        options: CropOptions,
        inside: tuple[int, int, int, int] | None = None,
    ) -> Any:
        """Return the crops of one image, see [`crop_selection.suggest`].

        Args:
            encoded: Of [`encode`].
            image_size: Height and width.
            options: What is asked.
            inside: The part of the image that was encoded, see [`LoadedImage`].
        """
        if inside is None:
            return suggest(encoded.prediction(image_size), options, self.label)
        size = (inside[3] - inside[1], inside[2] - inside[0])
        answer = suggest(encoded.prediction(size), options_inside(options, inside, image_size), self.label)
        return answer_outside(answer, inside, image_size)

    def source(self, options: CropOptions) -> int | None:
        """Return whose ratings are predicted, as an index of `rating_sources`; None for models with one source.

        Raises:
            ValueError: The model has no such tightness.
        """
        sources = list(getattr(self.config, "rating_sources", None) or [])
        sources_of: Mapping[str, Any] = getattr(self.config, "tightness_sources", None) or {}
        wanted = sources_of.get(options.tightness)
        if wanted is None:
            if options.tightness != "default":
                raise ValueError(f"this model has no tightness {options.tightness!r}: its ratings have one source")
            return None
        return sources.index(wanted)
