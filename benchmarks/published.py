"""Published models on the public sets that their authors report on, with cross-fitted thresholds and intervals.

    python benchmarks/published.py kaggle DIR MODEL --weights FILE [FILE ...]
    python benchmarks/published.py fields DIR MODEL --weights FILE [FILE ...]
    python benchmarks/published.py cells DIR MODEL --weights FILE [FILE ...] --split test_antibodies.txt
    python benchmarks/published.py chammi DIR MODEL --weights FILE [FILE ...]
    python benchmarks/published.py chammi DIR --features 'FEATURES/{set}/resnet18.npy'

MODEL and its files are those of `protein_atlas predict MODEL --weights`. One table of Markdown is printed: macro F1 at
the threshold 0.5, as most of them report it; with thresholds fitted on other images (3 x 5 folds, no group parted) and
its interval; mean average precision; and what is reported, with its source. Labels without a positive image are left
out. Intervals (95 %) are a bootstrap over groups. `--labels-of` scores in the labels of another system
(`protein_atlas.data.label_systems`), without those that one of the two does not have.

The sets, as their authors' code reads them:

kaggle   The 2018 challenge: `train.csv` (Id, Target) and `train/<Id>_<color>.png`. hpa_densenet has learned these
         images, and the labels of the test set are not public: its figures here are no estimate of its quality.
fields   Cell-DINO's fields, https://www.ebi.ac.uk/biostudies/bioimages/studies/S-BIAD2443: `whole_images_512_test.csv`
         (file, and a column True or False for each of our 28 labels, in small letters) and `512_whole_images/<file>`,
         PNG or TIFF of four channels, red, green, blue, yellow. As in facebookresearch/dinov2, `cell_dino/hpafov.py`:
         fields without a label are left out. Group: the antibody, where the name says it. hpa_densenet has learned
         images of both sources.
cells    SubCell's cells, s3://czi-subcell-public/hpa-processed/cell_crops: `metadata.csv` (antibody, locations,
         if_plate_id, position, sample, cell_id) and `<plate>/<plate>_<position>_<sample>_<cell>_cell_image.png`, whose
         red, green, blue and alpha are nucleus, endoplasmic reticulum, microtubules and protein, and
         `.._cell_mask.png`. As in CellProfiling/subcell-analysis, `train_classification.py` and
         `preprocess/convert2mds.py`: the antibodies of a split, a cell without locations is Negative, one of none of
         the 31 labels is left out, its mask is grown by 3 pixels. The middle of the crop is cut at its own scale, 0.08
         micrometres a pixel: 448 pixels, or `--side 640`, which CellProfiling/SubCellPortable advises; least and most
         of all its channels become 0 and 255, which SubCell would do itself. Group: the antibody.
chammi   CHAMMI, https://zenodo.org/record/7988357: `<set>/enriched_meta.csv` (file_path, channel_width, Label,
         train_test_split, a column True or False for each task) for the sets Allen, HPA and CP. As in
         broadinstitute/MorphEm, `morphem/evaluation.py`: the nearest neighbour among the training cells, by features;
         in the last task of HPA and CP also among the test cells of other cell types, or plates. A model of the Human
         Protein Atlas's stains is for the set HPA alone; features of any model are rows of a .npy file, in the order
         of the metadata. Cells are drawn one by one: those of one field are alike, and the interval is too narrow.

Their single cells of 19 labels (HPAone) are left out: nothing says at which scale their files are.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import pandas as pd
import tifffile
import torch
from scipy.ndimage import grey_dilation
from sklearn.neighbors import NearestNeighbors

from protein_atlas.data.geometry import resize_image
from protein_atlas.data.images import CHANNELS
from protein_atlas.data.label_systems import LABEL_SYSTEMS, SUBCELL_LABELS, label_system_of, map_targets
from protein_atlas.data.labels import LOCATIONS, read_labels
from protein_atlas.data.resampling import centred
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.evaluate.intervals import score_interval
from protein_atlas.evaluate.metrics import macro_f1
from protein_atlas.predict.other_labels import with_labels_of
from protein_atlas.predict.predictor import Predictor
from protein_atlas.zoo.body import load_network
from protein_atlas.zoo.published import find_published
from protein_atlas.zoo.scoring import load_published

NOTHING = "none that we could read"
REPORTED = {
    "kaggle": find_published("hpa_densenet").figure,
    "Allen Task_one": (0.54, 0.55, 0.61), "Allen Task_two": (0.48, 0.37, 0.46), "HPA Task_one": (0.52, 0.56, 0.69),
    "HPA Task_two": (0.33, 0.42, 0.50), "HPA Task_three": (0.21, 0.25, 0.26), "CP Task_one": (0.63, 0.84, 0.81),
    "CP Task_two": (0.33, 0.48, 0.46), "CP Task_three": (0.27, 0.32, 0.24), "CP Task_four": (0.09, 0.14, 0.11),
}  # fmt: skip
LEARNED = {("kaggle", "hpa_densenet"), ("fields", "hpa_densenet")}  # images that a model has been trained on


class ImageSet(NamedTuple):
    """Images and what they show. subject: "field" or "cell". system: whose labels. targets: (N, K). groups: (N,).

    read: the image of a row, (4, H, W), channels as `CHANNELS`, from its number and the side to cut or resize to.
    """

    name: str
    subject: str
    system: str
    targets: np.ndarray
    groups: np.ndarray
    read: Callable[[int, tuple[int, int]], np.ndarray]
    said: str = ""


class Row(NamedTuple):
    """A line of the table."""

    model: str
    name: str
    images: int
    groups: int
    labels: int
    plain: str
    fitted: str
    precision: str
    reported: str


def read_samples(path: Path) -> np.ndarray:
    """A file of one or several samples a pixel, (H, W) or (H, W, C), as it is."""
    if path.suffix in (".tif", ".tiff"):
        found = tifffile.imread(path)
        return np.moveaxis(found, 0, -1) if found.ndim == 3 and found.shape[0] == 4 != found.shape[2] else found
    return imagecodecs.png_decode(path.read_bytes())


def four_samples(path: Path) -> np.ndarray:
    """A file of four samples a pixel as (4, H, W)."""
    found = read_samples(path)
    if found.ndim != 3 or found.shape[2] != 4:
        raise SystemExit(f"{path}: expected four samples a pixel, found an array of shape {found.shape}")
    return found.transpose(2, 0, 1)


def columns_of(table: pd.DataFrame, path: Path, *names: str) -> pd.DataFrame:
    """The table, if it has these columns."""
    if missing := [name for name in names if name not in table]:
        raise SystemExit(f"{path}: no column {missing[0]!r}; it has {', '.join(map(str, table.columns[:8]))}, ...")
    return table


def truths(column: pd.Series, path: Path) -> np.ndarray:
    """A column of True and False."""
    texts = column.astype(str)
    if not texts.isin(["True", "False"]).all():
        wrong = texts[~texts.isin(["True", "False"])].iloc[0]
        raise SystemExit(f"{path}: column {column.name!r} must be True or False, found {wrong!r}")
    return (texts == "True").to_numpy()


def kaggle_set(folder: Path) -> ImageSet:
    """The training set of the 2018 challenge."""
    table = read_labels(folder / "train.csv")

    def read(row: int, side: tuple[int, int]) -> np.ndarray:
        planes = [read_samples(folder / "train" / f"{table.ids[row]}_{channel}.png") for channel in CHANNELS]
        return resize_image(np.stack(planes), side)

    return ImageSet("kaggle", "field", "hpa2018", table.targets, table.ids, read)


def field_set(folder: Path) -> ImageSet:
    """The test side of Cell-DINO's fields."""
    path, names = folder / "whole_images_512_test.csv", [label.lower() for label in LOCATIONS]
    table = columns_of(pd.read_csv(path), path, "file", *names)
    targets = np.stack([truths(table[name], path) for name in names], axis=1).astype(np.uint8)
    labelled = targets.any(axis=1)
    stems = [Path(file).name.partition(".")[0] for file in table["file"][labelled]]
    groups = np.array([stem.partition("_")[0] if stem.count("_") >= 3 else stem for stem in stems])

    def read(row: int, side: tuple[int, int]) -> np.ndarray:
        found = [folder / "512_whole_images" / f"{stems[row]}{suffix}" for suffix in (".png", ".tiff")]
        there = next((file for file in found if file.is_file()), None)
        if there is None:
            raise SystemExit(f"{found[0]}: no such file, nor one that ends in .tiff")
        return resize_image(np.ascontiguousarray(four_samples(there)), side)

    said = f"fields: {(~labelled).sum()} of {len(labelled)} have none of the 28 labels, and are left out"
    return ImageSet("fields", "field", "hpa2018", targets[labelled], groups, read, said)


