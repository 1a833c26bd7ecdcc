"""Threshold rules fitted on few images and on many: what each is worth on the others, and whether the default is safe.

    python benchmarks/few_images.py PREDICTIONS.npz [--votes DECISIONS.npz] [--recipes OUT --data DIR]
        [--images 8 12 20 30 60 200 2000 6000] [--draws 200]

PREDICTIONS.npz: `targets` (N, K) and, under any other name but `ids`, the scores (N, K) of a model; DECISIONS.npz: the
packed decisions of many models, whose votes are scores; OUT: what `recipe.py train OUT --data DIR` left. Added are the
last model of PREDICTIONS.npz cubed, its cube root, and blurred with another image's scores; noise; simulated scores
whose best threshold lies near 0.5 and far from it; and the same where images may show none of the labels.

For each set and number of images: the macro F1 of each rule, fitted on a draw of images and scored on up to 2,000
others, mean over the draws; and by how much the default is above the better of "fixed" and "shrunk", with the standard
error of this difference over the draws. A draw without a positive image is left out, and a size that leaves fewer than
100 others.
"""

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from score_sets import Scored, read_predictions, read_recipes, read_votes

from protein_atlas.data.labels import label_counts
from protein_atlas.evaluate.metrics import macro_f1
from protein_atlas.evaluate.thresholds import ThresholdWarning, fit_thresholds

RULES = ("fixed", "shrunk", "smooth")
SIMULATED = {  # distance of positives from the others, in deviations; scale and offset of the logits
    "weak": (2.2, 1.6, -2.0), "good": (3.6, 2.0, -1.5), "clear": (5.0, 3.6, 0.0), "low": (3.6, 2.0, -4.0),
    "high": (3.6, 2.0, 2.0), "10 labels": (3.6, 3.6, 1.5),
}  # fmt: skip


def simulated(name: str, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 6,000 images, as rare as in the challenge or one in twelve, and normal logits as scores."""
    shares = np.full(10, 0.08) if name == "10 labels" else np.clip(label_counts() / 31_072, 0.01, 1)
    rng, (apart, scale, offset) = np.random.default_rng(seed), SIMULATED[name]
    truth = (rng.random((6000, len(shares))) < shares).astype(np.uint8)
    return truth, expit(scale * (rng.normal(size=truth.shape) + apart * (truth - 0.5)) + offset)


def data_sets(arguments: argparse.Namespace) -> Iterator[tuple[str, np.ndarray, np.ndarray, bool]]:
    """Name, targets and scores of each set, and whether an image may be decided to show none of the labels."""

    def each(of: Scored, prefix: str = "") -> Iterator[tuple[str, np.ndarray, np.ndarray, bool]]:
        for name, scores in of.models.items():
            yield f"{prefix}{name}", of.targets, scores, False

    known = read_predictions(arguments.predictions)
    yield from each(known)
    rng, last = np.random.default_rng(0), list(known.models.values())[-1]
    made = {
        "cubed": last**3, "cube root": last ** (1 / 3), "blurred": 0.3 * last + 0.7 * last[rng.permutation(len(last))],
        "noise": rng.random(last.shape),
    }  # fmt: skip
    yield from each(Scored(known.targets, made))
    if arguments.votes is not None:
        yield from each(read_votes(arguments.votes))
    if arguments.recipes is not None:
        for name, of in read_recipes(arguments.recipes, arguments.data):
            yield from each(of, f"{name}, ")
    for name in SIMULATED:
        # Simulated images may show no label, and are given one all the same, as they are by default; or they are not.
        yield f"simulated, {name}", *simulated(name), False
        yield f"simulated, {name}, or none", *simulated(name), True


def drawn_scores(
    targets: np.ndarray, scores: np.ndarray, allow_none: bool, images: int, draws: int, seed: int = 0
) -> np.ndarray:
    """Macro F1 (draws, rules) on images that the thresholds were not fitted on."""
    rng, found = np.random.default_rng((seed, images)), []
    vocab = tuple(f"label {k}" for k in range(targets.shape[1]))
    for _ in range(draws):
        order = rng.permutation(len(targets))
        few, others = order[:images], order[images : images + 2000]
        if targets[few].any():
            fitted = [fit_thresholds(targets[few], scores[few], vocab, rule, allow_none=True) for rule in RULES]
            decided = [replace(of, allow_none=allow_none).decide(scores[others]) for of in fitted]
            found.append([macro_f1(targets[others], of) for of in decided])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--votes", type=Path)
    parser.add_argument("--recipes", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", nargs="+", type=int, default=[8, 12, 20, 30, 60, 200, 2000, 6000])
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ThresholdWarning)  # few images lack most labels
    rows = []
    for name, targets, scores, allow_none in data_sets(arguments):
        for images in arguments.images:
            if len(targets) - images < 100:
                continue
            found = drawn_scores(targets, scores, allow_none, images, arguments.draws)
            means = found.mean(axis=0)
            better = max(RULES[:2], key=lambda rule: means[RULES.index(rule)])
            above = found[:, RULES.index("smooth")] - found[:, RULES.index(better)]
            error = above.std(ddof=1) / np.sqrt(len(above))
            rows.append((name, images, *means, above.mean(), error))
            each = "  ".join(f"{rule} {mean:.3f}" for rule, mean in zip(RULES, means, strict=True))
            print(f"{name:34} {images:4}  {each}  {above.mean():+.3f} ± {error:.3f} from {better}", flush=True)
    table = pd.DataFrame(rows, columns=["set", "images", *RULES, "above", "error"])
    for column in (*RULES, "above"):
        title = "smooth above the better of the others" if column == "above" else column
        print(f"\n{title}\n{table.pivot_table(column, 'set', 'images', sort=False).round(3).to_string()}")
    summed = table.groupby("images")["above"].agg(["mean", "min", "max"]).round(4)
    summed["below by more than 0.01"] = (table["above"] < -0.01).groupby(table["images"]).sum()
    print(f"\nof {table['set'].nunique()} sets\n{summed.to_string()}")


if __name__ == "__main__":
    main()
