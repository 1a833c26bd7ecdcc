"""What focal loss and oversampling do for rare labels: neither, one, the other, both.

    python benchmarks/imbalance.py                      # 1,800 phantoms of 128 px, 4 recipes x 4 seeds
    python benchmarks/imbalance.py --n 300 --epochs 2   # only shows that it runs
    python benchmarks/imbalance.py --data DIR           # images of your own, as `protein_atlas train` reads them

The phantoms, the network, the number of epochs and the learning rate are those of `protein_atlas demo`. All recipes
share the images, the balanced split, the number of steps and, seed by seed, the first weights; the weights of the
last epoch are scored. "BCE" is binary cross entropy, the focal loss with gamma = 0. Decisions are by thresholds that
were fitted without the image (the default rule, 3 times 5 folds).

Two kinds of chance are told apart. In brackets: the 95 % interval of a paired bootstrap over the validation images,
or over groups of them, for the mean of the seeds. After the semicolon: the least and the greatest difference of the
seeds (first weights and order of the images). Bold is a difference that has both on one side of zero; of as many rows
as are printed, one or two would be by chance alone. "Rare" are the labels on less than 5 % of the training images,
from where on oversampling begins.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from fastai.data.transforms import IndexSplitter
from fastai.torch_core import set_seed

from protein_atlas.data.labels import LabelTable, read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.splits import balanced_split
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.evaluate.intervals import difference_interval, score_interval
from protein_atlas.evaluate.metrics import macro_average_precision, macro_f1
from protein_atlas.train.learner import rgby_learner
from protein_atlas.train.settings import DEMO_SETTINGS
from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock
from protein_atlas.vision.losses import MultiLabelFocalLoss
from protein_atlas.vision.models import small_resnet

RECIPES = {"BCE": (0, False), "BCE, oversampled": (0, True), "focal": (2, False), "focal, oversampled": (2, True)}
COMPARED = {
    "oversampled, with BCE": (["BCE, oversampled"], ["BCE"]),
    "oversampled, with focal": (["focal, oversampled"], ["focal"]),
    "focal, not oversampled": (["focal"], ["BCE"]),
    "focal, oversampled": (["focal, oversampled"], ["BCE, oversampled"]),
    "both against neither": (["focal, oversampled"], ["BCE"]),
    "oversampled, mean of both losses": (["BCE, oversampled", "focal, oversampled"], ["BCE", "focal"]),
    "focal, mean of both samplings": (["focal", "focal, oversampled"], ["BCE", "BCE, oversampled"]),
}


def train(
    store: ImageStore, table: LabelTable, valid: np.ndarray, gamma: float, oversample: bool, seed: int, epochs: int,
    lr: float,
) -> np.ndarray:  # fmt: skip
    """The validation side's scores, float64 (N, K), of a network trained by this recipe."""
    set_seed(seed)
    block = protein_datablock(store, table.vocab, splitter=IndexSplitter(valid.tolist()))
    if oversample:
        dls = oversampled_dataloaders(block, table, bs=DEMO_SETTINGS.bs)
    else:
        dls = block.dataloaders(table, bs=DEMO_SETTINGS.bs)
    set_seed(seed)  # whatever the loaders drew: the first weights are the same for all recipes
    learn = rgby_learner(
        dls, small_resnet, pretrained=False, loss_func=MultiLabelFocalLoss(gamma), metrics=[],
        head_kwargs=DEMO_SETTINGS.head_kwargs,
    )  # fmt: skip
    learn.logger = lambda _: None
    with learn.no_bar():
        learn.fit_one_cycle(epochs, lr)
        return learn.valid_scores()[1]


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def compare(
    targets: np.ndarray, first: np.ndarray, second: np.ndarray, metric: str, groups: np.ndarray | None
) -> str:
    """The difference with its interval over images; then that of each seed, from least to greatest.

    first, second: arrays (seeds, R, N, K).
    """
    both = [part.reshape(-1, *targets.shape) for part in (first, second)]
    found = difference_interval(targets, *both, metric, groups)
    of_seeds = [
        difference_interval(targets, a, b, metric, replicates=1).estimate for a, b in zip(first, second, strict=True)
    ]
    text = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]; {min(of_seeds):+.3f} to {max(of_seeds):+.3f}"
    told = found.low > 0 and min(of_seeds) > 0 or found.high < 0 and max(of_seeds) < 0
    return f"**{text}**" if told and len(of_seeds) > 1 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1800, help="simulated fields, a fifth of them for validation")
    parser.add_argument("--epochs", type=int, default=DEMO_SETTINGS.epochs)
    parser.add_argument("--lr", type=float, default=DEMO_SETTINGS.lr, help="the largest learning rate")
    parser.add_argument("--seeds", type=int, default=4, help="trainings of each recipe")
    parser.add_argument("--tempering", type=float, default=0.75, help="0: labels as rare as in the real data")
    parser.add_argument("--data", type=Path, help="a folder with train.csv and the folder train, instead of phantoms")
    parser.add_argument("--group-column", help="a column of train.csv whose groups are not parted")
    arguments = parser.parse_args()

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or simulate_phantoms(
            Path(folder) / "data", arguments.n, tempering=arguments.tempering, min_count=arguments.n // 80
        )
        table = read_labels(data / "train.csv").present()
        pack_images(data / "train", Path(folder) / "store")
        store = ImageStore(Path(folder) / "store", in_memory=True)
    groups = None if arguments.group_column is None else table.columns[arguments.group_column].to_numpy()
    training, valid = balanced_split(table.targets, groups=groups, vocab=table.vocab)
    groups = None if groups is None else groups[valid]
    targets, share = table.targets[valid], table.targets[training].mean(axis=0)
    rare = share < 0.05
    print(
        f"{len(training)} images for training, {len(valid)} for validation; {arguments.epochs} epochs, "
        f"learning rate {arguments.lr}, {arguments.seeds} seeds",
        flush=True,
    )
    if rare.any():
        print(
            f"rare: {rare.sum()} labels on {100 * share.min():.1f} to {100 * share[rare].max():.1f} % of the images, "
            f"with {targets.sum(axis=0)[rare].min()} to {targets.sum(axis=0)[rare].max()} positives for validation",
            flush=True,
        )

    scores = {name: np.empty((arguments.seeds, 1, *targets.shape)) for name in RECIPES}
    decisions = {name: np.empty((arguments.seeds, 3, *targets.shape), np.uint8) for name in RECIPES}
    for seed in range(arguments.seeds):
        for name, recipe in RECIPES.items():
            scores[name][seed, 0] = train(store, table, valid, *recipe, seed, arguments.epochs, arguments.lr)
            found = cross_fit(targets, scores[name][seed, 0], table.vocab, groups=groups)
            decisions[name][seed] = found.decisions
            print(f"{time.perf_counter() - started:5.0f} s: {name}, seed {seed}", flush=True)

    sides = {"all labels": np.ones(len(table.vocab), dtype=bool)}
    if rare.any():
        sides |= {"rare": rare, "common": ~rare}
    rows = []
    for name in RECIPES:
        at_half = (scores[name][:, 0] >= 0.5).astype(np.uint8)
        found = [
            score_interval(targets[:, side], decisions[name].reshape(-1, *targets.shape)[:, :, side], groups=groups)
            for side in sides.values()
        ]  # fmt: skip
        # Without an interval: a label's few positives, drawn twice, raise its average precision.
        precision = np.mean([macro_average_precision(targets, score) for score in scores[name][:, 0]])
        half = np.mean([macro_f1(targets, decided) for decided in at_half])
        empty = 1 - at_half.any(axis=2).mean()
        rows.append([name, *map(str, found), f"{precision:.3f}", f"{half:.3f}", f"{empty:.0%}"])
    columns = ["recipe", *sides, "mean average precision", "F1 at threshold 0.5", "images without a label at 0.5"]
    show("Macro F1", columns, rows)
    units = "images" if groups is None else "groups"
    for metric, of in (("macro F1", decisions), ("macro AP", scores)):
        rows = []
        for name, sides_compared in COMPARED.items():
            first, second = (np.concatenate([of[one] for one in recipes], axis=1) for recipes in sides_compared)
            rows.append([name, *(
                compare(targets[:, side], first[..., side], second[..., side], metric, groups)
                for side in sides.values()
            )])  # fmt: skip
        show(f"Differences in {metric}: mean [over {units}]; over seeds", ["", *sides], rows)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
