"""Cells learned from labels of fields: bags hold a field's own cells, pooling is one thing in torch and in NumPy."""
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protein_atlas.cells.bags import CellBags
from protein_atlas.cells.pooling import CellPooling
from protein_atlas.data.geometry import sides
from protein_atlas.data.images import Layout
from protein_atlas.data.labels import LabelTable, read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_field, simulate_phantoms
from protein_atlas.data.sources import Images
from protein_atlas.data.store import ImageStore
from protein_atlas.system.errors import ImageError, NetworkError

FIELDS, VOCAB = 12, ("even", "third", "fourth")
PLAIN = ("mean", "log-sum-exp", "noisy-or")


class Levels(Images):
    """Cells of one gray level, 10 times the number of their field, and one for their own."""

    def __init__(self):
        self.place, self.layout = "levels", Layout(("green",))
        self.ids = [f"field {field}#{cell}" for cell in range(9) for field in range(FIELDS) if cell <= field]

    def open(self, image_id, size=None):
        field, cell = map(int, image_id.removeprefix("field ").split("#"))
        return np.full((1, *sides(4 if size is None else size)), 10 * field + cell, np.uint8)

    def fingerprint(self, image_id):
        return image_id


def table() -> LabelTable:
    number = np.arange(FIELDS)[:, None]
    return LabelTable([f"field {field}" for field in range(FIELDS)], number % [2, 3, 4] == 0, VOCAB, allow_none=True)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> ImageStore:
    folder = tmp_path_factory.mktemp("bags") / "store"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pack_images(Levels(), folder, 4, workers=1)
    return ImageStore(folder)


