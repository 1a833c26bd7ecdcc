"""What each stain tells about simulated cells that the protein's channel alone does not.

    python benchmarks/channel_information.py            # 2,000 fields of 128 px, some ten minutes on two cores
    python benchmarks/channel_information.py --n 300    # only shows that it runs

A forest of trees decides on plain measurements: of green alone (brightness, texture at several scales), and of how
green agrees with each of the other stains (correlation at several scales, green light where the stain is bright or
dark). It is trained with the measurements of some stains left out, on five balanced folds, each image scored by trees
that have not seen it. Printed: mean average precision over the 28 labels, and its difference from green alone (a stain
added) or from all four (a stain left out), with the 95 % interval of a bootstrap over images.
"""

import argparse
import tempfile
from itertools import pairwise

import numpy as np
from scipy import ndimage
from sklearn.ensemble import ExtraTreesClassifier
from tqdm import tqdm

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import CHANNELS
from protein_atlas.data.labels import read_labels
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.splits import balanced_folds
from protein_atlas.evaluate.metrics import average_precision_per_label

STAINS = ("red", "blue", "yellow")


def bands(plane: np.ndarray) -> list[np.ndarray]:
    """The plane's structure at five scales: differences of Gaussians of 0 to 8 pixels, and what is left."""
    smooth = [plane, *(ndimage.gaussian_filter(plane, sigma) for sigma in (1, 2, 4, 8))]
    return [finer - coarser for finer, coarser in pairwise(smooth)] + smooth[-1:]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).mean() / (one.std() * other.std() + 1e-9))


def measurements(image: np.ndarray) -> dict[str, np.ndarray]:
    """Of green alone, and of green with each stain."""
    planes = {name: plane.astype(np.float64) for name, plane in zip(CHANNELS, image, strict=True)}
    green, scales = planes["green"], bands(planes["green"])
    level = green.mean() + 1e-9
    texture = [band.std() / level for band in scales]
    tails = [(np.abs(band) ** 3).mean() ** (1 / 3) / (band.std() + 1e-9) for band in scales]
    quantiles = np.quantile(green, (0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.999)) / level
    found = {"green": np.array([level, *quantiles, *texture, *tails])}
    for stain in STAINS:
        plane = planes[stain]
        agreement = [correlation(a, b) for a, b in zip(scales, bands(plane), strict=True)]
        limits = np.quantile(plane, (0.2, 0.5, 0.8, 0.95))
        where = [
            green[plane <= limits[0]], green[plane >= limits[1]], green[plane >= limits[2]], green[plane >= limits[3]],
        ]
        found[stain] = np.array([correlation(green, plane), *agreement, *(light.mean() / level for light in where)])
    return found


def out_of_fold_scores(features: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The forest's score of every label for every image, by trees grown on the other folds."""
    scores = np.empty(targets.shape)
    for fold in np.unique(folds):
        inside = folds == fold
        forest = ExtraTreesClassifier(300, min_samples_leaf=2, max_features=0.4, n_jobs=-1, random_state=0)
        forest.fit(features[~inside], targets[~inside])
        scores[inside] = np.stack([share[:, 1] for share in forest.predict_proba(features[inside])], axis=1)
    return scores


def difference(truth: np.ndarray, one: np.ndarray, other: np.ndarray, draws: int = 300) -> str:
    """Mean average precision of `one` minus that of `other`, with its 95 % interval over resampled images."""
    rng = np.random.default_rng(0)

    def gain(rows: np.ndarray) -> float:
        of = [average_precision_per_label(truth[rows], scores[rows]) for scores in (one, other)]
        return float(np.nanmean(of[0] - of[1]))

    low, high = np.quantile([gain(rng.integers(0, len(truth), len(truth))) for _ in range(draws)], [0.025, 0.975])
    return f"{gain(np.arange(len(truth))):+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000, help="simulated fields")
    n = parser.parse_args().n
    with tempfile.TemporaryDirectory() as folder:
        data = simulate_phantoms(folder, n, min_count=n // 80)
        table = read_labels(data / "train.csv")
        images = ImageFolder(data / "train")
        measured = [measurements(images.open(image_id)) for image_id in tqdm(table.ids, desc="measure", disable=None)]
    columns = {name: np.stack([row[name] for row in measured]) for name in ("green", *STAINS)}
    folds = balanced_folds(table.targets, 5)

    def report(stains: tuple[str, ...], base: np.ndarray | None = None) -> np.ndarray:
        features = np.concatenate([columns[name] for name in ("green", *stains)], axis=1)
        scores = out_of_fold_scores(features, table.targets, folds)
        precision = np.nanmean(average_precision_per_label(table.targets, scores))
        against = "" if base is None else f"  difference {difference(table.targets, scores, base)}"
        print(f"{' + '.join(('green', *stains)):30s} mean average precision {precision:.3f}{against}", flush=True)
        return scores

    green = report(())
    for stain in STAINS:
        report((stain,), green)
    everything = report(STAINS, green)
    for stain in STAINS:
        report(tuple(other for other in STAINS if other != stain), everything)


if __name__ == "__main__":
    main()
