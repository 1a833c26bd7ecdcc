"""Images that show none of the labels, as negative controls do: from a table to a submission, at a shell."""
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from test_commands import check_refusal

from protein_atlas.app.viewer import Viewer
from protein_atlas.data.labels import LOCATIONS, NONE, read_labels
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.predict.description import parse_description
from protein_atlas.predict.load import load_predictor
from protein_atlas.report.run_folder import RunFolder
from protein_atlas.system.errors import ReportError
from protein_atlas.train.resume import UnfinishedRun
from protein_atlas.train.settings import RunSettings
from protein_atlas.vision.network import load_network, write_bundle

TRAIN = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--workers", 0, "--classes", "all")


@pytest.fixture(scope="module")
def controls(invoke, tmp_path_factory) -> Path:
    """100 phantoms of 32 pixels, 20 of which show none of the labels; read it, do not write into it."""
    folder = tmp_path_factory.mktemp("controls") / "data"
    invoke("simulate", folder, "--n", 100, "--size", 32, "--negatives", 0.2)
    table = read_labels(folder / "train.csv", allow_none=True)
    assert (~table.targets.any(axis=1)).sum() == 20
    return folder


@pytest.fixture(scope="module")
def trained(invoke, controls, tmp_path_factory) -> tuple[Path, str]:
    """The run folder of one epoch on them, and what the command said."""
    folder = tmp_path_factory.mktemp("allowed") / "run"
    return folder, invoke("train", controls, "--out", folder, "--allow-none", *TRAIN)


@pytest.fixture(scope="module")
def strict(trained, tmp_path_factory) -> dict[bool, Path]:
    """The trained network with thresholds that no score reaches, in two bundles: one may give no label."""
    folder = tmp_path_factory.mktemp("strict")
    made = {}
    with open_bundle(trained[0]) as bundle:
        network, known = load_network(bundle), bundle.description
        for choice in (True, False):
            description = replace(known, threshold_values=(1.0,) * len(LOCATIONS), allow_none=choice)
            made[choice] = write_bundle(folder / f"{choice}", network, description)
    return made


