"""The installed command as its user meets it: as a subprocess, with exit codes, files and what it says."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE

from protein_atlas.data.labels import LOCATIONS, read_labels

COMMANDS = (
    "demo", "simulate", "fetch", "segment", "pack", "verify", "train", "pretrain", "predict", "embed", "head", "atlas",
    "card", "models", "export", "duplicates", "report", "compare", "app",
)  # fmt: skip


def check_refusal(done: subprocess.CompletedProcess, *contains: str, warnings: int = 0) -> None:
    """Exit code 2 and one line on standard error, which says what was wrong, after so many of warnings."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("protein_atlas: warning: ") for line in lines[:warnings]), done.stderr
    lines = lines[warnings:]
    assert len(lines) == 1, f"expected one line on standard error, found {len(lines)}:\n{done.stderr}"
    for part in contains:
        assert part in lines[0]


def check_quiet(done: subprocess.CompletedProcess) -> None:
    """No progress bar where there is no terminal."""
    for text in (done.stdout, done.stderr):
        assert "\r" not in text and "\x1b" not in text, repr(text)
        assert not re.search(r"%\||it/s|s/it|█", text), text


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Help


HEAVY = {"torch", "torchvision", "fastai", "fastcore", "sklearn", "matplotlib"}


def test_help_is_quick(command):
    """Help comes without the seconds that torch and fastai take to import."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", command, "--help"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: protein_atlas" in done.stdout
    assert all(name in done.stdout for name in COMMANDS)
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in imported, "the import times were not read"
    assert not imported & HEAVY


def test_help_of_each_command_is_quick():
    """The same of each, one after the other in one fresh process."""
    code = f"""
