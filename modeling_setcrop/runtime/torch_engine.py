"""The network on torch: any checkpoint that transformers loads, on any device."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForObjectDetection
from transformers.utils import cached_file, logging

from ..crop_prediction import EncodedImage, encode_images, one_thread_each
from ..modeling_setcrop import SetCropForImageCropping
from .checkpoint import CONFIG, PREPROCESSOR, CheckpointError, check_name, read_config, read_preprocessing


class TorchEngine:
    """A `SetCropForImageCropping` and its preprocessing.

    Args:
        name: Checkpoint folder, or its name on the Hub.
        device: "cpu", "cuda:0", "mps", ...; by default the first accelerator, or the CPU.
        trust_remote_code: Run code that comes with the checkpoint. Never asked for.

    Raises:
        CheckpointError: A file is missing or broken, a field cannot be so, weights are missing or not finite, or the
            device cannot be used.
    """

    def __init__(self, name: str, device: str | None = None, trust_remote_code: bool = False) -> None:
        check_name(name)
        self.name = name
        read_config(self._file(CONFIG))
        self.preprocessing = read_preprocessing(self._file(PREPROCESSOR))
        self.model = _load(name, trust_remote_code)
        network: nn.Module = self.model
        try:
            network.to(device or _default_device())
        except (RuntimeError, AssertionError, ValueError) as error:
            raise CheckpointError(f"device {device}: {_one_line(error)}") from None
        self.config = self.model.config

    def _file(self, name: str) -> Path:
        if Path(self.name).is_dir():
            return Path(self.name) / name
        try:
            return Path(str(cached_file(self.name, name)))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.name}: {_one_line(error)}") from None

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(self.model.device)

    @property
    def default_batch_size(self) -> int:
        """8 on an accelerator; on the CPU more than one gain little speed and cost memory."""
        return 1 if self.model.device.type == "cpu" else 8

    def encode(self, images: Sequence[np.ndarray], source: int | None = None) -> list[EncodedImage]:
        """Run the model over images (3, H, W) of any shapes; see [`encode_images`]."""
        return encode_images(self.model, images, source)

    def workers(self) -> AbstractContextManager[Callable[[], None]]:
        """Every worker's operations stay on one processor; see [`one_thread_each`]."""
        return one_thread_each()


def _load(name: str, trust_remote_code: bool) -> SetCropForImageCropping:
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModelForObjectDetection.from_pretrained(
            name, trust_remote_code=trust_remote_code, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # what a broken file makes safetensors, transformers and torch raise has no common base
        raise CheckpointError(f"{name}: {_one_line(error)}") from None
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
    if mismatched := sorted(report["mismatched_keys"]):
        first, stored, wanted = mismatched[0]
        raise CheckpointError(
            f"{name}: {len(mismatched)} weights have another shape than {CONFIG} says, the first is {first}: "
            f"{tuple(stored)}, not {tuple(wanted)}"
        )
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{name}: {len(missing)} weights are missing, the first is {missing[0]}")
    for key, weight in model.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"{name}: the weights {key} are not finite")
    return model.eval()


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
