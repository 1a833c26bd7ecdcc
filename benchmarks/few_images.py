"""Threshold rules fitted on few images: what each is worth on the others, with the error of the comparison.

    python benchmarks/few_images.py PREDICTIONS.npz [MORE.npz ...] [--images 12 24 50 100 400] [--draws 100]

PREDICTIONS.npz: `targets` (N, K) and, under any other name but `ids`, the scores (N, K) of a model. Added are the last
model of the first file cubed, its cube root, and blurred with another image's scores; noise; and simulated scores whose
best threshold lies near 0.5 and far from it. For each set and number of images: the macro F1 of each rule, fitted on a
draw of images and scored on up to 3,000 others, mean over the draws; and by how much the default rule is above the
better of "fixed" and "shrunk", with the standard error of this difference over the draws. A draw without a positive
image is left out.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from protein_atlas.data.labels import label_counts
from protein_atlas.evaluate.metrics import macro_f1
from protein_atlas.evaluate.thresholds import fit_thresholds

RULES = ("fixed", "global", "shrunk", "smooth")


def simulated(
    prevalence: np.ndarray, apart: float, scale: float, offset: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of these shares of 6,000 images, and normal logits: positives so far from the others, then scaled."""
    truth = (rng.random((6000, len(prevalence))) < prevalence).astype(np.uint8)
    return truth, expit(scale * (rng.normal(size=truth.shape) + apart * (truth - 0.5)) + offset)


def data_sets(files: list[Path]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, targets and scores of each set."""
    for number, path in enumerate(files):
        with np.load(path) as file:
            targets = file["targets"].astype(np.uint8)
            models = {name: file[name].astype(np.float64) for name in file.files if name not in ("ids", "targets")}
        for name, scores in models.items():
            yield f"{path.stem} {name}", targets, scores
        if not number:
            rng, known, last = np.random.default_rng(0), targets, list(models.values())[-1]
            yield "cubed", known, last**3
            yield "cube root", known, last ** (1 / 3)
            yield "blurred", known, 0.3 * last + 0.7 * last[rng.permutation(len(last))]
            yield "noise", known, rng.random(last.shape)
    rng, real = np.random.default_rng(1), np.clip(label_counts() / 31_072, 0.01, 1)
    for name, apart, scale, offset in (
        ("weak", 2.2, 1.6, -2.0), ("good", 3.6, 2.0, -1.5), ("clear", 5.0, 3.6, 0.0), ("low", 3.6, 2.0, -4.0),
        ("high", 3.6, 2.0, 2.0),
    ):  # fmt: skip
        yield f"simulated, {name}", *simulated(real, apart, scale, offset, rng)
    yield "simulated, 10 labels", *simulated(np.full(10, 0.08), 3.6, 3.6, 1.5, rng)


def drawn_scores(targets: np.ndarray, scores: np.ndarray, images: int, draws: int, seed: int = 0) -> np.ndarray:
    """Macro F1 (draws, rules) on images that the thresholds were not fitted on."""
    rng, found = np.random.default_rng((seed, images)), []
    vocab = tuple(f"label {k}" for k in range(targets.shape[1]))
    for _ in range(draws):
        order = rng.permutation(len(targets))
        few, others = order[:images], order[images : images + 3000]
        if targets[few].any():
            fitted = [fit_thresholds(targets[few], scores[few], vocab, rule, allow_none=True) for rule in RULES]
            # Simulated images may show no label, and are given one all the same, as they are by default.
            decided = [replace(of, allow_none=False).decide(scores[others]) for of in fitted]
            found.append([macro_f1(targets[others], of) for of in decided])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", nargs="+", type=Path)
    parser.add_argument("--images", nargs="+", type=int, default=[12, 24, 50, 100, 400])
    parser.add_argument("--draws", type=int, default=100)
    arguments = parser.parse_args()
    rows = []
    for name, targets, scores in data_sets(arguments.predictions):
        for images in arguments.images:
            found = drawn_scores(targets, scores, images, arguments.draws)
            means = found.mean(axis=0)
            better = max(("fixed", "shrunk"), key=lambda rule: means[RULES.index(rule)])
            above = found[:, RULES.index("smooth")] - found[:, RULES.index(better)]
            error = above.std(ddof=1) / np.sqrt(len(above))
            rows.append((name, images, *means, better, above.mean(), error, above.std(ddof=1)))
            each = "  ".join(f"{rule} {mean:.3f}" for rule, mean in zip(RULES, means, strict=True))
            difference = f"smooth above {better} {above.mean():+.3f} ± {error:.3f}"
            print(f"{name:30} {images:4}  {each}  {difference}", flush=True)
    table = pd.DataFrame(rows, columns=["set", "images", *RULES, "better", "above", "error", "deviation"])
    by_images = table.groupby("images")["above"].agg(["mean", "min"]).round(4)
    below = table["above"] < -2 * table["error"]
    by_images["sets below by more than 2 errors"] = below.groupby(table["images"]).sum()
    print(f"\nsmooth above the better of fixed and shrunk, over {table['set'].nunique()} sets\n{by_images.to_string()}")


if __name__ == "__main__":
    main()
