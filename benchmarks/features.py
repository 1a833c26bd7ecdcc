"""Heads on frozen features, fine-tuned networks, their means, and plain pixels, on real images of groups not seen.

    python benchmarks/features.py embed OUT --data DIR [--sets hep2] [--bodies own Lite0]
    python benchmarks/features.py train OUT --data DIR [--sets hep2] [--networks random Lite0] [--folds 0 2]
    python benchmarks/features.py table OUT --data DIR [--sets hep2] [--folds 0 2] [--against random]

DIR as in `few_labels.py`: `cells` (Group, 3 folds), `hep2` (Block, 5), `yeast` (Field, 4) and `weights`. `embed` writes
the features of each body once, `OUT/<set>/features.<body>.npz`, and `train` the scores of each network and fold,
`OUT/<set>/network.<network>.<fold>.npz`, both with the seconds they took; what is there is not done again. `table`
leaves out what is not there; with --folds it is of the images of these folds alone. Every image is scored by what has
not seen its group:

- pixels: the label of the nearest image by its gray levels at 20 px, each channel over its largest, and a little of
  those of the 20 nearest;
- a head by each body: `protein_atlas head`'s default, logistic, its setting chosen on inner folds; one on all bodies'
  features side by side; and one on these brought to one scale group by group (`standardise_by`), which asks that the
  groups of new images are known;
- networks as `protein_atlas train` trains them, by one look at an image and by all eight (`--tta`); and the mean of
  all of them;
- the mean of the head on all bodies and each of them;
- `fit_mixture` of the last mean and the neighbours by the features, which is used only where it wins;
- "by group": of heads and all looks and means, the mean over the images of a group (`pool_scores`) for each of them:
  for groups that are known and whose images show the same labels, as the cells of a specimen do.

Accuracy is of the highest score, where each image shows one label. Macro F1 is of thresholds cross-fitted over groups.
Intervals (95 %) are bootstraps over groups, of a difference paired by image. Minutes are the clock's, of all folds
asked for, on this machine and whatever it does beside.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fastai.torch_core import set_seed
from few_labels import Unwatched
from recipe import SETS, Data, Draws, draws_of, read

from protein_atlas.data.geometry import d4
from protein_atlas.data.images import Layout
from protein_atlas.data.sources import open_images
from protein_atlas.data.splits import balanced_folds
from protein_atlas.embed.load import embed
from protein_atlas.evaluate.bootstrap import find_units
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.features.files import read_features
from protein_atlas.features.heads import FeatureHead
from protein_atlas.features.mixing import fit_mixture
from protein_atlas.features.neighbour_labels import neighbour_scores
from protein_atlas.features.pooling import pool_scores, standardise_by
from protein_atlas.features.table import Features
from protein_atlas.train.fitting import fit_phases, make_learner
from protein_atlas.train.learner import RGBYLearner
from protein_atlas.train.settings import RunSettings
from protein_atlas.vision.models import has_batch_norm

FOLDS = {"cells": 3, "hep2": 5, "yeast": 4}
LITE0 = "tf_efficientnet_lite0", "tf_efficientnet_lite0_timm.pth"
SQUEEZENET = "squeezenet1_0", "squeezenet1_0_imagenet.pth"


@dataclass(frozen=True)
class Body:
    """Options of `embed`. weights: a file in `DIR/weights`; None: those of the package."""

    arch: str
    weights: str | None = None
    symmetries: bool = False


BODIES = {
    "own": Body("small_resnet"),
    "SqueezeNet": Body(*SQUEEZENET),
    "Lite0": Body(*LITE0),
}


@dataclass(frozen=True)
class Network:
    """Options of `train`. weights: a file in `DIR/weights`. times: the images are enlarged so many times. white_level:
    None is the default, that of the files.
    """

    arch: str = "small_resnet"
    weights: str | None = None
    pretrained: bool | str = False
    times: int = 1
    epochs: int | None = None
    seed: int = 0
    white_level: str | None = None
    lighting: float = 0.2

    def settings(self, name: str, folder: Path, epochs: int | None = None) -> RunSettings:
        """For a set; epochs: instead of its own."""
        weights = None if self.weights is None else str(folder / "weights" / self.weights)
        white = {} if self.white_level is None else {"white_level": self.white_level}
        return RunSettings(
            arch=self.arch, pretrained=self.pretrained, weights=weights, channels=SETS[name].channels,
            epochs=epochs or self.epochs, seed=self.seed, lighting=self.lighting, workers=0, **white,
        )  # fmt: skip


NETWORKS = {
    "random": Network(),
    "random, own white, lighting 0.4": Network(white_level="99.9%", lighting=0.4),
    "random, 4 epochs": Network(epochs=4),
    "random, 4 epochs, own white, lighting 0.4": Network(epochs=4, white_level="99.9%", lighting=0.4),
    "phantoms": Network(pretrained="phantoms"),
    "phantoms, own white, lighting 0.4": Network(pretrained="phantoms", white_level="99.9%", lighting=0.4),
    "phantoms, enlarged": Network(pretrained="phantoms", times=2),
    "Lite0": Network(*LITE0),
    "Lite0, 3 epochs": Network(*LITE0, epochs=3),
    "Lite0, enlarged, 3 epochs": Network(*LITE0, times=2, epochs=3),
    "SqueezeNet": Network(*SQUEEZENET),
}


def data_of(name: str, folder: Path, times: int = 1, layout: Layout | None = None) -> Data:
    data = read(name, folder, times, layout)
    folds = balanced_folds(data.table.targets, FOLDS[name], groups=data.groups, vocab=data.table.vocab, strict=False)
    return data._replace(folds=folds)


def feature_path(out: Path, name: str, body: str) -> Path:
    return out / name / f"features.{body}.npz"


def network_path(out: Path, name: str, network: str, fold: int) -> Path:
    return out / name / f"network.{network.replace(', ', '_').replace(' ', '_')}.{fold}.npz"


def embed_all(out: Path, folder: Path, sets: list[str], bodies: list[str]) -> None:
    for name in sets:
        data = data_of(name, folder)
        images = open_images(folder / name, Layout(SETS[name].channels))
        for body in bodies:
            if (path := feature_path(out, name, body)).exists():
                continue
            of = BODIES[body]
            path.parent.mkdir(parents=True, exist_ok=True)
            started, weights = time.perf_counter(), of.weights and folder / "weights" / of.weights
            made = embed(
                of.arch, images, data.table.ids.tolist(), path, weights, symmetries=of.symmetries, workers=0
            )  # fmt: skip
            took = time.perf_counter() - started
            path.with_suffix(".seconds").write_text(f"{took:.1f}\n", encoding="ascii")
            print(f"{name}, {body}: {made.width} features of {len(made)} images, {took:.0f} s", flush=True)


@torch.inference_mode()
def look_scores(learn: RGBYLearner) -> np.ndarray:
    """Scores (2, N, K) of the validation images: of one look, and the mean of all eight."""
    network, looks = learn.model.eval(), []
    for images, _ in learn.dls.valid:
        looks.append(np.stack([network(d4(images, element)).sigmoid().float().cpu().numpy() for element in range(8)]))
    eight = np.concatenate(looks, axis=1)
    return np.stack([eight[0], eight.mean(axis=0)])


def train_one(out: Path, folder: Path, name: str, network: str, fold: int, epochs: int | None) -> None:
    """Train as `train_one` of `few_labels.py`, and write the scores of the fold's images."""
    of, path = NETWORKS[network], network_path(out, name, network, fold)
    if path.exists():
        return
    settings = of.settings(name, folder, epochs)
    data = data_of(name, folder, of.times, settings.layout if of.white_level else None)
    valid, started = np.flatnonzero(data.folds == fold), time.perf_counter()
    settings = settings.settled(len(data.table) - len(valid))
    set_seed(of.seed)
    learn = make_learner(data.table, data.store, valid, settings)
    learn.logger = lambda _: None
    with learn.no_bar(), learn.added_cbs(Unwatched()):
        for phase in fit_phases(settings, has_batch_norm(learn.model[0])):
            learn.freeze() if phase.frozen else learn.unfreeze()
            learn.fit_one_cycle(phase.epochs, **phase.options, wd=settings.weight_decay)
    trained = time.perf_counter()
    scores, took = look_scores(learn), trained - started
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, scores=scores, scored=valid, seconds=[took, took + time.perf_counter() - trained])
    print(f"{name}, {network}, fold {fold}: {took:.0f} s", flush=True)


