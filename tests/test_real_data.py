"""Real images, tables, weights and predictions, where they are present; skipped, with the reason, where they are not.

The environment variable PROTEIN_ATLAS_DATA names their folder; without it, `../shared/data` beside the repository is
looked at.
"""
import os
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from fastai.callback.schedule import fit_one_cycle  # noqa: F401 (brings Learner.fit_one_cycle)
from fastai.data.transforms import IndexSplitter

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.geometry import resize_image
from protein_atlas.data.groups import hpa_groups
from protein_atlas.data.images import HPA_LAYOUT, Layout
from protein_atlas.data.intensity import measure_planes, shift_warning
from protein_atlas.data.labels import LOCATIONS, label_counts, label_set_counts, read_labels
from protein_atlas.data.split_audit import split_audit
from protein_atlas.data.splits import balanced_folds, balanced_split
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.export.onnx import export_bundle
from protein_atlas.predict.load import load_onnx
from protein_atlas.train.learner import rgby_learner
from protein_atlas.vision.data import protein_datablock
from protein_atlas.vision.network import load_bundle

DATA = Path(os.environ.get("PROTEIN_ATLAS_DATA", REPOSITORY.parent / "shared" / "data"))


def needs(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no real data: {path} does not exist (PROTEIN_ATLAS_DATA names its folder)")
    return path


# Label tables


def test_kaggle_table():
    table = read_labels(needs("tables/kaggle_train.csv"))
    assert len(table) == 31_072
    np.testing.assert_array_equal(table.counts(), label_counts())
    sets, counts = np.unique(table.targets, axis=0, return_counts=True)
    found = {tuple(np.flatnonzero(row).tolist()): int(n) for row, n in zip(sets, counts)}
    assert found == label_set_counts()


def test_hpa_v18_table():
    path = needs("tables/HPAv18RBGY_wodpl.csv")
    table = read_labels(path)
    assert len(table) == len(path.read_text(encoding="utf-8").splitlines()) - 1 == 74_606
    assert (table.counts() > 0).all()


def test_kaggle_split():
    """The real imbalance: 12,885 images of the most frequent label, 11 of the rarest."""
    table = read_labels(needs("tables/kaggle_train.csv"))
    train, valid = balanced_split(table.targets, 0.2, vocab=table.vocab)
    assert sorted([*train, *valid]) == list(range(len(table)))
    # The number of each label's images is the number it should be, rounded.
    assert np.abs(table.targets[valid].sum(axis=0) - 0.2 * table.targets.sum(axis=0)).max() < 1.5
    assert table.targets[valid].sum(axis=0).min() >= 2


# Images


def test_fields():
    table = read_labels(needs("fields/train.csv"))
    folder = ImageFolder(needs("fields/train"))
    assert sorted(table.ids.tolist()) == folder.ids and len(table) >= 6
    for image_id in folder.ids:
        image = folder.open(image_id)
        assert image.shape == (4, 512, 512) and image.dtype == np.uint8
        assert (image.max(axis=(1, 2)) > 0).all(), f"{image_id}: an empty channel"


def test_full_size_tiff():
    """The TIFF of 2048 pixels and the PNG of 512 show the same field."""
    full, small = ImageFolder(needs("fields/full_size")), ImageFolder(needs("fields/train"))
    (image_id,) = full.ids
    image = full.open(image_id)
    assert image.shape == (4, 2048, 2048) and image.dtype == np.uint8
    for channel, a, b in zip(HPA_LAYOUT.channels, resize_image(image, 512), small.open(image_id)):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9, channel
    np.testing.assert_array_equal(full.open(image_id, 512), resize_image(image, 512))


def test_cells():
    table = read_labels(needs("cells/train.csv"))
    folder = ImageFolder(needs("cells/train"))
    folder.check(table.ids.tolist())
    assert len(table) == len(folder) == 2_169
    present = table.present()
    assert present.vocab == tuple(LOCATIONS[i] for i in (0, 2, 21, 23, 25))
    pure = table.columns["Mix"].isin(["1_0", "0_1"]).to_numpy()
    np.testing.assert_array_equal(table.targets.sum(axis=1), np.where(pure, 1, 2))
    for image_id in table.ids[::200]:
        assert folder.open(image_id).shape == (4, 128, 128)


REAL_SETS = {  # channels, the column of what was imaged together, and the size to look at
    "cells": (HPA_LAYOUT.channels, "Group", None), "fields": (HPA_LAYOUT.channels, "Id", 128),
    "hep2": (("green",), "Block", None), "yeast": (("gfp", "rfp"), "Field", None),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL_SETS)
def test_brightness_of_one_half_and_the_other(name):
    """Groups of real images differ in brightness, and nothing is said of it; of what is damaged it is."""
    channels, column, size = REAL_SETS[name]
    folder, layout = needs(name), Layout(channels=channels)
    images, groups = ImageFolder(folder / "train", layout), pd.read_csv(folder / "train.csv", dtype=str)
    of_group, some = dict(zip(groups["Id"], groups[column], strict=True)), np.random.default_rng(0)

    def measured(arrays):
        return measure_planes(arrays, channels, 0, 65535)

    opened = cache(lambda image_id: images.open(image_id, size))
    for _ in range(3):
        first = set(some.permutation(sorted({*of_group.values()}))[::2])
        halves = [[i for i in images.ids if (of_group[i] in first) == side] for side in (True, False)]
        trained, new = ([opened(i) for i in some.choice(half, 32, replace=False)] for half in halves)
        known = measured(trained)
        assert shift_warning(known, measured(new)) is None
        without = [np.concatenate([image[:1] * 0, image[1:]]) for image in new]
        for damaged, says in (
            ([255 - image for image in new], "as if inverted"), ([image // 3 for image in new], "99.9 % of the"),
            (without, f"{channels[0]} is black in 32 of 32 images"),
        ):  # fmt: skip
            assert says in shift_warning(known, measured(damaged))
        if name == "cells":
            swapped = measured([image[[2, 1, 0, 3]] for image in new])
            assert "red looks as blue did there, and blue as red, as if exchanged" in shift_warning(known, swapped)


def test_cells_split_keeps_groups_whole():
    table = read_labels(needs("cells/train.csv")).present()
    groups = table.columns["Group"].to_numpy()
    train, valid = balanced_split(table.targets, 0.2, seed=1, groups=groups, vocab=table.vocab)
    assert len(train) + len(valid) == len(table)
    assert not set(groups[train]) & set(groups[valid])
    assert table.targets[valid].any(axis=0).all()


# Pretrained weights


@pytest.mark.parametrize("rule", ["copy:red", "copy:green", "mean", "zero", "tile"])
def test_pretrained_weights_and_stem_rules(rule):
    """Real ImageNet weights: the colours' planes stay, the fourth plane is what the rule says."""
    import torch  # here, so that the tests of arrays alone do not wait for it
    import torchvision

    from protein_atlas.vision.models import create_model
    from protein_atlas.vision.stems import find_stem

    path = needs("weights/squeezenet1_0_imagenet.pth")
    original = torch.load(path, weights_only=True)["features.0.weight"]
    model = create_model(torchvision.models.squeezenet1_0, 28, weights=path, stem_rule=rule).eval()
    stem = find_stem(model)[1]
    assert stem.weight.shape == (96, 4, 7, 7)
    if rule == "tile":
        torch.testing.assert_close(stem.weight.detach(), original[:, [0, 1, 2, 0]] * 0.75)
    else:
        assert torch.equal(stem.weight[:, :3], original)
        yellow = {
            "copy:red": original[:, 0], "copy:green": original[:, 1], "mean": original.mean(1),
            "zero": torch.zeros(96, 7, 7),
        }[rule]  # fmt: skip
        torch.testing.assert_close(stem.weight[:, 3].detach(), yellow)
    with torch.inference_mode():
        logits = model(torch.rand(2, 4, 128, 128, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 28) and logits.isfinite().all()


# Predictions of real models on real validation images

MODELS = ("vgg16_224", "resnet_256", "resnet34_256")


@pytest.fixture(scope="module")
def predictions() -> dict[str, np.ndarray]:
    with np.load(needs("predictions/kaggle_valid.npz")) as file:  # the ids are pickled, and not read
        return {name: file[name] for name in file.files if name != "ids"}


def test_predictions_are_those_of_the_models_named(predictions):
    assert set(predictions) == {"targets", *MODELS}
    assert all(array.shape == (6_215, 28) for array in predictions.values())


@pytest.mark.parametrize("model,bar", [(MODELS[0], 0.565), (MODELS[1], 0.535), (MODELS[2], 0.535)])
def test_default_rule_on_real_predictions(predictions, model, bar):
    """The bars lie a little under what was measured, for another version of NumPy or SciPy may move a threshold."""
    targets, scores = predictions["targets"], predictions[model]
    found = cross_fit(targets, scores, LOCATIONS, repeats=1)
    fixed = cross_fit(targets, scores, LOCATIONS, "fixed", repeats=1)
    assert found.score >= bar and found.score > fixed.score + 0.015
    assert fixed.optimism == 0
    assert cross_fit(targets, scores, LOCATIONS, "f1", repeats=1).optimism > 0.02, "the search of f1 flatters itself"


def test_ensemble_of_real_predictions(predictions):
    targets = predictions["targets"]
    found = cross_fit(targets, {name: predictions[name] for name in MODELS}, LOCATIONS, repeats=1)
    assert found.score >= 0.58


@pytest.mark.parametrize("weak", ["blurred", "squeezed", "noise"])
def test_default_rule_is_safe_on_weak_scores(predictions, weak):
    """Where scores are worth little or badly scaled, the default does not fall behind the fixed 0.5."""
    targets, scores = predictions["targets"], predictions["resnet34_256"]
    rng = np.random.default_rng(0)
    scores = {
        "blurred": np.clip(0.3 * scores + 0.7 * rng.permutation(scores), 0, 1), "squeezed": scores**3,
        "noise": rng.random(scores.shape),
    }[weak]  # fmt: skip
    found, fixed = (cross_fit(targets, scores, LOCATIONS, rule, repeats=1) for rule in ("smooth", "fixed"))
    assert found.score > fixed.score - 0.005


def test_hpa_folds_by_antibody():
    table = read_labels(needs("tables/HPAv18RBGY_wodpl.csv"))
    antibodies = hpa_groups(table.ids, "antibody")
    audit = split_audit(table.targets, balanced_folds(table.targets, 5, groups=antibodies), LOCATIONS, antibodies)
    assert not audit.leaked and not audit.missing
    assert audit.mean_deviation < 0.01


# Engines


@pytest.mark.full
def test_engines_decide_alike_on_real_images(tmp_path):
    """A network from real ImageNet weights, trained for an epoch: PyTorch, ONNX Runtime and OpenVINO on real cells and
    fields."""
    weights, table = needs("weights/squeezenet1_0_imagenet.pth"), read_labels(needs("cells/train.csv")).present()
    chosen = table.take(np.random.default_rng(0).permutation(len(table))[:400])
    train, valid = balanced_split(chosen.targets, 0.5)
    images = needs("cells/train")
    dls = protein_datablock(images, chosen.vocab, splitter=IndexSplitter(valid.tolist())).dataloaders(
        chosen, bs=32, num_workers=0
    )
    learn = rgby_learner(dls, "squeezenet1_0", weights=weights)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 2e-3)
    learn.fit_thresholds()
    checks = export_bundle(
        learn.save_bundle(tmp_path / "model.zip"), tmp_path / "model", images, chosen.ids[valid].tolist(),
        chosen.targets[valid],
    )
    for check in checks:
        if check.precision == "fp32":
            assert check.score_difference <= 1e-4 and check.decisions_equal == 1 and check.passed, check
        else:
            assert check.decisions_equal >= 0.999, check

    torch, onnx = load_bundle(tmp_path / "model", "cpu"), load_onnx(tmp_path / "model")
    fields = ImageFolder(needs("fields/train"))
    ours, theirs = onnx.predict(fields), torch.predict(fields)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    np.testing.assert_array_equal(ours.decisions, theirs.decisions)
