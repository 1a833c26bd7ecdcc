"""The recipe of training, one factor at a time: loss, sampling, augmentation, rates, head; and plain fastai beside it.

    python benchmarks/recipe.py train OUT --data DIR [--sets cells hep2] [--recipes ...] [--seeds 2]
    python benchmarks/recipe.py table OUT --data DIR [--against "plain fastai"]

DIR holds the folders `cells` (4 stains, 128 px, groups in Group), `hep2` (1, 78 px, Block) and `yeast` (2, 64 px,
Field), each as `protein_atlas train` reads them; `phantoms` (28 labels, 128 px) are simulated. Every recipe trains the
same network from the same first weights a seed, on the same folds, none of which parts a group; every image is scored
by the network that has not seen its group. Each training writes one file of scores,
`OUT/<set>/<recipe>/<seed>.<fold>.npz`, and is not done again. `--jobs 2` trains in two processes at once, each with one
thread.

"plain fastai" is what `plain_fastai.py` does: binary cross entropy, `aug_transforms`, the same network, head, epochs.
Decisions are by thresholds of the default rule, cross-fitted over groups. A difference is paired by image, its interval
(95 %) a bootstrap over groups, the seeds averaged in each draw; the last table has the mean over the sets, whose draws
are those of the sets, and what is left of each p after Holm's correction for the number of recipes.
"""

import argparse
import multiprocessing
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
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from fastai.vision.augment import aug_transforms
from plain_fastai import plain_scores
from scipy.stats import norm
from torch import nn
from torch.nn import functional

from protein_atlas.callback.average import AverageWeights
from protein_atlas.data.images import Layout
from protein_atlas.data.labels import LOCATIONS, LabelTable, read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.sources import open_images
from protein_atlas.data.splits import balanced_folds
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate.bootstrap import find_units, score_draws
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.evaluate.metrics import label_mean, macro_average_precision
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
    """What may be varied; the defaults are those of `protein_atlas train`.

    gamma: of the focal loss. own_start: begin at the constant that minimises the loss, not at the prevalence.
    asymmetric: gamma of the negatives alone. soft_f1: weight of one minus the soft macro F1. later: binary cross
    entropy alone for this share of the fit. times: a factor of the loss. eps: of Adam. cap: of oversampling, 1 is
    none. rarity: most that a label weighs in the loss.
    gain, rotate, zoom, shift, lighting: as in `rgby_transforms`. warp, fastai_transforms: of `aug_transforms`.
    noise: deviation in 0..1. mixup, cutmix: their alpha.
    lr, wd, epochs (a factor), bs: of the fit. decay: of the average of the weights, 0 is none. smoothing: of targets.
    dropout, hidden, concat_pool: of the head. arch: the network. weights: a file in `DIR/weights` that it starts from.
    frozen: epochs in which the new layers train alone, before all others. ratio: of the last rate to the first.
    scale: the images are enlarged so many times. still: batch norm keeps the statistics that it was loaded with.
    imagenet: images are normalised as ImageNet's are, not by their own statistics.
    """

    arch: str = "small_resnet"
    weights: str | None = None
    frozen: int = 0
    ratio: float = 1.0
    scale: float = 1.0
    still: bool = False
    imagenet: bool = False
    gamma: float = 0.0
    later: float = 0.0
    own_start: bool = False
    asymmetric: float = 0.0
    soft_f1: float = 0.0
    times: float = 1.0
    eps: float = 1e-5
    cap: float = 1.0
    rarity: float = 1.0
    gain: float = 0.2
    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    noise: float = 0.0
    precision: str | None = None
    lighting: float = 0.2
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
    dropout: float = 0.1
    hidden: tuple[int, ...] | None = None
    concat_pool: bool = True


