"""The training loop: Accelerate around the model, its data and its checkpoints."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import TorchDynamoPlugin, gather_object, send_to_device, set_seed
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import load, with_validation
from ..data.any_box_rating import CropLabels
from ..data.collation import AspectRatioBatchSampler, CropCollator, CropDataset
from ..data.crop_views import ViewChoices
from ..images.atomic import atomic_files, atomic_folder, sweep_parts
from ..modeling_setcrop import SetCropForImageCropping
from .arguments import CropTrainingArguments, parse_arguments
from .averaging import AveragedModel, moving_average
from .checkpointing import (
    CheckpointError,
    checkpoint_folder,
    cut_log,
    find_checkpoint,
    load_optimizer,
    load_weights,
    random_state,
    refuse_results_in,
    remove_old,
    restore_random_state,
    save_optimizer,
    save_random_states,
    save_weights,
)
from .evaluation import RATED_FIGURES, figure_key, is_better, validation_figures, validation_records
from .initialization import backbone_of, freeze_backbone_stages, load_model, load_processor, parse_overrides
from .publishing import prepare_repository, publish
from .record import write_training_record
from .teacher import label_with_teacher
from .timing import StepTimer

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is left."""


class Interrupted(TrainingError):
    """Training was asked to stop and has saved a checkpoint."""