@pytest.mark.parametrize("how", ["here", "in a process", "in threads", "oversampled"])
@pytest.mark.filterwarnings("ignore")
def test_cells_stand_beside_the_labels_of_their_field(packed, how):
    from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock

    bags = CellBags(packed, 3) if how == "in threads" else CellBags(Levels(), 3, 4)
    block = protein_datablock(bags, VOCAB, splitter=lambda items: (list(range(9)), list(range(9, 12))), batch_tfms=[],
                              allow_none=True)  # fmt: skip
    make = oversampled_dataloaders if how == "oversampled" else block.dataloaders
    first = (block, table()) if how == "oversampled" else (table(),)
    workers = {"in a process": 1, "in threads": 2}.get(how, 0)
    dls = make(*first, bs=4, num_workers=workers, device="cpu")
    dls.train.drop_last, seen = False, set()
    for side in ("train", "valid"):
        for _ in range(3 if side == "train" else 1):
            for images, targets in getattr(dls, side):
                levels = np.rint(images[:, 0, 0, 0].numpy() * 255).astype(int).reshape(-1, 3)
                fields = levels[:, 0] // 10
                assert (levels // 10 == fields[:, None]).all()  # a bag is of one field
                assert (targets.numpy() == (fields[:, None] % [2, 3, 4] == 0)).all()
                for field, cells in zip(fields, levels % 10, strict=True):
                    assert len(set(cells.tolist())) == min(3, field + 1)  # each once, where there are as many
                    seen.add((side, int(field), tuple(cells)))
    drawn = {cells for side, field, cells in seen if side == "train" and field == 8}
    if how != "oversampled":  # which need not draw it
        assert {field for side, field, _ in seen if side == "train"} == set(range(9)) and len(drawn) > 1
    assert sorted(seen)[-3:] == [("valid", field, (1, 4, 7)) for field in (9, 10, 11)]


def test_what_is_no_bag_is_refused():
    from protein_atlas.train.bags import bag_learner
    from protein_atlas.vision.data import protein_datablock

    with pytest.raises(ImageError, match=r"no cell of the field 'field 12' \(and of 1 more of 3 fields\): leave them"):
        CellBags(Levels(), 3, 4).check(["field 1", "field 12", "field 13"])
    with pytest.raises(ImageError, match="cells are of many sizes"):
        CellBags(Levels(), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = protein_datablock(CellBags(Levels(), 3, 4), VOCAB, allow_none=True, item_tfms=[lambda image: image])
        with pytest.raises(NetworkError, match="give batch_tfms, no item_tfms"):
            block.dataloaders(table(), bs=4, num_workers=0, device="cpu").one_batch()
        single = protein_datablock(Levels(), VOCAB, size=4)
    with pytest.raises(NetworkError, match="pooling must be one of mean"):
        bag_learner(single, "small_resnet", "largest")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_pooling_keeps_its_rules(cells, fields, labels, seed):
    rng = np.random.default_rng(seed)
    scores, of = rng.random((cells, labels)) ** rng.integers(1, 20), rng.integers(0, fields, cells).astype(str)
    found = {name: CellPooling(name, 6.0).pool(scores, of) for name in PLAIN}
    for row, field in enumerate(found["mean"][0]):
        own = scores[of == field]
        low, soft, any_of = (found[name][1][row] for name in PLAIN)
        np.testing.assert_allclose(low, own.mean(0))
        np.testing.assert_allclose(any_of, 1 - np.prod(1 - own, axis=0), atol=1e-12)
        assert (low <= soft + 1e-12).all() and (soft <= own.max(0) + 1e-12).all()
        assert (own.max(0) <= any_of + 1e-12).all()
        if len(own) == 1:
            np.testing.assert_allclose([low, soft, any_of], np.stack([own[0]] * 3))
    moved = rng.permutation(cells)
    table = pd.DataFrame(scores, [f"{field}#{row}" for row, field in enumerate(of)])
    for name in PLAIN:  # in whatever order the cells stand
        ids, pooled = CellPooling(name, 6.0).pool(table.iloc[moved], pd.Series(of, table.index))
        assert pooled.index.tolist() == list(ids) and sorted(ids) == sorted(found[name][0])
        np.testing.assert_allclose(pooled.loc[list(found[name][0])].to_numpy(), found[name][1])


def test_attention_looks_at_a_cell(seed=0):
    rng = np.random.default_rng(seed)
    weights = {"V": rng.normal(size=(5, 4)), "U": rng.normal(size=(5, 4)), "W": rng.normal(size=(2, 5))}
    pooling = CellPooling("attention", weights=weights)
    features, of, scores = rng.normal(size=(7, 4)), list("aabbbba"), rng.random((7, 2))
    shares = pooling.attention(features, of)
    ids, pooled = pooling.pool(scores, of, features)
    for row, field in enumerate(ids):
        own = np.array(of) == field
        np.testing.assert_allclose(shares[own].sum(0), 1)
        gate = np.tanh(features[own] @ weights["V"].T) / (1 + np.exp(-features[own] @ weights["U"].T))
        powers = np.exp(gate @ weights["W"].T)
        np.testing.assert_allclose(shares[own], powers / powers.sum(0), rtol=1e-5)
        np.testing.assert_allclose(pooled[row], (shares * scores)[own].sum(0))


def test_phantoms_know_what_each_cell_shows(tmp_path):
    known = simulate_phantoms(tmp_path / "phantoms", 16, 64, seed=4, workers=1, masks=True, share=(0.1, 0.4),
                              negatives=0.25)  # fmt: skip
    fields = read_labels(known / "train.csv", allow_none=True)
    cells = read_labels(known / "cells.csv", fields.vocab, allow_none=True)
    row = {field: number for number, field in enumerate(fields.ids)}
    of = np.array([row[field] for field in cells.columns["Field"]])
    assert (cells.targets <= fields.targets[of]).all()  # a cell shows no label that its field has not
    shown = np.zeros_like(fields.targets)
    np.maximum.at(shown, of, cells.targets)
    assert (shown == fields.targets).mean() > 0.99 and 0.1 < (cells.targets.sum() / fields.targets[of].sum()) < 0.5
    again = simulate_phantoms(tmp_path / "again", 16, 64, seed=4, workers=2, masks=True, share=(0.1, 0.4),
                              negatives=0.25)  # fmt: skip
    assert (again / "cells.csv").read_bytes() == (known / "cells.csv").read_bytes()
    for share in (1.5, (0.5, 0.1), float("nan")):
        with pytest.raises(ImageError, match="share must be"):
            simulate_field(fields.targets[0], 64, share=share)
