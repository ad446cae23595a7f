"""`setcrop init`: the starting point of setcrop-lite's training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .data_options import RatingScale, needs_extra, parse_rating_scale


def init(
    folder: Annotated[Path, typer.Argument(help="Where the untrained model is written.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A data set: anchors from its training split's good crops, not from GAIC's grid of crops."),
    ] = None,
    layout: Annotated[str, typer.Option(help="Its layout: see setcrop data inspect --help.")] = "gaic",
    rating_scale: RatingScale = None,
    coco_weights: Annotated[
        Path | None,
        typer.Option(help="Folder of a coco-ssd model: a MobileNetV2 that detects objects, not ImageNet weights."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the new weights and of k-means.")] = 0,
) -> None:
    """Make an untrained setcrop-lite, with a pre-trained backbone."""
    with needs_extra("init", "train"):
        from ..data import load
        from ..images.atomic import atomic_files, is_empty
        from ..training.setcrop_lite import new_setcrop_lite
    try:
        if folder.exists() and (not folder.is_dir() or not is_empty(folder)):
            raise ValueError(f"{folder}: exists already; choose another folder")
        rows = None
        if data is not None:
            splits = load(layout, data, rating_scale=parse_rating_scale(rating_scale))
            if "train" not in splits:
                raise ValueError(f"{data}: has no split 'train' to take anchors from, only {', '.join(splits)}")
            rows = splits["train"]
        model, processor = new_setcrop_lite(rows, seed, coco_weights)
        with atomic_files(folder) as work:
            model.save_pretrained(work)
            processor.save_pretrained(work)
    except (ValueError, OSError, ImportError) as error:
        print(f"setcrop init: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{folder}: {millions:.1f} M parameters; train it with setcrop train")
