"""`benchmarks/features.py` on a miniature of one of its sets, of noise with a label's brightness."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from protein_atlas.data.images import Layout, save_image


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark as a module, and none of those beside it afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import features as module
    finally:
        sys.path.pop(0)
    yield module
    for name in ("features", "few_labels", "recipe", "plain_fastai"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path):
    """Sixty images of 32 px, six labels, ten groups that each show one."""
    place, rng = tmp_path / "data" / "hep2", np.random.default_rng(0)
    rows = [(f"i{k:02d}", k % 6, f"{k % 6}_{k // 12}") for k in range(60)]
    (place / "train").mkdir(parents=True)
    for image_id, label, _ in rows:
        image = rng.integers(0, 40 * (label + 1), (1, 32, 32))
        save_image(place / "train", image_id, image.astype(np.uint8), Layout(("green",)))
    pd.DataFrame(rows, columns=["Id", "Target", "Block"]).to_csv(place / "train.csv", index=False)
    return place.parent


def test_each_road_has_its_row(benchmark, folder, tmp_path, monkeypatch, capsys):
    """Features, a network and the table, of one fold; what is there is not done again."""
    out = tmp_path / "out"
    for do in ("embed", "train", "train", "table"):
        options = ["--sets", "hep2", "--bodies", "own", "--networks", "random", "--folds", "0", "1", "--epochs", "1"]
        monkeypatch.setattr(sys, "argv", ["features.py", do, str(out), "--data", str(folder), *options])
        benchmark.main()
    said = capsys.readouterr().out
    assert said.count("hep2, random, fold 1") == 1
    ways = [line.split(" | ")[0].removeprefix("| ") for line in said.splitlines() if line.startswith("| ")]
    assert ways[2:] == [
        "pixels, nearest", "head on own", "random", "random, eight looks",
        "mean of the head and random, eight looks",
        "mean of the head and random, eight looks, mixed with neighbours' labels", "head on own, by group",
        "random, eight looks, by group", "mean of the head and random, eight looks, by group",
    ]  # fmt: skip
    with np.load(benchmark.network_path(out, "hep2", "random", 0)) as file:
        assert file["scores"].shape == (2, len(file["scored"]), 6)
        assert not np.allclose(*file["scores"])
