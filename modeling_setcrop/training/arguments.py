"""What a training run can be told, on the command line or in a YAML file."""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

logger = logging.getLogger(__name__)

# Of `data.LAYOUTS`, by name: the help is shown without importing what reads them, nor torch and transformers.
LAYOUT_NAMES = (
    "gaic", "cpc", "flms", "fcdb", "editor", "folder", "coco", "imagefolder", "saved", "label-studio", "cvat",
)  # fmt: skip
SCHEDULES = ("step", "cosine")
PRECISIONS = ("no", "fp16", "bf16")

# Names of options before they were those of transformers' `TrainingArguments`; understood for one more version.
_OLD_NAMES = {
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "lr": "learning_rate",
    "clip": "max_grad_norm",
    "log_every": "logging_steps",
    "lr_scheduler": "lr_scheduler_type",
    "num_workers": "dataloader_num_workers",
    "metric_for_best": "metric_for_best_model",
    "checkpointing_steps": "save_steps",
    "checkpoints_total_limit": "save_total_limit",
}

_AT_LEAST_ONE = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_long_side",
    "eval_short_side",
    "eval_long_side",
    "max_train_samples",
    "max_eval_samples",
    "eval_every",
    "logging_steps",
    "save_steps",
    "save_total_limit",
)


def _option(default: object, help: str, **metadata: object) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class CropTrainingArguments:
    """A training run. The defaults are the paper's (section 4.3), for GAIC, except for the batch size.

    Raises:
        ValueError: a field is missing or out of its range; the message names it.
    """

    data: str = _option("", "Folder of the data set.")
    layout: str = _option(
        "gaic",
        f"How the data set lies in its folder: {', '.join(LAYOUT_NAMES)}. Of editor, views of the images and boxes of "
        "every kind in them are drawn afresh every epoch, and rated by the labels (docs/editor-layout.md).",
    )
    rating_scale: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest rating that people could give, where that is not 1 5 nor said in the data."
        },
    )
    model_name_or_path: str = _option(
        "",
        "What to start from: a SetCrop or Conditional DETR checkpoint (folder or Hub name), or a folder with only a "
        "config.json (and a preprocessor_config.json), for random weights.",
    )
    config_overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "Fields of the model's config to change, as name=value (label_smoothing=none, say)."},
    )
    output_dir: str = _option("", "Where the model, its checkpoints and the log are written.")

    num_train_epochs: int = _option(50, "Epochs to train.")
    max_steps: int | None = _option(None, "Stop after this many optimiser steps, whatever the epochs say.")
    per_device_train_batch_size: int = _option(16, "Images in a batch of one process.")
    gradient_accumulation_steps: int = _option(1, "Batches to one optimiser step.")
    learning_rate: float = _option(1e-4, "Learning rate.")
    lr_backbone: float = _option(1e-5, "Learning rate of the backbone.")
    weight_decay: float = _option(1e-4, "Weight decay of AdamW.")
    lr_scheduler_type: str = _option("step", f"Schedule of the learning rate: {', '.join(SCHEDULES)}.")
    lr_drop_epochs: list[int] = field(
        default_factory=lambda: [40],
        metadata={"help": "Epochs after which the step schedule divides the rate by ten."},
    )
    warmup_steps: int = _option(0, "Optimiser steps of linear warm-up.")
    max_grad_norm: float = _option(0.1, "Largest norm of the gradient.")
    freeze_backbone_stages: int = _option(
        0, "Keep the backbone's stem and first K stages as they are; 0: train all; -1: none."
    )
    distillation_start_epoch: int = _option(
        40, "With label_smoothing=distillation: epochs before the teacher's validities join the labels."
    )
    ema_decay: float | None = _option(None, "Evaluate and save an average of the weights with this decay a step.")
    seed: int = _option(0, "Seed of the order, the augmentation and dropout.")

    mixed_precision: str | None = _option(
        None, f"Arithmetic of the forward pass ({', '.join(PRECISIONS)}); what `accelerate launch` says if not given."
    )
    torch_compile: bool = _option(False, "Compile the model with torch.compile, on a CPU for many minutes.")

    train_short_sides: list[int] | None = field(
        default=None,
        metadata={"help": "Short sides in pixels, one drawn for each batch; the image processor's own if not given."},
    )
    max_long_side: int | None = _option(None, "Largest long side in training; the image processor's own if not given.")
    eval_short_side: int | None = _option(
        None, "Short side at which the model is validated, and with which its image processor is saved."
    )
    eval_long_side: int | None = _option(None, "Largest long side, likewise.")
    max_train_samples: int | None = _option(None, "Use the first so many training images.")
    max_eval_samples: int | None = _option(None, "Use the first so many validation images.")
    dataloader_num_workers: int = _option(1, "Processes that decode images; 0 decodes in the training process.")

    eval_every: int = _option(1, "Epochs between validations.")
    eval_on_start: bool = _option(
        False, "Validate the model before the first step, too: where training makes none better, it stays."
    )
    metric_for_best_model: str = _option(
        "loss", "Which validation figure chooses the best model: loss (lower) or a metric (higher)."
    )
    logging_steps: int = _option(50, "Optimiser steps between two lines of the log.")
    save_steps: int | None = _option(None, "Optimiser steps between checkpoints, beside one at each epoch's end.")
    save_total_limit: int = _option(1, "How many checkpoints are kept.")
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "Trackers that get the log's figures: tensorboard, trackio, ..."}
    )
    profile: bool = _option(False, "Log the share of time in data, forward, loss, backward and optimiser.")
    push_to_hub: bool = _option(False, "Upload the best model at the end.")
    hub_model_id: str | None = _option(None, "Repository to upload to; the name of output_dir if not given.")
    resume_from_checkpoint: str | None = _option(
        None, "A checkpoint's folder, or 'latest' for the newest in output_dir."
    )

    def __post_init__(self) -> None:
        for name in ("data", "model_name_or_path", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given")
        for name, choices in (
            ("layout", LAYOUT_NAMES),
            ("lr_scheduler_type", SCHEDULES),
            ("mixed_precision", (*PRECISIONS, None)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(filter(None, choices))}"
                )
        for name in _AT_LEAST_ONE:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in (
            "learning_rate",
            "lr_backbone",
            "weight_decay",
            "warmup_steps",
            "dataloader_num_workers",
            "distillation_start_epoch",
        ):
            if not getattr(self, name) >= 0:  # nor not a number
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}; it must be positive")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be between 0 and 1")
        if self.train_short_sides is not None and (not self.train_short_sides or min(self.train_short_sides) < 32):
            raise ValueError(f"train_short_sides is {self.train_short_sides}; each must be at least 32 pixels")


