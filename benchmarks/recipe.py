"""The recipe of training, one factor at a time: loss, sampling, augmentation, rates, head; and plain fastai beside it.

    python benchmarks/recipe.py train OUT --data DIR [--sets cells hep2] [--recipes ...] [--seeds 2]
    python benchmarks/recipe.py table OUT --data DIR [--against "plain fastai"]

DIR holds the folders `cells` (4 stains, 128 px, groups in Group), `hep2` (1, 78 px, Block) and `yeast` (2, 64 px,
Field), each as `protein_atlas train` reads them; `phantoms` (28 labels, 128 px) are simulated. Every recipe trains the
same network from the same first weights a seed, on the same folds, none of which parts a group; every image is scored
by the network that has not seen its group. Each training writes one file of scores,
`OUT/<set>/<recipe>/<seed>.<fold>.npz`, and is not done again. `--part 0/2` takes every second training, for a second
process beside the first.

"plain fastai" is what `plain_fastai.py` does: binary cross entropy, `aug_transforms`, the same network, head, epochs.
Decisions are by thresholds of the default rule, cross-fitted over groups. A difference is paired by image, its interval
(95 %) a bootstrap over groups, the seeds averaged in each draw.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.data.transforms import IndexSplitter
from fastai.torch_core import set_seed
from fastai.vision.augment import aug_transforms
from plain_fastai import plain_scores
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from protein_atlas.data.images import Layout
from protein_atlas.data.labels import LOCATIONS, LabelTable, read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.splits import balanced_folds
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.evaluate.intervals import difference_interval, score_interval
from protein_atlas.evaluate.metrics import macro_average_precision
from protein_atlas.train.learner import rgby_learner
from protein_atlas.vision.augment import rgby_transforms
from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock
from protein_atlas.vision.losses import MultiLabelFocalLoss


@dataclass(frozen=True)
class DataSet:
    """channels: of the files. labels: names. group: the column that folds keep whole. epochs: of every recipe."""

    channels: tuple[str, ...]
    labels: int
    group: str | None
    folds: int
    epochs: int


SETS = {
    "cells": DataSet(("red", "green", "blue", "yellow"), 28, "Group", 3, 12),
    "hep2": DataSet(("green",), 6, "Block", 3, 6),
    "yeast": DataSet(("gfp", "rfp"), 5, "Field", 4, 12),
    "phantoms": DataSet(("red", "green", "blue", "yellow"), 28, None, 3, 11),
}


@dataclass(frozen=True)
class Recipe:
    """What may be varied; the defaults are binary cross entropy on the images as they are.

    gamma, later: of the focal loss; binary cross entropy for this share of the epochs before. own_start: begin at the
    constant that minimises the loss, not at the prevalence. asymmetric: gamma of the negatives alone. soft_f1: weight
    of one minus the soft macro F1. cap: of oversampling, 1 is none. rarity: most that a label weighs in the loss.
    gain, rotate, zoom, shift, lighting: as in `rgby_transforms`. warp, fastai_transforms: of `aug_transforms`.
    noise: deviation in 0..1. mixup, cutmix: their alpha.
    lr, wd, epochs (a factor), bs: of the fit. decay: of the average of the weights, 0 is none. smoothing: of targets.
    dropout, hidden, concat_pool: of the head. arch: the network. weights: a file in `DIR/weights` that it starts from.
    frozen: epochs in which the new layers train alone, before all others. ratio: of the last rate to the first.
    """

    arch: str = "small_resnet"
    weights: str | None = None
    frozen: int = 0
    ratio: float = 1.0

    gamma: float = 0.0
    later: float = 0.0
    own_start: bool = False
    asymmetric: float = 0.0
    soft_f1: float = 0.0
    cap: float = 1.0
    rarity: float = 1.0
    gain: float = 0.2
    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    noise: float = 0.0
    precision: str | None = None
    lighting: float = 0.0
    warp: float = 0.0
    fastai_transforms: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0
    lr: float = 3e-3
    wd: float = 0.01
    epochs: float = 1.0
    bs: int = 32
    decay: float = 0.0
    smoothing: float = 0.0
    dropout: float = 0.5
    hidden: tuple[int, ...] | None = None
    concat_pool: bool = True


RECIPES = {
    "BCE": Recipe(),
    "focal 2, oversampled": Recipe(gamma=2, cap=10),
    "oversampled": Recipe(cap=10),
    "focal 2": Recipe(gamma=2),
    "focal 1": Recipe(gamma=1),
    "focal 0.5": Recipe(gamma=0.5),
    "focal 2, own start": Recipe(gamma=2, own_start=True),
    "BCE, then focal 2": Recipe(gamma=2, later=0.5),
    "asymmetric 2": Recipe(asymmetric=2),
    "BCE and soft F1": Recipe(soft_f1=1.0),
    "rarity in the loss": Recipe(rarity=10),
    "rotation, zoom": Recipe(rotate=180, zoom=0.1),
    "rotation, more zoom": Recipe(rotate=180, zoom=0.25),
    "little rotation, zoom": Recipe(rotate=15, zoom=0.1),
    "rotation, zoom, shift": Recipe(rotate=180, zoom=0.1, shift=0.1),
    "no gain": Recipe(gain=0.0),
    "gain 0.4": Recipe(gain=0.4),
    "gain 0.8": Recipe(gain=0.8),
    "fp32": Recipe(precision="fp32"),
    "as plain: flips, small turns, contrast": Recipe(fastai_transforms=True),
    "lighting": Recipe(lighting=0.2),
    "lighting 0.4": Recipe(lighting=0.4),
    "lighting, rotation, zoom": Recipe(lighting=0.2, rotate=180, zoom=0.1),
    "lighting, little rotation, zoom": Recipe(lighting=0.2, rotate=15, zoom=0.1),
    "warp": Recipe(warp=0.2),
    "noise": Recipe(noise=0.02),
    "MixUp": Recipe(mixup=0.4),
    "CutMix": Recipe(cutmix=1.0),
    "rate 0.001": Recipe(lr=1e-3),
    "rate 0.01": Recipe(lr=1e-2),
    "decay 0.1": Recipe(wd=0.1),
    "batches of 16": Recipe(bs=16),
    "batches of 64": Recipe(bs=64),
    "averaged weights": Recipe(decay=0.99),
    "smoothing 0.05": Recipe(smoothing=0.05),
    "dropout 0.1": Recipe(dropout=0.1),
    "one layer": Recipe(hidden=()),
    "average pooling": Recipe(concat_pool=False),
    "half the epochs": Recipe(epochs=0.5),
    "twice the epochs": Recipe(epochs=2.0),
    "SqueezeNet, random": Recipe(arch="squeezenet1_0"),
    **{
        f"{name}, {how}": Recipe(arch=arch, weights=file, **options)
        for name, arch, file in (
            ("SqueezeNet", "squeezenet1_0", "squeezenet1_0_imagenet.pth"),
            ("Lite0", "tf_efficientnet_lite0", "tf_efficientnet_lite0_timm.pth"),
        )
        for how, options in (
            ("frozen first, rates from a hundredth", {"frozen": 1, "ratio": 100.0, "lr": 1e-3}),
            ("rates from a hundredth", {"ratio": 100.0}),
            ("rates from a tenth", {"ratio": 10.0}),
            ("frozen first, one rate", {"frozen": 1}),
            ("one rate", {}),
            ("one rate of 0.001", {"lr": 1e-3}),
        )
    },
    "Lite0, random": Recipe(arch="tf_efficientnet_lite0"),
}  # fmt: skip
PLAIN = "plain fastai"


class Data(NamedTuple):
    table: LabelTable
    store: ImageStore
    groups: np.ndarray | None
    folds: np.ndarray


@cache
def read(name: str, folder: Path | None) -> Data:
    """A set with its images in memory and its folds."""
    of = SETS[name]
    with tempfile.TemporaryDirectory() as work:
        place = folder or simulate_phantoms(Path(work) / "data", 1800, tempering=0.75, min_count=24)
        vocab = LOCATIONS if of.labels == len(LOCATIONS) else tuple(f"label {k}" for k in range(of.labels))
        table = read_labels(place / "train.csv", vocab).present()
        pack_images(place / "train", Path(work) / "store", layout=Layout(of.channels), ids=table.ids.tolist())
        store = ImageStore(Path(work) / "store", in_memory=True)
    groups = None if of.group is None else table.columns[of.group].to_numpy()
    folds = balanced_folds(table.targets, of.folds, groups=groups, vocab=table.vocab, strict=False)
    return Data(table, store, groups, folds)


class Loss(MultiLabelFocalLoss):
    """Focal loss with what else is tried; targets may be smoothed."""

    def __init__(self, recipe: Recipe, weights: np.ndarray | None = None):
        super().__init__(recipe.gamma, weights)
        self.recipe = recipe

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x, y = (t.as_subclass(torch.Tensor).float() for t in (logits, targets))
        if self.recipe.smoothing:
            y = y * (1 - self.recipe.smoothing) + self.recipe.smoothing / 2
        if self.recipe.asymmetric:
            present, absent = functional.softplus(-x), functional.softplus(x)
            loss = (y * present + (1 - y) * torch.exp(-self.recipe.asymmetric * present) * absent).sum(1).mean()
        else:
            loss = super().forward(x, y)
        if self.recipe.soft_f1:
            p = torch.sigmoid(x)
            hit, either = (p * y).sum(0), (p + y).sum(0)
            loss = loss + self.recipe.soft_f1 * (1 - 2 * hit / either.clamp(min=1e-6)).mean() * x.shape[1] / 2
        return loss


class FocalLater(Callback):
    """Binary cross entropy for a share of the fit, then the focal loss."""

    def __init__(self, share: float, gamma: float):
        self.share, self.gamma = share, gamma

    def before_batch(self):
        self.learn.loss_func.gamma = self.gamma if self.pct_train >= self.share else 0.0


class AverageWeights(Callback):
    """An exponential average of the weights, with which the fit ends."""

    order = 80

    def __init__(self, decay: float):
        self.decay = decay

    def before_fit(self):
        self.average = AveragedModel(self.learn.model, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)

    def after_batch(self):
        if self.training:
            self.average.update_parameters(self.learn.model)

    def after_fit(self):
        self.learn.model.load_state_dict(self.average.module.state_dict())


class Noise(Callback):
    """Normal noise on training batches, of this deviation on the scale of the images before they are normalised."""

    def __init__(self, deviation: float, std: list[float]):
        self.deviation, self.std = deviation, torch.tensor(std)[:, None, None]

    def before_batch(self):
        if self.training:
            x = self.xb[0].as_subclass(torch.Tensor)
            self.learn.xb = (x + torch.randn_like(x) * self.deviation / self.std,)


def own_start(prevalence: np.ndarray, gamma: float) -> np.ndarray:
    """Logits of the constant scores with the least focal loss for these prevalences."""
    grid = torch.linspace(-12, 12, 4801, dtype=torch.float64)[:, None]
    present, absent = functional.softplus(-grid), functional.softplus(grid)
    share = torch.from_numpy(prevalence)
    loss = share * torch.exp(-gamma * absent) * present + (1 - share) * torch.exp(-gamma * present) * absent
    return grid[loss.argmin(0), 0].numpy()


def recipe_scores(data: Data, of: DataSet, valid: np.ndarray, recipe: Recipe, seed: int, folder: Path) -> np.ndarray:
    """The validation side's scores, float64 (N, K), of a network trained by this recipe."""
    set_seed(seed)
    transforms = rgby_transforms(
        gain=recipe.gain, rotate=recipe.rotate, zoom=recipe.zoom, shift=recipe.shift, lighting=recipe.lighting
    )
    if recipe.warp:
        transforms[-1:-1] = aug_transforms(False, max_rotate=0, max_zoom=1, p_lighting=0, max_warp=recipe.warp)
    if recipe.fastai_transforms:
        transforms = [*aug_transforms(flip_vert=True), transforms[-1]]
    block = protein_datablock(
        data.store, data.table.vocab, splitter=IndexSplitter(valid.tolist()), batch_tfms=transforms
    )
    dls = (
        oversampled_dataloaders(block, data.table, bs=recipe.bs, cap=recipe.cap, num_workers=0)
        if recipe.cap > 1
        else block.dataloaders(data.table, bs=recipe.bs, num_workers=0)
    )
    set_seed(seed)  # whatever the loaders drew: the first weights are the same for all recipes
    shown = np.delete(data.table.targets, valid, axis=0)
    share = (shown.sum(0) + 1) / (len(shown) + 2)
    weights = None if recipe.rarity == 1 else np.clip((0.05 / share) ** 0.5, 1, recipe.rarity)
    cbs: list[Callback] = []
    if recipe.later:
        cbs.append(FocalLater(recipe.later, recipe.gamma))
    if recipe.mixup:
        cbs.append(MixUp(recipe.mixup))
    if recipe.cutmix:
        cbs.append(CutMix(recipe.cutmix))
    if recipe.decay:
        cbs.append(AverageWeights(recipe.decay))
    if recipe.noise:
        cbs.append(Noise(recipe.noise, next(t for t in dls.after_batch.fs if hasattr(t, "statistics")).statistics()[1]))
    head = {"ps": recipe.dropout, "lin_ftrs": None if recipe.hidden is None else list(recipe.hidden)}
    learn = rgby_learner(
        dls, recipe.arch, False, None if recipe.weights is None else folder / "weights" / recipe.weights,
        loss_func=Loss(recipe, weights), metrics=[],
        head_kwargs=head | {"concat_pool": recipe.concat_pool}, cbs=cbs, precision=recipe.precision,
    )  # fmt: skip
    if recipe.own_start:
        last = [layer for layer in learn.model.modules() if isinstance(layer, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.bias.copy_(torch.from_numpy(own_start(share, recipe.gamma)))
    learn.logger = lambda _: None
    with learn.no_bar():
        if recipe.frozen:
            learn.freeze()
            learn.fit_one_cycle(recipe.frozen, 2 * recipe.lr, pct_start=0.99, wd=recipe.wd)
        learn.unfreeze()
        rates = recipe.lr if recipe.ratio == 1 else slice(recipe.lr / recipe.ratio, recipe.lr)
        learn.fit_one_cycle(max(1, round(of.epochs * recipe.epochs) - recipe.frozen), rates, wd=recipe.wd)
        return learn.valid_scores()[1]


def path_of(out: Path, name: str, recipe: str, seed: int, fold: int) -> Path:
    return out / name / re.sub(r"\W+", "_", recipe) / f"{seed}.{fold}.npz"


def train(
    out: Path, folder: Path, names: list[str], recipes: list[str], seeds: int, folds: int | None, part: tuple[int, int]
) -> None:  # fmt: skip
    jobs = [
        (recipe, name, seed, fold)
        for seed in range(seeds) for recipe in recipes for name in names for fold in range(folds or SETS[name].folds)
    ]  # fmt: skip
    for recipe, name, seed, fold in jobs[part[0] :: part[1]]:
        path = path_of(out, name, recipe, seed, fold)
        if path.exists():
            continue
        data, started = read(name, None if name == "phantoms" else folder / name), time.process_time()
        valid = np.flatnonzero(data.folds == fold)
        run = plain_scores if recipe == PLAIN else partial(recipe_scores, recipe=RECIPES[recipe], folder=folder)
        scores = run(data, SETS[name], valid, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partly = path.with_suffix(".part.npz")
        np.savez_compressed(partly, scores=scores.astype(np.float32), valid=valid)
        partly.rename(path)
        found = macro_average_precision(data.table.targets[valid], scores)
        print(f"{time.process_time() - started:5.0f} s: {name}, {recipe}, {seed}, {fold}: AP {found:.3f}", flush=True)


def whole_scores(out: Path, name: str, data: Data, recipe: str) -> Iterator[np.ndarray]:
    """Scores (N, K) of all images, of each seed whose folds are all done."""
    for seed in range(100):
        paths = [path_of(out, name, recipe, seed, fold) for fold in range(SETS[name].folds)]
        if not all(path.exists() for path in paths):
            return
        scores = np.full(data.table.targets.shape, np.nan)
        for path in paths:
            with np.load(path) as file:
                scores[file["valid"]] = file["scores"]
        yield scores


def table(out: Path, folder: Path, names: list[str], recipes: list[str], against: str) -> None:
    for name in names:
        data = read(name, None if name == "phantoms" else folder / name)
        targets, found = data.table.targets, {}
        for recipe in recipes:
            scores = list(whole_scores(out, name, data, recipe))
            if scores:
                decided = [cross_fit(targets, one, data.table.vocab, groups=data.groups).decisions for one in scores]
                found[recipe] = np.array(scores), np.array(decided)
        print(f"\n{name}: {len(targets)} images\n")
        print(f"| recipe | seeds | macro F1 | minus {against} | mean average precision | minus {against} |")
        print("| --- " * 6 + "|")
        for recipe, (scores, decided) in found.items():
            flat = decided.reshape(-1, *targets.shape)
            f1 = score_interval(targets, flat, groups=data.groups)
            precision = np.mean([macro_average_precision(targets, one) for one in scores])
            seeds = min(len(scores), len(found.get(against, (scores,))[0]))
            minus = ["", ""]
            if recipe != against and against in found:
                other = found[against]
                minus = [
                    str(difference_interval(targets, flat[: seeds * decided.shape[1]],
                        other[1][:seeds].reshape(-1, *targets.shape), "macro F1", data.groups)),
                    str(difference_interval(targets, scores[:seeds], other[0][:seeds], "macro AP", data.groups)),
                ]  # fmt: skip
            print(f"| {recipe} | {len(scores)} | {f1} | {minus[0]} | {precision:.3f} | {minus[1]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["train", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--recipes", nargs="+", choices=[*RECIPES, PLAIN], default=[PLAIN, *RECIPES], metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--against", default=PLAIN, choices=[*RECIPES, PLAIN], metavar="RECIPE")
    parser.add_argument("--folds", type=int, help="the first so many alone, for a look; the table needs all")
    parser.add_argument("--part", default="0/1")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    what = (arguments.out, arguments.data, arguments.sets, arguments.recipes)
    if arguments.do == "train":
        train(*what, arguments.seeds, arguments.folds, (part, parts))
    else:
        table(*what, arguments.against)


if __name__ == "__main__":
    main()
