"""A training whose thresholds are for scores over all symmetries of an image: whatever uses it looks at them, too."""
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from protein_atlas.app.viewer import Viewer
from protein_atlas.data.sources import open_images
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.predict.load import load_predictor
from protein_atlas.report.run_folder import RunFolder

SEEN = "all symmetries of each image (as its thresholds were fitted)"


@pytest.fixture(scope="module")
def trained(invoke, few_labels, tmp_path_factory):
    """A run with --tta, and what the command said."""
    place = tmp_path_factory.mktemp("tta") / "run"
    options = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--bs", 16, "--workers", 0, "--tta")
    return place, invoke("train", few_labels, *options, "--out", place)


def test_thresholds_and_scores_are_those_of_all_symmetries(trained, few_labels):
    place, said = trained
    run, predictor = RunFolder.open(place), load_predictor(place, device="cpu")
    assert "in all symmetries" in said and "by scores averaged over all its symmetries (TTA)" in said
    ids, views = run.valid.ids.tolist(), {}
    for tta in (True, False, None):
        views[tta] = predictor.scores(few_labels / "train", ids, tta=tta, workers=0)
    assert np.allclose(run.scores, views[True], atol=1e-5) and np.abs(views[True] - views[False]).max() > 1e-3
    assert np.array_equal(views[None], views[True]) and predictor.tta
    assert np.array_equal(run.cross_fit().fitted.thresholds.values, predictor.thresholds.values)
    with open_bundle(place) as bundle:
        assert json.loads((bundle.folder / "model.json").read_bytes())["tta"] is True


def test_commands_look_as_it_was_fitted_and_say_so(call_command, trained, few_labels, tmp_path):
    place, run = trained[0], RunFolder.open(trained[0])
    predictor, ids = load_predictor(place, device="cpu"), run.valid.ids.tolist()
    for options, tta, says in (
        ((), True, SEEN),
        (("--no-tta",), False, "one look (its thresholds were fitted on all symmetries of each image)"),
    ):
        done = call_command("predict", place, few_labels, "--out", tmp_path / "p.csv", "--workers", 0, *options)
        assert done.returncode == 0 and says in done.stdout, done
        found = pd.read_csv(tmp_path / "p.csv").set_index("Id").loc[ids, list(run.vocab)]
        assert np.allclose(found, predictor.scores(few_labels / "train", ids, tta=tta, workers=0), atol=1e-6)
    done = call_command("export", place, tmp_path / "model", "--images", few_labels, "--n", 28)
    assert done.returncode == 0 and re.search("onnxruntime fp32: .*: passed", done.stdout), done
    assert load_predictor(tmp_path / "model", "onnxruntime").tta
    before = (place / "channel_importance.csv").read_bytes()
    shutil.copytree(place, tmp_path / "copy")
    assert call_command("report", tmp_path / "copy", "--images", few_labels).returncode == 0
    assert (tmp_path / "copy" / "channel_importance.csv").read_bytes() == before


def test_the_page_looks_as_it_was_fitted(trained, few_labels):
    viewer, run = Viewer.open(trained[0], "cpu"), RunFolder.open(trained[0])
    ids = run.valid.ids.tolist()[:3]
    assert np.allclose(viewer.view(open_images(few_labels), ids).scores, run.scores[:3], atol=1e-5)
