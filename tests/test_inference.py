"""Predictions through the installed command: without torch, killed and started again, two at once; and real bundles."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE, files_up_to

from protein_atlas.data.images import save_image
from protein_atlas.data.labels import read_labels
from protein_atlas.data.sources import open_images
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.predict.load import load_predictor
from protein_atlas.predict.predictions import journal_path
from protein_atlas.predict.reading import UnlikeWarning
from protein_atlas.system.journal import RowJournal


@pytest.fixture(scope="module")
def exported(invoke, trained, phantoms, tmp_path_factory) -> Path:
    """The trained bundle as a zip with ONNX, its engines checked on the run's validation images."""
    out = tmp_path_factory.mktemp("exported") / "model.zip"
    said = invoke("export", trained[0], out, "--images", phantoms)
    assert re.search(
        r"onnxruntime fp32: .* decisions equal 100\.000%, macro F1 \+0\.0000: passed \(\d+ images\)", said
    )
    return out


@pytest.fixture(scope="module")
def by_torch(invoke, trained, phantoms, tmp_path_factory) -> pd.DataFrame:
    """What the network predicts with torch."""
    out = tmp_path_factory.mktemp("by_torch") / "torch.csv"
    invoke("predict", trained[0], phantoms / "train", "-o", out)
    return pd.read_csv(out, index_col="Id", keep_default_na=False)


