"""Splits by this library beside those that people use: how far prevalence is off, what is missing, how long it takes.

    pip install -e ".[benchmarks]"
    python benchmarks/splits.py --kaggle train.csv --hpa HPAv18RBGY_wodpl.csv

--kaggle: the label table of the 2018 challenge (Id, Target); without it, the same 31,072 label sets in the order of
their frequency, from the package. --hpa: the table of the public HPA v18 images, whose ids begin with the antibody;
without it that part is left out. Error: mean absolute difference of prevalence between a part and all images, over
labels and parts, in percentage points. "Rounding" is the error of counts that are the exact share rounded to whole
images: nobody can be below it by more than a little. Times are of one process, medians; compare them within a run only.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit
from sklearn.model_selection import KFold, StratifiedGroupKFold
from skmultilearn.model_selection import IterativeStratification

from protein_atlas.data.groups import hpa_groups
from protein_atlas.data.labels import LOCATIONS, encode_labels, label_set_counts, read_labels
from protein_atlas.data.split_audit import split_audit
from protein_atlas.data.splits import balanced_folds, balanced_split


def folds_of(splits, n: int) -> np.ndarray:
    folds = np.empty(n, dtype=np.int64)
    for number, (_, inside) in enumerate(splits):
        folds[inside] = number
    return folds


def ours(targets: np.ndarray, seed: int, n_folds: int | None) -> np.ndarray:
    if n_folds is None:
        part = np.zeros(len(targets), dtype=np.int64)
        part[balanced_split(targets, 0.2, seed)[1]] = 1
        return part
    return balanced_folds(targets, n_folds, seed)


def scikit_multilearn(targets: np.ndarray, seed: int, n_folds: int | None, shuffle: bool = False) -> np.ndarray:
    """Its order 2; it draws from NumPy's global state alone. shuffle: rows in a drawn order, which it does not do
    itself."""
    np.random.seed(seed)
    order = np.random.permutation(len(targets)) if shuffle else np.arange(len(targets))
    shares = [0.8, 0.2] if n_folds is None else [1 / n_folds] * n_folds
    stratifier = IterativeStratification(len(shares), order=2, sample_distribution_per_fold=shares)
    folds = np.empty(len(targets), dtype=np.int64)
    folds[order] = folds_of(stratifier.split(targets, targets[order]), len(targets))
    return folds


def iterative_stratification(targets: np.ndarray, seed: int, n_folds: int | None) -> np.ndarray:
    if n_folds is None:
        part = np.zeros(len(targets), dtype=np.int64)
        part[next(MultilabelStratifiedShuffleSplit(1, test_size=0.2, random_state=seed).split(targets, targets))[1]] = 1
        return part
    return folds_of(
        MultilabelStratifiedKFold(n_folds, shuffle=True, random_state=seed).split(targets, targets), len(targets)
    )


def random(targets: np.ndarray, seed: int, n_folds: int | None) -> np.ndarray:
    folds = folds_of(KFold(n_folds or 5, shuffle=True, random_state=seed).split(targets), len(targets))
    return (folds == 0).astype(np.int64) if n_folds is None else folds


def measure(
    name: str, make: Callable[[int], np.ndarray], targets: np.ndarray, seeds: int, groups: np.ndarray | None = None
) -> dict:
    rows = []
    for seed in range(seeds):
        started = time.perf_counter()
        part = make(seed)
        seconds = time.perf_counter() - started
        audit = split_audit(targets, part, LOCATIONS, groups)
        sizes = audit.parts["images"]
        row = {
            "error": audit.mean_deviation, "largest": audit.labels["deviation"].abs().max(),
            "missing": len(audit.missing), "sizes": f"{sizes.min()}..{sizes.max()}", "seconds": seconds,
            "parted": len(audit.leaked),
        }
        if groups is not None:
            row["fewest groups"] = int(audit.labels["groups"].min())
        rows.append(row)
    table = pd.DataFrame(rows)
    result = {
        "engine": name, "error": table["error"].mean(), "worst seed": table["error"].max(),
        "largest": table["largest"].max(), "missing": table["missing"].sum(), "sizes": table["sizes"].iloc[0],
        "seconds": table["seconds"].median(),
    }
    if groups is not None:
        result |= {"parted groups": table["parted"].max(), "fewest groups": table["fewest groups"].min()}
    return result


def show(title: str, rows: list[dict]) -> None:
    table = pd.DataFrame(rows).set_index("engine")
    table["error / ours"] = table["error"] / table["error"].iloc[0]
    table["seconds / ours"] = table["seconds"] / table["seconds"].iloc[0]
    print(f"\n{title}\n{table.round(4).to_string()}", flush=True)


def rounding_error(targets: np.ndarray, shares: np.ndarray) -> float:
    """The error of counts that are rounded to the nearest whole image, in parts of whole sizes."""
    total = targets.sum(axis=0)
    exact = shares[:, None] * total
    return float(100 * (np.abs(np.round(exact) - exact) / (shares[:, None] * len(targets))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kaggle")
    parser.add_argument("--hpa")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")

    if arguments.kaggle:
        targets = read_labels(arguments.kaggle).targets
    else:
        targets = encode_labels([labels for labels, n in label_set_counts().items() for _ in range(n)])
    for n_folds in (None, 5):
        shares = np.array([0.8, 0.2]) if n_folds is None else np.full(n_folds, 1 / n_folds)
        engines = {
            "protein_atlas": ours,
            "scikit-multilearn, as it is": scikit_multilearn,
            "scikit-multilearn, rows shuffled": lambda *given: scikit_multilearn(*given, shuffle=True),
            "iterative-stratification": iterative_stratification,
            "random": random,
        }
        rows = [
            measure(
                name, lambda seed, engine=engine, n_folds=n_folds: engine(targets, seed, n_folds), targets,
                arguments.seeds,
            )
            for name, engine in engines.items()
        ]
        what = "one split, 20 % for validation" if n_folds is None else f"{n_folds} folds"
        show(
            f"{len(targets)} Kaggle images, {what}, {arguments.seeds} seeds; rounding "
            f"{rounding_error(targets, shares):.4f}",
            rows,
        )

    if arguments.hpa:
        table = read_labels(arguments.hpa)
        targets, antibodies = table.targets, hpa_groups(table.ids, "antibody")
        rarest = targets.sum(axis=0)[None].repeat(len(targets), 0).astype(float)
        rarest[targets == 0] = np.inf
        rarest = rarest.argmin(axis=1)
        ours_grouped = {"protein_atlas": lambda seed: balanced_folds(targets, 5, seed, antibodies)}
        by_rarest = lambda seed: folds_of(  # noqa: E731
            StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(targets, rarest, antibodies), len(targets)
        )
        rows = [measure(name, make, targets, 3, antibodies) for name, make in
                (ours_grouped | {"StratifiedGroupKFold, rarest label": by_rarest}).items()]  # fmt: skip
        n_antibodies = len(np.unique(antibodies))
        show(f"{len(targets)} HPA v18 images of {n_antibodies} antibodies, 5 folds, 3 seeds", rows)


if __name__ == "__main__":
    main()