class Road(NamedTuple):
    """Scores (N, K) of the images, and the minutes they took."""

    scores: np.ndarray
    minutes: float


def mean_of(*roads: Road) -> Road:
    return Road(np.mean([road.scores for road in roads], axis=0), sum(road.minutes for road in roads))


def pixels(data: Data) -> Features:
    """The gray levels of each image at 20 px, each channel over its largest."""
    rows = []
    for image_id in data.table.ids:
        image = torch.from_numpy(data.store.open(image_id).astype(np.float32))[None]
        small = torch.nn.functional.interpolate(image, (20, 20), mode="area")[0]
        small = small / small.amax((1, 2), keepdim=True).clamp(min=1)
        rows.append(small.numpy().ravel())
    return Features(data.table.ids.tolist(), np.stack(rows))


def nearest_road(raw: Features, data: Data, folds: list[int]) -> Road:
    """The label of the nearest image of the other folds, and a little of the 20 nearest's."""
    started, scores = time.perf_counter(), np.full(data.table.targets.shape, np.nan)
    place = {image_id: row for row, image_id in enumerate(raw.ids)}
    for fold in folds:
        rows, others = np.flatnonzero(data.folds == fold), np.flatnonzero(data.folds != fold)
        k = min(20, len(others))
        found = raw.take(others).nearest(raw.take(rows), k, metric="euclidean")
        labels = data.table.targets[[place[image_id] for image_id in found["neighbour"]]].reshape(len(rows), k, -1)
        scores[rows] = 0.5 * labels[:, 0] + 0.5 * labels.mean(axis=1)
    return Road(scores, (time.perf_counter() - started) / 60)


