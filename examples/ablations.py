"""Hard labels against quality guidance against self distillation, and the bound mu (the paper's Tables 4, 5, Fig. 6b).

    python examples/ablations.py --config examples/configs/setcrop_lite.yaml --data DIR --model_name_or_path START \
        --output_dir runs/ablations --seeds 0 1 2

Trains every variant with every seed (a finished run is not repeated, an interrupted one goes on), measures the best
models on the test split, and writes `ablations.json`, `ablations.md` and, with matplotlib, `mu.png` (mean and spread
over the seeds). Options that are not this script's are handed to the training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoImageProcessor

from modeling_setcrop import SetCropForImageCropping
from modeling_setcrop.data import load
from modeling_setcrop.evaluation.labels import Labels
from modeling_setcrop.evaluation.measures import estimate, measure
from modeling_setcrop.evaluation.predict import predict
from modeling_setcrop.training.arguments import parse_arguments

MEASURES = ("ap_10@0.85", "ap_10@0.90", "ap_40@0.85", "ap_40@0.90")
MUS = (0.1, 0.3, 0.5, 0.7, 0.9)
# mu = 0 gives no anchor a soft label: it is the hard labels' run.
VARIANTS = {
    "hard labels (mu 0)": ["label_smoothing=none"],
    **{f"quality guidance, mu {mu}": ["label_smoothing=quality", f"smoothing_upper_bound={mu}"] for mu in MUS},
    "self distillation": ["label_smoothing=distillation"],
}
TRAIN = Path(__file__).with_name("train_setcrop.py")


def train(folder: Path, variant: list[str], seed: int, options: list[str]) -> None:
    """Trains one variant into `folder` unless that is done."""
    if (folder / "done").exists():
        return
    command = [sys.executable, str(TRAIN), *options, "--output_dir", str(folder), "--seed", str(seed)]
    # Distillation starts after four fifths of the epochs, as in the paper (40 of 50).
    recipe = parse_arguments(command[2:])
    command += ["--distillation_start_epoch", str(recipe.epochs * 4 // 5)]
    command += ["--config_overrides", *recipe.config_overrides, *variant]
    if any(folder.glob("checkpoint-*")):
        command += ["--resume_from_checkpoint", "latest"]
    subprocess.run(command, check=True)
    (folder / "done").touch()


def evaluate(folder: Path, rows: Dataset, labels: Labels) -> dict[str, float]:
    """The best model's figures on the test split, in percent."""
    model = SetCropForImageCropping.from_pretrained(folder)
    predictions, kept = predict(model, AutoImageProcessor.from_pretrained(folder), rows, labels)
    labels = labels.select(kept)
    measured = {name: value for name, value in measure(labels, predictions).items() if name in MEASURES}
    return {name: 100 * figure.value for name, figure in estimate(measured, len(labels)).items()}


def summary(results: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table, mean and standard deviation over the seeds."""
    lines = ["| labels | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for variant, runs in results.items():
        cells = []
        for name in MEASURES:
            values = [run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[dict[str, float]]], file: Path) -> None:
    """AP(0.90, K = 10) over mu."""
    import matplotlib.pyplot as plt

    points = {
        float(variant.rsplit(" ", 1)[1].rstrip(")")): [run["ap_10@0.90"] for run in runs]
        for variant, runs in results.items()
        if " mu " in variant or "(mu " in variant
    }
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    means = [statistics.mean(values) for values in points.values()]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in points.values()]
    axes.errorbar(list(points), means, yerr=spreads, marker="o", capsize=3)
    axes.set(xlabel="upper bound mu of the soft labels", ylabel="AP (0.90, K = 10), %")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains and compares the label smoothings.", allow_abbrev=False)
    parser.add_argument("--data", required=True)
    parser.add_argument("--layout", default="gaic")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, training = parser.parse_known_args()
    training += ["--data", options.data, "--layout", options.layout]
    rows = load(options.layout, options.data)["test"]
    labels = Labels.from_dataset(rows)
    results: dict[str, list[dict[str, float]]] = {}
    for variant, overrides in VARIANTS.items():
        for seed in options.seeds:
            name = "".join(c if c.isalnum() or c == "." else "-" for c in variant).strip("-")
            folder = options.output_dir / f"{name}-seed{seed}"
            train(folder, overrides, seed, training)
            results.setdefault(variant, []).append(evaluate(folder, rows, labels))
        # After every variant, so that an interrupted comparison has what is done.
        (options.output_dir / "ablations.json").write_text(json.dumps(results, indent=1))
        (options.output_dir / "ablations.md").write_text(summary(results))
    print(summary(results))
    try:
        plot(results, options.output_dir / "mu.png")
    except ImportError:
        print("no plot: matplotlib is not installed")


if __name__ == "__main__":
    main()
