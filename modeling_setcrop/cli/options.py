"""Options that the subcommands share, and what they all do with paths, errors and the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from modeling_setcrop import ImageCroppingPipeline
    from modeling_setcrop.image_reading import ImageFileError

Paths = Annotated[
    list[Path], typer.Argument(metavar="PHOTO|FOLDER...", help="Photographs, and folders searched recursively.")
]
Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or name on the Hub; by default the one that comes with SetCrop.")
]
Device = Annotated[str | None, typer.Option(help='Where the model runs: "cpu", "cuda:0", ...')]
Runtime = Annotated[
    Literal["torch", "onnx", "onnx-int8"],
    typer.Option(help="What runs the model; onnx needs --model with a folder that `setcrop export onnx` wrote."),
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="At most so many crops, of each aspect ratio.")]
AspectRatio = Annotated[
    str | None,
    typer.Option(
        help='Width to height, exact to one pixel: "16:9", "1.91", "square", "original", or several with commas.'
    ),
]
Threshold = Annotated[float, typer.Option(min=0, max=1, help="Only crops with a probability above this.")]
NmsIou = Annotated[float, typer.Option(min=0, max=1, help="Of crops overlapping by more than this the better stays.")]
Diversity = Annotated[
    float | None, typer.Option(min=0, max=1, help="Instead of --nms-iou: 0 looks at scores only, 1 at overlap only.")
]
AsSet = Annotated[
    bool,
    typer.Option("--as-set", help="Instead of --nms-iou: crops most probable to hold the one you would pick."),
]
MinArea = Annotated[float | None, typer.Option(min=0, max=1, help="Least share of the picture.")]
MaxArea = Annotated[float | None, typer.Option(min=0, max=1, help="Largest share of the picture.")]
MinSize = Annotated[str | None, typer.Option(metavar="PIXELS|WxH", help="Least width and height of a crop.")]
Keep = Annotated[
    list[str] | None, typer.Option(metavar="X1,Y1,X2,Y2|X,Y", help="Box or point not to be cut; may be repeated.")
]
Avoid = Annotated[list[str] | None, typer.Option(metavar="X1,Y1,X2,Y2", help="Box to leave out; may be repeated.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail rather than let a constraint give way.")]
CropFormat = Annotated[
    Literal["sanity", "imgix", "thumbor", "css", "azure", "label-studio", "coco"] | None,
    typer.Option("--format", help="Crops as another system writes them, a JSON line a photograph."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Photographs of one shape in one forward pass; by default 8 on a GPU, 1 on the CPU."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads to read and judge, as many to write; by default one a processor.")
]


class UsageError(Exception):
    """A wrong option; the message is one line."""


def fail(message: str) -> typer.Exit:
    """Print one line on stderr; raise what this returns to end with status 1."""
    print(message, file=sys.stderr)
    return typer.Exit(1)


def report(error: ImageFileError) -> None:
    """One line on stderr about one photograph."""
    print(f"setcrop: {error}", file=sys.stderr)


def selection_options(
    *,
    top_k: int,
    aspect_ratio: str | None,
    threshold: float,
    nms_iou: float,
    diversity: float | None,
    as_set: bool,
    min_area: float | None,
    max_area: float | None,
    min_size: str | None,
    keep: list[str] | None,
    avoid: list[str] | None,
    strict: bool,
    width: int | None = None,
    height: int | None = None,
) -> dict[str, Any]:
    """The pipeline's options from the command's, checked as far as that goes without a picture.

    Raises:
        UsageError: An option cannot be read or is out of range, naming it.
    """
    ratios = [part.strip() for part in aspect_ratio.split(",")] if aspect_ratio else []
    options = {
        "top_k": top_k,
        "threshold": threshold,
        "nms_iou": nms_iou,
        "diversity": diversity,
        "as_set": as_set,
        "strict": strict,
        "aspect_ratio": None if not ratios else ratios[0] if len(ratios) == 1 else ratios,
        "width": width,
        "height": height,
        "min_area": min_area,
        "max_area": max_area,
        "min_size": _numbers("--min-size", min_size.replace("x", ","), (1, 2), int) if min_size else None,
        "keep": [_numbers("--keep", text, (2, 4), float) for text in keep or []],
        "avoid": [_numbers("--avoid", text, (4,), float) for text in avoid or []],
    }
    if options["min_size"] is not None and len(options["min_size"]) == 1:
        options["min_size"] = options["min_size"] * 2
    from modeling_setcrop.crop_selection import CropConstraints, parse_aspect_ratio

    try:
        for ratio in ratios or [None]:
            if ratio is not None:
                parse_aspect_ratio(ratio, (1, 1))
            bounds = {name: options[name] for name in ("width", "height", "min_area", "max_area", "min_size")}
            fixed = None if ratio in ("original", "free") else ratio
            CropConstraints.from_options((10**6, 10**6), aspect_ratio=fixed, **bounds)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return {name: value for name, value in options.items() if value not in (None, [], False)}


def _numbers(option: str, text: str, counts: tuple[int, ...], kind: type) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        expected = " or ".join(str(count) for count in counts)
        raise UsageError(f"{option} {text!r}: expected {expected} numbers with commas between them")
    return values


def load_cropper(model: str | None, device: str | None, runtime: str = "torch") -> ImageCroppingPipeline:
    """The pipeline, on torch or onnxruntime, its checkpoint read without progress bars.

    Raises:
        UsageError: The checkpoint, the device or the runtime cannot be used.
    """
    from transformers import pipeline
    from transformers.utils import logging

    from modeling_setcrop import DEFAULT_CHECKPOINT
    from modeling_setcrop.image_reading import lift_pixel_limit

    lift_pixel_limit()
    logging.disable_progress_bar()
    name = model or DEFAULT_CHECKPOINT
    try:
        if runtime != "torch":
            from modeling_setcrop.image_cropping_onnx import ImageCroppingOnnx

            if device not in (None, "cpu"):
                raise ValueError(f"--runtime {runtime} runs on the CPU, not on {device}")
            return ImageCroppingOnnx.from_pretrained(name, int8=runtime == "onnx-int8")
        return pipeline("image-cropping", model=name, device=device)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UsageError(f"cannot load the model {name}: {' '.join(str(error).split())}") from None
