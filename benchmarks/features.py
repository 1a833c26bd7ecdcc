"""Heads on frozen features beside fine-tuned networks and plain pixels, on real images of groups that none has seen.

    python benchmarks/features.py embed OUT --data DIR [--sets hep2] [--bodies own Lite0]
    python benchmarks/few_labels.py train OUT --data DIR --images 0 --draws 4 [--starts random "Lite0 ImageNet"]
    python benchmarks/features.py table OUT --data DIR

DIR as in `few_labels.py`: `cells` (Group, 3 folds), `hep2` (Block, 3), `yeast` (Field, 4) and `weights`. `embed` writes
the features of each body once, `OUT/<set>/features.<body>.npz`, with the seconds they took. The second line
trains the networks, and is left out where only heads are wanted. Every image is scored by what has not seen its group:

- pixels: the labels of the nearest image by its gray levels at 20 px, each channel over its largest, and a little of
  those of the 20 nearest;
- a head by each body: `protein_atlas head`'s default, logistic, its setting chosen on inner folds; and one on all
  bodies' features side by side;
- fine-tuned networks, and the mean of the head on all bodies and each of them;
- where it wins, `fit_mixture` of that mean and the neighbours by the head's features.

Accuracy is of the highest score, where each image shows one label. Macro F1 is of thresholds cross-fitted over groups.
Intervals (95 %) are bootstraps over groups. Minutes are the clock's, of all folds, on this machine and whatever it
does beside.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from few_labels import STARTS, Job
from recipe import SETS, Data, draws_of, read

from protein_atlas.data.images import Layout
from protein_atlas.data.sources import open_images
from protein_atlas.embed.load import embed
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.features.files import read_features
from protein_atlas.features.heads import FeatureHead, out_of_fold_scores
from protein_atlas.features.mixing import fit_mixture
from protein_atlas.features.neighbour_labels import neighbour_scores
from protein_atlas.features.table import Features

# A network and the file in `DIR/weights` that it has, or the one of the package.
BODIES = {
    "own": ("small_resnet", None),
    "SqueezeNet": ("squeezenet1_0", "squeezenet1_0_imagenet.pth"),
    "Lite0": ("tf_efficientnet_lite0", "tf_efficientnet_lite0_timm.pth"),
}
REAL = tuple(name for name, of in SETS.items() if of.group)
_NEAREST = 20


def path_of(out: Path, name: str, body: str) -> Path:
    return out / name / f"features.{body}.npz"


def embed_all(out: Path, folder: Path, sets: list[str], bodies: list[str]) -> None:
    for name in sets:
        data = read(name, folder)
        images = open_images(folder / name, Layout(SETS[name].channels))
        for body in bodies:
            if (path := path_of(out, name, body)).exists():
                continue
            arch, weights = BODIES[body]
            path.parent.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            made = embed(arch, images, data.table.ids.tolist(), path, weights and folder / "weights" / weights)
            took = time.perf_counter() - started
            path.with_suffix(".seconds").write_text(f"{took:.1f}\n", encoding="ascii")
            print(f"{name}, {body}: {made.width} features of {len(made)} images, {took:.0f} s", flush=True)


def pixels(data: Data) -> Features:
    """The gray levels of each image at 20 px, each channel over its largest."""
    rows = []
    for image_id in data.table.ids:
        image = torch.from_numpy(data.store.open(image_id).astype(np.float32))[None]
        small = torch.nn.functional.interpolate(image, (20, 20), mode="area")[0]
        small = small / small.amax((1, 2), keepdim=True).clamp(min=1)
        rows.append(small.numpy().ravel())
    return Features(data.table.ids.tolist(), np.stack(rows))


def head_scores(features: np.ndarray, data: Data) -> tuple[np.ndarray, float]:
    """Out-of-fold scores (N, K) of the default head, and the minutes."""
    started = time.perf_counter()
    scores = out_of_fold_scores(FeatureHead, features, data.table.targets, data.groups, data.folds)[0]
    return scores, (time.perf_counter() - started) / 60


def tuned_scores(out: Path, folder: Path, name: str, start: str, data: Data) -> np.ndarray | None:
    """Out-of-fold scores (N, K) of the networks that `few_labels.py` has trained; None where a fold is missing."""
    scores = np.full(data.table.targets.shape, np.nan)
    for fold in range(int(data.folds.max()) + 1):
        path = Job(out, folder, start, name, 0, fold).path
        if not path.exists():
            return None
        with np.load(path) as file:
            scores[file["scored"]] = file["scores"]
    return scores


def row_of(way: str, scores: np.ndarray, data: Data, minutes: float | None) -> str:
    """A row of the table in Markdown."""
    targets = data.table.targets
    right = ""
    if (targets.sum(axis=1) == 1).all():
        right = f"{(scores.argmax(axis=1) == targets.argmax(axis=1)).mean():.3f}"
    decided = cross_fit(targets, scores, data.table.vocab, groups=data.groups).decisions
    f1, ap = draws_of("macro F1", data, decided), draws_of("macro AP", data, scores[None])
    took = "" if minutes is None else f"{minutes:.1f}"
    return f"| {way} | {right} | {f1.interval()} | {ap.interval()} | {took} |"


def table_of(out: Path, folder: Path, name: str) -> None:
    data = read(name, folder)
    print(f"\n{name}: {len(data.table)} images, {len(set(data.groups))} groups, {data.folds.max() + 1} folds\n")
    print("| | accuracy | macro F1 | mean average precision | minutes |\n" + "| --- " * 5 + "|", flush=True)
    raw, started = pixels(data), time.perf_counter()
    near = np.concatenate([_near(raw, data, fold) for fold in range(int(data.folds.max()) + 1)])
    scores = near[np.argsort(np.concatenate([np.flatnonzero(data.folds == k) for k in range(data.folds.max() + 1)]))]
    print(row_of("pixels, nearest", scores, data, (time.perf_counter() - started) / 60), flush=True)
    parts, seconds = [], 0.0
    for body in BODIES:
        if not (path := path_of(out, name, body)).exists():
            continue
        rows = read_features(path).of(data.table.ids.tolist()).features.astype(np.float32)
        took = float(path.with_suffix(".seconds").read_text(encoding="ascii"))
        scores, minutes = head_scores(rows, data)
        print(row_of(f"head on {body}", scores, data, minutes + took / 60), flush=True)
        parts.append(rows)
        seconds += took
    if not parts:
        return
    joined = np.concatenate(parts, axis=1)
    head, minutes = head_scores(joined, data)
    print(row_of(f"head on all {len(parts)}", head, data, minutes + seconds / 60), flush=True)
    best = head
    for start in STARTS:
        tuned = tuned_scores(out, folder, name, start, data)
        if tuned is None:
            continue
        print(row_of(f"fine-tuned, {start}", tuned, data, None), flush=True)
        best = (head + tuned) / 2
        print(row_of(f"mean of the head on all {len(parts)} and that", best, data, None), flush=True)
    near = neighbour_scores(Features(data.table.ids.tolist(), joined), data.table.targets, groups=data.groups)
    mixture = fit_mixture(data.table.targets, best, near, groups=data.groups)
    print(row_of("the last, mixed with neighbours' labels", mixture.scores, data, None))
    print(f"\n{mixture}", flush=True)


def _near(raw: Features, data: Data, fold: int) -> np.ndarray:
    """Of the images of a fold: the label of the nearest image of the others, and a little of the 20 nearest's."""
    rows, others = np.flatnonzero(data.folds == fold), np.flatnonzero(data.folds != fold)
    found = raw.take(others).nearest(raw.take(rows), _NEAREST, metric="euclidean")
    place = {image_id: row for row, image_id in enumerate(raw.ids)}
    labels = data.table.targets[[place[image_id] for image_id in found["neighbour"]]].reshape(len(rows), _NEAREST, -1)
    return 0.5 * labels[:, 0] + 0.5 * labels.mean(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["embed", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(REAL), default=list(REAL))
    parser.add_argument("--bodies", nargs="+", choices=list(BODIES), default=list(BODIES))
    given = parser.parse_args()
    if given.do == "embed":
        embed_all(given.out, given.data, given.sets, given.bodies)
    else:
        for name in given.sets:
            table_of(given.out, given.data, name)


if __name__ == "__main__":
    main()
