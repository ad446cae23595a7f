"""An image's crops in the words of the systems that show or label them.

Every function takes the rows of one image, best crop first, as the manifest of `setcrop crop` has them:
`source`, `rank`, `score` in 0..1, `xmin`, `ymin`, `xmax`, `ymax` in pixels of the image as displayed,
`aspect_ratio` where it was asked for, `picture_width` and `picture_height` in pixels, `focus_x` and `focus_y` in 0..1.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ..coco_annotations import coco_image_id, coco_prediction
from ..images.atomic import atomic_writer

Row = dict[str, Any]

LABEL_STUDIO_CONFIG = """\
<View>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="crop" toName="image" canRotate="false">
    <Label value="crop"/>
  </RectangleLabels>
  <Rating name="rating" toName="image" perRegion="true" maxRating="5"/>
</View>
"""
"""Labelling interface of a Label Studio project that shows `label_studio`'s predictions and asks to rate each."""


def crop_rows(source: str, size: tuple[int, int], result: dict[str, Any]) -> list[Row]:
    """Return the rows of one image.

    Args:
        source: The file's path, as it is to be named.
        size: Height and width in pixels of the image as displayed.
        result: The pipeline's answer with `details=True`.
    """
    ranks: dict[Any, int] = {}
    rows = []
    for crop in result["crops"]:
        ratio = crop.get("aspect_ratio")
        ranks[ratio] = ranks.get(ratio, 0) + 1
        rows.append(
            {
                "source": source,
                "rank": ranks[ratio],
                "score": round(crop["score"], 5),
                **crop["box"],
                "aspect_ratio": None if ratio is None else str(ratio),
                "picture_width": size[1],
                "picture_height": size[0],
                "focus_x": round(result["focus_point"]["x"], 5),
                "focus_y": round(result["focus_point"]["y"], 5),
            }
        )
    return rows