def cell_set(folder: Path, split: Path) -> ImageSet:
    """SubCell's cells of the antibodies of a split."""
    path = folder / "metadata.csv"
    names = ("antibody", "locations", "if_plate_id", "position", "sample", "cell_id")
    table = columns_of(pd.read_csv(path, low_memory=False), path, *names)
    table = table[table["antibody"].isin(split.read_text().split())].reset_index(drop=True)
    if not len(table):
        raise SystemExit(f"{path}: no cell of the antibodies in {split}")
    shown = table["locations"].fillna("Negative").str.split(",")
    targets = np.array([[label in labels for label in SUBCELL_LABELS] for labels in shown], dtype=np.uint8)
    labelled = targets.any(axis=1)
    table = table[labelled].reset_index(drop=True)

    def read(row: int, side: tuple[int, int]) -> np.ndarray:
        of = table.iloc[row]
        plate = of["if_plate_id"]
        stem = f"{plate}_{of['position']}_{of['sample']}_{int(float(of['cell_id']))}"
        image = four_samples(folder / str(plate) / f"{stem}_cell_image.png")[[2, 3, 0, 1]]
        own = grey_dilation(read_samples(folder / str(plate) / f"{stem}_cell_mask.png") > 0, size=(7, 7))
        if own.shape != image.shape[1:]:
            raise SystemExit(f"{stem}_cell_mask.png: {own.shape}, its image {image.shape[1:]}")
        cell = centred(image * own, side).astype(np.float64)
        return np.rint(255 * (cell - cell.min()) / max(cell.max() - cell.min(), 1)).astype(np.uint8)

    said = f"cells: {(~labelled).sum()} of {len(labelled)} have none of the 31 labels, and are left out"
    return ImageSet("cells", "cell", "subcell", targets[labelled], table["antibody"].to_numpy(), read, said)