def head_road(features: np.ndarray, data: Data, folds: list[int], seconds: float) -> Road:
    """Of the default head; seconds: that the features took."""
    started, scores = time.perf_counter(), np.full(data.table.targets.shape, np.nan)
    for fold in folds:
        seen = data.folds != fold
        head = FeatureHead().fit(features[seen], data.table.targets[seen], data.groups[seen])
        scores[~seen] = head.scores(features[~seen])
    return Road(scores, (time.perf_counter() - started + seconds) / 60)


def network_roads(out: Path, name: str, network: str, data: Data, folds: list[int]) -> tuple[Road, Road] | None:
    """Of one look and of eight; None where a fold is missing."""
    scores, seconds = np.full((2, *data.table.targets.shape), np.nan), np.zeros(2)
    for fold in folds:
        path = network_path(out, name, network, fold)
        if not path.exists():
            return None
        with np.load(path) as file:
            scores[:, file["scored"]] = file["scores"]
            seconds += file["seconds"]
    one, eight = (Road(*of) for of in zip(scores, seconds / 60, strict=True))
    return one, eight


def right_draws(data: Data, scores: np.ndarray) -> Draws:
    """The accuracy of the highest score, as it is and in draws of groups."""
    right = scores.argmax(axis=1) == data.table.targets.argmax(axis=1)
    units = find_units(data.table.targets, data.groups, stratified=False)
    counts = units.draw(np.random.default_rng(0), 2000)
    of_unit = (np.bincount(units.of_image, right), np.bincount(units.of_image))
    return Draws(float(right.mean()), (counts @ of_unit[0]) / (counts @ of_unit[1]))


def figures(data: Data, scores: np.ndarray) -> list[Draws | None]:
    """Accuracy, where each image shows one label, macro F1 and mean average precision."""
    targets = data.table.targets
    decided = cross_fit(targets, scores, data.table.vocab, groups=data.groups).decisions
    right = right_draws(data, scores) if (targets.sum(axis=1) == 1).all() else None
    return [right, draws_of("macro F1", data, decided), draws_of("macro AP", data, scores[None])]


def feature_roads(out: Path, name: str, data: Data, folds: list[int]) -> tuple[dict[str, Road], Features | None]:
    """Heads by each body, by all and by all brought to one scale; and the features of all, side by side."""
    roads, parts, seconds = {}, [], 0.0
    for body in BODIES:
        if not (path := feature_path(out, name, body)).exists():
            continue
        rows = read_features(path).of(data.table.ids.tolist()).features.astype(np.float32)
        took = float(path.with_suffix(".seconds").read_text(encoding="ascii"))
        roads[f"head on {body}"] = head_road(rows, data, folds, took)
        parts.append(rows)
        seconds += took
    if not parts:
        return roads, None
    joined = Features(data.table.ids.tolist(), np.concatenate(parts, axis=1)).with_columns({"group": data.groups})
    if len(parts) > 1:
        roads[f"head on all {len(parts)}"] = head_road(joined.features, data, folds, seconds)
    if np.unique(data.groups, return_counts=True)[1].min() >= 8:
        standard = standardise_by(joined, "group").features
        roads["head on these, brought to one scale by groups"] = head_road(standard, data, folds, seconds)
    return roads, joined


