"""`Cropper`: the pipeline's call and answers, on onnxruntime without transformers, or on torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._light_installation import how_to_get
from ..crop_options import CropOptions, check_count
from ..cropping import CroppingBase
from ..image_sources import is_several, read_any_image
from ..image_trimming import trimmed
from .checkpoint import (
    GRAPH_FOLDER,
    MODEL_GRAPH,
    QUANTIZED_GRAPH,
    CheckpointError,
    check_graphs,
    check_name,
    has_graphs,
)

Runtime = Literal["torch", "onnx", "onnx-int8"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnx", "onnx-int8")

_PACKAGED = Path(__file__).parents[1] / "checkpoints" / "setcrop-lite"


class Cropper(CroppingBase):
    """Suggests crops of images.

    ```python
    >>> from modeling_setcrop import Cropper
    >>> cropper = Cropper()
    >>> cropper("photo.jpg", top_k=1)
    [{'score': 0.87, 'label': 'crop', 'box': {'xmin': 96, 'ymin': 40, 'xmax': 2210, 'ymax': 1480}}]
    ```

    It can be pickled and sent to other processes, which load the checkpoint for themselves.

    Args:
        model: Checkpoint folder, or its name on the Hub; by default the one that comes with the package.
        runtime: "torch", "onnx" or "onnx-int8"; by default onnxruntime for a folder that has graphs, else torch.
        device: Where torch runs the model: "cpu", "cuda:0", ...; onnxruntime runs on the CPU.
        threads: Of onnxruntime for one image.
        trust_remote_code: Run code that comes with the checkpoint (torch only).
        few: A few images are to come: onnxruntime is then ready sooner, and takes a little longer for each.
        **options: Defaults for the options of a call, for example `top_k`.

    Raises:
        CheckpointError: The checkpoint, the runtime or the device cannot be used; the message is one line.
        TypeError, ValueError: An option is unknown or out of its range.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        runtime: Runtime | None = None,
        device: str | None = None,
        threads: int = 1,
        trust_remote_code: bool = False,
        few: bool = False,
        **options: Any,
    ) -> None:
        self.options = CropOptions.from_kwargs(**options)
        self._made_with = (model, runtime, device, threads, trust_remote_code, few)
        self.name = str(model or _PACKAGED)
        check_name(self.name)
        self.runtime = runtime or ("onnx" if has_graphs(Path(self.name)) and device in (None, "cpu") else "torch")
        self.engine = self._engine(device, threads, trust_remote_code, few)
        self.preprocessing = self.engine.preprocessing

    def _engine(self, device: str | None, threads: int, trust_remote_code: bool, few: bool) -> Any:
        if self.runtime not in RUNTIMES:
            raise CheckpointError(f"runtime must be one of {', '.join(RUNTIMES)}, not {self.runtime!r}")
        if self.runtime == "torch":
            try:
                from .torch_engine import TorchEngine
            except ModuleNotFoundError as error:
                if (reason := how_to_get(error)) is None:
                    raise
                local = "" if Path(self.name).is_dir() else "no such folder, and "
                raise CheckpointError(f"{self.name}: {local}running it on torch {reason}") from None

            return TorchEngine(self.name, device, trust_remote_code)
        from .onnx_engine import OnnxEngine

        if device not in (None, "cpu"):
            raise CheckpointError(f"runtime {self.runtime} runs on the CPU, not on {device}")
        graph, folder = QUANTIZED_GRAPH if self.runtime == "onnx-int8" else MODEL_GRAPH, _local_folder(self.name)
        if has_graphs(folder) and folder != _PACKAGED:
            check_graphs(folder)
        return OnnxEngine(folder, graph, threads, few)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self._made_with, self.options)

    def __call__(
        self, images: Any, *, timeout: float | None = None, batch_size: int | None = None, **options: Any
    ) -> Any:
        """Suggest crops; what is asked and answered is as with the transformers pipeline.

        Args:
            images: An image in any form that [`read_any_image`] takes, or a list or other iterable of them.
            timeout: Seconds to wait for an address.
            batch_size: Images in one forward pass, on an accelerator.
            **options: See [`CropOptions`].

        Returns:
            For one image a list of crops, best first, or with `details` a dict; for several a list of these.

        Raises:
            TypeError, ValueError: An option is unknown or out of its range, found before any image is read.
            ImageFileError: An image cannot be read.
            ConstraintError: With `strict`, no crop satisfies everything.
        """
        asked = self.options.updated(**options)
        self.source(asked)
        check_count("batch_size", batch_size)
        if not is_several(images):
            return self._answers([images], timeout, asked)[0]
        several, answers = iter(images), []
        while batch := list(islice(several, batch_size or self.default_batch_size)):
            answers += self._answers(batch, timeout, asked)
        return answers

    def _answers(self, images: list[Any], timeout: float | None, options: CropOptions) -> list[Any]:
        loaded = [read_any_image(image, self.short_side, timeout) for image in images]
        if options.trim:
            loaded = [trimmed(one) for one in loaded]
        encoded = self.encode([self.prepare(one) for one in loaded], self.source(options))
        return [
            self.answer(encoding, one.size, options, one.inside) for encoding, one in zip(encoded, loaded, strict=True)
        ]

    @property
    def config(self) -> Any:
        return self.engine.config

    @property
    def default_batch_size(self) -> int:
        return self.engine.default_batch_size

    @property
    def device(self) -> str:
        """Where the network runs."""
        return self.engine.device

    def encode(self, images: Sequence[np.ndarray], source: int | None = None) -> list[Any]:
        return self.engine.encode(images, source)

    def workers(self) -> AbstractContextManager[Callable[[], None]]:
        return self.engine.workers()


def _remake(made_with: tuple[Any, ...], options: CropOptions) -> Cropper:
    cropper = Cropper(*made_with)
    cropper.options = options
    return cropper


def _local_folder(name: str) -> Path:
    """Return a checkpoint's folder, fetched from the Hub where it is none.

    Raises:
        CheckpointError: It is neither a folder nor to be had from the Hub.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", f"{GRAPH_FOLDER}/*"]))
    except ImportError:
        raise CheckpointError(f"{name}: no such folder (names on the Hub need: pip install huggingface_hub)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {' '.join(str(error).split())}") from None