import sys
from protein_atlas.cli import main
for name in {COMMANDS}:
    sys.argv = ["protein_atlas", name, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (name, end.code)
    assert not {HEAVY} & set(sys.modules), (name, {HEAVY} & set(sys.modules))
    print("end of the help of", name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    *shown, rest = re.split("end of the help of .*\n", done.stdout)
    assert len(shown) == len(COMMANDS) and not rest
    for name, text in zip(COMMANDS, shown):
        assert f"Usage: protein_atlas {name}" in text, text


def test_no_arguments_give_help(run_command):
    done = run_command()
    assert "Usage: protein_atlas" in done.stdout + done.stderr


# simulate


def test_simulate(phantoms):
    table = read_labels(phantoms / "train.csv")
    assert len(table) == 140
    assert table.counts().min() >= 4
    images = sorted(path.name for path in (phantoms / "train").iterdir())
    expected = [f"{image_id}_{color}.png" for image_id in table.ids for color in ("red", "green", "blue", "yellow")]
    assert images == sorted(expected)


def test_simulate_same_seed_same_files(run_command, call_command, tmp_path):
    for name, seed, run in (("a", 3, run_command), ("b", 3, call_command), ("c", 4, call_command)):
        done = run("simulate", tmp_path / name, "--n", 12, "--size", 32, "--seed", seed)
        assert done.returncode == 0, done.stderr
        check_quiet(done)
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a["train.csv"] != c["train.csv"]


# train and predict


def test_train_writes_a_whole_run(trained):
    folder, done = trained
    check_quiet(done)
    assert re.search(r"^epoch 1/1 train_loss \d", done.stdout, re.MULTILINE), done.stdout
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "bundle", "thresholds.json", "thresholds.png", "labels.csv", "labels.png", "split.csv", "split_audit.csv",
        "split_audit.md", "split_audit.png", "reliability.csv", "reliability.png", "confusion.csv", "confusion.png",
        "valid_scores.csv", "history.csv", "curve.png", "examples.png", "settings.json", "metrics.json",
        "precision_recall.png", "scores.png", "top_losses.csv", "top_losses.png", "best_and_worst.png", "maps.csv",
        "maps.png", "channel_importance.csv", "channel_importance.png", "channel_importance_labels.csv",
        "channel_importance_labels.png", "examples", "features.npz", "features_map.csv", "features_map.png",
        "features_map_errors.png", "neighbours.csv", "neighbours.png", "doubtful_labels.csv", "report.html", "run.toml",
    }  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert f"macro F1 {metrics['macro_f1']:.3f}" in done.stdout
    low, high = metrics["macro_f1_interval"]
    assert 0 <= low <= high <= 1


def test_train_splits_every_image_once(trained, phantoms):
    folder, _ = trained
    table, split = read_labels(phantoms / "train.csv"), pd.read_csv(folder / "split.csv")
    assert split["Id"].tolist() == table.ids.tolist()
    for side in ("train", "valid"):
        assert table.targets[split["side"].to_numpy() == side].any(axis=0).all(), f"a label is missing in {side}"


def test_train_from_a_config_file(call_command, trained, phantoms, tmp_path, without_evidence):
    """The file that a run wrote trains the same again; what is given at the shell counts more than what stands in
    it."""
    config = trained[0] / "run.toml"
    done = call_command("train", phantoms, "--config", config, "--workers", 1, "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "split.csv").read_bytes() == (trained[0] / "split.csv").read_bytes()
    texts = [(folder / "run.toml").read_text(encoding="utf-8") for folder in (trained[0], tmp_path / "again")]
    assert "\nworkers = 0\n" in texts[0] and texts[0].replace("\nworkers = 0\n", "\nworkers = 1\n") == texts[1]
    scores = [pd.read_csv(folder / "valid_scores.csv", index_col="Id") for folder in (tmp_path / "again", trained[0])]
    np.testing.assert_allclose(*scores, atol=1e-5)
    settings = [
        json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "again", trained[0])
    ]
    different = {name for name in settings[0] if settings[0][name] != settings[1][name]}
    assert different == {"workers"}, different


def test_predict(run_command, trained, phantoms, tmp_path):
    out = tmp_path / "predictions.csv"
    done = run_command("predict", trained[0], phantoms / "train", "--out", out)
    assert done.returncode == 0, done.stderr
    check_quiet(done)
    table = pd.read_csv(out)
    assert table.columns.tolist() == ["Id", "Predicted", "Indices", *LOCATIONS]
    assert table["Id"].tolist() == sorted(read_labels(phantoms / "train.csv").ids.tolist())
    assert table["Predicted"].notna().all(), "an image without a label"
    # The run's own scores of the validation side are what the bundle gives again.
    before = pd.read_csv(trained[0] / "valid_scores.csv", index_col="Id")
    np.testing.assert_allclose(table.set_index("Id").loc[before.index, list(LOCATIONS)], before, atol=1e-4)


def test_predict_submission_keeps_the_samples_order(call_command, trained, phantoms, tmp_path):
    ids = read_labels(phantoms / "train.csv").ids[[7, 3, 11, 5]].tolist()
    sample, out = tmp_path / "sample_submission.csv", tmp_path / "submission.csv"
    pd.DataFrame({"Id": ids, "Predicted": 0}).to_csv(sample, index=False)
    done = call_command("predict", trained[0], phantoms / "train", "--submission", sample, "--out", out)
    assert done.returncode == 0, done.stderr
    submission = pd.read_csv(out, dtype=str)
    assert submission.columns.tolist() == ["Id", "Predicted"]
    assert submission["Id"].tolist() == ids
    assert submission["Predicted"].str.fullmatch(r"\d+( \d+)*").all()


def test_duplicates(call_command, phantoms, tmp_path):
    """One image copied under another name, with another label; and the same folder against a few of its images."""
    data, out = tmp_path / "data", tmp_path / "found" / "duplicates.csv"
    out.parent.mkdir()
    shutil.copytree(phantoms, data)
    table = pd.read_csv(data / "train.csv", dtype=str)
    original = table["Id"][3]
    for path in list((data / "train").glob(f"{original}_*")):
        shutil.copy(path, path.with_name(path.name.replace(original, "copy")))
    other_label = "0" if table["Target"][3] != "0" else "1"
    pd.concat([table, pd.DataFrame({"Id": ["copy"], "Target": [other_label]})]).to_csv(data / "train.csv", index=False)
    done = call_command("duplicates", data / "train", "--table", data / "train.csv", "--out", out, "--workers", 1)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(out, dtype=str)
    assert {original, "copy"} in [set(pair) for pair in found[["first", "second"]].to_numpy()]
    row = found[(found["first"] == "copy") | (found["second"] == "copy")].iloc[0]
    assert row["conflict"] == "True" and {row["first_labels"], row["second_labels"]} >= {LOCATIONS[int(other_label)]}
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert f"{len(found)} pairs show the same field" in done.stdout and "with other labels" in done.stdout

    few = tmp_path / "few"
    few.mkdir()
    for path in (data / "train").glob("copy_*"):
        shutil.copy(path, few)
    done = call_command("duplicates", data / "train", "--against", few, "--out", out, "--workers", 1)
    assert done.returncode == 0, done.stderr
    between = pd.read_csv(out, dtype=str)
    assert set(between["second"]) == {"copy"} and {original, "copy"} <= set(between["first"])
    check_refusal(call_command("duplicates", few, "--against", few, "--table", data / "train.csv"), "--against-table")


def test_demo(call_command, tmp_path):
    folder = tmp_path / "demo"
    done = call_command("demo", "--n", 60, "--epochs", 1, "--out", folder)
    assert done.returncode == 0, done.stderr
    check_quiet(done)
    assert "macro F1" in done.stdout
    assert "starts from random weights\n" in done.stdout and "would know the answers" in done.stdout
    for name in ("patterns.png", "images/train.csv", "run/bundle/model.safetensors", "run/examples.png"):
        assert (folder / name).is_file(), name
    # A second start does not write into the first one's folder.
    check_refusal(call_command("demo", "--out", folder), "demo", "not an empty folder")


# What is refused


@pytest.fixture(scope="module")
def wrong_data(phantoms, tmp_path_factory) -> tuple[Path, Path]:
    """Two folders made of phantoms once, since they are a thousand links: a wrong label, a missing channel."""
    mislabelled, incomplete = (tmp_path_factory.mktemp(name, numbered=False) for name in ("mislabelled", "incomplete"))
    for folder in (mislabelled, incomplete):
        (folder / "train").mkdir()
        for path in (phantoms / "train").iterdir():
            (folder / "train" / path.name).symlink_to(path)
    lines = (phantoms / "train.csv").read_text(encoding="utf-8").splitlines()
    (incomplete / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines[2] = lines[2].split(",")[0] + ",28"
    (mislabelled / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sorted((incomplete / "train").glob("*_blue.png"))[0].unlink()
    return mislabelled, incomplete


@pytest.mark.parametrize(
    ("arguments", "contains"),
    [
        (("simulate", "new", "--n", 0), "n must be"),
        (("simulate", "new", "--size", 8), "size must be"),
        (("simulate", "new", "--n", 50, "--min-count", 40), "min_count"),
        (("simulate", "new", "--tempering", 2), "tempering"),
        (("simulate", "full"), "not an empty folder"),
        (("train", "no_such_folder"), "train.csv"),
        (("train", "data", "--out", "full"), "not an empty folder"),
        (("train", "data", "--out", "run", "--arch", "resnt18"), "resnet18"),
        (
            ("train", "data", "--out", "run", "--threshold-rule", "best"),
            "--threshold-rule (threshold_rule) must be one of fixed",
        ),
        (("train", "data", "--out", "run", "--epochs", 0), "--epochs (epochs) must be at least 1, found 0"),
        (("train", "data", "--out", "run", "--folds", 1), "--folds (folds) must be 2 to 100, found 1"),
        (("train", "data", "--out", "run", "--accumulate", 0), "--accumulate (accumulate) must be at least 1, found 0"),
        (
            ("train", "data", "--out", "run", "--average-decay", 1),
            "--average-decay (average_decay) must be 0 to below 1, found 1",
        ),
        (
            ("train", "data", "--out", "run", "--logger", "mlflow"),
            "--logger (logger) must be one of csv, tensorboard, wandb, found 'mlflow'",
        ),
        (("train", "data", "--out", "run", "--config", "none.toml"), "none.toml: no such file"),
        (
            ("train", "data", "--out", "run", "--config", "unknown.toml"),
            "unknown.toml: there is no setting 'epoch': is 'epochs' meant?",
        ),
        (
            ("train", "data", "--out", "run", "--config", "wrong.toml"),
            "wrong.toml: --lr (lr) must be a number, found 'fast'",
        ),
        (
            ("train", "data", "--out", "run", "--config", "out.toml"),
            "out.toml: --valid-share (valid_share) must be between 0 and 1, found 2",
        ),
        (("train", "data", "--out", "run", "--group-column", "Plate"), "'Plate'"),
        (("train", "data", "--out", "run", "--hpa-groups", "antibody"), "<antibody>_<plate>_<well>_<field>"),
        (("train", "data", "--out", "run", "--hpa-groups", "cell"), "antibody, plate, well"),
        (("train", "data", "--out", "run", "--channels", "red,green,blue,white"), "white"),
        (("train", "data", "--out", "run", "--weights", "none.pth"), "none.pth"),
        (("train", "mislabelled", "--out", "run"), "row 2"),
        (("train", "incomplete", "--out", "run"), "blue"),
        (("predict", "no_such_run", "data/train"), "no_such_run"),
        (("predict", "data", "data/train"), "no file SHA256SUMS"),
        (("export", "no_such_run", "new"), "no_such_run"),
        (("verify", "data/train"), "no packed store"),
        (("duplicates", "no_such_folder"), "no_such_folder"),
        (("duplicates", "data/train", "--max-distance", 65), "max_distance"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_refusals(call_command, phantoms, wrong_data, tmp_path, monkeypatch, arguments, contains):
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(phantoms)
    Path("full").mkdir()
    Path("full/mine.txt").write_text("keep me")
    for name, text in (("unknown", "epoch = 3"), ("wrong", "lr = 'fast'"), ("out", "valid_share = 2")):
        Path(f"{name}.toml").write_text(text)
    for folder in wrong_data:
        Path(folder.name).symlink_to(folder)

    check_refusal(call_command(*arguments), contains)
    assert not Path("new").exists() and not Path("run").exists()
    assert files_of(Path("full")) == {"mine.txt": b"keep me"}
    assert not list(tmp_path.glob(".*")), "something unfinished was left behind"


def test_refusal_of_the_installed_command(run_command, tmp_path):
    """With torch and fastai freshly imported: their warnings do not stand before the one line either."""
    check_refusal(run_command("predict", tmp_path / "no_such_run", tmp_path), "no_such_run")


def test_wrong_usage_has_no_traceback(run_command):
    done = run_command("train", "--no-such-option")
    assert done.returncode == 2
    assert "no-such-option" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed(call_command, phantoms, tmp_path, monkeypatch, logger):
    """Named before anything is read; what is missing does not depend on the machine of this test."""
    import protein_atlas.callback.loggers

    monkeypatch.setattr(protein_atlas.callback.loggers, "find_spec", lambda name: None)
    done = call_command("train", phantoms, "--out", tmp_path / "run", "--logger", logger)
    assert done.returncode == 2 and f"{logger} is not installed: pip install {logger}" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
