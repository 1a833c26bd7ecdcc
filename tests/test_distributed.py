"""Training in two processes on one processor: the same weights and figures as in one; the command; a process killed."""
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import PATIENCE
from sklearn.metrics import f1_score

from protein_atlas.data.phantoms import simulate_phantoms

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="accelerate is not installed: pip install 'protein_atlas[distributed]'",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Forked from one that has imported the package: each would need seconds for that.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["protein_atlas.cli", "protein_atlas.train.run"])


def launch(*arguments, launcher: tuple = ("--standalone", "--nproc-per-node", "2")) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *map(str, launcher), *map(str, arguments)]


def finished(command: list[str], rc: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE)
    assert done.returncode == rc, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def small_phantoms(tmp_path_factory) -> Path:
    return simulate_phantoms(tmp_path_factory.mktemp("distributed") / "phantoms", n=120, size=64, min_count=2)


def train_command(data: Path, run: Path, *options) -> list[str]:
    shape = ["--bs", 16, "--workers", 0, "--device", "cpu", "--precision", "fp32"]
    return [str(part) for part in ("-m", "protein_atlas", "train", data, "--out", run, *shape, *options)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def train_as_one_of_two(number: int, port: int, phantoms: Path, out: Path) -> None:
    """What a forked process does: told as torchrun tells it who it is, it trains."""
    told = {
        "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
    }
    os.environ.update({name: str(value) for name, value in told.items()})
    multiprocessing.set_start_method("fork", force=True)  # for loader processes, as in the command itself
    from train_in_processes import main

    main(phantoms, out)


def test_two_processes_end_as_one(small_phantoms, tmp_path):
    """They begin with other weights and orders; after two fits, weights, losses, metrics and what was shown are those
    of one."""
    from train_in_processes import main

    main(small_phantoms, tmp_path)
    port = free_port()
    told = ((number, port, small_phantoms, tmp_path) for number in (0, 1))
    two = [FORKED.Process(target=train_as_one_of_two, args=of) for of in told]
    for process in two:
        process.start()
    for process in two:
        process.join(PATIENCE)
        process.kill()
    assert [process.exitcode for process in two] == [0, 0]
    alone, *both = (np.load(tmp_path / name) for name in ("0of1.npz", "0of2.npz", "1of2.npz"))
    for found in both:
        assert found["numbers"].tolist() == [0, 1]
        np.testing.assert_allclose(found["values"], alone["values"], atol=1e-5)
        np.testing.assert_allclose(found["losses"], alone["losses"], atol=1e-5)
        # 33 images in batches of 16: the last is one image.
        np.testing.assert_array_equal(found["judged"], alone["judged"])
        np.testing.assert_allclose(found["scores"], alone["scores"], atol=1e-5)
        for name in alone.files:
            if name.startswith("weights."):
                np.testing.assert_allclose(found[name], alone[name], atol=5e-5, err_msg=name)
                np.testing.assert_array_equal(found[name], both[0][name])
    assert (
        len(alone["judged"]) == 33
        and alone["trained_sizes"].tolist() == [16] * 10
        and both[1]["trained_sizes"].tolist() == [8] * 10
    )
    whole = alone["trained"].reshape(10, 16, -1)
    np.testing.assert_array_equal(
        np.concatenate([found["trained"].reshape(10, 8, -1) for found in both], axis=1), whole
    )
    present = alone["targets"].any(axis=0)
    expected = f1_score(
        alone["targets"][:, present], alone["scores"][:, present] >= 0.1, average="macro", zero_division=0
    )
    assert both[1]["values"][-1][2] == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def undisturbed(small_phantoms, tmp_path_factory) -> tuple[Path, str]:
    """A run of three epochs in two processes, and what was said."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    done = finished([*accelerate, *train_command(small_phantoms, run, "--epochs", 3)])
    return run, done.stdout


@pytest.mark.full
def test_command(undisturbed, run_command, small_phantoms):
    """One process writes and speaks; the run folder is like any other."""
    run, said = undisturbed
    assert said.count("epoch 1/3") == said.count("macro F1") == 1 and "resnet18 on cpu, 2 processes" in said
    assert json.loads((run / "settings.json").read_text(encoding="utf-8"))["processes"] == 2
    assert not run.with_name("run.unfinished").exists()
    scores = pd.read_csv(run / "valid_scores.csv")
    table = pd.read_csv(run / "split.csv")
    assert sorted(scores["Id"]) == sorted(table.loc[table["side"] == "valid", "Id"])


@pytest.mark.full
def test_killed_and_resumed(undisturbed, small_phantoms, tmp_path):
    """One of two processes is killed: all end, and say how to go on; the run ends as one that was left alone."""
    run = tmp_path / "run"
    command = launch(*train_command(small_phantoms, run, "--epochs", 3))
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    checkpoint, deadline = tmp_path / "run.unfinished" / "checkpoints" / "epoch-0001", time.monotonic() + PATIENCE
    while not checkpoint.is_dir():
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        time.sleep(0.05)
    second = next(child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    said = launcher.communicate(timeout=PATIENCE)[1]
    assert launcher.returncode and "Signal 9 (SIGKILL)" in said, said
    assert not run.exists() and checkpoint.parent.is_dir()
    alone = finished([sys.executable, *train_command(small_phantoms, run, "--epochs", 3, "--resume")], rc=2)
    assert "the training ran in 2 processes, this one runs in 1: start it with as many to continue" in alone.stderr
    finished(launch(*train_command(small_phantoms, run, "--epochs", 3, "--resume")))
    for name in ("history.csv", "valid_scores.csv"):
        found, expected = pd.read_csv(run / name), pd.read_csv(undisturbed[0] / name)
        pd.testing.assert_frame_equal(found, expected, atol=1e-5)


@pytest.mark.full
def test_folds_go_on_where_they_were_stopped(small_phantoms, tmp_path):
    """Two processes, killed in the second fold: with averaged weights and gradients, the run of those left alone."""
    averaged = ("--average-weights", "--average-decay", 0.5, "--accumulate", 2)
    options = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 6, "--bs", 16, "--folds", 2, *averaged)
    whole, run = tmp_path / "whole", tmp_path / "run"
    finished(launch(*train_command(small_phantoms, whole, *options)))
    command = launch(*train_command(small_phantoms, run, *options))
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    checkpoint = tmp_path / "run.unfinished" / "folds" / "2.checkpoints" / "epoch-0001"
    deadline = time.monotonic() + 200
    while not checkpoint.is_dir():
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        time.sleep(0.02)
    for child in psutil.Process(launcher.pid).children():
        child.send_signal(signal.SIGKILL)
    launcher.communicate(timeout=PATIENCE)
    said = finished(launch(*train_command(small_phantoms, run, *options, "--resume"))).stdout
    assert "fold 1 of 2 was trained before" in said and "epochs were done before" in said
    for name in ("history.csv", "valid_scores.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(run / name), pd.read_csv(whole / name), atol=1e-5)


@pytest.mark.full
def test_two_machines(small_phantoms, tmp_path):
    """Two launchers that meet at an address, as on two hosts: one training."""
    meet = (
        "--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}",
        "--rdzv-id", "one",
    )
    command = launch(*train_command(small_phantoms, tmp_path / "run", "--epochs", 1), launcher=meet)
    hosts = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(2)
    ]
    said = [host.communicate(timeout=PATIENCE) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert sum(out.count("2 processes") for out, _ in said) == 1 and (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.full
def test_what_cannot_be(small_phantoms, tmp_path):
    done = finished(launch(*train_command(small_phantoms, tmp_path / "run"), "--bs", 3), rc=1)
    assert "--bs (bs) must be at least 4: batch norm needs two images in each of 2 processes, found 3" in done.stderr
    assert list(tmp_path.iterdir()) == []
    code = (
        "import sys; sys.modules['accelerate'] = None\n"
        "from protein_atlas.callback.distributed import join_processes\njoin_processes('cpu')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**ENVIRONMENT, "WORLD_SIZE": "2", "RANK": "0"},
    )
    assert done.returncode and "pip install 'protein_atlas[distributed]'" in done.stderr.splitlines()[-1]