def parameter_groups(model: torch.nn.Module, lr: float, lr_backbone: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: the backbone's and the rest (paper, section 4.3)."""
    backbone = {id(parameter) for parameter in backbone_of(model).parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in backbone], "lr": lr},
        {"params": [p for p in trainable if id(p) in backbone], "lr": lr_backbone},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, args: CropTrainingArguments, steps_per_epoch: int, total_steps: int) -> float:
    """Return what the base learning rates are multiplied by for optimiser step `step` (counted from 0)."""
    if step < args.warmup_steps:
        return (step + 1) / args.warmup_steps
    if args.lr_scheduler_type == "step":
        return 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in args.lr_drop_epochs)
    progress = (step - args.warmup_steps) / max(1, total_steps - args.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class CropTraining:
    """A training run: `CropTraining(args).train()`.

    The run writes into `args.output_dir`: the best model by validation, with its image processor and `metrics.json`,
    ready for `from_pretrained`; `checkpoint-STEP/`, the last state, to resume from; `log.jsonl`, a line of JSON for
    every `logging_steps` steps and every validation.

    Args:
        args: what to train and how.
        dataset: the splits, instead of reading `args.data`; only "train" and "validation" are used.

    Raises:
        ValueError: an empty split, an unknown metric, a checkpoint of another model (all `ValueError`s).
        HubError: with `push_to_hub`, the Hub cannot be written to; nothing was trained.
        TrainingError: the loss is not a number any more, or the disk is full.
        Interrupted: SIGINT or SIGTERM; everything is saved.
    """

    def __init__(self, args: CropTrainingArguments, dataset: DatasetDict | None = None) -> None:
        self.metric = figure_key(args.metric_for_best_model)
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.log_file = self.output_dir / "log.jsonl"
        self.accelerator = _accelerator(args)
        set_seed(args.seed, device_specific=True)
        self._load_rows(dataset)
        self.processor: Any = load_processor(args.model_name_or_path, args.eval_short_side, args.eval_long_side)
        self.resume_folder = self._folder_to_resume()
        model = load_model(str(self.resume_folder or args.model_name_or_path), parse_overrides(args.config_overrides))
        freeze_backbone_stages(model, args.freeze_backbone_stages)
        _freeze_untaught(model, subjects=self.train_labels is not None)
        backbone: Any = backbone_of(model)
        backbone.to(memory_format=torch.channels_last)
        self.raw_model = model
        optimizer = torch.optim.AdamW(
            parameter_groups(model, args.learning_rate, args.lr_backbone), weight_decay=args.weight_decay
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.teacher: AveragedModel | None = None
        self.timer = StepTimer(args.profile, self.accelerator.device)
        self.timer.watch(model.model)
        # Made after `prepare`, which gives every process the weights of the first.
        self.average = None if args.ema_decay is None else moving_average(model, 1 - args.ema_decay)

        self.sampler = self._sampler(self.train_rows, shuffle=True)
        self.train_loader = self._loader(self.train_rows, self.sampler, augment=True)
        ordered = self._sampler(self.validation_rows, shuffle=False)
        self.validation_loader = self._loader(self.validation_rows, ordered, augment=False)
        self.steps_per_epoch = -(-len(self.sampler) // args.gradient_accumulation_steps)
        self.total_steps = args.max_steps or args.num_train_epochs * self.steps_per_epoch
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, args, self.steps_per_epoch, self.total_steps)
        )
        self.step = 0
        self.epoch = 0
        self.batches_done = 0
        self.best: float | None = None
        self.stop_signal: int | None = None
        self.stopping = False

    def _load_rows(self, dataset: DatasetDict | None) -> None:
        """Open the data, and check that the splits have what the recipe needs."""
        args = self.args
        with self.accelerator.main_process_first():
            splits = load(args.layout, args.data, rating_scale=args.rating_scale) if dataset is None else dataset
            splits = with_validation(splits)
        self.train_rows = _split(splits, "train", args.max_train_samples, args.data)
        self.validation_rows = _split(splits, "validation", args.max_eval_samples, args.data)
        if self.metric in RATED_FIGURES and all(scores is None for scores in self.validation_rows["scores"]):
            raise ValueError(f"metric_for_best_model: {self.metric} needs ratings, and no validation image has any")
        self.train_labels = _crop_labels(self.train_rows, f"{args.data}: the split 'train'")
        validation_labels = _crop_labels(self.validation_rows, f"{args.data}: the split 'validation'")
        if (self.train_labels is None) != (validation_labels is None):
            raise ValueError(f"{args.data}: only one of the splits has labels that rate any box (crop_labels)")

    def _folder_to_resume(self) -> Path | None:
        """Return the checkpoint to go on from; refuse a folder with another run's where there is none."""
        if self.accelerator.is_main_process:
            sweep_parts(self.output_dir)
        self.accelerator.wait_for_everyone()
        name = self.args.resume_from_checkpoint
        folder = find_checkpoint(name, self.output_dir) if name else None
        if folder is None or not self._is_own(folder):
            refuse_results_in(self.output_dir)
        return folder

    def _is_own(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is of the run in the output folder, and not of another one."""
        return checkpoint.resolve().parent == self.output_dir.resolve()

    def train(self) -> dict[str, float]:
        """Train to the end and return the best validation's figures."""
        repository = self._prepare_repository()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.resume_folder is not None:
            self._resume(self.resume_folder)
        elif self.accelerator.is_main_process:
            self.log_file.unlink(missing_ok=True)
        if self.args.report_to:
            simple = {k: v for k, v in vars(self.args).items() if isinstance(v, int | float | str | bool)}
            self.accelerator.init_trackers("setcrop", config=simple)
        with self._stopping_on_signals():
            if self.args.eval_on_start and self.step == 0:
                self._validate()
            while self.step < self.total_steps:
                self._train_epoch()
                self.epoch, self.batches_done = self.epoch + 1, 0
                last = self.step >= self.total_steps
                if last or self.epoch % self.args.eval_every == 0:
                    self._validate()
                self._checkpoint()
        if not (self.output_dir / "metrics.json").is_file():
            raise CheckpointError(f"{self.resume_folder}: its run is at its end, and there is nothing to train")
        best = json.loads((self.output_dir / "metrics.json").read_text())
        if self.accelerator.is_main_process:
            images = {"train": len(self.train_rows), "validation": len(self.validation_rows)}
            write_training_record(self.output_dir, self.args, images, self.step, best["step"])
            if repository is not None:
                publish(self.output_dir, repository)
        self.accelerator.end_training()
        return best

    # The epoch

    def _train_epoch(self) -> None:
        self.model.train()
        self._start_teacher()
        self.sampler.set_epoch(self.epoch, start=self.batches_done)
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=self.batches_done // self.args.gradient_accumulation_steps,
            desc=f"epoch {self.epoch + 1}",
            disable=None if self.accelerator.is_local_main_process else True,
        )
        log = _RunningLog()
        self.timer.mark(None)
        with bar:
            for batches in _grouped(self.train_loader, self.args.gradient_accumulation_steps):
                self.timer.mark("data")
                losses = self._optimizer_step(batches)
                self.timer.mark("optimizer")
                self.batches_done += len(batches)
                images = sum(len(batch["labels"]) for batch in batches) * self.accelerator.num_processes
                log.add(losses, images)
                bar.update()
                if self.step % self.args.logging_steps == 0:
                    figures = log.take(self.accelerator)
                    bar.set_postfix(loss=f"{figures['loss']:.3f}")
                    shares = self.timer.shares() if self.args.profile else {}
                    self._log({"lr": float(self.scheduler.get_last_lr()[0]), **figures, **shares})
                    self.timer.mark(None)
                if self.args.save_steps and self.step % self.args.save_steps == 0:
                    self._checkpoint()
                if self.stopping:
                    self._interrupt()
                if self.step >= self.total_steps:
                    break

    def _optimizer_step(self, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One optimiser step over the batches of a gradient accumulation; returns its mean losses."""
        crops, rated = self._agree_on_counts_and_stop(batches)
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                inputs = self._on_device(batch)
                if self.teacher is not None:
                    label_with_teacher(self.teacher, inputs)
                outputs = self.model(**inputs, num_good_crops=crops)
                losses = self._losses(outputs, batch, rated)
                if not torch.isfinite(losses["loss"]):
                    self._stop_on_bad_loss(losses["loss"], batch)
                self.timer.mark("loss")
                self.accelerator.backward(losses["loss"] / len(batches))
                self.timer.mark("backward")
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        for average in (self.average, self.teacher):
            if average is not None:
                average.update_parameters(self.raw_model)
        return sums

    def _start_teacher(self) -> None:
        config = self.raw_model.config
        due = config.label_smoothing == "distillation" and self.epoch >= self.args.distillation_start_epoch
        if due and self.teacher is None:
            self.teacher = moving_average(self.raw_model, config.distillation_momentum)

    def _losses(self, outputs: Any, batch: dict[str, Any], rated: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and its parts, those over rated images divided by `rated`, not by the batch's own number."""
        losses = dict(outputs.loss_dict)
        scoring = {name: losses[name] for name in self.raw_model.scoring_weights() if name in losses}
        scale = _rated_images([batch]) / rated
        losses |= {name: value * scale for name, value in scoring.items()}
        loss = outputs.loss + self.raw_model.scoring_loss(scoring) * (scale - 1)
        return {"loss": loss, **losses}

    def _agree_on_counts_and_stop(self, batches: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Good crops and rated images of the whole accumulated batch over all processes, in the mean of its batches.

        The mean, because the gradients of batches and processes are averaged. Processes agree on stopping in the same
        exchange.
        """
        crops = sum(len(label["boxes"]) for batch in batches for label in batch["labels"])
        own = [crops, _rated_images(batches), float(self.stop_signal is not None)]
        crops, rated, stop = self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), "mean")
        self.stopping = bool(stop > 0) if self.accelerator.num_processes > 1 else self.stop_signal is not None
        # Without a rated image there is nothing to divide.
        rated = torch.where(rated > 0, rated / len(batches), 1.0)
        return (crops / len(batches)).clamp(min=1), rated

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = send_to_device({k: v for k, v in batch.items() if k != "indices"}, self.accelerator.device)
        batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        return batch

    def _stop_on_bad_loss(self, loss: torch.Tensor, batch: dict[str, Any]) -> None:
        names = self.train_rows.select(batch["indices"].tolist())["image_id"]
        raise TrainingError(
            f"the loss is {loss.item()} at step {self.step + 1} (epoch {self.epoch + 1}), on the images "
            f"{', '.join(names)}; the last checkpoint in {self.output_dir} is from before"
        )

    # Validation and checkpoints

    def _validate(self) -> None:
        model = self.raw_model if self.average is None else self.average.module
        figures = self.evaluate(model)
        better = is_better(self.metric, figures[self.metric], self.best)
        if self.accelerator.is_main_process:
            self._log({f"validation_{name}": value for name, value in figures.items()}, self.epoch)
            told = ", ".join(f"{name} {value:.4g}" for name, value in _defined(figures).items() if name != "images")
            logger.info("epoch %d: %s%s", self.epoch, told, " (the best so far)" if better else "")
            if better:
                with _writing(self.output_dir), atomic_files(self.output_dir) as folder:
                    self._save_best(model, folder, figures)
        if better:
            self.best = figures[self.metric]

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Loss and metrics on the validation split; every image counts once, whatever the number of processes."""
        model.eval()
        records: list[dict[str, Any]] = []
        for batch in self.validation_loader:
            if batch is None:
                continue
            records.extend(validation_records(model, self._on_device(batch), batch["indices"], self.processor))
        if self.accelerator.num_processes > 1:
            records = gather_object(records)
        if not records:
            raise TrainingError("none of the validation images can be decoded")
        return validation_figures(records, self.validation_rows)

    def _save_best(self, model: Any, folder: Path, figures: dict[str, float]) -> None:
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        content = {"epoch": self.epoch, "step": self.step, **_defined(figures)}
        (folder / "metrics.json").write_text(json.dumps(content, indent=1))

    def _checkpoint(self) -> Path:
        """Save everything that the run needs to go on as if it had never stopped."""
        folder = checkpoint_folder(self.output_dir, self.step)
        states = [random_state()]
        if self.accelerator.num_processes > 1:
            states = gather_object(states)
        if self.accelerator.is_main_process:
            with _writing(folder), atomic_folder(folder) as work:
                self._save_state(work, states)
            remove_old(self.output_dir, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        return folder

    def _save_state(self, folder: Path, random_states: list[dict[str, torch.Tensor]]) -> None:
        self.raw_model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.average is not None:
            save_weights(self.average.module, folder / "average.safetensors")
        if self.teacher is not None:
            save_weights(self.teacher.module, folder / "teacher.safetensors")
        save_optimizer(self.optimizer, folder)
        save_random_states(random_states, folder)
        progress = {
            "step": self.step,
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "best": self.best,
            "steps_per_epoch": self.steps_per_epoch,
            "log_bytes": self.log_file.stat().st_size if self.log_file.is_file() else 0,
            "scheduler": {"last_epoch": self.scheduler.last_epoch, "last_lr": self.scheduler.get_last_lr()},
        }
        (folder / "progress.json").write_text(json.dumps(progress, indent=1))

    def _resume(self, folder: Path) -> None:
        progress = json.loads((folder / "progress.json").read_text())
        if progress["steps_per_epoch"] != self.steps_per_epoch:
            raise CheckpointError(
                f"{folder}: made with {progress['steps_per_epoch']} steps an epoch, not {self.steps_per_epoch}; "
                "resume with the same data, batch size, accumulation and number of processes"
            )
        try:
            load_optimizer(self.optimizer, folder)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{folder}: does not fit the model; resume with the same config ({reason})"
            ) from None
        if self.average is not None:
            load_weights(self.average.module, folder / "average.safetensors")
        if (folder / "teacher.safetensors").is_file():
            self.teacher = moving_average(self.raw_model, self.raw_model.config.distillation_momentum)
            load_weights(self.teacher.module, folder / "teacher.safetensors")
        self.step, self.epoch, self.batches_done = (progress[k] for k in ("step", "epoch", "batches_done"))
        # Another run's best model lies in its own folder.
        own = self._is_own(folder)
        self.best = progress["best"] if own else None
        self.scheduler.last_epoch = progress["scheduler"]["last_epoch"]
        self.scheduler._last_lr = progress["scheduler"]["last_lr"]
        restore_random_state(folder, self.accelerator.process_index)
        if self.accelerator.is_main_process:
            # Steps past the checkpoint are made again, and logged again. Another run's folder has another log.
            cut_log(self.log_file, progress.get("log_bytes", 0) if own else 0)
            logger.info("resuming from %s: epoch %d, step %d", folder, self.epoch + 1, self.step)

    def _log(self, figures: dict[str, float], epoch: int | None = None) -> None:
        """Write a line of the log, of an epoch counted from 1; by default the present one."""
        if self.accelerator.is_main_process:
            line = {"step": self.step, "epoch": self.epoch + 1 if epoch is None else epoch}
            with open(self.log_file, "a") as file:
                file.write(json.dumps({**line, **{k: round(v, 6) for k, v in _defined(figures).items()}}) + "\n")
        if self.args.report_to:
            # Some trackers take no @ in a name.
            self.accelerator.log({name.replace("@", "_"): value for name, value in figures.items()}, step=self.step)

    def _prepare_repository(self) -> str | None:
        """Return the repository to upload to, made before anything is trained; None where nothing is uploaded."""
        if not (self.args.push_to_hub and self.accelerator.is_main_process):
            return None
        return prepare_repository(self.args.hub_model_id or self.output_dir.resolve().name)

    # Interruption

    @contextlib.contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """Take the first SIGINT or SIGTERM as a wish to stop after the step; a second one acts as usual."""

        def ask(number: int, frame: object) -> None:
            self.stop_signal = number
            signal.signal(number, previous[number])

        previous: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _interrupt(self) -> None:
        folder = self._checkpoint()
        raise Interrupted(
            f"stopped by {signal.Signals(self.stop_signal or signal.SIGTERM).name} at step {self.step}; "
            f"go on with --resume_from_checkpoint {folder}"
        )

    # Data

    def _sampler(self, rows: Dataset, shuffle: bool) -> AspectRatioBatchSampler:
        size = self.processor.size
        sides = self.args.train_short_sides if shuffle else None
        long_side = self.args.max_long_side if shuffle else None
        return AspectRatioBatchSampler(
            rows["height"][:],
            rows["width"][:],
            self.args.per_device_train_batch_size,
            sides or [size["shortest_edge"]],
            long_side or size["longest_edge"],
            shuffle=shuffle,
            seed=self.args.seed,
            processes=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            size_divisor=self.processor.size_divisor,
            views=self._views(rows) if shuffle else None,
        )

    def _views(self, rows: Dataset) -> ViewChoices | None:
        if self.train_labels is None:
            return None
        return ViewChoices(self.train_labels, rows["height"][:], rows["width"][:], self.args.seed)

    def _loader(self, rows: Dataset, sampler: AspectRatioBatchSampler, augment: bool) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            CropDataset(rows, augment, self.processor.resample),
            batch_sampler=sampler,
            collate_fn=CropCollator(self.processor, augment, self.raw_model.config.rating_sources),
            # Its own generator: iterating must not draw from the one that dropout uses, or resuming would shift it.
            generator=torch.Generator(),
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=self.accelerator.device.type == "cuda",
        )


def run(argv: Sequence[str], prog: str) -> int:
    """Train as the command line says and return the exit status, after one line on stderr when something is wrong."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        training = CropTraining(parse_arguments(argv, prog))
        figures = training.train()
    except (ValueError, OSError, ImportError, TrainingError) as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if training.accelerator.is_main_process:
        logger.info("best model: %s", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return 0


def _warn_of_missing_processes(processes: int) -> None:
    """Say so where the launcher was asked for more processes than there are; `accelerate launch --cpu` starts one."""
    sizes = [
        os.environ.get(name, "") for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    ]
    asked = max((int(size) for size in sizes if size.isdigit()), default=1)
    # The launcher sets the address for several processes alone, and then starts one without a rank.
    one_of_several = "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ
    if processes == 1 and (asked > 1 or one_of_several):
        logger.warning(
            "one process trains, although the launcher was asked for %s; on CPUs start them with "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N",
            asked if asked > 1 else "several",
        )


def _accelerator(args: CropTrainingArguments) -> Accelerator:
    """Return what places the run on its devices and processes."""
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=_trackers(args.report_to) or None,
        project_dir=args.output_dir,
        dynamo_plugin=TorchDynamoPlugin(backend="inductor", dynamic=True) if args.torch_compile else None,
    )
    if accelerator.is_main_process:
        _warn_of_missing_processes(accelerator.num_processes)
    return accelerator


def _trackers(names: list[str]) -> list[str]:
    available = {getattr(tracker, "value", tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"report_to: no tracker {name!r}; there are {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in available:
            raise ValueError(f"report_to: {name} is not installed (pip install {name})")
    return names


def _freeze_untaught(model: SetCropForImageCropping, subjects: bool) -> None:
    """Freeze the parts that no label teaches: several processes would wait for their gradients.

    Faces are learned in a stage of their own; ratings alone would unlearn them.

    Args:
        subjects: whether the labels say where subjects are.
    """
    if model.config.subject_map:
        model.model.subject_map.requires_grad_(subjects)
    if model.config.face_finding:
        model.model.face_finder.requires_grad_(False)


def _crop_labels(rows: Dataset, source: str) -> list[CropLabels] | None:
    """Return the images' labels that rate any box; None where there are none.

    Raises:
        ValueError: some images have them and others do not.
    """
    found = rows["crop_labels"][:] if "crop_labels" in rows.column_names else []
    if not any(found):
        return None
    if not all(found):
        raise ValueError(f"{source} has images with labels that rate any box (crop_labels) and images without")
    return [CropLabels.from_dict(labels) for labels in found]


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Say of a disk's error what could not be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write {target}: {error}; what was saved before is unharmed") from error


def _defined(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures that are numbers: JSON knows no others."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _split(splits: DatasetDict, name: str, limit: int | None, source: str) -> Dataset:
    if name not in splits or not len(splits[name]):
        raise ValueError(f"{source}: the split {name!r} has no images; there are {', '.join(splits)}")
    rows = splits[name]
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _grouped(loader: DataLoader, size: int) -> Iterator[list[Any]]:
    """Consecutive groups of `size` batches; the last one may be smaller."""
    group = []
    for batch in loader:
        if batch is None:
            raise TrainingError("none of the training images can be decoded")
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _rated_images(batches: list[dict[str, Any]]) -> int:
    return sum(len(label["scores"]) > 0 for batch in batches for label in batch["labels"])


class _RunningLog:
    """Means of losses since the last line of the log; values stay on the device until then."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = 0
        self.images = 0
        self.since = time.perf_counter()

    def add(self, losses: dict[str, torch.Tensor], images: int) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.steps += 1
        self.images += images

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over steps and processes, and images per second; starts anew."""
        values = accelerator.reduce(torch.stack(list(self.sums.values())), "mean").tolist()
        seconds = time.perf_counter() - self.since
        figures = {name: value / self.steps for name, value in zip(self.sums, values, strict=True)}
        figures["images_per_second"] = self.images / seconds
        self.sums, self.steps, self.images, self.since = {}, 0, 0, time.perf_counter()
        return figures