def imported(lines: str) -> set[str]:
    """The top-level packages that `python -X importtime` has reported."""
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines.splitlines() if "|" in line}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_predict_without_torch(command, exported, by_torch, phantoms, tmp_path, engine):
    out = tmp_path / "out.csv"
    done = subprocess.run(
        [
            sys.executable, "-X", "importtime", command, "predict", exported, phantoms / "train", "-o", out, "--engine",
            engine,
        ],
        capture_output=True, text=True, timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"140 images, by {engine} fp32 on cpu" in done.stdout
    packages = imported(done.stderr)
    assert {engine, "numpy", "typer"} <= packages, "the import times were not read"
    assert not packages & {"torch", "torchvision", "fastai", "fastcore", "timm"}

    ours = pd.read_csv(out, index_col="Id", keep_default_na=False)
    assert ours["Predicted"].tolist() == by_torch["Predicted"].tolist()
    np.testing.assert_allclose(ours.iloc[:, 2:], by_torch.iloc[:, 2:], atol=1e-4)


def test_an_export_keeps_the_reference(exported, trained, phantoms, tmp_path):
    with open_bundle(trained[0]) as before, open_bundle(exported) as after:
        assert before.reference.about == after.reference.about
        np.testing.assert_array_equal(before.reference.rows, after.reference.rows)
    images = open_images(phantoms / "train")
    for image_id in images.ids[:8]:
        save_image(tmp_path, image_id, 255 - images.open(image_id, None))
    with pytest.warns(UnlikeWarning, match="8 of 8 images are farther from the nearest training images"):
        load_predictor(exported, "onnxruntime").scores(tmp_path, workers=0)


ROW = 8 + 28 * 4 + 4  # bytes of a row in the journal: stamp, scores, checksum


def started(command: Path, out: Path, *arguments: object, rows: int) -> subprocess.Popen:
    """A prediction that has kept at least so many rows, and is not at its end."""
    process = subprocess.Popen(
        [command, "predict", *map(str, arguments), "-o", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    kept = out.with_name(f"{out.name}.unfinished") / "rows.bin"
    deadline = time.monotonic() + PATIENCE
    while not kept.is_file() or kept.stat().st_size < rows * ROW:
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"not {rows} rows: {process.communicate()}")
        time.sleep(0.01)
    return process


SLOWLY = ("--tta", "--bs", 1, "--engine", "onnxruntime")  # a batch an image, eight views each; and a quick start


@pytest.mark.parametrize(
    ("workers", "moments"),
    [(0, [60]), *(pytest.param(workers, [1, 20, 60], marks=pytest.mark.full) for workers in (0, 2))],
)
def test_killed_and_started_again(command, run_command, exported, phantoms, tmp_path, workers, moments):
    """SIGKILL, each a little later; what was kept is not predicted again, and the file is the same."""
    arguments = (exported, phantoms / "train", *SLOWLY, "--workers", workers)
    whole = run_command("predict", *arguments, "-o", tmp_path / "whole.csv")
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "cut.csv"
    for rows in moments:
        process = started(command, out, *arguments, rows=rows)
        os.kill(process.pid, signal.SIGKILL)  # the workers are not told; they end by themselves
        process.communicate(timeout=PATIENCE)
        assert not out.exists()
    done = run_command("predict", *arguments, "-o", out)
    assert done.returncode == 0, done.stderr
    before = int(re.search(r"\((\d+) of them by an earlier start\)", done.stdout)[1])
    assert 60 <= before < 140
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.csv", "whole.csv"]


def test_interrupted(command, exported, phantoms, tmp_path):
    out = tmp_path / "out.csv"
    process = started(command, out, exported, phantoms / "train", *SLOWLY, rows=3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert len(said.splitlines()) == 1
    assert re.fullmatch(
        rf"protein_atlas: interrupted; \d+ of 140 rows are kept in {re.escape(str(out))}.unfinished: .* goes on\n", said
    )


def test_two_at_once(call_command, exported, phantoms, tmp_path):
    out = tmp_path / "out.csv"
    with RowJournal(journal_path(out), {"job": "of another process"}, ["x"], 28, 1):
        done = call_command("predict", exported, phantoms / "train", "-o", out)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"protein_atlas: {out}.unfinished: in use: another process is writing it"
    ]


def test_mended_image_costs_only_its_own_rows(call_command, trained, phantoms, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in (phantoms / "train").iterdir():
        (images / path.name).symlink_to(path)
    damaged = sorted(images.iterdir())[4 * 100]
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[:50])
    arguments = ("predict", trained[0], images, "-o", tmp_path / "out.csv", "--bs", 10, "--workers", 0)
    done = call_command(*arguments)
    assert done.returncode == 2 and str(damaged) in done.stderr and len(done.stderr.splitlines()) == 1
    assert "; 100 of 140 rows are kept in" in done.stderr
    damaged.write_bytes(content)
    done = call_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "(100 of them by an earlier start)" in done.stdout


def test_skipped_images_keep_their_rows(call_command, trained, phantoms, tmp_path):
    ids = read_labels(phantoms / "train.csv").ids[[5, 3, 9]].tolist()
    asked = [ids[0], "gone", ids[1], ids[2], ids[0]]
    pd.DataFrame({"Id": asked, "note": "x"}).to_csv(tmp_path / "asked.csv", index=False)
    out = tmp_path / "out.parquet"
    done = call_command(
        "predict", trained[0], phantoms / "train", "-o", out, "--ids", tmp_path / "asked.csv", "--on-error", "skip"
    )
    assert done.returncode == 0, done.stderr
    table, errors = pd.read_parquet(out), pd.read_csv(tmp_path / "out.errors.csv")
    assert table["Id"].tolist() == asked
    assert (table["Predicted"] == "").tolist() == [False, True, False, False, False]
    assert table.iloc[1, 3:].isna().all() and table.iloc[[0, 2, 3, 4], 3:].notna().all(axis=None)
    assert table.iloc[0, 1:3].tolist() == table.iloc[4, 1:3].tolist()
    # The same image at another place of a batch: the same but for rounding.
    np.testing.assert_allclose(table.iloc[0, 3:].astype(float), table.iloc[4, 3:].astype(float), rtol=1e-5)
    assert errors.to_dict("records") == [
        {"row": 2, "Id": "gone", "error": f"{phantoms / 'train'}: no file of image 'gone'"}
    ]


def test_ensemble_of_folds(call_command, trained, exported, phantoms, tmp_path):
    """The same model twice is the model; with thresholds that differ, theirs are averaged."""
    for name, also in (("one", ()), ("two", ("--also", exported))):
        done = call_command(
            "predict", trained[0], phantoms / "train", *also, "-o", tmp_path / f"{name}.csv", "--engine", "torch"
        )
        assert done.returncode == 0, done.stderr
    one, two = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("one", "two"))
    assert one["Predicted"].tolist() == two["Predicted"].tolist()
    np.testing.assert_allclose(one.iloc[:, 3:], two.iloc[:, 3:], atol=1e-6)


def test_card_says_what_is_known(trained):
    card = (trained[0] / "bundle" / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((trained[0] / "metrics.json").read_text(encoding="utf-8"))
    assert f"Macro F1 **{metrics['macro_f1']:.3f}**" in card
    assert card.count("\n| ") == 28 + 2  # a head, a rule, a row a label


def test_full_disk_keeps_what_is_done(call_command, trained, phantoms, tmp_path):
    """A limit on the size of files stands for a full disk; without it, the same command goes on."""
    out = tmp_path / "out.csv"
    arguments = ("predict", trained[0], phantoms / "train", "-o", out, "--bs", 10, "--workers", 0)
    with files_up_to(50 * ROW):
        done = call_command(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"File too large: '{out}.unfinished/rows.bin'; 50 of 140 rows are kept" in done.stderr
    assert not out.exists()
    done = call_command(*arguments)
    assert done.returncode == 0 and "(50 of them by an earlier start)" in done.stdout, done.stderr
