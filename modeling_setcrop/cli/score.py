"""`setcrop score`: the predicted rating of given crops of an image, or a map of where a crop goes best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as shared

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from .. import Cropper

# The grid has this many places along the longer way; the best of them are listed.
_PLACES, _SIZE = 40, 0.7
_LISTED = 5


def score(
    image: Annotated[Path, typer.Argument(help="An image.")],
    box: Annotated[
        list[str] | None, typer.Option(help="A crop as x1,y1,x2,y2 in pixels of the image; repeat for more.")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Rate one size of crop at every place instead.")] = False,
    size: Annotated[
        float | None,
        typer.Option(min=0.05, max=1.0, help="Share of the image's sides that crops of the grid have, or 0.7."),
    ] = None,
    heatmap: Annotated[
        Path | None, typer.Option(help="With --grid: write the image coloured by the rating of a crop there.")
    ] = None,
    tightness: shared.Tightness = "default",
    model: shared.Model = None,
    device: shared.Device = None,
    runtime: shared.Runtime = None,
    trust_remote_code: shared.TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Predict the rating (1 to 5, as people rate) of any crop of an image."""
    try:
        if bool(box) == grid:
            raise ValueError("give either --box x1,y1,x2,y2 or --grid")
        for name, given in (("--heatmap", heatmap), ("--size", size)):
            if given is not None and not grid:
                raise ValueError(f"{name} goes with --grid")
        if heatmap is not None and heatmap.suffix.lower() != ".png":
            raise ValueError(f"--heatmap {heatmap}: the map is a PNG file, name it so")
        if heatmap is not None and heatmap.exists() and image.exists() and heatmap.samefile(image):
            raise ValueError(f"--heatmap {heatmap}: would overwrite the image itself")
        boxes = [_parse_box(text) for text in box or []]
        cropper = shared.load_cropper(model, device, runtime, trust_remote_code, images=1)
        rows = _score(cropper, image, boxes, _SIZE if size is None else size, heatmap, tightness)
    except (shared.UsageError, ValueError) as error:
        raise shared.fail(f"setcrop score: {error}") from None
    if as_json:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("xmin", "ymin", "xmax", "ymax", "rating")
    for row in rows:
        table.add_row(*(str(value) for value in row["box"].values()), f"{row['rating']:.2f}")
    # Not as the table's title, which would be broken to its width.
    print(image)
    Console().print(table)
    if heatmap is not None:
        print(f"map written to {heatmap}")


def _parse_box(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 4 or not (values[0] < values[2] and values[1] < values[3]):
        raise ValueError(f"--box {text}: expected x1,y1,x2,y2 with x1 < x2 and y1 < y2")
    return values


def _score(
    cropper: Cropper, image: Path, boxes: list[tuple[float, ...]], size: float, heatmap: Path | None, tightness: str
) -> list[dict[str, Any]]:
    """Return the crops with their ratings: those given, in order, or the best of a grid of places."""
    import numpy as np

    from ..crop_geometry import candidate_grid, rank, xyxy_to_cxcywh
    from ..crop_options import CropOptions
    from ..image_reading import load_image_file

    source = cropper.source(CropOptions(tightness=tightness))
    loaded = load_image_file(image, cropper.short_side)
    height, width = loaded.size
    if boxes:
        corners = np.array(boxes)
        outside = ((corners < 0) | (corners > [width, height, width, height])).any(axis=1)
        if outside.any():
            bad = ",".join(f"{value:g}" for value in boxes[int(outside.argmax())])
            raise ValueError(f"--box {bad}: outside the image of {width}x{height} pixels")
    else:
        sizes = np.maximum(1.0, [[round(size * width), round(size * height)]])
        stride = max(1.0, float(([width, height] - sizes).max()) / _PLACES)
        corners = candidate_grid(sizes, loaded.size, stride)
    prediction = cropper.encode([cropper.prepare(loaded)], source)[0].prediction(loaded.size)
    if prediction.rate is None:
        raise ValueError("this model cannot rate crops: it was made with crop_scoring=False")
    shares = xyxy_to_cxcywh(corners / [width, height, width, height])
    ratings = prediction.rate(shares.astype(np.float32))
    # A regression, less the penalty for cut faces: of boxes unlike any good crop it may leave the scale.
    told = ratings.clip(1, 5)
    if heatmap is not None:
        _write_heatmap(loaded.image, corners, ratings, loaded.size, heatmap)
    order = range(len(boxes)) if boxes else rank(ratings)[:_LISTED].tolist()
    names = ("xmin", "ymin", "xmax", "ymax")
    rows = []
    for i in order:
        rating = round(float(told[i]), 4)
        # "score" is what it was called, for one more version.
        rows.append(
            {"box": dict(zip(names, map(round, corners[i].tolist()), strict=True)), "rating": rating, "score": rating}
        )
    return rows


def _write_heatmap(
    image: Image.Image, corners: np.ndarray, ratings: np.ndarray, image_size: tuple[int, int], path: Path
) -> None:
    """Write the image in grey under a map from blue (worst place) to red (best) over the centres of the crops."""
    import numpy as np
    from PIL import Image, ImageOps

    from ..images.atomic import atomic_writer

    xs, column = np.unique(corners[:, 0], return_inverse=True)
    ys, row = np.unique(corners[:, 1], return_inverse=True)
    level = np.zeros((len(ys), len(xs)))
    level[row, column] = ratings
    spread = level.max() - level.min()
    level = (level - level.min()) / spread if spread > 0 else np.full_like(level, 0.5)
    # Hue from blue to red; the crops' centres cover the middle of the image, the rest stays grey.
    hue = np.round((1 - level) * 170).astype(np.uint8)
    colours = Image.merge("HSV", [Image.fromarray(channel) for channel in (hue, 0 * hue + 255, 0 * hue + 255)])
    scale = image.width / image_size[1]
    half = (corners[0, 2:] - corners[0, :2]) / 2 * scale
    left, top = round(float(half[0])), round(float(half[1]))
    area = (max(1, image.width - 2 * left), max(1, image.height - 2 * top))
    grey = ImageOps.grayscale(image).convert("RGB")
    region = grey.crop((left, top, left + area[0], top + area[1]))
    coloured = Image.blend(region, colours.convert("RGB").resize(area, Image.Resampling.BICUBIC), 0.55)
    grey.paste(coloured, (left, top))
    with atomic_writer(path) as file:
        grey.save(file, format="PNG")