def at_8_bits(image: np.ndarray) -> np.ndarray:
    """Gray levels of 8 or 16 bits as those of 8, black and white as they were."""
    return image if image.dtype == np.uint8 else ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def batches(of: ImageSet, channels: Sequence[str], side: tuple[int, int], bs: int) -> Iterator[np.ndarray]:
    """Its images, so many at a time, (N, C, height, width), with the channels of a model."""
    order = [CHANNELS.index(channel) for channel in channels]
    for start in range(0, len(of.targets), bs):
        rows = range(start, min(start + bs, len(of.targets)))
        yield np.stack([at_8_bits(of.read(row, side)[order]) for row in rows])


def of_side(predictor: Predictor, side: int | None) -> Predictor:
    """The same for images of another side; None: of its own."""
    if side is None:
        return predictor
    return replace(predictor, models=tuple(replace(model, size=(side, side)) for model in predictor.models))


def scores_of(of: ImageSet, predictor: Predictor, bs: int) -> np.ndarray:
    """Its scores, (N, K)."""
    found = batches(of, predictor.layout.channels, predictor.size, bs)
    return np.concatenate([predictor.image_scores(images) for images in found]).astype(np.float64)


def targets_for(of: ImageSet, predictor: Predictor, system: str) -> tuple[np.ndarray, list[str]]:
    """Its targets for the labels that the model has and the set knows of, and has a positive image of; and these."""
    vocab, targets = LABEL_SYSTEMS[system], of.targets
    if system != of.system:
        targets = map_targets(targets, of.system, system)
    known = ~np.isnan(targets).any(axis=0) & np.isin(vocab, predictor.vocab) & (targets == 1).any(axis=0)
    return targets[:, known].astype(np.uint8), [label for label, is_known in zip(vocab, known, strict=True) if is_known]


