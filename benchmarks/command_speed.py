"""Times the `setcrop` command from a cold start beside the imports that it cannot do without.

    python benchmarks/command_speed.py [IMAGE] [--rounds 7]

Processor time of whole processes, all threads, medians over the rounds, every command in turn in each round; the first
round, in which Python may have to compile modules, does not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from photo_speed import twelve_megapixels

RUN = "python -c 'import numpy, PIL.Image, onnxruntime'"
HELP = "python -c 'import typer, rich'"
SUBCOMMANDS = (
    "suggest", "crop", "score", "evaluate", "report", "data inspect", "init", "train", "export onnx", "publish",
    "serve", "demo",
)  # fmt: skip


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Processor time of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    python = sys.executable
    with tempfile.TemporaryDirectory() as work:
        image = str(args.image or twelve_megapixels(Path(work)))
        setcrop = [python, "-m", "modeling_setcrop"]
        commands = {
            RUN: [python, "-c", "import numpy, PIL.Image, onnxruntime"],
            "setcrop suggest IMAGE": [*setcrop, "suggest", image],
            "setcrop suggest IMAGE --json": [*setcrop, "suggest", image, "--json"],
            "setcrop score IMAGE": [*setcrop, "score", image, "--box", "0,0,900,900"],
            "setcrop crop IMAGE": [*setcrop, "crop", image, "--out", f"{work}/crops", "--overwrite"],
            HELP: [python, "-c", "import typer, rich"],
            "setcrop --help": [*setcrop, "--help"],
            **{f"setcrop {name} --help": [*setcrop, *name.split(), "--help"] for name in SUBCOMMANDS},
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.rounds + 1):
            for name, command in commands.items():
                times[name].append(seconds(command, environment))
    found = {name: statistics.median(values[1:]) for name, values in times.items()}
    reference = RUN
    for name, value in found.items():
        reference = HELP if name == HELP else reference
        print(f"{name:52} {value:6.3f} s  {value / found[reference]:5.2f}")


if __name__ == "__main__":
    main()
