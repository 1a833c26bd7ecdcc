"""Few labelled images: what a network gains from weights that have learned simulated cells, or ImageNet's.

    python benchmarks/few_labels.py train OUT --data DIR [--sets hep2] [--starts random phantoms] [--images 10 25]
    python benchmarks/few_labels.py table OUT --data DIR

DIR holds the folders `cells`, `hep2` and `yeast` as in `recipe.py`, and `weights` with ImageNet's of SqueezeNet and
EfficientNet-Lite0.

A draw, by its number: the groups of one fold are kept whole and scored; of the others as many images a label as asked
for are drawn, from as many of that label's groups as there are, the groups in turn. Networks are trained as
`protein_atlas train` does, with its loss, transforms, rates and number of epochs. Each training writes one file of
scores, `OUT/<set>/<start>/<images>.<draw>.npz`, and is not done again. A difference is paired by image; its interval
(95 %) a bootstrap over the groups of each draw's scored images, the draws averaged.
"""

import argparse
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.torch_core import set_seed
from recipe import SETS, Data, Draws, draws_of, read

from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.evaluate.metrics import macro_average_precision
from protein_atlas.train.fitting import fit_phases, make_learner
from protein_atlas.train.settings import RunSettings
from protein_atlas.vision.models import has_batch_norm


@dataclass(frozen=True)
class From:
    """What a network starts from. arch: the network. pretrained, weights: as in `rgby_learner`. times: how many times
    the images are enlarged.
    """

    arch: str = "small_resnet"
    pretrained: bool | str = False
    weights: str | None = None
    times: int = 1


STARTS = {
    "random": From(),
    "random, enlarged": From(times=2),
    "phantoms": From(pretrained="phantoms"),
    "phantoms, enlarged": From(pretrained="phantoms", times=2),  # as `train` does with small images of several stains
    "SqueezeNet random": From("squeezenet1_0"),
    "SqueezeNet ImageNet": From("squeezenet1_0", weights="squeezenet1_0_imagenet.pth"),
    "Lite0 random": From("tf_efficientnet_lite0"),
    "Lite0 ImageNet": From("tf_efficientnet_lite0", weights="tf_efficientnet_lite0_timm.pth"),
}
ALL = 0  # images a label: all
REAL = tuple(name for name, of in SETS.items() if of.group)


