"""Trains SetCrop with transformers' own Trainer, for those who have a Trainer set-up already.

    python examples/train_with_trainer.py --data DIR --layout gaic --model START --output_dir OUT [--epochs 10]

The model computes its own loss from `labels`, so the Trainer needs no more than a data set and a collator. Batches by
aspect ratio, the momentum teacher, averaged weights and exact normalisation over accumulated batches are the work of
`setcrop train`.
"""

from __future__ import annotations

import argparse

from datasets import Dataset
from transformers import BaseImageProcessor, Trainer, TrainingArguments

from modeling_setcrop import SetCropForImageCropping
from modeling_setcrop.data import LAYOUTS, load
from modeling_setcrop.training.initialization import load_model, load_processor


class RowCollator:
    """Encodes rows of the crop data sets into one batch."""

    def __init__(self, processor: BaseImageProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict:
        return dict(
            self.processor(
                images=[row["image"].convert("RGB") for row in rows],
                annotations=[{key: row[key] for key in ("boxes", "scores", "good")} for row in rows],
                return_tensors="pt",
            )
        )


def make_trainer(
    model: SetCropForImageCropping,
    processor: BaseImageProcessor,
    train: Dataset,
    validation: Dataset,
    **options: object,
) -> Trainer:
    """A Trainer for a SetCrop model; `options` are `TrainingArguments`."""
    arguments = TrainingArguments(
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        max_grad_norm=0.1,
        **options,
    )
    return Trainer(
        model=model,
        args=arguments,
        data_collator=RowCollator(processor),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains SetCrop with transformers' Trainer.")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--layout", default="gaic", choices=list(LAYOUTS))
    parser.add_argument("--model", required=True, help="checkpoint to start from")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4)
    options = parser.parse_args()
    splits = load(options.layout, options.data)
    trainer = make_trainer(
        load_model(options.model),
        load_processor(options.model),
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