def all_roads(out: Path, name: str, data: Data, folds: list[int]) -> tuple[dict[str, Road], Features | None]:
    heads, joined = feature_roads(out, name, data, folds)
    roads = {"pixels, nearest": nearest_road(pixels(data), data, folds)} | heads
    head = next((road for way, road in reversed(heads.items()) if "scale" not in way), None)
    tuned = []
    for network in NETWORKS:
        if (found := network_roads(out, name, network, data, folds)) is None:
            continue
        roads[network], roads[f"{network}, eight looks"] = found
        tuned.append(found[1])
        if head is not None:
            roads[f"mean of the head and {network}, eight looks"] = mean_of(head, found[1])
    if len(tuned) > 1:
        roads[f"mean of all {len(tuned)} networks"] = mean_of(*tuned)
        if head is not None:
            roads["mean of the head and that"] = mean_of(head, roads[f"mean of all {len(tuned)} networks"])
    return roads, joined


def by_group(data: Data, scores: np.ndarray) -> np.ndarray:
    """To each image (N, K) the mean scores of its group's."""
    pooled = pool_scores(data.table.ids.tolist(), scores, data.groups)
    place = {group: row for row, group in enumerate(pooled.ids)}
    return pooled.scores[[place[str(group)] for group in data.groups]]


def table_of(out: Path, folder: Path, name: str, asked: list[int] | None, against: str) -> None:
    data = data_of(name, folder)
    folds = asked or list(range(FOLDS[name]))
    rows = np.flatnonzero(np.isin(data.folds, folds))
    part = Data(data.table.take(rows), data.store, data.groups[rows], data.folds[rows])
    print(f"\n{name}: {len(rows)} images, {len(set(part.groups))} groups, {len(folds)} folds; differences: {against}\n")
    print("| | accuracy | difference | macro F1 | difference | mean average precision | difference | minutes |")
    print("| --- " * 8 + "|", flush=True)
    roads, joined = all_roads(out, name, data, folds)
    whole = {way: Road(road.scores[rows], road.minutes) for way, road in roads.items()}
    last, said = next(way for way in reversed(roads) if "by groups" not in way), ""  # that does not ask for groups
    if joined is not None:
        near = neighbour_scores(joined.take(rows), part.table.targets, groups=part.groups)
        mixture = fit_mixture(part.table.targets, whole[last].scores, near, groups=part.groups)
        mixed, said = Road(mixture.scores, whole[last].minutes), f"\n{mixture}"
        whole[f"{last}, mixed with neighbours' labels"] = mixed
    for way in roads:
        if "by groups" not in way and (way.startswith(("head on", "mean")) or way.endswith("eight looks")):
            whole[f"{way}, by group"] = Road(by_group(part, whole[way].scores), whole[way].minutes)
    known = figures(part, whole[against].scores) if against in whole else [None] * 3
    for way, road in whole.items():
        cells = []
        for own, other in zip(figures(part, road.scores), known, strict=True):
            plain = own is None or other is None or way == against
            cells += ["" if own is None else own.interval(), "" if plain else own.minus(other).interval()]
        print(f"| {way} | {' | '.join(cells)} | {road.minutes:.1f} |", flush=True)
    print(said, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["embed", "train", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(FOLDS), default=list(FOLDS))
    parser.add_argument("--bodies", nargs="+", choices=list(BODIES), default=list(BODIES))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["random", "phantoms", "Lite0"])
    parser.add_argument("--folds", nargs="+", type=int, help="of these alone, counted from 0; default: all")
    parser.add_argument("--epochs", type=int, help="of each network; default: its own, or as `train` chooses")
    parser.add_argument("--against", default="random", help="what differences are from")
    given = parser.parse_args()
    if given.do == "embed":
        embed_all(given.out, given.data, given.sets, given.bodies)
    for name in given.sets:
        folds = given.folds or list(range(FOLDS[name]))
        if given.do == "table":
            table_of(given.out, given.data, name, folds, given.against)
        elif given.do == "train":
            for fold in folds:
                for network in given.networks:
                    train_one(given.out, given.data, name, network, fold, given.epochs)


if __name__ == "__main__":
    main()
