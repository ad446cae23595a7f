"""`setcrop export`: a checkpoint for the Hub, for onnxruntime, or with a new card."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import options as shared

export = typer.Typer(help="Write a checkpoint for the Hub or for onnxruntime, or its card.", no_args_is_help=True)

# What graphs compute in, by transformers.js' names; the option's choices.
Dtype = StrEnum("Dtype", ["fp32", "fp16", "q8"])
RepoId = Annotated[str | None, typer.Option(help="Name on the Hub for the card's examples (the folder's name).")]


@export.command()
def hub(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write, or an earlier export to renew.")],
    model: shared.Model = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that `setcrop evaluate --out` wrote; repeatable (those in the checkpoint)."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in half precision.")] = False,
    code: Annotated[bool, typer.Option(help="Bring the code along, for those without SetCrop.")] = True,
    repo_id: RepoId = None,
) -> None:
    """Write model, code, card and results: a folder to upload that works where SetCrop is not installed.

    From a training's output and evaluations of it: setcrop export hub OUT --model RUN --evaluation EVALUATION
    """
    from hub_card.card import check_record, write_card
    from hub_card.results import CardError

    from .. import DEFAULT_CHECKPOINT
    from ..export.hub_export import export_hub

    _quiet()
    checkpoint = model or DEFAULT_CHECKPOINT
    try:
        check_record(Path(checkpoint), folder, repo_id, evaluation or ())
        written = export_hub(checkpoint, folder, evaluation or (), half, code)
        written += write_card(folder, repo_id)
    except (CardError, OSError, ValueError) as error:
        raise shared.fail(f"setcrop export hub: {error}") from None
    _list(folder, written)


@export.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder with config.json.")],
    repo_id: RepoId = None,
) -> None:
    """Write the card and its example images into a checkpoint folder, from the evaluations stored there."""
    from hub_card.card import write_card
    from hub_card.results import CardError

    _quiet()
    try:
        written = write_card(folder, repo_id)
    except (CardError, OSError, ValueError) as error:
        raise shared.fail(f"setcrop export card: {error}") from None
    _list(folder, written)


@export.command()
def onnx(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; the graphs go to DIR/onnx.")],
    model: shared.Model = None,
    dtype: Annotated[
        list[Dtype] | None,
        typer.Option(help="Graph to write beside model.onnx, which is fp32; repeatable (all of them)."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            "--photos",
            help="Folder of images to check on and to calibrate q8 on (three that come along).",
        ),
    ] = None,
) -> None:
    """Write ONNX graphs for any batch, height and width, and check them against torch to 1e-4.

    In the layout of transformers.js: model.onnx, model_fp16.onnx (for graphics processors) and model_quantized.onnx
    (q8: the backbone in int8); and scorer.onnx, which rates any bounding box.
    """
    from hub_card.examples import PHOTOS

    from .. import DEFAULT_CHECKPOINT
    from ..export.onnx_export import GRAPHS, OnnxMismatchError, export_onnx
    from ..runs.sources import list_sources

    _quiet()
    chosen = list(PHOTOS) if images is None else [image.path for image in list_sources([images], shared.report)]
    dtypes = [name for name in GRAPHS if not dtype or name in dtype]
    try:
        report = export_onnx(model or DEFAULT_CHECKPOINT, folder, chosen, dtypes, _announce)
    except (OnnxMismatchError, OSError, ValueError, ImportError) as error:
        raise shared.fail(f"setcrop export onnx: {error}") from None
    for name, size in report["sizes"].items():
        print(f"{folder / 'onnx' / name}  {size / 1e6:.1f} MB")
    worst = max(report["agreement"].values())
    print(f"torch and onnxruntime agree to {worst:.1e} on {len(chosen)} images")
    for name in ("fp16", "q8"):
        if found := report.get(name):
            print(
                f"{name}: first crop overlaps that of model.onnx by IoU {found['first_crop_iou']:.3f}, the same crop "
                f"wins on {found['same_first_crop']:.0%}, probabilities move by {found['probability']:.3f}"
            )


def _announce(step: str) -> None:
    """Say on stderr what is done next."""
    print(f"setcrop export onnx: {step}", file=sys.stderr)


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _list(folder: Path, written: list[Path]) -> None:
    for path in sorted(set(written)):
        print(f"{path.stat().st_size:>12,}  {path.relative_to(folder)}")