def score_set(of: ImageSet, name: str, predictor: Predictor, system: str, bs: int, replicates: int) -> Row:
    """The line of a model and a set. system: whose labels the model gives."""
    if find_published(name).subject != of.subject:
        raise SystemExit(f"{name} takes a {find_published(name).subject}, each image of {of.name} is a {of.subject}")
    targets, vocab = targets_for(of, predictor, system)
    scores = scores_of(of, predictor, bs)[:, [predictor.vocab.index(label) for label in vocab]]
    fit = cross_fit(targets, scores, vocab, groups=of.groups, allow_none=bool((~targets.any(axis=1)).any()))
    learned = "; trained on these images" if (of.name, name) in LEARNED else ""
    return Row(
        name, of.name, len(targets), len(np.unique(of.groups)), len(vocab), f"{macro_f1(targets, scores >= 0.5):.3f}",
        str(fit.interval(replicates=replicates)),
        str(score_interval(targets, scores, "macro AP", of.groups, replicates=replicates)),
        (REPORTED.get(of.name) or NOTHING) + learned,
    )  # fmt: skip


TASKS = ("Task_one", "Task_two", "Task_three", "Task_four")
LEFT_OUT = {"HPA": ("Task_three", "cell_type"), "CP": ("Task_four", "Plate")}  # the task, and what is left out in turn


class Task(NamedTuple):
    """A task of CHAMMI: labels of its cells, and what the neighbours say."""

    name: str
    truth: np.ndarray
    found: np.ndarray


def nearest(train: np.ndarray, labels: np.ndarray, cells: np.ndarray, metric: str) -> np.ndarray:
    """The label of each cell's nearest neighbour, by features. metric: l2 or cosine."""
    model = NearestNeighbors(n_neighbors=1, algorithm="brute", metric={"l2": "euclidean"}.get(metric, metric))
    return labels[model.fit(train).kneighbors(cells, return_distance=False)[:, 0]]


def chammi_tasks(meta: pd.DataFrame, features: np.ndarray, left_out: tuple[str, str] | None, path: Path, metric: str):
    """The tasks of a set, in their order. left_out: one in which the cells of each group are told by all others."""
    columns_of(meta, path, "train_test_split", "Label", *left_out or ())
    if len(features) != len(meta):
        raise SystemExit(f"{path}: {len(meta)} cells, {len(features)} rows of features")
    labels, train = meta["Label"].to_numpy(), (meta["train_test_split"] == "Train").to_numpy()
    there = set(meta["train_test_split"])
    for task in [task for task in TASKS if task in there]:
        columns_of(meta, path, task)
        of_task = truths(meta[task], path)
        if left_out is None or task != left_out[0]:
            yield Task(task, labels[of_task], nearest(features[train], labels[train], features[of_task], metric))
            continue
        groups, truth, found = meta[left_out[1]], [], []
        for group in groups[of_task].unique():
            own = of_task & (groups == group).to_numpy()
            known = np.concatenate([np.flatnonzero(train), np.flatnonzero(of_task & ~own)])
            truth.append(labels[own])
            found.append(nearest(features[known], labels[known], features[own], metric))
        yield Task(task, np.concatenate(truth), np.concatenate(found))


def tape(path: Path, width: int) -> np.ndarray:
    """An image whose channels lie side by side, (H, W * C), as (C, H, W)."""
    found = read_samples(path)
    if found.ndim != 2 or found.shape[1] % width:
        raise SystemExit(f"{path}: expected channels of {width} pixels side by side, found shape {found.shape}")
    return found.reshape(found.shape[0], -1, width).transpose(1, 0, 2)


def network_features(of: ImageSet, name: str, weights: Path, device: str, bs: int, side: int | None = None):
    """Features of a set's images by a published network, (N, F). side: of the images; None: the model's."""
    model = find_published(name)
    network, side = load_network(model, weights).to(device), side or model.size
    with torch.inference_mode():
        return np.concatenate([
            network.features(torch.from_numpy(images).to(device).float() / 255).cpu().numpy()
            for images in batches(of, model.channels, (side, side), bs)
        ])  # fmt: skip


def chammi_images(meta: pd.DataFrame, folder: Path, path: Path) -> ImageSet:
    """The cells of CHAMMI's set HPA: microtubules, protein, nucleus, endoplasmic reticulum, side by side."""
    columns_of(meta, path, "file_path", "channel_width")

    def read(row: int, side: tuple[int, int]) -> np.ndarray:
        cell = meta.iloc[row]
        image = tape(folder / cell["file_path"], int(cell["channel_width"]))
        if len(image) != len(CHANNELS):
            raise SystemExit(f"{cell['file_path']}: {len(image)} channels, expected {len(CHANNELS)}")
        return resize_image(np.ascontiguousarray(image), side)

    return ImageSet("HPA", "cell", "", np.zeros((len(meta), 0)), np.arange(len(meta)), read)