PLAIN, BASE, DEFAULT = "plain fastai", "base", "default"
# One factor at a time, beside a base with fastai's dropout, as the default had it when they were measured.
RECIPES = {
    BASE: Recipe(dropout=0.5),
    **{
        name: Recipe(**({"dropout": 0.5} | options))
        for name, options in {
            "dropout 0.25": {"dropout": 0.25},
            "no dropout": {"dropout": 0.0},
            "no lighting": {"lighting": 0.0},
            "lighting 0.4": {"lighting": 0.4},
            "oversampled": {"cap": 10},
            "oversampled, cap 3": {"cap": 3},
            "rarity in the loss": {"rarity": 10},
            "oversampled, cap 3, rarity in the loss": {"cap": 3, "rarity": 10},
            "focal 0.5": {"gamma": 0.5},
            "focal 1": {"gamma": 1},
            "focal 2": {"gamma": 2},
            "focal 2, oversampled, no lighting": {"gamma": 2, "cap": 10, "lighting": 0},
            "focal 2, own start": {"gamma": 2, "own_start": True},
            "focal 2, times 8": {"gamma": 2, "times": 8},
            "focal 2, rate 0.01": {"gamma": 2, "lr": 1e-2},
            "BCE, then focal 2": {"gamma": 2, "later": 0.5},
            "asymmetric 2": {"asymmetric": 2},
            "BCE, then with soft F1": {"soft_f1": 1.0, "later": 0.7},
            "rotation, zoom": {"rotate": 180, "zoom": 0.1},
            "little rotation, zoom": {"rotate": 15, "zoom": 0.1},
            "more zoom": {"zoom": 0.25},
            "shift": {"shift": 0.1},
            "no gain": {"gain": 0.0},
            "gain 0.5": {"gain": 0.5},
            "warp": {"warp": 0.2},
            "noise": {"noise": 0.02},
            "MixUp": {"mixup": 0.4},
            "CutMix": {"cutmix": 1.0},
            "rate 0.001": {"lr": 1e-3},
            "rate 0.01": {"lr": 1e-2},
            "weight decay 0.1": {"wd": 0.1},
            "batches of 16": {"bs": 16},
            "batches of 64": {"bs": 64},
            "averaged weights": {"decay": 0.99},
            "smoothing 0.05": {"smoothing": 0.05},
            "one layer": {"hidden": ()},
            "average pooling": {"concat_pool": False},
            "fp32": {"precision": "fp32"},
            "half the epochs": {"epochs": 0.5},
            "twice the epochs": {"epochs": 2.0},
        }.items()
    },
    DEFAULT: Recipe(),
    **{
        f"default, {name}": Recipe(**options)
        for name, options in {
            "batches of 16": {"bs": 16},
            "gain 0.5": {"gain": 0.5},
            "then with soft F1": {"soft_f1": 1.0, "later": 0.7},
            "rate 0.01": {"lr": 1e-2},
            "averaged weights": {"decay": 0.99},
            "batches of 16, gain 0.5": {"bs": 16, "gain": 0.5},
            "batches of 16, then with soft F1": {"bs": 16, "soft_f1": 1.0, "later": 0.7},
            "focal 2": {"gamma": 2},
            "oversampled": {"cap": 10},
            "twice the epochs": {"epochs": 2.0},
            "four times the epochs": {"epochs": 4.0},
        }.items()
    },
    **{
        f"{network}, {name}": Recipe(arch=arch, weights=None if "random" in name else file, dropout=0.5, **options)
        for network, arch, file in (
            ("Lite0", "tf_efficientnet_lite0", "tf_efficientnet_lite0_timm.pth"),
            ("SqueezeNet", "squeezenet1_0", "squeezenet1_0_imagenet.pth"),
        )
        for name, options in {
            "random": {},
            "frozen first, rates from a hundredth to 0.001": {"frozen": 1, "ratio": 100.0, "lr": 1e-3},
            "rates from a tenth to 0.001": {"ratio": 10.0, "lr": 1e-3},
            "rates from a tenth to 0.003": {"ratio": 10.0},
            "one rate": {},
            "frozen first, one rate": {"frozen": 1},
            "one rate of 0.001": {"lr": 1e-3},
            "frozen first, one rate of 0.001": {"frozen": 1, "lr": 1e-3},
            "one rate of 0.0003": {"lr": 3e-4},
            "frozen first, one rate of 0.0003": {"frozen": 1, "lr": 3e-4},
            "twice as large, random": {"scale": 2.0},
            "twice as large, one rate": {"scale": 2.0},
            "twice as large, one rate of 0.001": {"lr": 1e-3, "scale": 2.0},
            "twice as large, one rate of 0.0003": {"lr": 3e-4, "scale": 2.0},
            "still statistics, one rate of 0.001": {"lr": 1e-3, "still": True},
            "normalised as ImageNet, one rate of 0.001": {"lr": 1e-3, "imagenet": True},
        }.items()
    },
    "Lite0, dropout 0.1, one rate": Recipe("tf_efficientnet_lite0", "tf_efficientnet_lite0_timm.pth"),
}  # fmt: skip


