"""Pairs of crops to be judged without knowing whose they are: SetCrop's beside a centre crop's, smartcrop's, libvips'.

    python benchmarks/blind_pairs.py make --editor-data DIR --out PAIRS --pairs 120
    python benchmarks/blind_pairs.py make --editor-data DIR --out PAIRS --labeller
    python benchmarks/blind_pairs.py tally --out PAIRS

`make` writes sheets of pairs, `sheet-01.jpg` and so on, each pair with its number, the whole image (small), A and B,
and `key.json`, not to be looked at. The judge writes `answers.csv`, a line a pair: its number, `A`, `B` or `=`, and
perhaps which of both are unacceptable (`A`, `B` or `AB`). Pairs whose crops overlap by an IoU of 0.9 or more are left
out and counted. Images are the test images of the layout `editor`, on which nothing was trained. With `--labeller` the
pairs are the largest square and slim windows (9:16 of a wide image, 16:9 of an upright one) beside the labels' own.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from crop_quality import Constant, Method, Model, SmartCrop, Vips, labelled_windows, opened
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest

import modeling_setcrop
from modeling_setcrop.crop_geometry import box_iou
from modeling_setcrop.data import Problems
from modeling_setcrop.data.editor import EditorImage, read_editor_images

RATIOS = {"1:1": 1.0, "4:5": 4 / 5, "9:16": 9 / 16, "16:9": 16 / 9}
SAME = 0.9
ROWS, HEIGHT, GAP = 4, 300, 16


def shown(image: Image.Image, box: np.ndarray | None = None) -> Image.Image:
    """Return a crop, corners in [0, 1], or the whole image, as high as a row."""
    if box is not None:
        image = image.crop(tuple(np.round(box * np.tile(image.size, 2)).astype(int)))
    image = image.copy()
    image.thumbnail((int(HEIGHT * 1.8), HEIGHT), Image.Resampling.LANCZOS)
    return image


def sheet(pairs: list[tuple[int, list[Image.Image]]]) -> Image.Image:
    """Return a sheet with a row a pair: number, the whole image, A, B."""
    width = max(sum(image.width + GAP for image in images) for _, images in pairs) + 90
    page = Image.new("RGB", (width, len(pairs) * (HEIGHT + 2 * GAP)), "white")
    draw = ImageDraw.Draw(page)
    for row, (number, images) in enumerate(pairs):
        x, y = 80, row * (HEIGHT + 2 * GAP) + GAP
        draw.text((8, y), str(number), fill="black", font_size=32)
        for name, image in zip(("", "A", "B"), images, strict=True):
            page.paste(image, (x, y))
            draw.text((x + 4, y - GAP), name, fill="red", font_size=16)
            x += image.width + GAP
    return page


# File, image, aspect ratio, whose crop is beside SetCrop's, SetCrop's box, theirs.
Pair = tuple[str, Image.Image, str, str, np.ndarray, np.ndarray]


def by_chance(entries: list[EditorImage], ours: Model, rng: np.random.Generator) -> Iterator[Pair]:
    """Pairs without end: every other method in turn, on images and aspect ratios by chance."""
    others: list[Method] = [Constant(np.array([[0.0, 0.0, 1.0, 1.0]])), SmartCrop(), Vips()]
    for other in itertools.cycle(others):
        entry, ratio = entries[rng.integers(len(entries))], str(rng.choice(list(RATIOS)))
        image = opened(entry.path)
        boxes = ours.any_size(image, RATIOS[ratio]), other.any_size(image, RATIOS[ratio])
        yield entry.path.name, image, ratio, other.name, *boxes


def of_labels(entries: list[EditorImage], ours: Model, rng: np.random.Generator) -> Iterator[Pair]:
    """Every image's largest square and slim window beside the labels', by chance in order."""
    for number in rng.permutation(len(entries)):
        entry = entries[number]
        image = opened(entry.path)
        for name, asked, theirs in labelled_windows(entry, image.width / image.height):
            yield entry.path.name, image, name, "labeller", ours.window(image, asked), theirs


def make(args: argparse.Namespace) -> None:
    """Write sheets and key."""
    entries = [entry for entry in read_editor_images(args.editor_data, Problems()) if entry.split == args.split]
    ours, rng = Model("SetCrop", args.model), np.random.default_rng(args.seed)
    found = of_labels(entries, ours, rng) if args.labeller else by_chance(entries, ours, rng)
    args.out.mkdir(parents=True)
    key, pairs, same = {}, [], 0
    for file, image, ratio, against, *boxes in track(itertools.islice(found, args.pairs * 10), "pairs"):
        if box_iou(boxes[0][None], boxes[1][None])[0, 0] >= SAME:
            same += 1
            continue
        swapped = bool(rng.integers(2))
        key[len(key) + 1] = {
            "image": file,
            "ratio": ratio,
            "against": against,
            "ours": "B" if swapped else "A",
        }
        pairs.append((len(key), [shown(image), *(shown(image, box) for box in (boxes[::-1] if swapped else boxes))]))
        if len(key) == args.pairs:
            break
    for start in range(0, len(pairs), ROWS):
        sheet(pairs[start : start + ROWS]).save(args.out / f"sheet-{start // ROWS + 1:02d}.jpg", quality=88)
    (args.out / "key.json").write_text(json.dumps({"pairs": key, "left out as the same": same}, indent=1))


def tally(args: argparse.Namespace) -> None:
    """Print who won how often, and what was unacceptable."""
    key = json.loads((args.out / "key.json").read_text())
    with open(args.out / "answers.csv", newline="") as file:
        answers = {
            row[0].strip(): [cell.strip().upper() for cell in [*row[1:], ""][:2]] for row in csv.reader(file) if row
        }
    unknown = sorted(answers.keys() - key["pairs"].keys())
    if unknown:
        raise SystemExit(f"{args.out / 'answers.csv'}: there is no pair {unknown[0]!r}")
    table = Table("against", "won", "lost", "equal", "won of decided (95 %)", "ours unacceptable", "theirs")
    names = ["all", *dict.fromkeys(pair["against"] for pair in key["pairs"].values())]
    for name in names:
        counts = dict.fromkeys(("won", "lost", "equal", "ours", "theirs"), 0)
        for number, (answer, bad) in answers.items():
            pair = key["pairs"][number]
            if name not in ("all", pair["against"]):
                continue
            if answer not in ("A", "B", "="):
                raise SystemExit(f"{args.out / 'answers.csv'}: pair {number}: {answer!r} is neither A, B nor =")
            counts["equal" if answer == "=" else "won" if answer == pair["ours"] else "lost"] += 1
            counts["ours"] += pair["ours"] in bad
            counts["theirs"] += ("B" if pair["ours"] == "A" else "A") in bad
        decided = counts["won"] + counts["lost"]
        share = "-"
        if decided:
            found = binomtest(counts["won"], decided)
            low, high = found.proportion_ci(method="wilson")
            share = f"{found.statistic:.2f} ({low:.2f}-{high:.2f})"
        cells = [counts["won"], counts["lost"], counts["equal"], share, counts["ours"], counts["theirs"]]
        table.add_row(name, *map(str, cells))
    Console().print(table)
    Console().print(f"left out because both crops were the same (IoU {SAME} or more): {key['left out as the same']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["make", "tally"])
    parser.add_argument("--editor-data", type=Path)
    parser.add_argument("--model", default=modeling_setcrop.DEFAULT_CHECKPOINT)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=120, help="at most so many")
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--labeller", action="store_true", help="beside the labels' own windows")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.action == "tally":
        tally(args)
    elif args.editor_data is None:
        parser.error("make needs --editor-data")
    else:
        make(args)


if __name__ == "__main__":
    main()
