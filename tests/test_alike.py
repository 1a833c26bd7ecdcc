"""Images like each other: in a run and its report, and as what an image is compared with on the page."""
import shutil

import numpy as np
import pandas as pd
import pytest

from protein_atlas.app.known import open_known
from protein_atlas.data.labels import LOCATIONS, read_labels
from protein_atlas.data.sources import open_images
from protein_atlas.features.files import read_features, save_features
from protein_atlas.features.table import Features
from protein_atlas.report.alike import alike_section
from protein_atlas.report.run import write_report
from protein_atlas.report.run_folder import RunFolder
from protein_atlas.system.errors import AppError, ReportError

TITLE = "Images like each other"
FILES = (
    "features_map.csv", "features_map.png", "features_map_errors.png", "neighbours.csv", "neighbours.png",
    "doubtful_labels.csv",
)  # fmt: skip


def test_a_run_shows_images_like_each_other(trained):
    run = RunFolder.open(trained[0])
    features, places, near = read_features(run.path / "features.npz"), run.feature_map(), run.neighbours()
    assert places["Id"].tolist() == list(features.ids) and set(places["map"]) == {"pca"}  # UMAP is not worth its start
    judged = places.set_index("Id").loc[run.valid.ids.tolist(), "decided"]
    right = (run.cross_fit().decisions[0] == run.valid.targets).all(axis=1)
    assert judged.tolist() == ["right" if yes else "wrong" for yes in right]
    assert set(places.loc[places["side"] == "train", "decided"]) == {""}
    worst = run.losses()["Id"].head(6).tolist()
    assert near["Id"].drop_duplicates().tolist() == worst and len(near) == 30
    assert set(near["neighbour"]) <= set(run.trained_on["Id"])
    section = (run.path / "report.html").read_text(encoding="utf-8").split(f">{TITLE}</h2>")[1].split("</section>")[0]
    assert section.count("<img ") == 3 and "by PCA" in section and "seed 0" in section
    assert "how far apart groups lie, and how large they are, is not to be read from it" in section


def test_an_older_run_has_a_report_without_them(run):
    for name in (*FILES, "features.npz"):
        (run / name).unlink()
    assert alike_section(RunFolder.open(run)) is None
    assert open_known(run, device="cpu") is None


def test_nearest_labelled_images(trained, phantoms, tmp_path):
    """The run's own, and those of a file with a label table, are the same images at the same distances."""
    ids = RunFolder.open(trained[0]).valid.ids.tolist()[:3]
    own = open_known(trained[0], device="cpu")
    seen = own.seen(open_images(phantoms / "train", own.embedder.layout).read(ids, own.embedder.size))
    found = [own.nearest("mine", row) for row in seen]
    assert [near[0][0] for near in found] == ids and all(near[0][2] < 1e-3 for near in found)  # each its own
    assert own.nearest(ids[0], seen[0])[0] == found[0][1]  # which is left out where it is known
    made = read_features(trained[0] / "features.npz")
    bare = save_features(Features(made.ids, made.features, made.about), tmp_path / "bare.npz")
    with pytest.raises(AppError, match="bare.npz: the features have no column Target with labels"):
        open_known(trained[0], bare, device="cpu")
    table = read_labels(phantoms / "train.csv", LOCATIONS)
    other = open_known(trained[0], bare, table, "cpu")
    assert [sorted(names) for names in other.names] == [sorted(names) for names in own.names]
    assert [near[0] for near in other.nearest("mine", seen[1])] == [near[0] for near in found[1]]
    assert other.map_html().count("<circle") == own.map_html().count("<circle") == len(made)


def test_features_of_another_network_are_refused(trained, tmp_path):
    made = read_features(trained[0] / "features.npz")
    about = made.about | {"identity": "another", "model": "resnet18"}
    other = save_features(Features(made.ids, made.features, about, made.columns), tmp_path / "other.npz")
    with pytest.raises(AppError, match="other.npz: features of another network, 'resnet18', or looked at otherwise"):
        open_known(trained[0], other, device="cpu")


def test_a_table_of_no_features(call_command, trained, phantoms):
    done = call_command("app", trained[0], "--table", phantoms / "train.csv")
    assert done.returncode == 2 and "--table: the labels of which --features?" in done.stderr, done.stderr


def test_a_damaged_map_is_named(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    table = pd.read_csv(folder / "features_map.csv")
    table.loc[2, "Id"] = "nobody"
    table.to_csv(folder / "features_map.csv", index=False)
    with pytest.raises(ReportError, match="features_map.csv: image 'nobody' is not in split.csv"):
        write_report(folder)


def test_nothing_draws_from_the_global_random_state(trained, tmp_path):
    before = np.random.get_state()[1].copy()
    open_known(trained[0], device="cpu").map_html()
    assert (np.random.get_state()[1] == before).all()