def drawn_rows(data: Data, images: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on and the rows to score."""
    scored = data.folds == draw % (data.folds.max() + 1)
    rows = np.flatnonzero(~scored)
    if images != ALL:
        rng = np.random.default_rng([draw, images])
        taken = np.zeros(len(scored), dtype=bool)
        for label in range(data.table.targets.shape[1]):
            having = rng.permutation(rows[data.table.targets[rows, label] == 1])
            # The first of each group, then the second of each, and so on.
            turn = np.zeros(len(having), dtype=np.int64)
            for group in np.unique(data.groups[having]):
                own = np.flatnonzero(data.groups[having] == group)
                turn[own] = np.arange(len(own))
            taken[having[np.argsort(turn, kind="stable")][:images]] = True
        rows = np.flatnonzero(taken)
    return rows, np.flatnonzero(scored)


class Unwatched(Callback):
    """No epoch is validated: the images are scored once, after the last."""

    def before_validate(self):
        raise CancelValidException


class Job(NamedTuple):
    out: Path
    folder: Path
    start: str
    name: str
    images: int
    draw: int

    @property
    def path(self) -> Path:
        return self.out / self.name / self.start.replace(" ", "_") / f"{self.images or 'all'}.{self.draw}.npz"


def train_one(job: Job) -> str:
    """Train, and write the scores; a line that says so."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    start = STARTS[job.start]
    data = read(job.name, job.folder, start.times)
    shown, scored = drawn_rows(data, job.images, job.draw)
    table = data.table.take(np.concatenate([shown, scored]))
    settings = RunSettings(
        arch=start.arch, pretrained=start.pretrained, workers=0, seed=job.draw,
        weights=None if start.weights is None else str(job.folder / "weights" / start.weights),
    ).settled(len(shown))  # fmt: skip
    set_seed(job.draw)
    learn = make_learner(table, data.store, np.arange(len(shown), len(table.ids)), settings)
    learn.logger = lambda _: None
    with learn.no_bar(), learn.added_cbs(Unwatched()):
        for phase in fit_phases(settings, has_batch_norm(learn.model[0])):
            learn.freeze() if phase.frozen else learn.unfreeze()
            learn.fit_one_cycle(phase.epochs, **phase.options, wd=settings.weight_decay)
    scores = learn.valid_scores()[1]
    job.path.parent.mkdir(parents=True, exist_ok=True)
    partly = job.path.with_suffix(".part.npz")
    np.savez_compressed(partly, scores=scores.astype(np.float32), scored=scored, shown=shown)
    partly.rename(job.path)
    found = macro_average_precision(data.table.targets[scored], scores)
    took = time.perf_counter() - started
    return f"{took:5.0f} s: {job.name}, {job.start}, {len(shown)} images, draw {job.draw}: AP {found:.3f}"


def train(jobs: list[Job], processes: int) -> None:
    todo = [job for job in jobs if not job.path.exists()]
    for job in todo:
        read(job.name, job.folder, STARTS[job.start].times)  # before the processes part, which then share it
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for done, line in enumerate(pool.imap_unordered(train_one, todo), 1):
            print(f"{done} of {len(todo)}, {line}", flush=True)


def mean_of(draws: list[Draws]) -> Draws:
    return Draws(*(np.mean(part, axis=0) for part in zip(*draws, strict=True)))


def figures(job: Job) -> tuple[Draws, Draws]:
    """Macro F1 and mean average precision of one training, as they are and in draws of groups."""
    data = read(job.name, job.folder)
    with np.load(job.path) as file:
        rows, scores = file["scored"], file["scores"].astype(np.float64)
    part = Data(data.table.take(rows), data.store, data.groups[rows], data.folds[rows])
    decided = cross_fit(part.table.targets, scores, part.table.vocab, groups=part.groups).decisions
    return draws_of("macro F1", part, decided), draws_of("macro AP", part, scores[None])


def table(jobs: list[Job], against: str) -> None:
    """Each start's figures, and those less than `against`'s, the draws averaged."""
    done = {job: figures(job) for job in jobs if job.path.exists()}
    print("| set | images a label | start | draws | macro F1 | minus | mean average precision | minus |")
    print("| --- " * 8 + "|")
    for name, images in dict.fromkeys((job.name, job.images) for job in done):
        for start in STARTS:
            own = {job.draw: found for job, found in done.items() if job[2:5] == (start, name, images)}
            other = {job.draw: found for job, found in done.items() if job[2:5] == (against, name, images)}
            if not own:
                continue
            cells = []
            for k in range(2):
                both = [draw for draw in own if draw in other]
                minus = mean_of([own[draw][k].minus(other[draw][k]) for draw in both]).interval() if both else ""
                cells += [f"{np.mean([own[draw][k].estimate for draw in own]):.3f}", "" if start == against else minus]
            print(f"| {name} | {images or 'all'} | {start} | {len(own)} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["train", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(REAL), default=list(REAL))
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS), metavar="START")
    parser.add_argument("--images", nargs="+", type=int, default=[10, 25, 100, ALL], help=f"a label; {ALL}: all")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--against", default="random", choices=list(STARTS), metavar="START")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    jobs = [
        Job(given.out, given.data, start, name, images, draw)
        for draw in range(given.draws) for images in given.images for name in given.sets for start in given.starts
    ]  # fmt: skip
    if given.do == "train":
        train(jobs, given.jobs)
    else:
        table(jobs, given.against)


if __name__ == "__main__":
    main()
