"""Hard labels, quality guidance and self distillation (the paper's Tables 4, 5 and Fig. 6b), and the scoring head.

    python benchmarks/ablations.py --model CHECKPOINT --data DIR --output_dir runs/ablations

From a trained checkpoint, feature maps and encoder memories are computed once, for augmented training images as
`setcrop train` draws them and for the validation and test splits. From these every variant trains with every seed:

- label smoothings: a new validity head; decoder and box head train on, backbone and encoder stay as they are;
- set with and without a (new) scoring head: the encoder trains on too, because that is what the two tasks share.

With `--new_decoder` decoder and anchors are new as well, the anchors at k-means centres of the good crops; that takes
many more images to converge. A seed gives all variants the same order and first weights. The figures are those of
the last step on the test split, crops ranked by validity. A finished run is not repeated. Writes `ablations.json`,
`ablations.md` and, with matplotlib, `mu.png`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoImageProcessor
from transformers.utils import logging

from modeling_setcrop import SetCropConfig, SetCropForImageCropping, metrics
from modeling_setcrop.data import load
from modeling_setcrop.data.collation import AspectRatioBatchSampler, CropCollator, CropDataset
from modeling_setcrop.evaluation import Labels, Predictions, baselines
from modeling_setcrop.evaluation.tables import write_text
from modeling_setcrop.images.atomic import atomic_files
from modeling_setcrop.metrics import catalogue, functional
from modeling_setcrop.metrics.markdown import markdown_table
from modeling_setcrop.modeling_setcrop import SetCropEncoderOutput
from modeling_setcrop.training.averaging import moving_average
from modeling_setcrop.training.setcrop_lite import anchor_boxes
from modeling_setcrop.training.teacher import label_with_teacher

MUS = (0.1, 0.3, 0.5, 0.7, 0.9)
HEADS_MU = 0.5
# Distillation starts after four fifths of the training, as in the paper (40 of 50 epochs).
DISTILLATION_START = 0.8
WARM_UP = 0.1
VALIDATIONS = 4
SHOWN = [
    *(catalogue.average_precision_key(k, eps) for eps in catalogue.EPS for k in (10, 40)),
    catalogue.accuracy_key(5, 0.90),
]
MEASURES = {key: catalogue.MEASURES[key].label for key in SHOWN} | {"srcc": "SRCC of validity"}
HEAD_MEASURES = {"set_loss": "set loss"} | MEASURES | {"srcc_head": "SRCC of the head"}


class Variant(NamedTuple):
    """What is compared: fields of the model's config, and whether the encoder trains too."""

    config: dict[str, Any]
    trains_encoder: bool = False


# mu = 0 gives no anchor a soft label: it is the hard labels' run.
SMOOTHINGS = {
    "hard labels (mu 0)": Variant({"label_smoothing": "none"}),
    **{
        f"quality guidance, mu {mu}": Variant({"label_smoothing": "quality", "smoothing_upper_bound": mu})
        for mu in MUS
    },
    "self distillation": Variant({"label_smoothing": "distillation"}),
}
HEADS = {
    name: Variant({"label_smoothing": "quality", "smoothing_upper_bound": HEADS_MU, "crop_scoring": head}, True)
    for name, head in {"set alone": False, "set and scoring head": True}.items()
}
VARIANTS = SMOOTHINGS | HEADS


class Batch(NamedTuple):
    """Images as the backbone and the encoder see them.

    indices: (B,) rows of the split; maps: (B, C, h, w) of the backbone; encoded: the checkpoint's encoding.
    """

    indices: list[int]
    maps: torch.Tensor
    encoded: SetCropEncoderOutput
    labels: list[dict[str, torch.Tensor]]


