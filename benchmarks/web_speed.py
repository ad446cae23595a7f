"""Time the page's module in a headless Chromium, at one thread: a file read and through the network, the search.

    PYTHONPATH=tests python benchmarks/web_speed.py [--model DIR] [--images DIR] [--repeats 9] [--aspect-ratio 1.5]

Needs Chromium and onnxruntime-web (npm install --ignore-scripts --prefix tests/web). Wall
time by image: the median, and the least, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from browser import ask_page, what_is_missing

from modeling_setcrop import DEFAULT_CHECKPOINT

STEPS = {"read": "file and network", "network": "network alone", "search": "search"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(DEFAULT_CHECKPOINT))
    parser.add_argument("--images", type=Path, default=Path(__file__).resolve().parents[1] / "examples" / "photos")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--aspect-ratio", type=float, default=1.5)
    args = parser.parse_args()
    if missing := what_is_missing():
        sys.exit(missing)
    names = sorted(path.name for path in args.images.glob("*.jpg"))
    task = {"photos": names, "options": [{"aspectRatio": args.aspect_ratio}], "repeats": args.repeats + 1}
    found = ask_page(args.model, args.images, task)
    print(
        "ms, median (least)".ljust(30) + "".join(column.rjust(18) for column in (*STEPS.values(), "network + search"))
    )
    both = []
    for name in names:
        times = {step: found[name]["times"][step][1:] for step in STEPS}
        times["both"] = [sum(pair) for pair in zip(times["network"], times["search"], strict=True)]
        both.append(times["both"])
        print(
            name[:30].ljust(30)
            + "".join(f"{_middle(found):.0f} ({min(found):.0f})".rjust(18) for found in times.values())
        )
    middle, least = _middle(map(_middle, both)), _middle(map(min, both))
    print("median of the images".ljust(84) + f"{middle:.0f} ({least:.0f})".rjust(18))


def _middle(times: Iterable[float]) -> float:
    return statistics.median(list(times))


if __name__ == "__main__":
    main()