class Data(NamedTuple):
    table: LabelTable
    store: ImageStore
    groups: np.ndarray | None
    folds: np.ndarray


@cache
def read(name: str, folder: Path, times: int = 1, layout: Layout | None = None) -> Data:
    """A set with its images in memory, each enlarged so many times, and its folds. layout: of the files; None is that
    of the set."""
    of = SETS[name]
    with tempfile.TemporaryDirectory() as work:
        place = folder / name
        if name == "phantoms":
            place = simulate_phantoms(Path(work) / "data", 1800, tempering=0.75, min_count=24)
        vocab = LOCATIONS if of.labels == len(LOCATIONS) else tuple(f"label {k}" for k in range(of.labels))
        table = read_labels(place / "train.csv", vocab).present()
        images = open_images(place, layout or Layout(of.channels))
        height, width = images.open(table.ids[0]).shape[1:]
        size = None if times == 1 else (times * height, times * width)
        pack_images(images, Path(work) / "store", size, ids=table.ids.tolist())
        store = ImageStore(Path(work) / "store", in_memory=True)
    groups = None if of.group is None else table.columns[of.group].to_numpy()
    folds = balanced_folds(table.targets, of.folds, groups=groups, vocab=table.vocab, strict=False)
    return Data(table, store, groups, folds)


class Loss(MultiLabelFocalLoss):
    """Focal loss with what else is tried; targets may be smoothed."""

    def __init__(self, recipe: Recipe, weights: np.ndarray | None = None):
        super().__init__(recipe.gamma, weights)
        self.recipe, self.begun = recipe, not recipe.later

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x, y = (t.as_subclass(torch.Tensor).float() for t in (logits, targets))
        if self.recipe.smoothing:
            y = y * (1 - self.recipe.smoothing) + self.recipe.smoothing / 2
        if not self.begun:
            return functional.binary_cross_entropy_with_logits(x, y, reduction="none").sum(1).mean()
        if self.recipe.asymmetric:
            present, absent = functional.softplus(-x), functional.softplus(x)
            loss = (y * present + (1 - y) * torch.exp(-self.recipe.asymmetric * present) * absent).sum(1).mean()
        else:
            loss = super().forward(x, y)
        if self.recipe.soft_f1:
            p = torch.sigmoid(x)
            hit, either = (p * y).sum(0), (p + y).sum(0)
            loss = loss + self.recipe.soft_f1 * (1 - 2 * hit / either.clamp(min=1e-6)).mean() * x.shape[1] / 2
        return loss * self.recipe.times


class LossLater(Callback):
    """Binary cross entropy alone for a share of the fit."""

    def __init__(self, share: float):
        self.share = share

    def before_batch(self):
        self.learn.loss_func.begun = self.pct_train >= self.share


class StillStatistics(Callback):
    """Batch norm of the body normalises by the statistics that it has."""

    def before_train(self):
        for module in self.learn.model[0].modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


