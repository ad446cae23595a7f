"""The one table of measures: what each is called in files, in tables and on plots, and what it needs."""

from __future__ import annotations

from typing import NamedTuple

EPS = (0.85, 0.90)
"""The IoUs at which a crop counts as met."""


class Measure(NamedTuple):
    """A measure of a model on a data set.

    Attributes:
        label: What people read, in tables and on plots.
        needs_ratings: It is defined for data sets whose crops are rated; None for all, False for those without alone.
        higher_is_better: None where it is neither.
        main: It stands in the tables; the files hold every measure.
    """

    label: str
    needs_ratings: bool | None = True
    higher_is_better: bool | None = True
    main: bool = False


def accuracy_key(n: int, eps: float, any_best: bool = False) -> str:
    """Return the key of ACC 1/N, the share of images where one of N crops meets the best-rated one."""
    return f"acc_1/{n}{'_any' if any_best else ''}@{eps:.2f}"


def transposed_accuracy_key(n: int, eps: float) -> str:
    """Return the key of ACC N/1, the share of images where the first crop meets one of the N best-rated ones."""
    return f"acc_{n}/1@{eps:.2f}"


def candidate_accuracy_key(k: int, n: int) -> str:
    """Return the key of Acc K/N, the share of the K best-scored candidates that are among the N best-rated ones."""
    return f"acc_{k}/{n}"


def average_precision_key(k: int, eps: float, as_released: bool = False) -> str:
    """Return the key of AP over the first K crops; `as_released`: matched as in the authors' code."""
    return f"ap_{'release_' if as_released else ''}{k}@{eps:.2f}"


def recall_key(k: int, eps: float) -> str:
    """Return the key of the share of good crops that one of the first K crops meets."""
    return f"recall_{k}@{eps:.2f}"


def _measures() -> dict[str, Measure]:
    found = {
        "iou": Measure("IoU of the first crop", needs_ratings=None, main=True),
        "iou_any": Measure("IoU of the first crop, any best"),
        "iou_mean": Measure("IoU, mean over annotators", needs_ratings=False, main=True),
        "bde": Measure("BDE of the first crop", needs_ratings=False, higher_is_better=False, main=True),
        "bde_mean": Measure("BDE, mean over annotators", needs_ratings=False, higher_is_better=False, main=True),
        "iou_best_of_5": Measure("IoU, best of five", needs_ratings=False, main=True),
    }
    for n in (1, 5, 10):
        for eps in EPS:
            for any_best, ending in ((False, ""), (True, ", any best")):
                main = eps == 0.90 if n == 1 else not any_best
                label = f"ACC 1/{n} ({eps:.2f}){ending}"
                found[accuracy_key(n, eps, any_best)] = Measure(label, main=main)
    for n in (5, 10):
        for eps in EPS:
            found[transposed_accuracy_key(n, eps)] = Measure(f"ACC {n}/1 ({eps:.2f})")
    for k in (5, 10, 40):
        for eps in EPS:
            label = f"AP {k} ({eps:.2f})"
            found[average_precision_key(k, eps)] = Measure(label, needs_ratings=None, main=k == 10)
            found[average_precision_key(k, eps, as_released=True)] = Measure(f"{label}, as released")
    found["srcc"] = Measure("SRCC", main=True)
    for n in (5, 10):
        for k in (1, 2, 3, 4):
            found[candidate_accuracy_key(k, n)] = Measure(f"Acc {k}/{n} of candidates")
    for k in (5, 10):
        for eps in EPS:
            found[recall_key(k, eps)] = Measure(f"recall {k} ({eps:.2f})", needs_ratings=None)
    found["pairwise_iou_5"] = Measure("IoU among the first five", needs_ratings=None, higher_is_better=None, main=True)
    return found


MEASURES: dict[str, Measure] = _measures()
"""Every measure that `setcrop evaluate` knows, by its key in files, in the order of the tables."""

OLD_KEYS = {
    "ap_k10_085": average_precision_key(10, 0.85),
    "ap_k10_090": average_precision_key(10, 0.90),
    "first_iou": "iou",
    "acc1_090": accuracy_key(1, 0.90),
    "acc5_085": accuracy_key(5, 0.85),
    "acc5_090": accuracy_key(5, 0.90),
    "acc10_090": accuracy_key(10, 0.90),
}
"""What recipes and runs of earlier versions call measures."""


def main_measures(present: set[str], with_neutral: bool = True) -> list[str]:
    """Return the keys of the measures that a table shows, in its order.

    Args:
        present: Those that there are values of.
        with_neutral: Also what is neither better nor worse.
    """
    return [
        key
        for key, measure in MEASURES.items()
        if key in present and measure.main and (with_neutral or measure.higher_is_better is not None)
    ]
