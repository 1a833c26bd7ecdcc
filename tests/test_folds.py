"""A training in folds, as a user meets it: one run folder, one bundle, and every command that takes them."""
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protein_atlas.app.viewer import Viewer
from protein_atlas.data.sources import open_images
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.report.run_folder import RunFolder
from protein_atlas.vision.network import load_network, torch_engine

FOLDS = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--bs", 16, "--folds", 2, "--workers", 0)


@pytest.fixture(scope="module")
def folds(invoke, few_labels, tmp_path_factory) -> tuple[Path, str]:
    """A run in two folds, and what the command said."""
    place = tmp_path_factory.mktemp("folds") / "run"
    return place, invoke("train", few_labels, *FOLDS, "--out", place)


def test_lines_name_the_fold(folds):
    said = folds[1]
    assert "140 images, 4 labels: in 2 folds of 70, 70" in said
    for number in (1, 2):
        assert re.search(rf"^fold {number} of 2, epoch 1/1 train_loss \d", said, re.MULTILINE), said
    assert "scoring 140 validation images, each by the network that has not seen it" in said
    assert "split: balanced, image by image, 2 folds" in said


def test_every_command_takes_it(call_command, folds, few_labels, tmp_path):
    """predict, export and predict by its file, report from the images, compare."""
    run = RunFolder.open(folds[0])
    with open_bundle(run.path) as bundle:
        members, card = load_network(bundle).members, (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert "each scored by the one of the 2 networks that was not trained on it" in card
    images = open_images(few_labels)
    pixels = np.stack([images.open(image_id) for image_id in run.valid.ids])
    own = np.stack([torch_engine(member, "", "cpu").run(pixels) for member in members])
    assert np.allclose(run.scores, own[run.networks, np.arange(140)], atol=1e-5)
    for model, engine in ((run.path, "torch"), (tmp_path / "model.zip", "onnxruntime")):
        if engine == "onnxruntime":
            done = call_command("export", run.path, model, "--images", few_labels, "--n", 60)
            assert done.returncode == 0, done.stderr
            assert re.search(r"onnxruntime fp32: .*decisions equal 100.000%.*: passed", done.stdout), done.stdout
        out = tmp_path / f"{engine}.csv"
        done = call_command("predict", model, few_labels, "--out", out, "--engine", engine, "--workers", 0)
        assert done.returncode == 0, done.stderr
        found = pd.read_csv(out).set_index("Id").loc[run.valid.ids, list(run.vocab)]
        assert np.allclose(found, own.mean(0), atol=1e-4)
    before = (run.path / "channel_importance.csv").read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    done = call_command("report", copy, "--images", few_labels)
    assert done.returncode == 0, done.stderr
    assert (copy / "channel_importance.csv").read_bytes() == before  # each image by its own network, again
    done = call_command("compare", run.path, copy, "--out", tmp_path / "compare.html")
    assert done.returncode == 0 and "both split balanced, image by image, 2 folds, seed 0" in done.stdout, done.stderr


def test_the_page_says_what_its_examples_are(folds):
    viewer = Viewer.open(folds[0], "cpu")
    assert viewer.examples_note == "Images of this run: each of its 2 networks was trained on others of them."
    assert viewer.map_html(viewer.examples, viewer.examples.ids[0], viewer.predictor.vocab[0])


def test_settings_of_a_run_in_folds(call_command, folds, few_labels, tmp_path):
    """Trained with again from its file; refused by name where they cannot be."""
    assert re.search(r"^folds = 2$", (folds[0] / "run.toml").read_text(encoding="utf-8"), re.MULTILINE)
    for number, contains in (
        (1, "--folds (folds) must be 2 to 100, found 1"),
        (99, "--folds (folds) must be at most 70, the number of groups of images, found 99"),
    ):
        if number == 99:
            table = pd.read_csv(few_labels / "train.csv", dtype=str).assign(Plate=[f"p{n // 2}" for n in range(140)])
            (tmp_path / "data").mkdir()
            (tmp_path / "data" / "train").symlink_to(few_labels / "train")
            table.to_csv(tmp_path / "data" / "train.csv", index=False)
            few_labels = tmp_path / "data"
        asked = ("--group-column", "Plate") if number == 99 else ()
        done = call_command("train", few_labels, "--folds", number, *asked, "--out", tmp_path / "run")
        assert done.returncode == 2 and contains in done.stderr, done.stderr
        assert not (tmp_path / "run.unfinished").exists()
