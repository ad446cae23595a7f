"""The network on onnxruntime, from the graphs that `setcrop export onnx` writes; CPU, float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..crop_judging import Prediction
from .checkpoint import (
    CONFIG,
    GRAPH_FOLDER,
    MODEL_GRAPH,
    PREPROCESSOR,
    SCORER_GRAPH,
    CheckpointError,
    read_config,
    read_preprocessing,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Boxes that the scoring graph takes at once.
SCORER_BOXES = 2048
# What graphs that were written before call their outputs.
_FORMER_OUTPUTS = {"pred_scores": "pred_ratings", "scores": "ratings"}


class OnnxEngine:
    """The graphs of one checkpoint.

    Args:
        folder: A folder with `config.json`, `preprocessor_config.json` and the graphs in `onnx/`.
        graph: Which of them proposes crops, `"model.onnx"`, `"model_quantized.onnx"` or `"model_fp16.onnx"`.
        threads: Of onnxruntime for one image; many images fill the processors with one each.
        few: A few images are to come: ready in a third of the time, each then takes half as long again.

    Raises:
        CheckpointError: A file is missing or broken, or says what cannot be so.
        ImportError: onnxruntime is not installed; the message names it.
    """

    device = "cpu"
    default_batch_size = 1

    def __init__(self, folder: str | Path, graph: str = MODEL_GRAPH, threads: int = 1, few: bool = False) -> None:
        folder = Path(folder)
        self.config = read_config(folder / CONFIG)
        self.preprocessing = read_preprocessing(folder / PREPROCESSOR)
        self.name = str(folder)
        graphs = folder / GRAPH_FOLDER
        self._model = _session(graphs / graph, threads, few)
        self._scorer = _session(graphs / SCORER_GRAPH, threads, few) if self.config.crop_scoring else None
        self._scorer_inputs = [] if self._scorer is None else [entry.name for entry in self._scorer.get_inputs()]
        self._check_graphs(graphs / graph)

    def _check_graphs(self, path: Path) -> None:
        """Raise CheckpointError where the graphs are of different models, or of another than the config's."""
        again = "write all of them anew with: setcrop export onnx"
        given = {entry.name for entry in self._model.get_outputs()} | {"boxes", "source"}
        if lacking := sorted(set(self._scorer_inputs) - given):
            raise CheckpointError(f"{path}: gives no {lacking[0]}, which {SCORER_GRAPH} needs; {again}")
        taken = {entry.name for entry in [*self._model.get_inputs(), *self._model.get_overridable_initializers()]}
        if self._source_input(None).keys() - taken:
            raise CheckpointError(f"{path}: has one source of ratings, {CONFIG} has several; {again}")

    def encode(self, images: Sequence[np.ndarray], source: int | None = None) -> list[OnnxEncodedImage]:
        """Run the graph over images (3, H, W), one at a time; see [`encode_images`]."""
        return [OnnxEncodedImage(self, self.run(image[None], source), source) for image in images]

    def run(self, pixel_values: np.ndarray, source: int | None = None) -> dict[str, np.ndarray]:
        """All outputs of the model's graph for pixels (B, 3, H, W)."""
        pixels = pixel_values.astype(np.float32, copy=False)
        return _run(self._model, {"pixel_values": pixels, **self._source_input(source)})

    def _source_input(self, source: int | None) -> dict[str, np.ndarray]:
        """Return the input that says whose crops and ratings, of models that have several."""
        sources = getattr(self.config, "rating_sources", None) or []
        if not sources:
            return {}
        default = (getattr(self.config, "tightness_sources", None) or {}).get("default")
        default = sources.index(default) if default in sources else 0
        return {"source": np.array(default if source is None else source, dtype=np.int64)}

    def rate(self, boxes: np.ndarray, encoded: dict[str, np.ndarray], source: int | None = None) -> np.ndarray:
        """Predicted ratings (B, M) of boxes (B, M, 4), cxcywh in 0..1.

        Args:
            boxes: Any number M of them.
            encoded: The model graph's outputs for the images.
            source: Whose ratings are predicted; None for the model's default.

        Raises:
            ValueError: The model has no scoring head.
        """
        if self._scorer is None:
            raise ValueError("this model cannot rate crops: it was made with crop_scoring=False")
        inputs = {name: encoded[name] for name in self._scorer_inputs if name in encoded} | self._source_input(source)
        parts = range(0, max(1, boxes.shape[1]), SCORER_BOXES)
        rated = [_run(self._scorer, {"boxes": boxes[:, i : i + SCORER_BOXES], **inputs})["ratings"] for i in parts]
        return np.concatenate(rated, axis=1)

    @contextmanager
    def workers(self) -> Iterator[Callable[[], None]]:
        """Nothing is to be done: a session has its own threads, as many as it was made with."""
        yield lambda: None


class OnnxEncodedImage:
    """One image through the graph: its set of crops, and its encoding, by which any box can be rated."""

    def __init__(self, engine: OnnxEngine, outputs: dict[str, np.ndarray], source: int | None) -> None:
        self.engine, self.outputs, self.source = engine, outputs, source

    def prediction(self, image_size: tuple[int, int]) -> Prediction:
        """Return what the model says of an image of this height and width; see `EncodedImage.prediction`."""

        def rate(boxes: np.ndarray) -> np.ndarray:
            return self.engine.rate(boxes[None], self.outputs, self.source)[0]

        def first(name: str) -> np.ndarray:
            return self.outputs[name][0].astype(np.float64)

        def first_or_none(name: str) -> np.ndarray | None:
            return first(name) if name in self.outputs else None

        return Prediction.from_output(
            first("pred_boxes"),
            1 / (1 + np.exp(-first("logits")[:, 0])),
            image_size,
            rate if self.engine.config.crop_scoring else None,
            first_or_none("pred_ratings"),
            first_or_none("importance"),
            self.engine.config,
        )


def _session(path: Path, threads: int, few: bool) -> InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running ONNX graphs needs: pip install onnxruntime") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such ONNX graph (write it with: setcrop export onnx)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if few:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from None


def _run(session: InferenceSession, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    known = [_FORMER_OUTPUTS.get(name, name) for name in names]
    return dict(zip(known, session.run(names, inputs), strict=True))