def sanity(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return `crop` and `hotspot` of a Sanity image field for each crop: shares of the image, cut from each side.

    The hotspot is the largest ellipse about the focus point that lies in the crop.
    """
    values = []
    for row in rows:
        left, top, right, bottom = _shares(row)
        x, y = _focus(row)
        values.append(
            {
                "_type": "image",
                "crop": {
                    "_type": "sanity.imageCrop",
                    "top": _round(top),
                    "bottom": _round(1 - bottom),
                    "left": _round(left),
                    "right": _round(1 - right),
                },
                "hotspot": {
                    "_type": "sanity.imageHotspot",
                    "x": _round(x),
                    "y": _round(y),
                    "width": _round(2 * min(x - left, right - x)),
                    "height": _round(2 * min(y - top, bottom - y)),
                },
            }
        )
    return values


def imgix(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return imgix parameters for each crop, and the query that holds them.

    `rect` cuts the crop; `fp-x` and `fp-y` say where the focus point lies in what `rect` leaves: imgix cuts first.
    """
    values = []
    for row in rows:
        left, top, right, bottom = _shares(row)
        x, y = _focus(row)
        parameters = {
            "rect": f"{row['xmin']},{row['ymin']},{_width(row)},{_height(row)}",
            "fit": "crop",
            "crop": "focalpoint",
            "fp-x": _round((x - left) / (right - left)),
            "fp-y": _round((y - top) / (bottom - top)),
        }
        values.append(parameters | {"query": urlencode(parameters, safe=",")})
    return values


def thumbor(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the parts of a thumbor URL for each crop: the manual crop, and the focal filter of the focus point.

    Of `path` the size (`0x0`: as large as the crop) and the image's address are to be filled in by the site.
    """
    values = []
    for row in rows:
        x, y = _focus(row)
        left = min(int(x * row["picture_width"]), row["xmax"] - 1)
        top = min(int(y * row["picture_height"]), row["ymax"] - 1)
        crop = f"{row['xmin']}x{row['ymin']}:{row['xmax']}x{row['ymax']}"
        focal = f"filters:focal({left}x{top}:{left + 1}x{top + 1})"
        values.append({"crop": crop, "focal": focal, "path": f"{crop}/0x0/{focal}"})
    return values


def css(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return CSS declarations for each crop, and the `style` that holds them.

    `object-view-box` shows the crop itself. A browser without it shows, by `object-fit: cover` and `object-position`,
    the largest part of the crop's aspect ratio that lies nearest to the crop.
    """
    values = []
    for row in rows:
        left, top, right, bottom = _shares(row)
        across, down = right - left, bottom - top
        # The largest window of the crop's shape fills one side of the image.
        scale = 1 / max(across, down)
        declarations = {
            "aspect-ratio": f"{_width(row)} / {_height(row)}",
            "object-fit": "cover",
            "object-position": f"{_position(left, across, scale)} {_position(top, down, scale)}",
            "object-view-box": f"inset({_percent(top)} {_percent(1 - right)} {_percent(1 - bottom)} {_percent(left)})",
        }
        values.append(declarations | {"style": "; ".join(f"{name}: {value}" for name, value in declarations.items())})
    return values


def azure(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the answer of Azure Image Analysis 4.0 to `features=smartCrops`: the best crop of each aspect ratio."""
    best = {row["aspect_ratio"]: row for row in reversed(rows)}
    return {
        "modelVersion": "setcrop",
        "metadata": {"width": rows[0]["picture_width"], "height": rows[0]["picture_height"]},
        "smartCropsResult": {
            "values": [
                {
                    "aspectRatio": round(_width(row) / _height(row), 2),
                    "boundingBox": {"x": row["xmin"], "y": row["ymin"], "w": _width(row), "h": _height(row)},
                }
                for row in sorted(best.values(), key=rows.index)
            ]
        },
    }


def label_studio(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a Label Studio task whose prediction has a rectangle for each crop; see `LABEL_STUDIO_CONFIG`.

    `data.image` is the row's `source`: put the address in front under which Label Studio serves the files.
    """
    result = []
    for number, row in enumerate(rows, start=1):
        left, top, right, bottom = _shares(row)
        box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        result.append(
            {
                "id": f"crop{number}",
                "type": "rectanglelabels",
                "from_name": "crop",
                "to_name": "image",
                "original_width": row["picture_width"],
                "original_height": row["picture_height"],
                "image_rotation": 0,
                "score": row["score"],
                "value": {name: round(100 * share, 4) for name, share in box.items()}
                | {"rotation": 0, "rectanglelabels": ["crop"]},
            }
        )
    prediction = {"model_version": "setcrop", "score": max(row["score"] for row in rows), "result": result}
    return {"data": {"image": rows[0]["source"]}, "predictions": [prediction]}


def coco(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return COCO results, which `pycocotools` loads beside annotations of the same images (`loadRes`).

    Images have the numbers that `setcrop data convert --to coco` gives them, by their names. A COCO file that numbers
    them otherwise is met by the results of `setcrop evaluate --layout coco`.
    """
    edges = ("xmin", "ymin", "xmax", "ymax")
    return [coco_prediction(coco_image_id(row["source"]), [row[edge] for edge in edges], row["score"]) for row in rows]


FORMATS: dict[str, Callable[[Sequence[Row]], Any]] = {
    "sanity": sanity,
    "imgix": imgix,
    "thumbor": thumbor,
    "css": css,
    "azure": azure,
    "label-studio": label_studio,
    "coco": coco,
}
"""What `setcrop suggest --format` knows, by name; `setcrop crop --manifest-format` knows all but `coco`."""


def format_lines(name: str, images: Iterable[Sequence[Row]]) -> Iterator[str]:
    """Yield lines of text with images' crops in a format, each as soon as its image comes.

    A line per image: `{"photo": source, "crops": [...]}`, or for `azure` and `label-studio` their own form; Label
    Studio reads lists, so there all lines together are one; for `coco` all lines together are one list of results.

    Args:
        name: A key of `FORMATS`.
        images: The rows of each image, at least one.
    """
    as_list, first = name in ("label-studio", "coco"), True
    for rows in images:
        value = FORMATS[name](rows)
        if name == "coco":
            yield ("[" if first else ",") + ",\n".join(map(json.dumps, value))
            first = False
            continue
        line = json.dumps({"photo": rows[0]["source"], "crops": value} if isinstance(value, list) else value)
        yield ("[" if first else ",") + line if as_list else line
        first = False
    if as_list:
        yield "[]" if first else "]"


def write_formatted(path: Path, rows: Iterable[Row], name: str) -> None:
    """Write every image's crops in a format.

    Args:
        path: The file.
        rows: Rows of many images, those of one together.
        name: A key of `FORMATS`.

    Raises:
        ImageFileError: The file cannot be written.
    """
    images = (list(group) for _, group in itertools.groupby(rows, key=lambda row: row["source"]))
    with atomic_writer(path) as file:
        for line in format_lines(name, images):
            file.write(line.encode() + b"\n")


def _width(row: Row) -> int:
    return row["xmax"] - row["xmin"]


def _height(row: Row) -> int:
    return row["ymax"] - row["ymin"]


def _shares(row: Row) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the crop as shares of the image."""
    width, height = row["picture_width"], row["picture_height"]
    return row["xmin"] / width, row["ymin"] / height, row["xmax"] / width, row["ymax"] / height


def _focus(row: Row) -> tuple[float, float]:
    """Return the focus point, moved into the crop where it lies outside: at least a tenth from its edges."""
    left, top, right, bottom = _shares(row)
    x_margin, y_margin = (right - left) / 10, (bottom - top) / 10
    return (
        min(max(row["focus_x"], left + x_margin), right - x_margin),
        min(max(row["focus_y"], top + y_margin), bottom - y_margin),
    )


def _position(start: float, length: float, scale: float) -> str:
    """`object-position` along one axis of a window `scale` times a crop, centred on it as far as the image allows."""
    window = min(1.0, length * scale)
    if window > 1 - 1e-9:
        return "50%"
    begin = min(max(start + (length - window) / 2, 0.0), 1 - window)
    return _percent(begin / (1 - window))


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def _round(share: float) -> float:
    return round(max(share, 0.0), 5)