def test_they_are_refused_without_the_choice(call_command, controls, tmp_path):
    check_refusal(
        call_command("train", controls, "--out", tmp_path / "run", *TRAIN), "train.csv: 20 of 100 images have no label",
        "(id 'phantom-0-", "type --allow-none",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_run_keeps_the_choice(trained, controls):
    folder, said = trained
    assert f"20 images show {NONE}: 16 for training, 4 for validation" in said
    assert RunSettings.read(folder / "run.toml").allow_none
    for name in ("settings.json", "thresholds.json", "bundle/model.json"):
        assert json.loads((folder / name).read_text(encoding="utf-8"))["allow_none"] is True
    assert "is decided to show none of the labels" in (folder / "bundle/README.md").read_text(encoding="utf-8")
    table, split = read_labels(controls / "train.csv", allow_none=True), pd.read_csv(folder / "split.csv", dtype=str)
    assert split["Id"].tolist() == table.ids.tolist()
    assert (split["Target"].isna() == ~table.targets.any(axis=1)).all()
    run = RunFolder.open(folder)
    found = run.cross_fit()
    assert run.allow_none and found.score == pytest.approx(run.metrics["macro_f1"], abs=1e-12)
    audit = run.audit()
    assert audit.loc[audit["label"] == NONE, ["part", "images"]].values.tolist() == [["train", 16], ["valid", 4]]
    assert pd.read_csv(folder / "confusion.csv")["missed"].iloc[-1] == NONE


def test_the_report_speaks_of_them(trained):
    text = (trained[0] / "report.html").read_text(encoding="utf-8")
    assert re.search(r"4 validation images show none of the labels: \d were decided so", text)
    assert "An image that reaches none is decided to show none of the labels." in text
    assert "gets the label that comes nearest" not in text


def test_a_run_folder_of_two_minds(trained, tmp_path):
    """Settings that say otherwise than thresholds or labels, as somebody may have edited them."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    thresholds = json.loads((folder / "thresholds.json").read_text())
    (folder / "thresholds.json").write_text(json.dumps(thresholds | {"allow_none": False}))
    with pytest.raises(ReportError, match="thresholds.json: allow_none must be True, as in settings.json, found Fa"):
        RunFolder.open(folder)
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"allow_none": False}))
    with pytest.raises(ReportError, match="split.csv: of the rows of the validation side: 4 of 21 images have no lab"):
        RunFolder.open(folder)


def test_a_run_does_not_go_on_with_another_choice(call_command, controls, tmp_path):
    unfinished = UnfinishedRun.of(tmp_path / "run")
    unfinished.path.mkdir()
    unfinished.note_settings(RunSettings(allow_none=True))
    done = call_command("train", controls, "--out", tmp_path / "run", "--resume")
    check_refusal(done, "was started with allow_none True, now it is False: continue with the same settings")


def test_predictions_are_scores_over_thresholds(call_command, trained, controls, tmp_path):
    """And the table can be read as labels are, by the same rules."""
    done = call_command("predict", trained[0], controls / "train", "--out", tmp_path / "p.csv", "--workers", 0)
    assert done.returncode == 0, done.stderr
    limits = json.loads((trained[0] / "thresholds.json").read_text())["thresholds"]
    scores = pd.read_csv(tmp_path / "p.csv")[list(limits)].to_numpy()
    for column in ("Predicted", "Indices"):
        again = read_labels(tmp_path / "p.csv", label_column=column, allow_none=True)
        np.testing.assert_array_equal(again.targets, scores >= np.array(list(limits.values())))


def test_an_image_without_a_label_is_a_blank_cell(call_command, strict, controls, tmp_path):
    sample = tmp_path / "sample.csv"
    sample.write_text("Id,Predicted\nphantom-0-00002,0\nphantom-0-00000,0\n")
    for choice, model in strict.items():
        call_command("predict", model, controls / "train", "--out", tmp_path / "p.csv", "--workers", 0)
        predicted = pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False)
        assert len(predicted) == 100 and (predicted["Predicted"] == "").all() == (predicted["Indices"] == "").all()
        assert (predicted["Predicted"] == "").all() == choice
        done = call_command(
            "predict", model, controls / "train", "--submission", sample, "--out", tmp_path / "s.csv", "--workers", 0
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "s.csv").read_text().splitlines()
        assert (lines == ["Id,Predicted", "phantom-0-00002,", "phantom-0-00000,"]) == choice


def test_models_of_two_minds_are_not_averaged(call_command, strict, controls, tmp_path):
    done = call_command(
        "predict", strict[True], controls / "train", "--also", strict[False], "--out", tmp_path / "p.csv"
    )
    check_refusal(done, "model 2 has other allow_none")


def test_engines_decide_alike(call_command, strict, controls, tmp_path):
    """A bundle with other engines keeps the choice; what they decide is compared on images with and without labels."""
    done = call_command("export", strict[True], tmp_path / "model.zip", "--images", controls, "--n", 20)
    assert done.returncode == 0, done.stderr
    predictor = load_predictor(tmp_path / "model.zip", "onnxruntime")
    assert predictor.thresholds.allow_none and "decisions equal 100.000%" in done.stdout
    assert not predictor.predict(controls / "train", workers=0).decisions.any()


def test_an_older_bundle_gives_each_image_a_label(strict):
    with open_bundle(strict[True]) as bundle:
        known = json.loads(bundle.description.json())
    del known["allow_none"]
    older = parse_description(json.dumps(known | {"version": 3}).encode())
    assert not older.allow_none and older.thresholds.decide(np.zeros((1, len(LOCATIONS)))).sum() == 1


def test_the_page_says_so(strict, controls):
    files = sorted((controls / "train").glob("phantom-0-00000_*"))
    viewer = Viewer.open(strict[True], "cpu")
    viewed, _ = viewer.look_at_upload(files)
    html = viewer.image_html(viewed, "phantom-0-00000")
    assert "Decided: <strong>none of the labels</strong> (no score reaches its threshold)" in html
    assert "<td>none of the labels</td>" in viewer.folder_html(files)[0]


def test_a_comparison_tells_the_choices_apart(call_command, trained, tmp_path):
    """A run that was trained without the choice has no such images: compared on the others, each as it was trained."""
    folder = tmp_path / "other"
    shutil.copytree(trained[0], folder)
    run = RunFolder.open(folder)
    split = pd.read_csv(folder / "split.csv", dtype=str, keep_default_na=False)
    shown = split["Target"] != ""
    split[shown].to_csv(folder / "split.csv", index=False)
    scores = pd.read_csv(folder / "valid_scores.csv")
    scores[run.valid.targets.any(axis=1)].to_csv(folder / "valid_scores.csv", index=False)
    counts = split[shown]["side"].value_counts()
    images = {"train_images": int(counts["train"]), "valid_images": int(counts["valid"])}
    for name, fields in (
        ("settings.json", {"allow_none": False}), ("thresholds.json", {"allow_none": False}),
        ("metrics.json", images | {"provenance": {"simulated": int(shown.sum())}}),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))
    done = call_command("compare", trained[0], folder, "--out", tmp_path / "compare.html")
    assert done.returncode == 0, done.stderr
    said = "run was trained with --allow-none and may decide that an image shows none of the labels; other was not"
    assert said in done.stdout


def test_the_tutorial_explains_it():
    text = (REPOSITORY / "nbs/tutorials/02_your_own_stains.ipynb").read_text(encoding="utf-8")
    assert "--allow-none" in text and "allow_none=True" in text