class Enlarge(Callback):
    """Batches this many times as large."""

    order = 90

    def __init__(self, scale: float):
        self.scale = scale

    def before_batch(self):
        x = self.xb[0].as_subclass(torch.Tensor)
        self.learn.xb = (functional.interpolate(x, scale_factor=self.scale, mode="bilinear", antialias=True),)


class Noise(Callback):
    """Normal noise on training batches, of this deviation on the scale of the images before they are normalised."""

    def __init__(self, deviation: float, std: list[float]):
        self.deviation, self.std = deviation, torch.tensor(std)[:, None, None]

    def before_batch(self):
        if self.training:
            x = self.xb[0].as_subclass(torch.Tensor)
            self.learn.xb = (x + torch.randn_like(x) * self.deviation / self.std.to(x.device),)


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
    stains = len(of.channels)
    mean, std = ([0.449] * stains, [0.226] * stains) if recipe.imagenet else (None, None)
    transforms = rgby_transforms(mean, std, recipe.gain, recipe.rotate, recipe.zoom, recipe.shift, recipe.lighting)
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
        cbs.append(LossLater(recipe.later))
    if recipe.still:
        cbs.append(StillStatistics())
    if recipe.scale != 1:
        cbs.append(Enlarge(recipe.scale))
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
        opt_func=partial(Adam, eps=recipe.eps),
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


class Job(NamedTuple):
    out: Path
    folder: Path
    recipe: str
    name: str
    seed: int
    fold: int

    @property
    def path(self) -> Path:
        return path_of(self.out, self.name, self.recipe, self.seed, self.fold)


def train_one(job: Job) -> str:
    """Train, and write the scores; a line that says so."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    data, of = read(job.name, job.folder), SETS[job.name]
    valid = np.flatnonzero(data.folds == job.fold)
    if job.recipe == PLAIN:
        scores = plain_scores(data, of, valid, job.seed)
    else:
        scores = recipe_scores(data, of, valid, RECIPES[job.recipe], job.seed, job.folder)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    partly = job.path.with_suffix(".part.npz")
    np.savez_compressed(partly, scores=scores.astype(np.float32), valid=valid)
    partly.rename(job.path)
    found = macro_average_precision(data.table.targets[valid], scores)
    took = time.perf_counter() - started
    return f"{took:5.0f} s: {job.name}, {job.recipe}, {job.seed}, {job.fold}: AP {found:.3f}"


def train(
    out: Path, folder: Path, names: list[str], recipes: list[str], seeds: range, folds: int | None, jobs: int
) -> None:  # fmt: skip
    todo = [
        Job(out, folder, recipe, name, seed, fold)
        for seed in seeds for recipe in recipes for name in names for fold in range(folds or SETS[name].folds)
    ]  # fmt: skip
    todo = [job for job in todo if not job.path.exists()]
    for name in {job.name for job in todo}:
        read(name, folder)  # before the processes part, which then share it
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for done, line in enumerate(pool.imap_unordered(train_one, todo), 1):
            print(f"{done} of {len(todo)}, {line}", flush=True)


def whole_scores(out: Path, name: str, data: Data, recipe: str, seeds: range) -> Iterator[np.ndarray]:
    """Scores (N, K) of all images, of each seed whose folds are all done."""
    for seed in seeds:
        paths = [path_of(out, name, recipe, seed, fold) for fold in range(SETS[name].folds)]
        if not all(path.exists() for path in paths):
            continue
        scores = np.full(data.table.targets.shape, np.nan)
        for path in paths:
            with np.load(path) as file:
                scores[file["valid"]] = file["scores"]
        yield scores


class Draws(NamedTuple):
    """A score of one recipe on one set, as it is and in each draw of groups, the same draws for all recipes."""

    estimate: float
    drawn: np.ndarray

    def minus(self, other: "Draws") -> "Draws":
        return Draws(self.estimate - other.estimate, self.drawn - other.drawn)

    def interval(self) -> str:
        low, high = np.quantile(self.drawn, [0.025, 0.975])
        return f"{self.estimate:.3f} [{low:.3f}, {high:.3f}]"

    def p(self) -> float:
        """Two-sided, of no difference, if the draws are spread normally."""
        return float(2 * norm.sf(abs(self.estimate) / self.drawn.std()))


def draws_of(metric: str, data: Data, predictions: np.ndarray) -> Draws:
    """predictions: (R, N, K), over whose R the score is averaged."""
    units = find_units(data.table.targets, data.groups, stratified=False)
    ((of_labels, drawn),) = score_draws(metric, data.table.targets, [predictions], units, 0.95, 2000, 0)
    return Draws(float(label_mean(of_labels)), label_mean(drawn))


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number, Holm (1979)."""
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(np.argsort(p_values)):
        worst = max(worst, min(1.0, p_values[k] * (len(p_values) - rank)))
        corrected[k] = worst
    return corrected


