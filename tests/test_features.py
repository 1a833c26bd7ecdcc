"""The commands that work with features, as functions: what they write, and what they refuse."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from protein_atlas.commands.atlas import atlas
from protein_atlas.embed.load import embed
from protein_atlas.features.files import save_features
from protein_atlas.system.errors import FeatureError, StorageError


@pytest.fixture(scope="module")
def embedded(phantoms, tmp_path_factory):
    """The features of 40 phantoms, of which one could not be read, and their label table with groups."""
    folder = tmp_path_factory.mktemp("embedded")
    table = pd.read_csv(phantoms / "train.csv", dtype=str).head(40)
    made = embed("small_resnet", phantoms / "train", table["Id"].tolist(), workers=0, device="cpu")
    numbers = made.features.copy()
    numbers[3] = np.nan
    save_features(replace(made, features=numbers, errors={3: "cut short"}), folder / "features.parquet")
    table = table.assign(well=[str(row // 4) for row in range(40)])
    table.drop(index=[7, 8]).to_csv(folder / "train.csv", index=False)
    return folder, table


def test_an_atlas_counts_every_image(embedded, phantoms, tmp_path, capsys, monkeypatch):
    """Images that could not be read, and those without labels, are said and stand in the tables."""
    monkeypatch.setattr("protein_atlas.features.atlas._DRAWN", 2)
    folder, table = embedded
    out = tmp_path / "atlas"
    with pytest.raises(FeatureError, match=f"image '{table['Id'][7]}' has no group"):
        atlas(folder / "features.parquet", out, str(folder / "train.csv"), group_column="well")
    assert not out.exists()
    table.to_csv(tmp_path / "groups.csv", index=False)
    atlas(folder / "features.parquet", out, str(folder / "train.csv"), images=str(phantoms / "train"))
    said = capsys.readouterr().out
    unread, unlabelled = table["Id"][3], table["Id"][7]
    for line in (
        f"could not be read, and stand in the tables without numbers; the first is {unread}: cut short",
        f"are not in the label table: nothing is said of their labels; the first is {unlabelled}",
    ):
        assert f" of 40 images ({'2.5' if 'cut' in line else '5.0'} %) {line}\n" in said
    names = ("doubtful.csv", "doubtful.png", "map.csv", "map.png", "nearest.csv", "unlike.csv", "unlike.png")
    assert sorted(path.name for path in out.iterdir()) == list(names)
    drawn = pd.read_csv(out / "map.csv", keep_default_na=False)
    assert drawn["Id"].tolist() == table["Id"].tolist() and list(drawn) == ["Id", "x", "y", "labels", "well", "note"]
    assert np.flatnonzero(drawn["x"] == "").tolist() == [3]
    assert drawn["note"][[7, 8]].tolist() == ["not in the label table"] * 2
    nearest = pd.read_csv(out / "nearest.csv")
    assert len(nearest) == 39 * 10 + 1 and nearest["Id"].iloc[-1] == table["Id"][3]
    unlike = pd.read_csv(out / "unlike.csv")
    assert set(unlike["Id"]) == set(table["Id"]) and unlike["distance"].notna().sum() == 39

    atlas(folder / "features.parquet", tmp_path / "by well", str(tmp_path / "groups.csv"), group_column="well")
    assert "the 10 nearest of each image, of another well" in capsys.readouterr().out
    nearest = pd.read_csv(tmp_path / "by well" / "nearest.csv").dropna(subset="neighbour")
    well = dict(zip(table["Id"], table["well"], strict=True))
    assert all(well[one] != well[other] for one, other in zip(nearest["Id"], nearest["neighbour"], strict=True))


def test_an_atlas_is_refused_before_it_is_begun(embedded, tmp_path):
    folder, _ = embedded
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="is not an empty folder"):
        atlas(folder / "features.parquet", tmp_path / "full")
    with pytest.raises(FeatureError, match="--allow-none: of which label table"):
        atlas(folder / "features.parquet", tmp_path / "out", allow_none=True)
    with pytest.raises(FeatureError, match="--color stain: no such column in the label table or the features"):
        atlas(folder / "features.parquet", tmp_path / "out", color="stain")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
