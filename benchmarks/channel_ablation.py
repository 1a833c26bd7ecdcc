"""What each stain is worth on simulated cells: train with channels left out, and compare.

    python benchmarks/channel_ablation.py               # 1,500 fields of 128 px
    python benchmarks/channel_ablation.py --n 200 --epochs 1    # only shows that it runs

The same images, the same split, the same network and budget; only the channels that the network sees differ. Printed:
mean average precision over the labels (it needs no thresholds) on the validation images, its difference from a model
of all four channels (leaving one out) or from green alone (adding one), and the 95 % interval of that difference by a
bootstrap over validation images, the same draws for both models. The labels that gain most are named.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from protein_atlas.labels import read_labels
from protein_atlas.metrics import average_precision_per_label
from protein_atlas.phantoms import simulate_phantoms
from protein_atlas.runs import DEMO_SETTINGS, train_run


ALL = ("red", "green", "blue", "yellow")
GREEN = ("green",)
SETS = [ALL, GREEN, *((*GREEN, other) for other in ALL if other != "green"),
        *(tuple(c for c in ALL if c != other) for other in ALL if other != "green")]  # fmt: skip


def validation_scores(data: Path, run: Path, channels: tuple[str, ...], epochs: int) -> pd.DataFrame:
    """Scores of the validation images by a model of these channels."""
    train_run(data, run, replace(DEMO_SETTINGS, channels=channels, epochs=epochs), lambda line: None)
    return pd.read_csv(run / "valid_scores.csv", index_col="Id")


def difference(truth: np.ndarray, one: np.ndarray, other: np.ndarray, draws: int = 200) -> tuple[float, float, float]:
    """Mean average precision of `one` minus that of `other`, and its 95 % interval over resampled images."""
    rng = np.random.default_rng(0)

    def gain(rows: np.ndarray) -> float:
        return float(np.nanmean(average_precision_per_label(truth[rows], one[rows])
                                - average_precision_per_label(truth[rows], other[rows])))  # fmt: skip

    drawn = [gain(rng.integers(0, len(truth), len(truth))) for _ in range(draws)]
    return gain(np.arange(len(truth))), *np.quantile(drawn, [0.025, 0.975])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1500, help="simulated fields")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = simulate_phantoms(Path(folder) / "data", options.n, min_count=options.n // 80)
        table = read_labels(data / "train.csv")
        scores = {}
        for channels in SETS:
            name = "+".join(channels)
            scores[channels] = validation_scores(data, Path(folder) / name, channels, options.epochs)
            rows = pd.Index(table.ids).get_indexer(scores[channels].index)
            truth = table.targets[rows]
            precision = average_precision_per_label(truth, scores[channels].to_numpy())
            print(f"{name:24s} mean average precision {np.nanmean(precision):.3f}", end="", flush=True)
            base = {True: GREEN, False: ALL}[len(channels) == 2]
            if channels not in (ALL, GREEN):
                gain, low, high = difference(truth, scores[channels].to_numpy(), scores[base].to_numpy())
                per_label = precision - average_precision_per_label(truth, scores[base].to_numpy())
                order = np.argsort(per_label if len(channels) == 2 else -per_label)[::-1][:4]
                most = ", ".join(f"{table.vocab[k]} {per_label[k]:+.2f}" for k in order)
                print(f", against {'+'.join(base)} {gain:+.3f} [{low:+.3f}, {high:+.3f}]; most: {most}", end="")
            print(flush=True)


if __name__ == "__main__":
    main()
