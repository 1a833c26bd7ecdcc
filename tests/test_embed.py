"""Features at the shell: from images to a file, from the file to a head, from the head's bundle to predictions."""
import numpy as np
import pandas as pd
import pytest

from protein_atlas.commands.features import embed, head
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.features.files import read_features
from protein_atlas.features.table import Features
from protein_atlas.predict.load import load_predictor
from protein_atlas.report.run_folder import RunFolder
from protein_atlas.system.errors import FeatureError, StorageError


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Sixty phantoms of two labels, with a plate each, and their features."""
    place = tmp_path_factory.mktemp("cells")
    simulate_phantoms(place, 60, 64, seed=0, min_count=1)
    table = pd.read_csv(place / "train.csv", dtype=str)
    is_common = table["Target"].str.split().map(lambda labels: "25" in labels or "0" in labels)
    table = table.assign(Target=np.where(is_common, "a", "b"), Plate=[f"p{row // 3}" for row in range(len(table))])
    table.sample(frac=1, random_state=0).to_csv(place / "labels.csv", index=False)
    embed(
        "small_resnet", str(place / "train"), str(place / "f.parquet"), size="64", table=str(place / "labels.csv"),
        columns="Plate", workers=0,
    )  # fmt: skip
    return place


def test_embed_keeps_the_rows_of_its_table(cells):
    table, found = pd.read_csv(cells / "labels.csv", dtype=str), read_features(cells / "f.parquet")
    assert list(found.ids) == table["Id"].tolist() and list(found.column("Plate")) == table["Plate"].tolist()
    assert found.features.shape == (60, 256) and found.about["channels"] == ["red", "green", "blue", "yellow"]


@pytest.mark.parametrize("wrong, said", [
    (dict(out="f.csv"), "written as .parquet, .npz, .h5ad"), (dict(columns="Plate"), "--columns: of which table"),
    (dict(table="labels.csv", columns="Well"), "column 'Well' is missing"), (dict(part_images=3), "for a Ray cluster"),
    (dict(engine="ray", half=True), "--engine ray: without --half"), (dict(engine="openvino"), "runs in torch"),
])  # fmt: skip
def test_embed_refuses(cells, wrong, said):
    given = dict(out=str(cells / wrong.pop("out", "x.parquet"))) | wrong
    given |= {"table": str(cells / wrong["table"])} if "table" in wrong else {}
    with pytest.raises(FeatureError, match=said):
        embed("small_resnet", str(cells / "train"), workers=0, **given)
    assert not (cells / "x.parquet").exists()


def test_features_of_another_file_are_not_written_over(cells):
    with pytest.raises(StorageError, match="labels.parquet"):
        pd.DataFrame({"Id": ["a"]}).to_csv(cells / "labels.parquet", index=False)
        embed("small_resnet", str(cells / "train"), str(cells / "labels.parquet"), workers=0)


def test_head_at_a_shell(cells, capsys):
    shape = dict(labels="a,b", group_column="Plate", valid_share=0.3)
    head(cells / "f.parquet", str(cells / "labels.csv"), cells / "run", **shape)
    assert "images that the head has not seen" in capsys.readouterr().out
    run = RunFolder.open(cells / "run")
    assert not set(run.groups) & set(run.trained_on["group"])
    again = load_predictor(cells / "run", device="cpu").predict(cells / "train", run.valid.ids.tolist(), workers=0)
    np.testing.assert_allclose(again.scores, run.scores, atol=1e-3)


def test_head_of_other_features_is_refused(cells):
    """A network with other weights than those that the features are of makes no bundle."""
    found = read_features(cells / "f.parquet")
    from protein_atlas.features.files import save_features

    save_features(Features(found.ids, found.features, found.about | {"weights": "0" * 64}), cells / "other.npz")
    with pytest.raises(FeatureError, match="other weights than those that the features were made by"):
        head(cells / "other.npz", str(cells / "labels.csv"), cells / "x", labels="a,b")
    assert not (cells / "x").exists()
