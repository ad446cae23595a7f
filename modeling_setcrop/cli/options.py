"""Options that the subcommands share, and what they all do with paths, errors and the model."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from .. import Cropper
    from ..crop_options import CropOptions
    from ..image_reading import ImageFileError
    from ..runs.content import Content
    from ..runs.sources import Source

Paths = Annotated[
    list[Path], typer.Argument(metavar="IMAGE|FOLDER...", help="Images, and folders searched recursively.")
]
Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or name on the Hub; by default the one that comes with SetCrop.")
]
Device = Annotated[str | None, typer.Option(help='Where the model runs: "cpu", "cuda:0", ...')]
Runtime = Annotated[
    Literal["torch", "onnx", "onnx-int8"] | None,
    typer.Option(help="What runs the model; by default onnx where the checkpoint has graphs for it, else torch."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with --model; it is not run otherwise.")
]
Tightness = Annotated[
    Literal["loose", "default", "tight"],
    typer.Option(help="How tight crops are, for models that learned it from several sources."),
]
CropFormat = Annotated[
    Literal["sanity", "imgix", "thumbor", "css", "azure", "label-studio", "coco"] | None,
    typer.Option("--format", help="Crops as another system writes them, a JSON line per image."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images of one shape in one forward pass; by default 8 on a GPU, 1 on the CPU."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads to read and judge, as many to write; by default one a processor.")
]


# What is asked of crops, by the names of `CropOptions`, with the defaults; `content` is for single images.
_SELECTION: dict[str, tuple[Any, Any]] = {
    "top_k": (Annotated[int, typer.Option(min=1, help="At most so many crops, of each aspect ratio.")], 5),
    "aspect_ratio": (
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="RATIOS",
                help='Width to height, exact to one pixel: "16:9", "1.91", "square", "original", or several '
                "with commas. May be repeated.",
            ),
        ],
        None,
    ),
    "width": (
        Annotated[
            int | None, typer.Option(min=1, help="Width in pixels at which crops are shown; files are no wider.")
        ],
        None,
    ),
    "height": (Annotated[int | None, typer.Option(min=1, help="Pixels down; with --width the aspect ratio.")], None),
    "threshold": (Annotated[float, typer.Option(min=0, max=1, help="Only crops with a probability above this.")], 0.0),
    "nms_iou": (
        Annotated[float, typer.Option(min=0, max=1, help="Of crops overlapping by more than this the better stays.")],
        0.8,
    ),
    "diversity": (
        Annotated[
            float | None,
            typer.Option(min=0, max=1, help="Instead of --nms-iou: 0 looks at scores only, 1 at overlap only."),
        ],
        None,
    ),
    "as_set": (
        Annotated[
            bool,
            typer.Option("--as-set", help="Instead of --nms-iou: crops most probable to hold the one you would pick."),
        ],
        False,
    ),
    "min_area": (Annotated[float | None, typer.Option(min=0, max=1, help="Least share of the image.")], None),
    "max_area": (Annotated[float | None, typer.Option(min=0, max=1, help="Largest share of the image.")], None),
    "min_size": (
        Annotated[str | None, typer.Option(metavar="PIXELS|WxH", help="Least width and height of a crop.")],
        None,
    ),
    "keep": (
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="X1,Y1,X2,Y2|X,Y|faces",
                help="Not to be cut; with a weight 0..1 behind it a wish. May be repeated.",
            ),
        ],
        None,
    ),
    "avoid": (
        Annotated[list[str] | None, typer.Option(metavar="X1,Y1,X2,Y2", help="Box to leave out; may be repeated.")],
        None,
    ),
    "content": (
        Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="JSON lines with what to keep and avoid in each image, with weights."),
        ],
        None,
    ),
    "follow_orientation": (
        Annotated[
            bool, typer.Option("--follow-orientation", help="Turn aspect ratios with the image: 5:4 or, upright, 4:5.")
        ],
        False,
    ),
    "best_of": (
        Annotated[
            list[str] | None,
            typer.Option(metavar="RATIOS", help="Of these aspect ratios the best crops over all, not of each."),
        ],
        None,
    ),
    "trim": (Annotated[bool, typer.Option("--trim", help="Leave out bars, mats and passepartouts first.")], False),
    "strict": (Annotated[bool, typer.Option("--strict", help="Fail rather than let a constraint give way.")], False),
    "tightness": (Tightness, "default"),
}
# So many images take no longer than readying the graphs for more does.
_FEW = 4
FACES = "faces"
"""What `--keep` is given to keep faces."""


class UsageError(Exception):
    """A wrong option; the message is one line."""


def fail(message: str) -> typer.Exit:
    """Print one line on stderr; raise what this returns to end with status 1."""
    print(message, file=sys.stderr)
    return typer.Exit(1)


@contextmanager
def failing(command: str, *errors: type[Exception]) -> Iterator[None]:
    """End the command with one line on stderr, and status 1, where one of these errors comes up."""
    try:
        yield
    except errors as error:
        raise fail(f"setcrop {command}: {error}") from None


def check_address(host: str, port: int) -> None:
    """Find out whether a server can listen there, before its model is loaded.

    Raises:
        UsageError: It cannot.
    """
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        # Python repeats the address.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UsageError(f"--host {host} --port {port}: cannot listen there ({reason}); give another one") from None


def report(error: ImageFileError) -> None:
    """One line on stderr about one image."""
    print(f"setcrop: {error}", file=sys.stderr)


_Command = TypeVar("_Command", bound=Callable[..., Any])


def asks_for_crops(**defaults: Any) -> Callable[[_Command], _Command]:
    """Decorate a command whose last parameter is `**asked`: it has the options that say which crops are asked for.

    They stand before `--model` and how it is run, and are read from the context by [`selection_options`] and
    [`content_options`].

    Args:
        defaults: Of the options where they are others than in the table.
    """

    def add_options(command: _Command) -> _Command:
        signature = inspect.signature(command, eval_str=True)
        *own, _ = signature.parameters.values()
        place = next(i for i, parameter in enumerate(own) if parameter.name == "model")
        own[place:place] = [
            inspect.Parameter(
                name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=defaults.get(name, default), annotation=kind
            )
            for name, (kind, default) in _SELECTION.items()
        ]
        vars(command)["__signature__"] = signature.replace(parameters=own)  # what Typer reads
        return command

    return add_options


def _listed(texts: Iterable[str]) -> list[str]:
    """Return what an option lists that may be repeated, each time with several by commas."""
    return [part.strip() for text in texts for part in text.split(",")]


def selection_options(params: Mapping[str, Any]) -> CropOptions:
    """Return what is asked of crops, from a command's parameters.

    Args:
        params: Of the command's context; those that are no options of crops are left alone.

    Raises:
        UsageError: An option cannot be read or is out of range, naming it.
    """
    from ..crop_options import CropOptions

    given = {field.name: params.get(field.name) for field in fields(CropOptions)}
    options = {name: value for name, value in given.items() if value is not None and value != []}
    if "best_of" in options:
        if "aspect_ratio" in options:
            raise UsageError("give either --aspect-ratio or --best-of")
        options |= {"best_of": True, "aspect_ratio": _listed(options["best_of"])}
    elif "aspect_ratio" in options:
        ratios = _listed(options["aspect_ratio"])
        options["aspect_ratio"] = ratios[0] if len(ratios) == 1 else ratios
    if "min_size" in options:
        size = _numbers("--min-size", options["min_size"].replace("x", ","), (1, 2), int)
        options["min_size"] = size[0] if len(size) == 1 else size
    for name, counts in (("keep", (2, 3, 4, 5)), ("avoid", (4, 5))):
        texts = [text for text in options.get(name, []) if (name, text) != ("keep", FACES)]
        options[name] = [_numbers(f"--{name}", text, counts, float) for text in texts]
    try:
        return CropOptions.from_kwargs(**options)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def content_options(params: Mapping[str, Any]) -> Content:
    """Return what single images' crops must or had better keep and avoid, from a command's parameters.

    Raises:
        UsageError: The file cannot be read.
    """
    from ..runs.content import Content

    file = params.get("content")
    try:
        return Content.read(file, faces=FACES in (params.get("keep") or []))
    except OSError as error:
        raise UsageError(f"--content {file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"--content {error}") from None


def report_unmatched(wishes: Content, sources: Iterable[Source]) -> None:
    """One line on stderr about images that `--content` speaks of and nobody gave."""
    names = wishes.unmatched(sources)
    if names:
        of = f"{len(names)} of {len(wishes.by_name)}"
        print(f"setcrop: --content: {of} are no image here: {first_few(names)}", file=sys.stderr)


def first_few(names: Sequence[str]) -> str:
    """Return the first three names, and dots where there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _numbers(option: str, text: str, counts: tuple[int, ...], kind: type) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        expected = " or ".join(str(count) for count in counts)
        word = f'"{FACES}" or ' if option == "--keep" else ""
        raise UsageError(f"{option} {text!r}: expected {word}{expected} numbers with commas between them")
    return values


def load_cropper(
    model: str | None,
    device: str | None,
    runtime: Literal["torch", "onnx", "onnx-int8"] | None = None,
    trust_remote_code: bool = False,
    images: int | None = None,
) -> Cropper:
    """Return the cropper on torch or onnxruntime, its checkpoint read without progress bars.

    Args:
        model, device, runtime, trust_remote_code: The command's options.
        images: How many are to come, if known.

    Raises:
        UsageError: The checkpoint, the device or the runtime cannot be used.
    """
    from ..image_reading import lift_pixel_limit
    from ..runtime.cropper import Cropper

    lift_pixel_limit()
    try:
        few = images is not None and images <= _FEW
        return Cropper(model, runtime, device, trust_remote_code=trust_remote_code, few=few)
    except (ValueError, ImportError) as error:
        name = model or "that comes with SetCrop"
        reason = " ".join(str(error).split()).removeprefix(f"{name}: ")
        raise UsageError(f"cannot load the model {name}: {reason}") from None
