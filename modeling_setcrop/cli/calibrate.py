"""`setcrop calibrate`: probabilities that say how often a crop is good."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as shared
from .data_options import LAYOUTS_HELP, RatingScale, needs_extra, parse_rating_scale

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data import Problems
    from ..evaluation.calibration import JudgedCrops, Reliability


def calibrate(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder; its config.json is changed.")],
    data: Annotated[Path, typer.Option(help="Folder of a data set that the model has not learned from.")],
    layout: Annotated[str, typer.Option(help=LAYOUTS_HELP)],
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "validation",
    top_k: Annotated[int, typer.Option(min=1, help="So many crops of each image, the best ones.")] = 10,
    rating_scale: RatingScale = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and change nothing.")] = False,
) -> None:
    """Fit how probable it is that people call a crop with a certain rating good.

    A crop is good that the labels rate 4 or more, in layouts that rate any box, or that overlaps a good one by 0.85; a
    crop of a given aspect ratio that overlaps the labels' window of that shape by 0.85. "After" is measured on each
    half of the images with what was fitted on the other; where it is no better there, by the Brier score, nothing is
    changed.
    """
    import numpy as np

    with needs_extra("calibrate", "evaluate"):
        from ..data import Problems
        from ..evaluation.calibration import cross_fitted, fit_probability, reliability
        from .evaluate import rows_of
    from ..crop_geometry import GoodCropProbability
    from ..runtime.checkpoint import CONFIG, read_config

    problems = Problems()
    with shared.failing("calibrate", OSError, ValueError):
        config = read_config(model / CONFIG)
        if not config.crop_scoring:
            raise ValueError(f"{model}: the model has no scoring head, and no ratings to calibrate")
        rows = rows_of(data, layout, split, problems, parse_rating_scale(rating_scale), hold_out=True)
        before = GoodCropProbability.of(config)
        crops = _judged_crops(model, rows, top_k, problems)
        found = fit_probability(crops, before)
        said = [before(crops.ratings, crops.cut_off), cross_fitted(crops)]
        old, new = (reliability(probabilities, crops.good).brier for probabilities in said)
        unchanged = "--dry-run" if dry_run else "" if new < old else "on images left out, the fit is no better"
        if not unchanged:
            _write(model / CONFIG, {f"probability_{name}": round(value, 3) for name, value in found._asdict().items()})
    for problem in problems.found:
        print(f"setcrop calibrate: {problem}", file=sys.stderr)
    for of, which in (("", crops.cut_off == 0), (" of a given aspect ratio", crops.cut_off > 0)):
        if which.any():
            images = len(np.unique(crops.image[which]))
            print(f"{which.sum()} crops{of} of {images} images, a tenth of them a row: scores, and how many are good")
            _print([reliability(probabilities[which], crops.good[which]) for probabilities in said])
    told = ", ".join(
        f"{name} {value:.2f} (before {getattr(before, name):g})" for name, value in found._asdict().items()
    )
    print(f"nothing was changed ({unchanged}): {told}" if unchanged else f"{model / CONFIG}: {told}")


def _judged_crops(model: Path, rows: Dataset, top_k: int, problems: Problems) -> JudgedCrops:
    """Return the crops that a caller gets of each image that can be decoded."""
    import numpy as np
    from datasets import Image
    from rich.console import Console
    from rich.progress import track

    from .. import Cropper
    from ..evaluation.calibration import JudgedCrops, crops_of
    from ..image_reading import ImageFileError

    cropper = Cropper(model)
    found: list[tuple[float, float, bool, int]] = []
    console = Console(stderr=True)
    for number, row in enumerate(track(rows.cast_column("image", Image(decode=False)), "images", console=console)):
        try:
            found += [(*crop, number) for crop in crops_of(cropper, row, top_k)]
        except ImageFileError as error:
            problems.add("undecodable image", row["image_id"], f"cannot be decoded ({error.reason})")
    if not found:
        raise ValueError("none of the images can be decoded")
    return JudgedCrops(*map(np.array, zip(*found, strict=True)))


def _write(path: Path, fields: dict[str, float]) -> None:
    from ..images.atomic import atomic_writer

    content = json.loads(path.read_text(encoding="utf-8")) | fields
    with atomic_writer(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _print(measured: list[Reliability]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("before", "are good", "after", "are good"):
        table.add_column(name, justify="right")
    columns = [column for found in measured for column in (found.predicted, found.found)]
    for row in zip(*(column[::-1] for column in columns), strict=True):
        table.add_row(*(f"{value:.2f}" for value in row))
    Console().print(table)
    for name, field in (("calibration error", "calibration_error"), ("Brier score", "brier")):
        before, after = (getattr(found, field) for found in measured)
        print(f"{name} {before:.3f} before, {after:.3f} after")