def _new_name(name: str) -> str:
    if name not in _OLD_NAMES:
        return name
    logger.warning("the option %s is called %s now; the old name goes with the next version", name, _OLD_NAMES[name])
    return _OLD_NAMES[name]


def _with_new_names(argv: Sequence[str]) -> list[str]:
    """Return the command line with old options by their new names."""
    renamed = []
    for part in argv:
        option, equals, value = part.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        renamed.append(
            f"--{_new_name(name)}{equals}{value}" if option.startswith("--") and name in _OLD_NAMES else part
        )
    return renamed


def _read_yaml(path: Path, known: set[str]) -> dict[str, object]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a table of options, one 'name: value' a line")
    values = {_new_name(name): value for name, value in values.items()}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path}: unknown option {name!r}{hint}")
    return values


def _checked(values: dict[str, object], path: Path) -> dict[str, object]:
    """Return a file's values as the command line would read them; nothing is left as it is by default."""
    parser = option_parser()

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{path}: {message}")

    parser.error = refuse  # type: ignore[method-assign]
    defaults = vars(parser.parse_args([]))
    checked: dict[str, object] = {}
    for name, value in values.items():
        if value is None:
            if defaults[name] is not None:
                raise ValueError(f"{path}: {name} has no value")
            continue
        if isinstance(value, bool):
            # YAML reads a bare yes or no as a boolean.
            value = "yes" if value else "no"
        if value == []:
            checked[name] = value
            continue
        words = [str(part) for part in (value if isinstance(value, list) else [value])]
        checked[name] = vars(parser.parse_args([f"--{name}", *words]))[name]
    return checked


def option_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Make the command line's options, one a field, as `transformers.HfArgumentParser` does (which takes seconds)."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Trains a SetCrop model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    types = get_type_hints(CropTrainingArguments)
    for option in fields(CropTrainingArguments):
        default = option.default if option.default_factory is MISSING else option.default_factory()
        flags = dict.fromkeys((f"--{option.name}", f"--{option.name.replace('_', '-')}"))
        parser.add_argument(*flags, default=default, help=option.metadata["help"], **_reading(types[option.name]))
    parser.add_argument("--config", type=Path, help="YAML file with any of these options.")
    return parser


def _reading(kind: Any) -> dict[str, Any]:
    """How argparse reads a field of a type, which may be None: a value, a list of values, or a flag."""
    kind = (
        next((part for part in get_args(kind) if part is not NoneType), kind) if isinstance(kind, UnionType) else kind
    )
    if kind is bool:
        return {"type": _read_bool, "nargs": "?", "const": True}
    if get_origin(kind) is list:
        return {"type": get_args(kind)[0], "nargs": "+"}
    return {"type": kind}


def _read_bool(text: str | bool) -> bool:
    if isinstance(text, bool):
        return text
    words = {"yes": True, "true": True, "t": True, "y": True, "1": True}
    words |= {"no": False, "false": False, "f": False, "n": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")
    return words[text.lower()]


def parse_arguments(argv: Sequence[str], prog: str | None = None) -> CropTrainingArguments:
    """Read the command line; `--config FILE` gives values in YAML, which options on the command line override.

    Raises:
        ValueError: the YAML file is broken, or has an option that does not exist, or a value is out of its range.
        FileNotFoundError: the YAML file does not exist.
        SystemExit: the command line itself is wrong (argparse has printed why), or asked for help.
    """
    argv = _with_new_names(argv)
    parser = option_parser(prog)
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config", type=Path)
    path = config.parse_known_args(argv)[0].config
    if path is not None:
        values = _read_yaml(path, {f.name for f in fields(CropTrainingArguments)})
        parser.set_defaults(**_checked(values, path))
    options = vars(parser.parse_args(argv))
    options.pop("config")
    return CropTrainingArguments(**options)
