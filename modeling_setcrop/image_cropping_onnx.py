"""Inference with onnxruntime on the graphs that `setcrop export onnx` writes: the pipeline, on another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoImageProcessor

from .configuration_setcrop import SetCropConfig
from .modeling_setcrop import SetCropEncoderOutput, SetCropImageCroppingOutput
from .pipeline_image_cropping import ImageCroppingPipeline

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

GRAPH_FOLDER = "onnx"
MODEL_GRAPH, INT8_GRAPH, SCORER_GRAPH = "model.onnx", "model_int8.onnx", "scorer.onnx"
# Boxes that the scoring graph takes at once.
SCORER_BOXES = 2048


class SetCropOnnxModel:
    """The graphs behind the interface of [`SetCropForImageCropping`] that inference uses; CPU, float32.

    Args:
        folder: a folder with `config.json` and the graphs in `onnx/`.
        graph: which of them proposes crops, `"model.onnx"` or `"model_int8.onnx"`.
        threads: of onnxruntime, all cores when left out.

    Raises:
        FileNotFoundError: the folder has no such graph.
        ImportError: onnxruntime is not installed; the message names the extra.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    input_modalities = ("image",)

    def __init__(self, folder: str | Path, graph: str = MODEL_GRAPH, threads: int | None = None) -> None:
        self.config = SetCropConfig.from_pretrained(folder)
        graphs = Path(folder) / GRAPH_FOLDER
        self.name_or_path = str(graphs / graph)
        self._model = _session(graphs / graph, threads)
        self._scorer = _session(graphs / SCORER_GRAPH, threads) if self.config.crop_scoring else None

    def __call__(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        candidate_boxes: torch.Tensor | None = None,
    ) -> SetCropImageCroppingOutput:
        """Propose crops for `pixel_values` (B, 3, H, W) with `pixel_mask` (B, H, W), all picture when left out, and
        score `candidate_boxes` (B, M, 4)."""
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0], dtype=torch.long)
        found = _run(self._model, pixel_values=pixel_values.float(), pixel_mask=pixel_mask.long())
        encoded = SetCropEncoderOutput(
            last_hidden_state=found["memory"],
            feature_mask=found["feature_mask"],
            picture_sizes=found["picture_sizes"],
            picture_shares=found["picture_shares"],
        )
        return SetCropImageCroppingOutput(
            logits=found["logits"],
            pred_boxes=found["pred_boxes"],
            pred_scores=found.get("pred_scores"),
            choice_probabilities=found.get("choice_probabilities"),
            crop_scores=None if candidate_boxes is None else self.score_crops(candidate_boxes, encoded),
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_outputs=encoded,
        )

    def score_crops(self, boxes: torch.Tensor, encoder_outputs: SetCropEncoderOutput) -> torch.Tensor:
        """Predicted human scores (B, M) of boxes (B, M, 4), as [`SetCropForImageCropping.score_crops`].

        Raises:
            ValueError: the model has no scoring head.
        """
        if self._scorer is None:
            raise ValueError("this model cannot score crops: it was made with crop_scoring=False")
        mask = encoder_outputs.feature_mask
        encoded = {
            "memory": encoder_outputs.last_hidden_state.unflatten(1, mask.shape[1:]),
            "feature_mask": mask,
            "picture_sizes": encoder_outputs.picture_sizes,
            "picture_shares": encoder_outputs.picture_shares,
        }
        parts = boxes.float().split(SCORER_BOXES, dim=1)
        return torch.cat([_run(self._scorer, boxes=part, **encoded)["scores"] for part in parts], dim=1)

    def eval(self) -> SetCropOnnxModel:
        """The graphs are in evaluation mode always."""
        return self

    def to(self, device: str | torch.device) -> SetCropOnnxModel:
        """Raises ValueError for anything but the CPU."""
        if torch.device(device).type != "cpu":
            raise ValueError(f"ONNX graphs run on the CPU, not on {device}")
        return self

    def can_generate(self) -> bool:
        """No; `Pipeline` asks."""
        return False


class ImageCroppingOnnx(ImageCroppingPipeline):
    """`pipeline("image-cropping")` on onnxruntime: the same options, the same crops up to rounding.

    ```python
    >>> from modeling_setcrop.image_cropping_onnx import ImageCroppingOnnx
    >>> cropper = ImageCroppingOnnx.from_pretrained("setcrop-lite-onnx")
    >>> cropper("photo.jpg", top_k=1)
    ```
    """

    @classmethod
    def from_pretrained(
        cls, name: str | Path, int8: bool = False, threads: int | None = None, **kwargs: Any
    ) -> ImageCroppingOnnx:
        """Loads an exported model.

        Args:
            name: folder that `setcrop export onnx` wrote, or Hub repository with such files.
            int8: use the quantised graph.
            threads: of onnxruntime, all cores when left out.
            **kwargs: defaults for the pipeline's options, for example `top_k`.

        Raises:
            FileNotFoundError: no ONNX graph there.
            ImportError: onnxruntime is not installed.
        """
        folder = Path(name)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(name), allow_patterns=["*.json", f"{GRAPH_FOLDER}/*"]))
        model = SetCropOnnxModel(folder, INT8_GRAPH if int8 else MODEL_GRAPH, threads)
        processor = AutoImageProcessor.from_pretrained(folder)
        return cls(model=model, image_processor=processor, task="image-cropping", device="cpu", **kwargs)


def _session(path: Path, threads: int | None) -> InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running ONNX models needs: pip install 'setcrop[onnx]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX graph (write it with: setcrop export onnx)")
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: InferenceSession, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {name: tensor.contiguous().numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
