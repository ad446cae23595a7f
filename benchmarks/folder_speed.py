"""Times a folder run beside a loop that only decodes and encodes, and beside `vipsthumbnail --smartcrop attention`.

    python benchmarks/folder_speed.py [--count 1000] [--distinct 24] [--workers 2] [--rounds 2] [--others 1000]
    python benchmarks/folder_speed.py --photos FOLDER

JPEG files of 12 megapixels, the example photos enlarged, cropped and mirrored at random, are cut to squares written at
1,200 pixels. In each round `setcrop crop` takes all files (one command, model loading included), then a plain Pillow
loop in as many threads cuts the same crops, then vipsthumbnail in as many processes (Debian's package libvips-tools;
left out where it is missing). Images a second, by the clock and by processor time over all threads and processes;
medians over the rounds. The others may be given fewer of the files (`--others`), as their speed does not depend on how
many there are. `--photos` names a folder with JPEG files of that size to use instead. Memory is the largest that the
command held at the end of its first tenth and of the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PHOTOS = sorted((Path(__file__).resolve().parents[1] / "examples" / "photos").glob("*.jpg"))
SIZE, SIDE, QUALITY = (4000, 3000), 1200, 92


def make_files(folder: Path, count: int, distinct: int) -> list[Path]:
    """JPEG files of 12 megapixels, so many of them distinct, the rest copies."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    files = []
    for number in range(count):
        path = folder / f"{number:05}.jpg"
        if number < distinct:
            with Image.open(PHOTOS[number % len(PHOTOS)]) as opened:
                image = opened.convert("RGB")
            width = int(image.width * rng.uniform(0.75, 1))
            left, top = (int(rng.uniform(0, side)) for side in (image.width - width, image.height * 0.2))
            box = (left, top, left + width, top + int(image.height * 0.8))
            image = ImageOps.fit(image.crop(box), SIZE, Image.Resampling.BICUBIC)
            image = ImageOps.mirror(image) if rng.random() < 0.5 else image
            image.save(path, quality=QUALITY)
        else:
            shutil.copy(files[number % distinct], path)
        files.append(path)
    return files


def with_pillow(files: Sequence[Path], manifest: Path, out: Path, workers: int) -> None:
    """Do what any program must that knows the crops: decode, reduced where that suffices, cut and encode."""
    with open(manifest, encoding="utf-8") as lines:
        crops = {Path(crop["source"]).name: crop for crop in map(json.loads, lines)}

    def cut(path: Path) -> None:
        box = [crops[path.name][edge] for edge in ("xmin", "ymin", "xmax", "ymax")]
        with Image.open(path) as image:
            # Twice the final size is left to the filter, as in Pillow's own `thumbnail`.
            reduced = min(1.0, 2 * SIDE / (box[2] - box[0]))
            image.draft("RGB", (int(SIZE[0] * reduced), int(SIZE[1] * reduced)))
            scale = image.width / SIZE[0]
            square = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, [edge * scale for edge in box], 2.0)
            square.save(out / path.name, quality=QUALITY)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(cut, files))


def with_vipsthumbnail(files: Sequence[Path], out: Path, workers: int) -> None:
    """One process a worker; libvips' own threads are held to one in each."""
    options = ["--smartcrop", "attention", "--size", f"{SIDE}x{SIDE}", "-o", f"{out}/%s.jpg[Q={QUALITY}]"]
    environment = os.environ | {"VIPS_CONCURRENCY": "1"}
    running = [
        subprocess.Popen(["vipsthumbnail", *map(str, files[start::workers]), *options], env=environment)
        for start in range(workers)
    ]
    for process in running:
        if process.wait() != 0:
            raise SystemExit("vipsthumbnail failed")


def with_setcrop(files: Sequence[Path], manifest: Path, out: Path, workers: int, memory: list[float]) -> None:
    command = [
        *(sys.executable, "-m", "modeling_setcrop", "crop", str(files[0].parent), "--out", str(out)),
        *("--aspect-ratio", "1:1", "--width", str(SIDE), "--quality", str(QUALITY), "--workers", str(workers)),
        *("--manifest", str(manifest)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def watch() -> None:
        while process.poll() is None and len(list(out.glob("*.jpg"))) < len(files) / 10:
            time.sleep(0.2)
        early = _held(process.pid)
        while process.poll() is None:
            latest = _held(process.pid)
            memory[:] = [early, max(latest, early)]
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait() != 0:
        raise SystemExit("setcrop crop failed")
    watcher.join()


def _held(process: int) -> float:
    """Largest resident memory of a process so far, in megabytes (Linux); 0 where it cannot be told."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time with that of finished child processes."""

    def processor() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    clock, used = time.perf_counter(), processor()
    work()
    return time.perf_counter() - clock, processor() - used


def one_round(
    files: Sequence[Path], others: int, work: Path, workers: int, memory: list[float]
) -> dict[str, tuple[float, float]]:
    """Images per second, by both clocks of [`timed`], of `setcrop crop` on all files and of the others on some."""
    out = {name: work / name for name in ("setcrop", "pillow", "vips")}
    for folder in out.values():
        folder.mkdir(parents=True)
    manifest = work / "crops.jsonl"
    methods: dict[str, Callable[[], object]] = {
        "setcrop crop": lambda: with_setcrop(files, manifest, out["setcrop"], workers, memory),
        "decode and encode alone": lambda: with_pillow(files[:others], manifest, out["pillow"], workers),
    }
    if shutil.which("vipsthumbnail"):
        methods["vipsthumbnail attention"] = lambda: with_vipsthumbnail(files[:others], out["vips"], workers)
    rates = {}
    for (name, method), folder in zip(methods.items(), out.values(), strict=False):
        clock, processor = timed(method)
        written, expected = len(list(folder.glob("*.jpg"))), len(files) if folder.name == "setcrop" else others
        if written != expected:
            raise SystemExit(f"{folder.name}: {written} crops of {expected} images")
        rates[name] = (written / clock, written / processor)
        print(f"{name}: {written} images, {clock:.0f} s by the clock, {processor:.0f} s of one processor", flush=True)
    shutil.rmtree(work)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--distinct", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--others", type=int, help="files that the other methods are given; all if left out")
    parser.add_argument("--photos", type=Path, help="folder with JPEG files of 4000 by 3000 pixels")
    args = parser.parse_args()
    memory: list[float] = []
    rates: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "photos"
        files = sorted(args.photos.glob("*.jpg")) if args.photos else make_files(made, args.count, args.distinct)
        others = min(args.others or len(files), len(files))
        for number in range(args.rounds):
            found = one_round(files, others, Path(work) / str(number), args.workers, memory)
            for name, rate in found.items():
                rates.setdefault(name, []).append(rate)
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in rates.items()
    }
    for name, (clock, processor) in medians.items():
        shares = [mine / rate for mine, rate in zip(medians["setcrop crop"], (clock, processor), strict=True)]
        print(
            f"{name:26} {clock:6.1f} images/s by the clock, {processor:6.1f} a second of one processor; "
            f"setcrop crop has {shares[0]:.2f} and {shares[1]:.2f} of it"
        )
    print("memory: {:.0f} MB after a tenth, {:.0f} MB after all".format(*memory))


if __name__ == "__main__":
    main()
