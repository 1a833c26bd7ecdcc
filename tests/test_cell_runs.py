"""Runs on cells of fields at a shell: by themselves or as bags, packed or cut out as they are read; then predicted."""
import json

import numpy as np
import pandas as pd
import pytest
from conftest import labels_alone
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from protein_atlas.callback.checkpoint import CheckpointCallback
from protein_atlas.cells.mask_files import read_mask
from protein_atlas.cells.pooling import CellPooling
from protein_atlas.cli import app
from protein_atlas.data.images import save_image
from protein_atlas.data.label_systems import HPA2021_LABELS
from protein_atlas.evaluate.cell_detection import TrueCells, match_cells, mean_cell_average_precision
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.predict.cell_submissions import read_cell_submission
from protein_atlas.predict.load import load_predictor
from protein_atlas.train.run import train_run
from protein_atlas.train.settings import RunSettings

NAMES = ["Nucleoplasm", "Cytosol"]


def call(*words) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


def refusal(*words) -> str:
    return str(CliRunner().invoke(app, [*map(str, words)]).exception)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Twelve fields of two labels with three cells each, of other sizes; one of the three shows the field's label."""
    folder = tmp_path_factory.mktemp("cell runs")
    rng, rows = np.random.default_rng(0), []
    (folder / "set/train").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(12):
        image, mask = rng.integers(0, 60, (4, 96, 96), dtype=np.uint8), np.zeros((96, 96), np.uint16)
        for cell, side in enumerate((30, 40, 50), start=1):
            mask[2 : 2 + side // 2, 30 * cell - 28 : 30 * cell] = cell
        mask[60:95, 10:80] = 9
        image[1, mask == rng.choice([1, 2, 3])] += np.uint8(60 + 120 * (number % 2))
        save_image(folder / "set/train", f"f{number:02}", image)
        Image.fromarray(mask).save(folder / f"masks/f{number:02}_cell.png")
        rows.append((f"f{number:02}", NAMES[number % 2]))
    pd.DataFrame(rows, columns=["Id", "Target"]).to_csv(folder / "set/train.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def run(fields):
    """A run on these cells, which learn as bags by attention."""
    with labels_alone():
        call(
            "train", fields / "set", "--cells", fields / "masks/{id}_cell", "--bags", "attention", "--size", 32,
            "--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--workers", 0,
            "--labels", ",".join(NAMES),
            "--valid-share", 0.45, "--out", fields / "run",
        )  # fmt: skip
    return fields / "run"


def test_no_field_is_parted(run):
    split = pd.read_csv(run / "split.csv")
    assert len(split) == 48 and set(split["Id"].str.rpartition("#")[0]) == {f"f{n:02}" for n in range(12)}
    assert (split["group"] == split["Id"].str.rpartition("#")[0]).all()
    assert split.groupby("group")["side"].nunique().max() == 1
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["split"] == "balanced, cells of one field not parted" and metrics["cells"] == "margin=0.1"
    assert metrics["fields"]["fields"] == split.loc[split["side"] == "valid", "group"].nunique()
    assert metrics["fields"]["pooling"] == "attention"
    assert "Images are single cells" in (run / "report.html").read_text()


def test_predicted_by_masks_as_from_a_store(fields, run, tmp_path):
    said = call("predict", run, fields / "set", "--cells", fields / "masks/{id}_cell", "--out", tmp_path / "p.csv")
    assert "48 cells of 12 fields" in said and "pooled from their cells': attention" in said
    found = pd.read_csv(tmp_path / "p.csv")
    assert found.columns[3:14].tolist() == [
        "Field", "number", "top", "left", "bottom", "right", "y", "x", "area", "on_border", *NAMES[:1]
    ]  # fmt: skip
    assert found.loc[found["Id"] == "f03#9", ["top", "left", "bottom", "right", "area"]].to_numpy().tolist() == [
        [60, 10, 95, 80, 35 * 70]
    ]
    call("pack", fields / "set", tmp_path / "store", "--cells", fields / "masks/{id}_cell", "--size", 32)
    call("predict", run, tmp_path / "store", "--out", tmp_path / "s.csv")
    of_store = pd.read_csv(tmp_path / "s.csv")
    assert of_store["Id"].tolist() == found["Id"].tolist()
    np.testing.assert_allclose(of_store[NAMES], found[NAMES], atol=1e-6)
    with open_bundle(run) as bundle:
        pooling = bundle.pooling
    seen = load_predictor(run, "torch").features(tmp_path / "store", found["Id"].tolist(), workers=0)
    ids, pooled = pooling.pool(found[NAMES].to_numpy(), found["Field"].tolist(), seen)
    fields_table = pd.read_csv(tmp_path / "p.fields.csv")
    assert fields_table["Id"].tolist() == list(ids) and set(fields_table["Cells"]) == {4}
    np.testing.assert_allclose(fields_table[NAMES], pooled, atol=1e-5)
    call(
        "predict", run, fields / "set", "--cells", fields / "masks/{id}_cell", "--field-scores", "noisy-or", "--out",
        tmp_path / "n.csv",
    )  # fmt: skip
    _, other = CellPooling("noisy-or").pool(found[NAMES].to_numpy(), found["Field"].tolist())
    np.testing.assert_allclose(pd.read_csv(tmp_path / "n.fields.csv")[NAMES], other, atol=1e-6)


def test_some_fields_and_what_cannot_be_read(fields, run, tmp_path):
    (tmp_path / "ids.txt").write_text("f07\nf02\n")
    broken = tmp_path / "masks"
    broken.mkdir()
    for name in ("f07", "f02"):
        (broken / f"{name}.png").write_bytes((fields / f"masks/{name}_cell.png").read_bytes())
    picture = tmp_path / "set"
    picture.mkdir()
    for file in (fields / "set/train").glob("f0[27]_*"):
        (picture / file.name).write_bytes(file.read_bytes())
    (picture / "f02_green.png").write_bytes(b"no picture")
    call(
        "predict", run, picture, "--cells", broken, "--ids", tmp_path / "ids.txt", "--on-error", "skip", "--out",
        tmp_path / "p.csv",
    )  # fmt: skip
    table = pd.read_csv(tmp_path / "p.fields.csv")
    assert table[["Id", "Cells", "Unread"]].to_numpy().tolist() == [["f07", 4, 0], ["f02", 4, 4]]
    assert table.loc[1, NAMES].isna().all() and table.loc[0, NAMES].notna().all()
    assert len(pd.read_csv(tmp_path / "p.errors.csv")) == 4


def test_an_export_keeps_the_pooling(fields, run, tmp_path):
    call("export", run, tmp_path / "model.zip")
    ways = {"torch": run, "onnxruntime": tmp_path / "model.zip"}
    for engine, model in ways.items():
        call(
            "predict", model, fields / "set", "--cells", fields / "masks/{id}_cell", "--engine", engine, "--out",
            tmp_path / f"{engine}.csv",
        )  # fmt: skip
    torch, onnx = (pd.read_csv(tmp_path / f"{engine}.fields.csv") for engine in ways)
    assert (onnx["Pooling"] == "attention").all()
    np.testing.assert_allclose(onnx[NAMES], torch[NAMES], atol=1e-4)


def test_damaged_attention_is_refused(run, tmp_path):
    with open_bundle(run) as bundle:
        folder = bundle.folder
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "pooling.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    assert "pooling.safetensors is not the file that was saved" in refusal("card", tmp_path)


def test_submission_of_the_challenge(fields, run, tmp_path):
    """Masks and scores of all cells of the fields of the sample, in its order; scored as the challenge does."""
    sample = "ID,ImageWidth,ImageHeight,PredictionString\nf05,96,96,0 1 x\nf02,96,96,0 1 x\n"
    (tmp_path / "sample.csv").write_text(sample)
    call(
        "predict", run, fields / "set", "--cells", fields / "masks", "--submission", tmp_path / "sample.csv", "--out",
        tmp_path / "s.csv",
    )  # fmt: skip
    call("predict", run, fields / "set", "--cells", fields / "masks", "--out", tmp_path / "p.csv")
    found = pd.read_csv(tmp_path / "p.csv").set_index("Id")
    written = read_cell_submission(tmp_path / "s.csv")
    assert list(written) == ["f05", "f02"]
    at = [HPA2021_LABELS.index(name) for name in NAMES]
    for field, cells in written.items():
        mask = read_mask(fields / f"masks/{field}_cell.png")
        numbers = [int(np.unique(mask[one.whole((96, 96))])[0]) for one in cells.masks]
        assert numbers == [1, 2, 3, 9]
        expected = found.loc[[f"{field}#{number}" for number in numbers], NAMES].to_numpy()
        np.testing.assert_allclose(cells.confidences[:, at], expected, atol=1e-6)
        assert np.isnan(np.delete(cells.confidences, at, axis=1)).all()
        true = TrueCells((96, 96), cells.masks, np.eye(19, dtype=int)[[at[0]] * 4])
        assert mean_cell_average_precision([match_cells(cells, true)]) == 1
    (tmp_path / "sample.csv").write_text(sample.replace("f02,96", "f02,97"))
    assert "1 IDs have another size in sample.csv: f02" in refusal(
        "predict", run, fields / "set", "--cells", fields / "masks", "--submission", tmp_path / "sample.csv", "--out",
        tmp_path / "t.csv",
    )  # fmt: skip


def test_whole_fields_are_told(fields, run, tmp_path):
    with pytest.warns(UserWarning, match="has learned single cells, cut out of fields by margin=0.1.*--cells MASKS"):
        call("predict", run, fields / "set", "--out", tmp_path / "p.csv")


@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_training_ends_as_it_would_have(fields, tmp_path, monkeypatch, without_evidence, stop):
    """Stopped after the epoch of single cells, and amid those of bags: the same weights."""
    settings = RunSettings(
        arch="small_resnet", pretrained=False, epochs=1, size=32, workers=0, vocab=tuple(NAMES), valid_share=0.45,
        cells=str(fields / "masks"), bags="log-sum-exp", allow_none=True,
    )  # fmt: skip
    whole = CheckpointCallback._save

    def save(self):
        whole(self)
        if len(self.history) == stop:
            raise KeyboardInterrupt("as by Control-C")

    def weights(name):
        return load_file(tmp_path / name / "bundle/model.safetensors")

    train_run(fields / "set", tmp_path / "whole", settings, lambda line: None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CheckpointCallback, "_save", save)
        train_run(fields / "set", tmp_path / "parts", settings, lambda line: None)
    train_run(fields / "set", tmp_path / "parts", settings, lambda line: None, resume=True)
    expected = weights("whole")
    assert all(np.array_equal(value, expected[name]) for name, value in weights("parts").items())


def test_a_field_without_cells_keeps_its_row(fields, run, tmp_path):
    for name in ("f01", "f02"):
        mask = np.array(Image.open(fields / f"masks/{name}_cell.png"))
        Image.fromarray(mask * (name == "f02")).save(tmp_path / f"{name}.png")
    (tmp_path / "ids.txt").write_text("f01\nf02\n")
    call(
        "predict", run, fields / "set", "--cells", tmp_path, "--ids", tmp_path / "ids.txt", "--out", tmp_path / "p.csv"
    )
    table = pd.read_csv(tmp_path / "p.fields.csv")
    assert table[["Id", "Cells"]].to_numpy().tolist() == [["f01", 0], ["f02", 4]]
    assert table[NAMES].isna().all(axis=1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--bags", "attention"], "--bags is of single cells, and these are images"),
        (["--crop", "side=32"], "--crop (crop) must be given with --cells"),
        (["--cells", "nowhere"], "nowhere"),
        (["--cells", "MASKS", "--crop", "size=9"], "--crop size=9: expected one of margin=0.1"),
        (["--cells", "MASKS", "--bags", "max"], "--bags (bags) must be none, mean, log-sum-exp, noisy-or"),
        (["--cells", "MASKS", "--bags", "mean", "--mixup", "0.4"], "--mixup (mixup) must be left out with --bags"),
        (["--cells", "MASKS", "--bags", "attention", "--folds", "3"], "attentions are not averaged"),
        (["--cells", "MASKS", "--store", "x"], "pack --cells makes a store of cells"),
    ],
)
def test_refused_at_training(fields, tmp_path, words, what):
    words = [word.replace("MASKS", str(fields / "masks")) for word in words]
    common = ["--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--labels", ",".join(NAMES)]
    assert what in refusal("train", fields / "set", *common, *words, "--out", tmp_path / "run")


def test_refused_at_prediction(fields, run, tmp_path):
    out = ["--out", tmp_path / "p.csv"]
    assert "--crop: of single cells" in refusal("predict", run, fields / "set", "--crop", "side=9", *out)
    assert "--field-scores: of single cells" in refusal("predict", run, fields / "set", "--field-scores", "mean", *out)
    masks = ["--cells", fields / "masks"]
    assert "a crop of" in refusal("predict", run, fields / "set", *masks, "--crop", "margin=1e9", *out)
    assert "pooling" in refusal("predict", run, fields / "set", *masks, "--field-scores", "most", *out)
    sample = ["--submission", fields / "set/train.csv"]
    assert "column 'ID' is missing" in refusal("predict", run, fields / "set", *masks, *sample, *out)
    assert "without --on-error and --field-scores" in refusal(
        "predict", run, fields / "set", *masks, *sample, "--field-scores", "mean", *out
    )
    (tmp_path / "p.fields.csv").write_text("somebody's\n")
    assert "p.fields.csv" in refusal("predict", run, fields / "set", *masks, *out)
    assert (tmp_path / "p.fields.csv").read_text() == "somebody's\n"