class Cache:
    """Batches of one split in a file, read when asked for."""

    ENCODED = ("last_hidden_state", "feature_mask", "position_embeddings", "image_sizes")

    def __init__(self, file: Path) -> None:
        self.tensors = safe_open(file, "pt")
        self.length = 1 + max(int(name.partition(".")[0]) for name in self.tensors.keys())  # noqa: SIM118

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Batch:
        def read(name: str) -> torch.Tensor:
            value = self.tensors.get_tensor(f"{number}.{name}")
            return value.float() if value.dtype == torch.float16 else value

        good, rated = read("good_crops").tolist(), read("rated_crops").tolist()
        crops = zip(
            read("boxes").split(good), read("scored_boxes").split(rated), read("scores").split(rated), strict=True
        )
        labels = [{"boxes": boxes, "scored_boxes": places, "scores": scores} for boxes, places, scores in crops]
        encoded = SetCropEncoderOutput(**{name: read(name) for name in self.ENCODED})
        return Batch(read("indices").tolist(), read("maps"), encoded, labels)

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(len(self)))

    @classmethod
    @torch.no_grad()
    def write(
        cls, file: Path, model: SetCropForImageCropping, processor: Any, rows: Dataset, views: int | None
    ) -> None:
        """Compute the batches of `views` augmented draws, or without augmentation of every row once."""
        size = processor.size
        sampler = AspectRatioBatchSampler(
            rows["height"][:],
            rows["width"][:],
            16,
            [size["shortest_edge"]],
            size["longest_edge"],
            shuffle=views is not None,
        )
        draws = list(itertools.islice(sampler, None if views is None else -(-views // sampler.batch_size)))
        loader = torch.utils.data.DataLoader(
            CropDataset(rows, augment=views is not None, resample=processor.resample),
            batch_sampler=draws,
            collate_fn=CropCollator(processor),
            num_workers=1,
        )
        model.model.backbone.to(memory_format=torch.channels_last)
        tensors = {}
        for number, batch in enumerate(tqdm(loader, desc=file.stem, unit="batch")):
            labels = batch["labels"]
            maps = []
            hook = model.model.backbone.register_forward_hook(
                lambda module, inputs, output, maps=maps: maps.append(output[-1][0])
            )
            pixels = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
            encoded = model.model.encode(pixels, batch["pixel_mask"])
            hook.remove()
            values = {name: getattr(encoded, name) for name in cls.ENCODED} | {
                "maps": together(maps, batch["pixel_mask"], encoded.feature_mask)
            }
            half = ("maps", "last_hidden_state", "position_embeddings")
            values = {name: value.half() if name in half else value for name, value in values.items()}
            values |= {key: torch.cat([label[key] for label in labels]) for key in ("boxes", "scored_boxes", "scores")}
            values["good_crops"] = torch.tensor([len(label["boxes"]) for label in labels])
            values["rated_crops"] = torch.tensor([len(label["scores"]) for label in labels])
            values["indices"] = batch["indices"]
            tensors |= {f"{number}.{name}": value.contiguous() for name, value in values.items()}
        with atomic_files(file.parent) as work:
            save_file(tensors, work / file.name)


def new_model(
    options: argparse.Namespace, variant: Variant, seed: int, anchors: torch.Tensor
) -> SetCropForImageCropping:
    """Return the checkpoint, its backbone frozen, with new heads and, if asked for, a new decoder."""
    trained = SetCropForImageCropping.from_pretrained(options.model)
    heads = ("crop_scoring", "crop_scoring_detail", "face_finding", "rerank")
    fields = trained.config.to_dict() | dict.fromkeys(heads, False)
    torch.manual_seed(seed)
    model = SetCropForImageCropping(SetCropConfig.from_dict(fields | variant.config))
    new = ["class_labels_classifier", "crop_scorer"]
    if options.new_decoder:
        new += ["model.decoder", "model.query_position_embeddings", "bbox_predictor", "anchor_sizes"]
        if model.config.anchor_sizes:
            model.initialize_anchors(anchors)
    kept = {name: value for name, value in trained.state_dict().items() if not name.startswith(tuple(new))}
    model.load_state_dict(kept, strict=False)
    model.model.backbone.requires_grad_(False)
    if not variant.trains_encoder:
        model.model.input_projection.requires_grad_(False)
        model.model.encoder.requires_grad_(False)
    return model


def together(maps: list[torch.Tensor], pixel_mask: torch.Tensor, feature_mask: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) the backbone's maps, which the model makes of images of one size at a time, zero-padded."""
    sizes = torch.stack([pixel_mask.amax(2).sum(1), pixel_mask.amax(1).sum(1)], dim=1).tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(tuple(size), []).append(index)
    padded = maps[0].new_zeros((len(pixel_mask), maps[0].shape[1], *feature_mask.shape[1:]))
    for part, group in zip(maps, groups.values(), strict=True):
        padded[group, :, : part.shape[2], : part.shape[3]] = part
    return padded


def encode(model: SetCropForImageCropping, batch: Batch, variant: Variant) -> SetCropEncoderOutput:
    """Return the batch's encoding, by the model's own encoder where that trains."""
    encoded = batch.encoded
    if not variant.trains_encoder:
        return encoded
    hidden = model.model.encoder(
        inputs_embeds=model.model.input_projection(batch.maps).flatten(2).transpose(1, 2),
        attention_mask=encoded.feature_mask.flatten(1),
        spatial_position_embeddings=encoded.position_embeddings,
    )
    return SetCropEncoderOutput(**{**encoded, "last_hidden_state": hidden.last_hidden_state})


@torch.no_grad()
def evaluate(
    model: SetCropForImageCropping, processor: Any, variant: Variant, cache: Cache, labels: Labels
) -> dict[str, float]:
    """Return the measures of one split, average precisions and accuracies in percent."""
    model.eval()
    crops, validity, ratings = ([None] * len(labels) for _ in range(3))
    loss = total = 0.0
    for batch in cache:
        encoded = encode(model, batch, variant)
        outputs = model(encoder_outputs=encoded, labels=batch.labels, num_good_crops=1.0)
        loss += set_loss(outputs.loss_dict, model.config)
        total += sum(len(label["boxes"]) for label in batch.labels)
        found = processor.post_process_image_cropping(outputs, threshold=-1.0)
        for index, answer in zip(batch.indices, found, strict=True):
            crops[index], validity[index] = answer["boxes"].numpy(), answer["scores"].numpy()
        if model.config.crop_scoring:
            boxes = torch.nn.utils.rnn.pad_sequence([b["scored_boxes"] for b in batch.labels], batch_first=True)
            for index, row, label in zip(
                batch.indices, model.score_crops(boxes, encoded).numpy(), batch.labels, strict=True
            ):
                ratings[index] = row[: len(label["scores"])]
    figures = {"set_loss": loss / total, **measure(labels, Predictions(crops, validity))}
    if model.config.crop_scoring:
        figures["srcc_head"] = functional.mean_where_defined(metrics.spearman(ratings, labels.scores))
    return figures


def set_loss(losses: dict[str, torch.Tensor], config: SetCropConfig) -> float:
    """Return the weighted losses of the set, without the scoring head's."""
    weights = {
        "loss_ce": config.cls_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    return sum(
        weight * float(value)
        for part, weight in weights.items()
        for name, value in losses.items()
        if name.startswith(part)
    )


def measure(labels: Labels, answer: Predictions) -> dict[str, float]:
    """Average precision, accuracy (both in percent) and rank correlation of a set of crops."""
    crops = answer.boxes, answer.scores
    figures = {
        f"ap_{k}@{eps:.2f}": 100 * metrics.average_precision(*crops, labels.boxes, labels.good, eps, k)
        for eps in (0.85, 0.90)
        for k in (10, 40)
    }
    hits = metrics.accuracy(*crops, labels.boxes, labels.scores, 5, 0.90)
    ratings = metrics.overlap_scores(*crops, labels.boxes)
    figures["acc_1/5@0.90"] = 100 * float(hits.mean())
    figures["srcc"] = functional.mean_where_defined(metrics.spearman(ratings, labels.scores))
    return figures


def train(options: argparse.Namespace, name: str, seed: int) -> None:
    """Train one variant with one seed and write its figures."""
    variant, folder = VARIANTS[name], options.output_dir
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    caches = {split: Cache(folder / f"{split}.safetensors") for split in ("train", "validation", "test")}
    rows = load(options.layout, options.data)
    labels = {split: Labels.from_dataset(rows[split]) for split in ("validation", "test")}
    processor = AutoImageProcessor.from_pretrained(options.model)
    anchors = torch.tensor(json.loads((folder / "anchors.json").read_text()))
    model = new_model(options, variant, seed, anchors)
    order = np.random.default_rng(seed)
    batches = np.concatenate([order.permutation(len(caches["train"])) for _ in range(options.epochs)])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=options.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, len(batches), pct_start=WARM_UP)
    validate_after = {round(len(batches) * part / VALIDATIONS) for part in range(1, VALIDATIONS + 1)}
    teacher = None
    validation, began = [], time.perf_counter()
    torch.manual_seed(seed)
    for step, number in enumerate(batches.tolist(), 1):
        batch = caches["train"][number]
        inputs = {"encoder_outputs": encode(model.train(), batch, variant), "labels": batch.labels}
        if model.config.label_smoothing == "distillation" and step > DISTILLATION_START * len(batches):
            teacher = teacher or moving_average(model, model.config.distillation_momentum)
            label_with_teacher(teacher, inputs)
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, options.clip)
        optimizer.step()
        schedule.step()
        if teacher is not None:
            teacher.update_parameters(model)
        if step in validate_after:
            figures = evaluate(model, processor, variant, caches["validation"], labels["validation"])
            validation.append({"step": step, **figures})
    result = {
        "variant": name,
        "seed": seed,
        "steps": len(batches),
        "seconds": round(time.perf_counter() - began, 1),
        "validation": validation,
        "test": evaluate(model, processor, variant, caches["test"], labels["test"]),
    }
    write_text(run_file(folder, name, seed), json.dumps(result, indent=1) + "\n")


def run_file(folder: Path, name: str, seed: int) -> Path:
    plain = "-".join("".join(c if c.isalnum() or c == "." else " " for c in name).split())
    return folder / "runs" / f"{plain}-seed{seed}.json"


def prepare(options: argparse.Namespace, rows: dict[str, Dataset]) -> None:
    """Write the caches that are not there yet; refuse a folder that was made with other options."""
    folder = options.output_dir
    kept = ("model", "data", "views", "epochs", "lr", "clip", "new_decoder")
    settings = {name: getattr(options, name) for name in kept}
    if (folder / "settings.json").is_file() and json.loads((folder / "settings.json").read_text()) != settings:
        raise SystemExit(f"{folder} was made with other options, see its settings.json; give another --output_dir")
    write_text(folder / "settings.json", json.dumps(settings, indent=1) + "\n")
    model = SetCropForImageCropping.from_pretrained(options.model).eval()
    processor = AutoImageProcessor.from_pretrained(options.model)
    if not (folder / "anchors.json").is_file():
        anchors = anchor_boxes(rows["train"], model.config.num_queries, seed=0)
        write_text(folder / "anchors.json", json.dumps(anchors.tolist()))
    for split in ("validation", "test", "train"):
        file = folder / f"{split}.safetensors"
        if not file.is_file():
            Cache.write(file, model, processor, rows[split], options.views if split == "train" else None)


def spread(values: list[float], digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(
    results: list[dict], variants: dict[str, Variant], columns: dict[str, str], constant: dict[str, float]
) -> str:
    """Mean and standard deviation over the seeds on the test split, beside constant boxes, in Markdown."""
    rows = []
    for name in variants:
        runs = [result["test"] for result in results if result["variant"] == name]
        if runs:
            cells = [
                spread([run[column] for run in runs], 1 if column.startswith("a") else 3) if column in runs[0] else ""
                for column in columns
            ]
            rows.append([name, *cells])
    cells = [f"{constant[c]:.{1 if c.startswith('a') else 3}f}" if c in constant else "" for c in columns]
    rows.append(["constant boxes by frequency", *cells])
    return markdown_table(["", *columns.values()], rows) + "\n"


def plot(results: list[dict], constant: dict[str, float], file: Path) -> None:
    """Average precision over mu, and on the validation split over the training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for eps, colour in (("0.85", "#0072b2"), ("0.90", "#d55e00")):
        column = f"ap_10@{eps}"
        points = {
            variant.config.get("smoothing_upper_bound", 0.0): [
                result["test"][column] for result in results if result["variant"] == name
            ]
            for name, variant in SMOOTHINGS.items()
            if name != "self distillation"
        }
        points = {mu: values for mu, values in points.items() if values}
        means = [statistics.mean(values) for values in points.values()]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in points.values()]
        left.errorbar(list(points), means, spreads, marker="o", capsize=3, color=colour, label=f"IoU {eps}")
        left.axhline(constant[column], color=colour, linestyle=":", label=f"constant boxes, {eps}")
    left.set(xlabel="upper bound mu of the soft labels", ylabel="AP (K = 10) on the test split, %")
    left.legend(frameon=False, fontsize=8)
    for name in SMOOTHINGS:
        runs = [result["validation"] for result in results if result["variant"] == name]
        if runs:
            steps = [figures["step"] for figures in runs[0]]
            means = [statistics.mean(f["ap_10@0.85"] for f in at_step) for at_step in zip(*runs, strict=True)]
            right.plot(steps, means, marker=".", label=name)
    right.set(xlabel="step", ylabel="AP (0.85, K = 10) on the validation split, %")
    right.legend(frameon=False, fontsize=7)
    figure.savefig(file, dpi=100)


def summarise(options: argparse.Namespace, constant: dict[str, float]) -> str:
    """Write the tables and the plot of the finished runs, and return the tables."""
    files = [run_file(options.output_dir, name, seed) for seed in options.seeds for name in VARIANTS]
    results = [json.loads(file.read_text()) for file in files if file.is_file()]
    tables = [table(results, SMOOTHINGS, MEASURES, constant), table(results, HEADS, HEAD_MEASURES, constant)]
    text = "\n".join(tables)
    content = {"settings": json.loads((options.output_dir / "settings.json").read_text()), "runs": results}
    write_text(options.output_dir / "ablations.json", json.dumps({**content, "constant": constant}, indent=1) + "\n")
    write_text(options.output_dir / "ablations.md", text)
    try:
        plot(results, constant, options.output_dir / "mu.png")
    except ImportError:
        print("no plot: matplotlib is not installed")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="trained checkpoint that lends backbone and encoder")
    parser.add_argument("--data", required=True)
    parser.add_argument("--layout", default="gaic")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--views", type=int, default=10_000, help="augmented training images, at most one epoch")
    parser.add_argument("--epochs", type=int, default=1, help="passes over them")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--clip", type=float, default=0.1)
    parser.add_argument("--new_decoder", action="store_true", help="do not start from the checkpoint's decoder")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each on one thread")
    options = parser.parse_args()
    rows = load(options.layout, options.data)
    prepare(options, rows)
    # Seed by seed, so that an interrupted comparison has all variants of the first ones.
    jobs = [(name, seed) for seed in options.seeds for name in options.variants]
    jobs = [job for job in jobs if not run_file(options.output_dir, *job).is_file()]
    test = Labels.from_dataset(rows["test"])
    frequent = baselines.frequent_set(Labels.from_dataset(rows["train"]))
    constant = measure(test, baselines.constant(*frequent, len(test)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, spawn) as pool:
        runs = [pool.submit(train, options, *job) for job in jobs]
        for run in tqdm(as_completed(runs), total=len(runs), desc="runs", unit="run"):
            run.result()
            summarise(options, constant)
    print(summarise(options, constant))


if __name__ == "__main__":
    main()
