"""`setcrop init`: the starting point of setcrop-lite's training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="Where the untrained model is written.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A data set: anchors from its training split's good crops, not from GAIC's grid of crops."),
    ] = None,
    layout: Annotated[str, typer.Option(help="Its layout: gaic, cpc, flms, fcdb, folder or saved.")] = "gaic",
    coco_weights: Annotated[
        Path | None,
        typer.Option(help="Folder of a coco-ssd model: a MobileNetV2 that detects objects, not ImageNet weights."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the new weights and of k-means.")] = 0,
) -> None:
    """Make an untrained setcrop-lite, with a pre-trained backbone."""
    try:
        from modeling_setcrop.data import load
        from modeling_setcrop.training.setcrop_lite import new_setcrop_lite

        model, processor = new_setcrop_lite(None if data is None else load(layout, data)["train"], seed, coco_weights)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    except (ValueError, OSError, ImportError, KeyError) as error:
        print(f"setcrop init: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{folder}: {millions:.1f} M parameters; train it with setcrop train")
