"""A tiny crop data set and a tiny model, for the training tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_setcrop import InvertedResidualConfig, SetCropConfig, SetCropImageProcessorPil

SIZES = ((96, 64), (64, 96), (80, 80))


def write_gaic(root: Path, train: int, val: int, seed: int = 0) -> Path:
    """A folder in GAIC v2's layout with noise images of three shapes and twelve rated crops each."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            width, height = SIZES[number % len(SIZES)]
            pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((width, height))
            image.save(root / "images" / split / f"{split}{number:03}.jpg", quality=90)
            near, far = rng.uniform(0, 0.3, (12, 2)), rng.uniform(0.7, 1, (12, 2))
            boxes = np.concatenate([near, far], axis=1) * [height, width, height, width]
            scores = rng.uniform(2, 5, 12).round(2)
            lines = [" ".join(f"{v:.1f}" for v in box) + f" {score}" for box, score in zip(boxes, scores, strict=True)]
            (root / "annotations" / split / f"{split}{number:03}.txt").write_text("\n".join(lines))
    return root


def write_cpc(root: Path, count: int) -> Path:
    """A folder in CPC's layout with noise images and four crops each, voted on by six."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "CollectedAnnotationsRaw").mkdir()
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(root / "images" / f"{number}.jpg")
        near, far = rng.uniform(0, 0.3, (4, 2)), rng.uniform(0.7, 1, (4, 2))
        boxes = (np.concatenate([near, far], axis=1) * [width, height, width, height]).astype(int).tolist()
        content = json.dumps({"scores": rng.integers(0, 5, (6, 4)).tolist(), "bboxes": boxes})
        (root / "CollectedAnnotationsRaw" / f"{number}.jpg.txt").write_text(json.dumps(content))
    return root


def write_tiny_start(folder: Path, **config: object) -> Path:
    """A folder with the config and processor of a model of some 50,000 weights, and no weights."""
    backbone = InvertedResidualConfig(variant="efficientnet_lite0", out_features=["stage3"], batch_norm=False)
    SetCropConfig(
        **{
            "backbone_config": backbone,
            "num_queries": 12,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            **config,
        }
    ).save_pretrained(folder)
    SetCropImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 80}).save_pretrained(folder)
    return folder


def write_folder(root: Path, ratings: dict[str, float], train: int = 6, val: int = 4, rated_every: int = 1) -> Path:
    """A plain folder with noise images of three shapes and six crops each, a share of them rated.

    ratings: for each split, of which images crops are rated: every `rated_every`th, or none where it is missing; its
    value is what the ratings, 2..5, are multiplied by.
    """
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for split, count in (("train", train), ("validation", val)):
        for number in range(count):
            width, height = SIZES[number % len(SIZES)]
            pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            name = f"{split}{number}.jpg"
            Image.fromarray(pixels).resize((width, height)).save(root / name)
            near, far = rng.uniform(0, 0.3, (6, 2)), rng.uniform(0.7, 1, (6, 2))
            boxes = (np.concatenate([near, far], axis=1) * [width, height, width, height]).round(1).tolist()
            entry = {"file_name": name, "boxes": boxes, "split": split, "good": [True, True, *[False] * 4]}
            if split in ratings and number % rated_every == 0:
                entry["scores"] = (rng.uniform(2, 5, 6) * ratings[split]).round(3).tolist()
            lines.append(json.dumps(entry))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def write_editor(root: Path, train: int = 8, val: int = 4) -> Path:
    """A library in the layout `editor`: noise images of three shapes, in whose first crop a lighter noise.

    Of every four images one has crops by editors and people, one has people's alone, and one has no windows.
    """
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(train + val):
        size = width, height = SIZES[number % len(SIZES)]
        near, far = rng.uniform(0, 0.3, (3, 2)), rng.uniform(0.7, 1, (3, 2))
        crops = np.concatenate([near, far], axis=1).round(3)
        pixels = rng.integers(0, 128, (height, width, 3), dtype=np.uint8)
        left, top, right, bottom = (crops[0] * np.tile(size, 2)).astype(int)
        pixels[top:bottom, left:right] += 127
        Image.fromarray(pixels).save(root / f"{number}.png")
        ratings = np.sort(rng.uniform(3, 4.5, 3))[::-1].round(2)
        entry = {"photo": f"{number}.png", "split": "train" if number < train else "val"}
        entry |= {"crops": np.column_stack([crops, ratings]).tolist(), "whole": 3.0, "square": 0.45, "slim": 0.4}
        entry |= {"subjects": [[0.4, 0.3, 0.6, 0.7, 1.0], [0.1, 0.1, 0.3, 0.3, 0.4]]}
        if number % 4 in (1, 2):
            entry["people"] = crops[1].tolist()
        if number % 4 == 2:
            del entry["crops"]
        if number % 4 == 3:
            del entry["square"], entry["slim"]
        lines.append(json.dumps(entry))
    (root / "labels.jsonl").write_text("\n".join(lines))
    return root
