"""Trains SetCrop with transformers' own Trainer, for those who have a Trainer set-up already.

    python examples/train_with_trainer.py --data DIR --layout gaic --model START --output_dir OUT [--epochs 10]

The model computes its own loss from `labels`, so the Trainer needs no more than a data set and a collator. Batches by
aspect ratio, augmentation, the momentum teacher, averaged weights and exact normalisation over accumulated batches are
the work of `setcrop train`. Of the layout `editor` training shows views, drawn afresh every epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, Trainer, TrainerCallback, TrainerState, TrainingArguments

from modeling_setcrop import SetCropForImageCropping
from modeling_setcrop.data import LAYOUTS, load, with_validation
from modeling_setcrop.data.any_box_rating import CropLabels
from modeling_setcrop.data.collation import CropCollator, CropDataset, Draw, batches_of_one_size, read_image
from modeling_setcrop.data.crop_views import ViewChoices
from modeling_setcrop.image_processing_pil_setcrop import resized_size
from modeling_setcrop.training.initialization import load_model, load_processor


class RowCollator:
    """Encode rows of the crop data sets into one batch."""

    def __init__(self, processor: BaseImageProcessor, sources: list[str] | None = None) -> None:
        self.processor = processor
        self.views = CropCollator(processor, sources=sources)

    def __call__(self, rows: list[dict]) -> dict:
        if rows[0] is None or "drawn" in rows[0]:
            batch = self.views(rows)
            del batch["indices"]
            return batch
        images = [read_image(row["image"], self.processor.size.shortest_edge) for row in rows]
        annotations = []
        for row, image in zip(rows, images, strict=True):
            # The copy is smaller than the image in whose pixels the boxes are.
            scale = np.tile([image.image.width / row["width"], image.image.height / row["height"]], 2)
            boxes = (np.asarray(row["boxes"]) * scale).tolist()
            annotations.append({"boxes": boxes, "scores": row["scores"], "good": row["good"]})
        images = [image.image for image in images]
        return dict(self.processor(images=images, annotations=annotations, return_tensors="pt"))


class Views(torch.utils.data.Dataset):
    """Views of the images of a data set in the layout `editor`, others in every epoch."""

    def __init__(self, rows: Dataset, processor: BaseImageProcessor, seed: int) -> None:
        labels = [CropLabels.from_dict(labels) for labels in rows["crop_labels"]]
        self.choices = ViewChoices(labels, rows["height"][:], rows["width"][:], seed)
        self.images = CropDataset(rows, augment=True, resample=processor.resample)
        self.processor, self.seed, self.epoch = processor, seed, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict | None:
        view, edges = self.choices.choose(self.epoch, index), self.processor.size
        size = resized_size(
            (view.height, view.width), edges.shortest_edge, edges.longest_edge, self.processor.size_divisor
        )
        seed = int(np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0])
        return self.images[Draw(index, size, size, seed, view)]


class NextViews(TrainerCallback):
    """Tells the views which epoch it is."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        self.views.epoch = int(state.epoch)


class CropTrainer(Trainer):
    """A Trainer that evaluates images of one size together, because padding changes what a model answers."""

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        if isinstance(eval_dataset, str):
            rows = self.eval_dataset[eval_dataset]
        else:
            rows = self.eval_dataset if eval_dataset is None else eval_dataset
        edges, divisor = self.processing_class.size, self.processing_class.size_divisor
        sides = zip(rows["height"], rows["width"], strict=True)
        sizes = [resized_size(side, edges.shortest_edge, edges.longest_edge, divisor) for side in sides]
        batches = batches_of_one_size(sizes, self.args.eval_batch_size)
        return self.accelerator.prepare(
            DataLoader(rows, batch_sampler=batches, collate_fn=self.data_collator, num_workers=0)
        )

    get_test_dataloader = get_eval_dataloader


def make_trainer(
    model: SetCropForImageCropping,
    processor: BaseImageProcessor,
    train: Dataset,
    validation: Dataset,
    compute_metrics: Callable | None = None,
    **options: object,
) -> Trainer:
    """Return a Trainer for a SetCrop model; `options` are `TrainingArguments`.

    With `compute_metrics`, set `eval_do_concat_batches=False`: labels differ in length from image to image.
    """
    arguments = TrainingArguments(
        remove_unused_columns=False,
        label_names=["labels"],
        max_grad_norm=0.1,
        **options,
    )
    undecoded = ImageFeature(decode=False)
    shown, callbacks = train.cast_column("image", undecoded), []
    if "crop_labels" in train.column_names and all(train["crop_labels"]):
        shown = Views(train, processor, arguments.seed)
        callbacks = [NextViews(shown)]
    return CropTrainer(
        model=model,
        args=arguments,
        data_collator=RowCollator(processor, model.config.rating_sources),
        train_dataset=shown,
        callbacks=callbacks,
        eval_dataset=validation.cast_column("image", undecoded),
        processing_class=processor,
        compute_metrics=compute_metrics,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run; ends with status 2, and a line that says why, where the data or the checkpoint cannot be used."""
    parser = argparse.ArgumentParser(description="Trains SetCrop with transformers' Trainer.")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--layout", default="gaic", choices=list(LAYOUTS))
    parser.add_argument("--model", required=True, help="checkpoint to start from")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4)
    options = parser.parse_args(arguments)
    try:
        splits = with_validation(load(options.layout, options.data))
        for name in ("train", "validation"):
            if name not in splits or not len(splits[name]):
                raise ValueError(f"{options.data}: the split {name!r} has no images")
        model, processor = load_model(options.model), load_processor(options.model)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    trainer = make_trainer(
        model,
        processor,
        splits["train"],
        splits["validation"],
        output_dir=options.output_dir,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.lr,
        eval_strategy="epoch",
        report_to="none",
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
