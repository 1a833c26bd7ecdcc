"""Sets of scores that the benchmarks of decisions share: targets, and what models said of images they had not seen."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protein_atlas.data.labels import LOCATIONS, read_labels


class Scored(NamedTuple):
    """targets: uint8 (N, K). models: name -> scores (N, K). groups: of each image, or None."""

    targets: np.ndarray
    models: dict[str, np.ndarray]
    groups: np.ndarray | None = None


def read_predictions(path: Path) -> Scored:
    """Of a file with `targets` (N, K) and, under any other name but `ids`, the scores (N, K) of a model."""
    with np.load(path) as file:
        models = {name: file[name].astype(np.float64) for name in file.files if name not in ("ids", "targets")}
        return Scored(file["targets"].astype(np.uint8), models)


def read_votes(path: Path, images: int = 20_000) -> Scored:
    """Of a file with `targets` and the decisions of models, their bits packed: the share of the models that say so."""
    with np.load(path) as file:
        names = [name for name in file.files if name not in ("ids", "fold", "targets") and "Ensemble" not in name]
        chosen = np.random.default_rng(0).permutation(len(file["targets"]))[:images]

        def bits(name: str) -> np.ndarray:
            return np.unpackbits(file[name][chosen], axis=1)[:, : len(LOCATIONS)]

        shares = sum(bits(name).astype(np.float64) for name in names) / len(names)
        return Scored(bits("targets"), {f"votes of {len(names)}": shares})


def read_recipes(out: Path, data: Path) -> Iterator[tuple[str, Scored]]:
    """Name and scores of each set that `recipe.py train OUT --data DIR` has trained: those of its first seed."""
    for folder in sorted(path for path in out.iterdir() if (data / path.name / "train.csv").is_file()):
        labels = LOCATIONS if folder.name == "cells" else tuple(f"label {k}" for k in range(50))
        table = read_labels(data / folder.name / "train.csv", labels).present()
        models = {}
        for recipe in sorted(folder.iterdir()):
            scores = np.full(table.targets.shape, np.nan)
            for path in recipe.glob("0.*.npz"):
                with np.load(path) as file:
                    scores[file["valid"]] = file["scores"]
            if not np.isnan(scores).any():  # all folds are done
                models[recipe.name.replace("_", " ")] = scores
        column = next((name for name in ("Group", "Block", "Field") if name in table.columns), None)
        groups = None if column is None else table.columns[column].to_numpy()
        yield folder.name, Scored(table.targets.astype(np.uint8), models, groups)
