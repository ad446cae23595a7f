"""A folder run through everything: odd, broken and hostile files, kills, a filling disk, a second run beside it.

    python tests/soak.py --files 2000

It makes the folder, crops it with runs that are killed, with one whose files may not grow beyond a size, with two at
once, and with a last one that finishes the rest. Then it proves that every crop decodes and has the size that the
manifest says, that every input has exactly one row, that nothing half written is left, and that memory stayed under
the bound that docs/folder-run.md states. Ends with status 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

ROOT = Path(__file__).resolve().parents[1]
MEMORY_BOUND = 3_400_000_000
"""Most memory of a run in bytes: 1 GB for the program and the model, and `MAX_BYTES` for images."""


def _photo(rng: random.Random, size: tuple[int, int] | None = None) -> Image.Image:
    size = size or (rng.randint(40, 400), rng.randint(40, 400))
    image = Image.linear_gradient("L").rotate(rng.randint(0, 359)).resize(size)
    return Image.merge("RGB", [image, image.rotate(90).resize(size), image.point(lambda value: 255 - value)])


def _exif(rng: random.Random) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = rng.randint(1, 8)
    exif[ExifTags.Base.Make] = "Apple"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.MakerNote: b"Apple iOS\0\0\1MM" + rng.randbytes(60)}
    return exif


def _jpeg(path: Path, rng: random.Random) -> None:
    _photo(rng).save(path.with_suffix(".jpg"), exif=_exif(rng), progressive=rng.random() < 0.2)


def _large_jpeg(path: Path, rng: random.Random) -> None:
    Image.effect_noise((1200, 900), 60).convert("RGB").save(path.with_suffix(".JPG"), quality=95)


def _png(path: Path, rng: random.Random) -> None:
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
    image = _photo(rng).convert("L").convert(mode) if mode == "I;16" else _photo(rng).convert(mode)
    image.save(path.with_suffix(".png"), exif=_exif(rng))


def _tiff(path: Path, rng: random.Random) -> None:
    image = _photo(rng).convert(rng.choice(["RGB", "CMYK", "L", "1", "F"]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = rng.randint(1, 8)
    image.save(path.with_suffix(".tif"), exif=exif)


def _pages(path: Path, rng: random.Random) -> None:
    _photo(rng).save(path.with_suffix(".tif"), save_all=True, append_images=[_photo(rng)])


def _animation(path: Path, rng: random.Random) -> None:
    size = (rng.randint(40, 120), rng.randint(40, 120))
    frames = [_photo(rng, size) for _ in range(4)]
    frames[0].save(path.with_suffix(rng.choice([".gif", ".webp", ".png"])), save_all=True, append_images=frames[1:])


def _other(path: Path, rng: random.Random) -> None:
    _photo(rng).save(path.with_suffix(rng.choice([".bmp", ".tga", ".webp", ".ppm", ".jp2"])))


def _wrong_suffix(path: Path, rng: random.Random) -> None:
    _photo(rng).save(path.with_suffix(".jpg"), format="PNG")


def _truncated(path: Path, rng: random.Random) -> None:
    _jpeg(path, rng)
    content = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(content[: rng.randint(1, len(content) - 1)])


def _mutated(path: Path, rng: random.Random) -> None:
    suffix = rng.choice([".jpg", ".png", ".gif", ".tif", ".webp"])
    _photo(rng).save(path.with_suffix(suffix))
    content = bytearray(path.with_suffix(suffix).read_bytes())
    for _ in range(10):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.with_suffix(suffix).write_bytes(content)


def _garbage(path: Path, rng: random.Random) -> None:
    path.with_suffix(".jpg").write_bytes(rng.randbytes(rng.choice([0, 1, 900])))


def _bomb(path: Path, rng: random.Random) -> None:
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    path.with_suffix(".png").write_bytes(header + rng.randbytes(40))


def _pipe(path: Path, rng: random.Random) -> None:
    os.mkfifo(path.with_suffix(".jpg"))


def _socket(path: Path, rng: random.Random) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.with_suffix(".jpg").name)
    finally:
        os.chdir(here)


def _link(path: Path, rng: random.Random) -> None:
    target = rng.choice([path.with_suffix(".jpg").name, "nowhere.jpg", "/dev/zero", "/dev/full"])
    os.symlink(target, path.with_suffix(".jpg"))


def _long_name(path: Path, rng: random.Random) -> None:
    _photo(rng).save(path.with_name((path.name + "é" * 130)[:125] + ".jpg"))


def _odd_name(path: Path, rng: random.Random) -> None:
    name = path.name + rng.choice([os.fsdecode(b"caf\xe9"), "new\nline", "😀", " %s {stem} ", "'\";$(true)"])
    _photo(rng).save(path.with_name(name + ".jpg"))


def _same_stem(path: Path, rng: random.Random) -> None:
    _photo(rng).save(path.with_suffix(".jpg"))
    _photo(rng).save(path.with_suffix(".png"))


def _unread(path: Path, rng: random.Random) -> None:
    path.with_suffix(rng.choice([".xcf", ".jxl", ".svg", ".exr"])).write_bytes(rng.randbytes(50))


def _not_an_image(path: Path, rng: random.Random) -> None:
    path.with_suffix(rng.choice([".txt", ".xmp", ".mov"])).write_bytes(rng.randbytes(50))
    path.with_name("." + path.name + ".jpg").write_bytes(b"hidden")


MAKERS: dict[Callable[[Path, random.Random], None], int] = {
    _jpeg: 30, _large_jpeg: 3, _png: 12, _tiff: 8, _pages: 3, _animation: 5, _other: 6, _wrong_suffix: 2,
    _truncated: 5, _mutated: 8, _garbage: 4, _bomb: 2, _pipe: 1, _socket: 1, _link: 3, _long_name: 2, _odd_name: 3,
    _same_stem: 2, _unread: 3, _not_an_image: 2,
}  # fmt: skip
"""What a folder is made of, and in what shares."""


def make_album(folder: Path, files: int, large: bool, seed: int = 0) -> None:
    """Make a folder of mixed, odd, broken and hostile files; with `large` two of 300 and of 196 megapixels."""
    rng = random.Random(seed)
    makers = [*MAKERS, *rng.choices(list(MAKERS), list(MAKERS.values()), k=max(0, files - len(MAKERS)))]
    for number, make in enumerate(makers):
        place = folder / f"{number % 7}" / ("deep" if number % 3 else "")
        place.mkdir(parents=True, exist_ok=True)
        make(place / f"f{number:05}", rng)
    (folder / "folder.jpg").mkdir()
    (folder / "again").symlink_to(folder, target_is_directory=True)
    if large:
        Image.new("1", (17_320, 17_320), 1).save(folder / "bilevel.png")
        Image.new("P", (14_000, 14_000), 3).save(folder / "palette.png")


def inputs_of(folder: Path) -> set[str]:
    """Return the images that must have a row: all but hidden files, files that are no images, and folders."""
    found = set()
    for place, folders, names in os.walk(folder):
        found |= {os.path.join(place, name) for name in names if not name.startswith(".")}
        found |= {os.path.join(place, name) for name in folders if os.path.islink(os.path.join(place, name))}
    return {path for path in found if not path.endswith((".txt", ".xmp", ".mov"))}


@dataclass
class Soak:
    """Runs of the command over one folder.

    Attributes:
        album, out: Folders of images and of crops.
        options: More of the command's.
        log: What happened, a line an event.
    """

    album: Path
    out: Path
    options: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def start(self, *options: str, file_limit: int | None = None) -> subprocess.Popen[str]:
        """Start the command; with a limit its files have so many bytes at most, as on a disk that is full."""
        command = [sys.executable, "-m", "modeling_setcrop", "crop", str(self.album), "--out", str(self.out)]

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        return subprocess.Popen(
            [*command, "--aspect-ratio", "4:5", "--workers", "2", *self.options, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            preexec_fn=None if file_limit is None else limit,
        )

    def crops(self) -> int:
        return sum(file.is_file() for file in self.out.rglob("*") if not file.name.startswith("."))

    def finish(self, process: subprocess.Popen[str], what: str) -> str:
        """Wait for a run, and log how it ended."""
        output = process.communicate()[0]
        last = output.strip().splitlines()[-1] if output.strip() else ""
        self.log.append(f"{what}: status {process.returncode}; {self.crops()} crops there; {last}")
        return output

    def killed(self, more: int) -> None:
        """Start a run and kill it when it has written so many more crops."""
        before, process = self.crops(), self.start()
        while process.poll() is None and self.crops() < before + more:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        self.finish(process, f"killed after {more} crops")

    def beside(self) -> None:
        """Start a run while another one is at work."""
        before, first = self.crops(), self.start()
        while first.poll() is None and self.crops() == before and not (self.out / ".setcrop.lock").exists():
            time.sleep(0.02)
        output = self.finish(self.start(), "second run beside it")
        assert first.poll() is not None or "another run is writing there (process" in output, output
        self.finish(first, "first run")

    def check(self, manifest: Path) -> dict[str, Any]:
        """Prove what is promised; return the figures.

        Raises:
            AssertionError: Something promised does not hold.
        """
        rows = [json.loads(line) for line in manifest.read_bytes().splitlines()]
        counts = Counter(row["source"] for row in rows)
        wanted = inputs_of(self.album)
        assert set(counts) == wanted, sorted(set(counts) ^ wanted)[:5]
        assert set(counts.values()) == {1}, [source for source, count in counts.items() if count > 1][:5]
        made = {row["file"] for row in rows if row.get("file")}
        there = {file.relative_to(self.out).as_posix() for file in self.out.rglob("*") if file.is_file()}
        assert there - made == {".setcrop.jsonl"}, sorted(there - made)[:5]
        for row in rows:
            if row.get("file"):
                with Image.open(self.out / row["file"]) as crop:
                    assert crop.size == (row["width"], row["height"]), row
                    crop.load()
        assert all(row.get("file") or row.get("error") or row.get("note") for row in rows)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        assert memory < MEMORY_BOUND, memory
        reasons = Counter(row["error"].split(" (")[0] for row in rows if row.get("error"))
        return {"inputs": len(rows), "crops": len(made), "reasons": dict(reasons), "memory_gb": memory / 1e9}


def soak(folder: Path, files: int, large: bool, options: list[str], kills: list[int], limit: int) -> dict[str, Any]:
    """Make the folder, let the runs pass over it, and prove what is promised; return figures and log."""
    # Pillow has no limit of its own here, as in the command.
    Image.MAX_IMAGE_PIXELS = None
    album, out = folder / "album", folder / "out"
    make_album(album, files, large)
    runs = Soak(album, out, options)
    for more in kills:
        runs.killed(more)
    runs.finish(runs.start(file_limit=limit), f"files of at most {limit} bytes")
    runs.beside()
    manifest = folder / "crops.jsonl"
    output = runs.finish(runs.start("--manifest", str(manifest)), "last run")
    assert "Traceback" not in output, output
    return runs.check(manifest) | {"log": runs.log}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="files in the folder, at least")
    parser.add_argument("--model", help="checkpoint; by default the one that comes with SetCrop")
    args = parser.parse_args()
    options = ["--model", args.model] if args.model else []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        figures = soak(Path(folder), args.files, True, options, [60, 150, 300], 300_000)
        for line in figures.pop("log"):
            print(line)
        print(json.dumps(figures, indent=2))
        print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
