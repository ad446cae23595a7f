"""Time one image to its best crop of an aspect ratio beside libvips' attention crop and smartcrop.py.

    python benchmarks/photo_speed.py [PHOTO] [--rounds 15] [--model DIR] [--cpu-time] [--grain 6]

Without an image one of `examples/photos` is enlarged to 12 megapixels and saved as JPEG; that file is half as large as
a camera's unless noise is added (`--grain`). Every method in turn in each round, all from the file, warm; medians over
the rounds, and their ratios, which can be compared between machines. `taskset -c 0` keeps all on one processor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyvips
import smartcrop
from PIL import Image

from modeling_setcrop import CropOptions, Cropper
from modeling_setcrop.image_reading import load_image_file

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "photos" / "lake-sherburne.jpg"
RATIOS = ("16:9", "1:1", "4:5", "9:16")
# What both of the others are given: a square of this side.
SIDE = 600


def twelve_megapixels(folder: Path, grain: float = 0.0) -> Path:
    """Return a JPEG file of 4000 by 3000 pixels, with noise of a standard deviation as given, of 255."""
    path = folder / "photo.jpg"
    with Image.open(EXAMPLE) as opened:
        image = opened.convert("RGB").resize((4000, 3000), Image.Resampling.LANCZOS)
    if grain:
        noise = np.random.default_rng(0).normal(0, grain, (image.height, image.width, 1))
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    image.save(path, quality=92)
    return path


def with_libvips(photo: Path) -> None:
    """`vipsthumbnail --smartcrop attention`: decoded at reduced scale, the crop in memory."""
    pyvips.Image.thumbnail(str(photo), SIDE, height=SIDE, crop="attention").write_to_memory()


def with_smartcrop(photo: Path) -> None:
    """smartcrop.py on a copy decoded at reduced scale, as its own command prepares it."""
    with Image.open(photo) as image:
        image.draft("RGB", (SIDE, SIDE))
        image = image.convert("RGB")
    smartcrop.SmartCrop().crop(image, 100, 100)


def shares(cropper: Cropper, photo: Path, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each part of one suggestion."""
    options = CropOptions(aspect_ratio="1:1", top_k=1)
    times = [clock()]
    loaded = load_image_file(photo, cropper.short_side)
    times.append(clock())
    pixels = cropper.prepare(loaded)
    times.append(clock())
    encoded = cropper.encode([pixels])[0]
    times.append(clock())
    rating = [0.0]
    rate = encoded.engine.rate

    def timed(*args: object) -> object:
        start = clock()
        found = rate(*args)
        rating[0] += clock() - start
        return found

    encoded.engine.rate = timed
    try:
        cropper.answer(encoded, loaded.size, options)
    finally:
        del encoded.engine.rate
    end = clock() - times[3]
    decode, resize, network = (later - earlier for earlier, later in pairwise(times))
    found = {"decode": decode, "resize": resize, "network": network, "scoring": rating[0]}
    return found | {"search": end - rating[0]}


def medians(methods: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each method, taken in turns after two rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds + 2):
        for name, method in methods.items():
            start = clock()
            method()
            times[name].append(clock() - start)
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model")
    parser.add_argument(
        "--grain", type=float, default=0.0, help="standard deviation of the noise that is added, of 255"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="of all threads, for machines that are busy with others"
    )
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    pyvips.cache_set_max(0)
    cropper = Cropper(args.model, "onnx")
    with tempfile.TemporaryDirectory() as work:
        photo = args.photo or twelve_megapixels(Path(work), args.grain)
        found = medians(
            {
                "SetCrop, 1 ratio": lambda: cropper(photo, aspect_ratio="1:1", top_k=1),
                "SetCrop, 4 ratios": lambda: cropper(photo, aspect_ratio=list(RATIOS), top_k=1),
                "libvips attention": lambda: with_libvips(photo),
                "smartcrop.py": lambda: with_smartcrop(photo),
            },
            args.rounds,
            clock,
        )
        parts = [shares(cropper, photo, clock) for _ in range(args.rounds)]
    one, four = found["SetCrop, 1 ratio"], found["SetCrop, 4 ratios"]
    for name, seconds in found.items():
        print(f"{name:18} {seconds * 1e3:7.1f} ms  {seconds / one:5.2f} of SetCrop")
    print(f"each further ratio {(four - one) / (len(RATIOS) - 1) * 1e3:7.1f} ms")
    for name in parts[0]:
        print(f"  {name:16} {statistics.median(part[name] for part in parts) * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