def chammi_rows(
    folder: Path, name: str, features_of: Callable[[str, pd.DataFrame, Path], np.ndarray], sets: Sequence[str],
    metric: str, replicates: int,
) -> Iterator[Row]:  # fmt: skip
    """The lines of CHAMMI's tasks. features_of: features of the cells of a set, from its name, metadata and path."""
    for of in sets:
        path = folder / of / "enriched_meta.csv"
        meta = pd.read_csv(path, low_memory=False)
        for task in chammi_tasks(meta, features_of(of, meta, path), LEFT_OUT.get(of), path, metric):
            vocab = np.unique(task.truth)  # what a neighbour says beyond them is wrong for a label that counts
            targets, found = (np.equal.outer(labels, vocab).astype(np.uint8) for labels in (task.truth, task.found))
            interval = score_interval(targets, found, replicates=replicates)
            reported = "1-NN, l2: ResNet18 {}, ConvNeXt {}, DINOv2 {} (github.com/broadinstitute/MorphEm)"
            yield Row(
                name, f"CHAMMI {of} {task.name}", len(targets), len(targets), len(vocab), f"{interval.estimate:.3f}",
                str(interval), "", reported.format(*REPORTED[f"{of} {task.name}"]),
            )  # fmt: skip


HEADER = (
    "model", "set", "images", "groups", "labels", "macro F1 at 0.5", "macro F1, cross-fitted", "mean average precision",
    "reported",
)  # fmt: skip


def show(rows: Iterator[Row] | Sequence[Row]) -> None:
    print(f"| {' | '.join(HEADER)} |\n| {' | '.join(['---'] * len(HEADER))} |")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["kaggle", "fields", "cells", "chammi"])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--weights", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--split", type=Path, metavar="FILE", help="of cells: antibodies, one a line")
    parser.add_argument("--side", type=int, metavar="PIXELS", help="of images; default: the model's")
    parser.add_argument("--labels-of", choices=list(LABEL_SYSTEMS))
    parser.add_argument("--features", metavar="PATH", help="of chammi: a .npy file for each {set}")
    parser.add_argument("--metric", choices=["l2", "cosine"], default="l2", help="of chammi's neighbours")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bs", type=int, default=16)
    parser.add_argument("--replicates", type=int, default=1000)
    given = parser.parse_args()
    if given.features is None and (given.model is None or not given.weights):
        parser.error("MODEL and --weights FILE; or, of chammi, --features PATH")
    if given.set == "chammi":
        if given.features is not None:

            def from_file(of: str, meta: pd.DataFrame, path: Path) -> np.ndarray:
                return np.load(given.features.format(set=of))

            name, features_of, sets = given.features, from_file, ("Allen", "HPA", "CP")
        else:

            def by_network(of: str, meta: pd.DataFrame, path: Path) -> np.ndarray:
                images = chammi_images(meta, given.folder, path)
                return network_features(images, given.model, given.weights[0], given.device, given.bs, given.side)

            name, features_of, sets = given.model, by_network, ("HPA",)
        show(chammi_rows(given.folder, name, features_of, sets, given.metric, given.replicates))
        return
    if given.features is not None:
        parser.error("--features is of chammi")
    if (given.set == "cells") != (given.split is not None):
        parser.error("cells needs --split FILE, the antibodies to score; other sets have none")
    read = {"kaggle": kaggle_set, "fields": field_set}
    of = cell_set(given.folder, given.split) if given.set == "cells" else read[given.set](given.folder)
    if of.said:
        print(of.said)
    first, *heads = given.weights
    predictor = of_side(load_published(given.model, first, heads, given.device), given.side)
    system = given.labels_of or label_system_of(predictor.vocab) or of.system
    if given.labels_of is not None:
        predictor = with_labels_of(predictor, system)
    show([score_set(of, given.model, predictor, system, given.bs, given.replicates)])


if __name__ == "__main__":
    main()
