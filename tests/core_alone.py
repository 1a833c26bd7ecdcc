"""Run by test_install.py, and by CI where torch is not installed: the core, every module of it, and a road through it.

Prints one line; torch and fastai count as not installed, whether they are or not.
"""

import importlib
import pkgutil
import sys

HEAVY = ("torch", "torchvision", "fastai", "fastcore", "captum")


class Refuse:
    """Finds none of them."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuse)

import numpy as np  # noqa: E402

from protein_atlas.data.labels import LOCATIONS, encode_labels, label_set_counts  # noqa: E402
from protein_atlas.data.split_audit import split_audit  # noqa: E402
from protein_atlas.data.splits import HOLDOUT, balanced_folds  # noqa: E402
from protein_atlas.evaluate.cross_fitting import cross_fit  # noqa: E402

modules = []
for room in ("system", "data", "cells", "evaluate", "predict", "report"):
    package = importlib.import_module(f"protein_atlas.{room}")
    modules += [
        importlib.import_module(f"protein_atlas.{room}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    ]

rng = np.random.default_rng(0)
sets, counts = zip(*((names, count) for names, count in label_set_counts().items() if count > 50))
targets = encode_labels([sets[i] for i in rng.choice(len(sets), 2_000, p=np.array(counts) / sum(counts))])
groups = np.arange(len(targets)) // 2
folds = balanced_folds(targets, 5, groups=groups, holdout_share=0.1, vocab=LOCATIONS, strict=False)
audit = split_audit(targets, folds, LOCATIONS, groups)
assert not audit.leaked
inside = folds != HOLDOUT
scores = 1 / (1 + np.exp(2.5 - 3 * targets - rng.normal(size=targets.shape)))
found = cross_fit(targets[inside], scores[inside], LOCATIONS, groups=groups[inside], repeats=1)
assert found.interval().low < found.score < found.interval().high
assert [name for name in HEAVY if name in sys.modules] == []
print(f"{len(modules)} modules without torch; {audit}")