METRICS = ("macro F1", "mean average precision")


def table(out: Path, folder: Path, names: list[str], recipes: list[str], against: str, seeds: range) -> None:
    found: dict[tuple[str, str, str], Draws] = {}
    for name in names:
        data, trained = read(name, folder), {}
        for recipe in recipes:
            scores = list(whole_scores(out, name, data, recipe, seeds))
            if scores:
                decided = [
                    cross_fit(data.table.targets, one, data.table.vocab, groups=data.groups).decisions for one in scores
                ]
                trained[recipe] = len(scores)
                found["macro F1", name, recipe] = draws_of("macro F1", data, np.concatenate(decided))
                found["mean average precision", name, recipe] = draws_of("macro AP", data, np.array(scores))
        print(f"\n{name}: {len(data.table.targets)} images\n")
        print(f"| recipe | seeds | macro F1 | minus {against} | mean average precision | minus {against} |")
        print("| --- " * 6 + "|")
        for recipe, number in trained.items():
            cells = []
            for metric in METRICS:
                own, other = found[metric, name, recipe], found.get((metric, name, against))
                cells += [own.interval(), "" if recipe == against or other is None else own.minus(other).interval()]
            print(f"| {recipe} | {number} | {' | '.join(cells)} |", flush=True)
    whole = [recipe for recipe in recipes if all(("macro F1", name, recipe) in found for name in names)]
    if against not in whole:
        return
    print(f"\n{', '.join(names)}: mean average precision of each; and of their mean what is more than {against}\n")
    print(f"| recipe | {' | '.join(names)} | {' | '.join(f'{metric} | p, Holm' for metric in METRICS)} |")
    print("| --- " * (len(names) + 5) + "|")
    columns = [[f"{found['mean average precision', name, recipe].estimate:.3f}" for recipe in whole] for name in names]
    for metric in METRICS:
        means = []
        for recipe in whole:
            minus = [found[metric, name, recipe].minus(found[metric, name, against]) for name in names]
            means.append(Draws(*(np.mean(part, axis=0) for part in zip(*minus, strict=True))))
        others = [recipe != against for recipe in whole]
        corrected = iter(holm([mean.p() for mean, other in zip(means, others, strict=True) if other]))
        columns.append([mean.interval() if other else "" for mean, other in zip(means, others, strict=True)])
        columns.append([f"{next(corrected):.3f}" if other else "" for other in others])
    for recipe, *cells in zip(whole, *columns, strict=True):
        print(f"| {recipe} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["train", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--recipes", nargs="+", choices=[*RECIPES, PLAIN], default=[PLAIN, *RECIPES], metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--against", default=PLAIN, choices=[*RECIPES, PLAIN], metavar="RECIPE")
    parser.add_argument("--folds", type=int, help="the first so many alone, for a look; the table needs all")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    what = (arguments.out, arguments.data, arguments.sets, arguments.recipes)
    if arguments.do == "train":
        train(*what, seeds, arguments.folds, arguments.jobs)
    else:
        table(*what, arguments.against, seeds)


if __name__ == "__main__":
    main()
