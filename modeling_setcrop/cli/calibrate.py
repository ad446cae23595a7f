"""`setcrop calibrate`: probabilities that say how often a crop is good."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from . import options as shared
from .data_options import LAYOUTS_HELP, RatingScale, needs_extra, parse_rating_scale

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data import Problems

_FIELDS = ("probability_slope", "probability_middle")


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

    A crop is good that the labels rate 4 or more, in layouts that rate any box, or that overlaps a good one by 0.85.
    The table's "after" is measured on each half of the images with what was fitted on the other.
    """
    with needs_extra("calibrate", "evaluate"):
        from ..data import DataError, Problems
        from ..evaluation.calibration import cross_fitted, fit_logistic, reliability
        from .evaluate import rows_of
    from ..crop_geometry import good_crop_probability
    from ..runtime.checkpoint import CONFIG, CheckpointError, read_config

    problems = Problems()
    with shared.failing("calibrate", DataError, CheckpointError, OSError, ValueError):
        config = read_config(model / CONFIG)
        if not config.crop_scoring:
            raise ValueError(f"{model}: the model has no scoring head, and no ratings to calibrate")
        rows = rows_of(data, layout, split, problems, parse_rating_scale(rating_scale))
        before = tuple(getattr(config, name, 4.0) for name in _FIELDS)
        ratings, good, image = _rated_crops(model, rows, top_k, before, problems)
        found = fit_logistic(ratings, good)
        measured = [reliability(good_crop_probability(ratings, *before), good)]
        measured.append(reliability(cross_fitted(ratings, good, image), good))
        if not dry_run:
            _write(model / CONFIG, dict(zip(_FIELDS, (round(value, 3) for value in found), strict=True)))
    for problem in problems.found:
        print(f"setcrop calibrate: {problem}", file=sys.stderr)
    _print(measured, len(good), len(set(image.tolist())))
    told = f"sigmoid({found.slope:.2f} (rating - {found.middle:.2f})), before {before[0]:g} and {before[1]:g}"
    print(f"{told}; nothing was changed (--dry-run)" if dry_run else f"{model / CONFIG}: {told}")


def _rated_crops(
    model: Path, rows: Dataset, top_k: int, logistic: tuple[Any, ...], problems: Problems
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predicted ratings (M,) of the crops that a caller gets, whether each is good, and its image's number."""
    from datasets import Image
    from rich.console import Console
    from rich.progress import track

    from .. import Cropper
    from ..evaluation.calibration import are_good
    from ..image_reading import ImageFileError

    cropper, slope, middle = Cropper(model, top_k=top_k), *logistic
    ratings, good, image = [], [], []
    console = Console(stderr=True)
    for number, row in enumerate(track(rows.cast_column("image", Image(decode=False)), "images", console=console)):
        try:
            crops = cropper(row["image"])
        except ImageFileError as error:
            problems.add("undecodable image", row["image_id"], f"cannot be decoded ({error.reason})")
            continue
        boxes = np.array([list(crop["box"].values()) for crop in crops], np.float64).reshape(-1, 4)
        scores = np.array([crop["score"] for crop in crops]).clip(1e-4, 1 - 1e-4)
        ratings.append(middle + np.log(scores / (1 - scores)) / slope)
        good.append(are_good(boxes, row))
        image.append(np.full(len(crops), number))
    if not ratings:
        raise ValueError("none of the images can be decoded")
    return np.concatenate(ratings), np.concatenate(good), np.concatenate(image)


def _write(path: Path, fields: dict[str, float]) -> None:
    from ..images.atomic import atomic_writer

    content = json.loads(path.read_text(encoding="utf-8")) | fields
    with atomic_writer(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _print(measured: list[Any], crops: int, images: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{crops} crops of {images} images, a tenth of them a row")
    for name in ("before", "are good", "after", "are good"):
        table.add_column(name, justify="right")
    columns = [column for found in measured for column in (found.predicted, found.found)]
    for row in zip(*(column[::-1] for column in columns), strict=True):
        table.add_row(*(f"{value:.2f}" for value in row))
    Console().print(table)
    for name, field in (("calibration error", "calibration_error"), ("Brier score", "brier")):
        before, after = (getattr(found, field) for found in measured)
        print(f"{name} {before:.3f} before, {after:.3f} after")
