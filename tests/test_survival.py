"""Training that is killed, interrupted, or out of disk: what is kept, what is said; it ends as if undisturbed."""
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torchvision
from conftest import PATIENCE

# Processes that train are forked from one that has imported the package: each would need seconds for that.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["protein_atlas.cli", "protein_atlas.train.run"])

SCRATCH = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 3, "--bs", 16)


# Moments: what a training process does to itself, at a point that no clock would hit


def kill() -> None:
    os.killpg(0, signal.SIGKILL)


def full_disk() -> None:
    """From here on no file of more than 100 kB can be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def in_epoch(number: int, what: Callable[[], None]) -> tuple:
    """In the third batch of this epoch, counted over all fits."""
    from protein_atlas.callback.checkpoint import StopOnDivergence

    def after_loss(self):
        if self.training and self.iter == 2 and len(self.checkpoint.history) == number - 1:
            what()

    return StopOnDivergence, "after_loss", after_loss


def before(
    module: str, name: str, what: Callable[[], None], applies: Callable[..., bool] = lambda *_, **__: True
) -> tuple:
    """Before a function that the module calls, where its arguments are such."""
    owner = sys.modules[f"protein_atlas.{module}"]
    own = getattr(owner, name)

    def first(*args, **kwargs):
        if applies(*args, **kwargs):
            what()
        return own(*args, **kwargs)

    return owner, name, first


class Removing:
    """shutil, for a module: killed before it removes a folder of this name."""

    def __init__(self, name: str):
        self.name = name

    def rmtree(self, path: Path, **options) -> None:
        if Path(path).name == self.name:
            kill()
        shutil.rmtree(path, **options)


def writes(part: str) -> Callable[..., bool]:
    return lambda path, *_: part in str(path)


MOMENTS = {
    None: lambda: None, "before the first checkpoint": lambda: in_epoch(1, kill),
    "within the first checkpoint": lambda: before("callback.checkpoint", "_write", kill, writes("state.json")),
    "in the second epoch": lambda: in_epoch(2, kill),
    "within the second checkpoint": lambda: before(
        "callback.checkpoint", "_write", kill, writes("optimizer.safetensors")
    ),
    "second checkpoint written, first not removed": lambda: (
        sys.modules["protein_atlas.callback.checkpoint"], "shutil", Removing("epoch-0001"),
    ),
    "full in the third epoch": lambda: in_epoch(3, full_disk),
    "in the third epoch": lambda: in_epoch(3, kill),
    "last files half written": lambda: before("train.run", "history_figure", kill),
    "whole, but not cleaned up": lambda: (
        sys.modules["protein_atlas.train.resume"], "shutil", Removing("run.unfinished"),
    ),
}


def train_in_process(arguments: tuple, moment: str | None, output: Path) -> None:
    """What a forked process does: the command, in a process group of its own, with one thing changed."""
    os.setsid()
    # A shell starts background jobs deaf to Control-C, and what they start is deaf as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(output / stream, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    multiprocessing.set_start_method("fork", force=True)  # for loader processes, as in the command itself
    import protein_atlas.train.run  # noqa: F401  (what is changed is looked up in it)
    from protein_atlas.cli import main

    sys.argv = ["protein_atlas", "train", *map(str, arguments)]
    change = MOMENTS[moment]()
    if change is None:
        main()
    else:
        with patch.object(*change):
            main()


class Training:
    """A training process, its exit code, and what it said."""

    def __init__(self, output: Path, *arguments: object, moment: str | None = None):
        output.mkdir(exist_ok=True)
        self.output = output
        self.process = FORKED.Process(target=train_in_process, args=(arguments, moment, output))
        self.process.start()

    def wait(self) -> "Training":
        self.process.join(PATIENCE)
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"still running: {self.out}{self.err}")
        return self

    def wait_for(self, path: Path) -> None:
        wait_for(path, self.process.is_alive)

    @property
    def code(self) -> int:
        return self.process.exitcode

    @property
    def out(self) -> str:
        return (self.output / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return (self.output / "err").read_text(encoding="utf-8")


def wait_for(path: Path, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert alive() and time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def check_same_run(run: Path, undisturbed: Path) -> None:
    """Byte for byte, but for the seconds, and the settings, which name the loader processes."""
    names = sorted(str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == names
    for name in names:
        if Path(name).suffix in (".csv", ".safetensors", ".md") or name == "thresholds.json":
            assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    metrics = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (run, undisturbed)]
    assert all(content.pop("training_seconds") > 0 for content in metrics)
    assert metrics[0] == metrics[1]


def check_one_line(err: str, *contains: str) -> None:
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("protein_atlas: "), err
    for part in contains:
        assert part in lines[0], lines[0]


@pytest.fixture(scope="module")
def undisturbed(few_labels, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = Training(folder / "said", few_labels, "--out", folder / "run", *SCRATCH, "--workers", 0).wait()
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture(scope="module")
def stopped(few_labels, tmp_path_factory) -> Path:
    """A folder with `run.unfinished`, killed in the third epoch; to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    killed = Training(
        folder / "said", few_labels, "--out", folder / "run", *SCRATCH, "--workers", 0, moment="in the third epoch"
    ).wait()
    assert killed.code == -signal.SIGKILL, killed.err
    return folder


# kill -9


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_every_moment(few_labels, undisturbed, tmp_path, workers):
    """One run, killed nine times and continued as often: it is the undisturbed one."""
    run, arguments = tmp_path / "run", (few_labels, "--out", tmp_path / "run", *SCRATCH, "--workers", workers)
    resume = ()
    for moment in list(MOMENTS)[1:]:
        stopped = Training(tmp_path / "said", *arguments, *resume, moment=moment).wait()
        resume = ("--resume",)
        if "full" in moment:
            assert stopped.code == 2, stopped.err
            check_one_line(
                stopped.err, "File too large", str(tmp_path / "run.unfinished"), "model.safetensors",
                f"2 of 3 epochs are kept in {tmp_path / 'run.unfinished'}: continue with --resume",
            )
        else:
            assert stopped.code == -signal.SIGKILL, (moment, stopped.code, stopped.out, stopped.err)
        assert run.exists() == (moment == "whole, but not cleaned up"), moment
    ended = Training(tmp_path / "said", *arguments, "--resume").wait()
    assert ended.code == 0, ended.err
    check_same_run(run, undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "said"]


@pytest.mark.full
def test_killed_with_pretrained_weights(few_labels, tmp_path):
    """Two fits: killed in the frozen one, as the second begins, and within the second."""
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "weights.pth")
    arguments = (
        few_labels, "--arch", "squeezenet1_1", "--weights", tmp_path / "weights.pth", "--epochs", 2, "--bs", 16,
        "--workers", 0,
    )
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    done = Training(tmp_path / "said", *arguments, "--out", undisturbed).wait()
    assert done.code == 0, done.err
    resume = ()
    for moment in ("before the first checkpoint", "in the second epoch", "in the third epoch"):
        killed = Training(tmp_path / "said", *arguments, "--out", run, *resume, moment=moment).wait()
        assert killed.code == -signal.SIGKILL, (moment, killed.out, killed.err)
        resume = ("--resume",)
    ended = Training(tmp_path / "said", *arguments, "--out", run, "--resume").wait()
    assert ended.code == 0, ended.err
    check_same_run(run, undisturbed)
    assert [row.split(",")[1] for row in (run / "history.csv").read_text().splitlines()] == ["phase", "1", "2", "2"]


@pytest.mark.full
def test_kill_of_the_installed_command(command, run_command, few_labels, undisturbed, tmp_path):
    """From outside, and only the command itself: its loader processes, which are left alone, hold nothing up."""
    arguments = ("train", few_labels, "--out", tmp_path / "run", *SCRATCH, "--workers", 2)
    process = subprocess.Popen([command, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "run.unfinished" / "checkpoints" / "epoch-0001", lambda: process.poll() is None)
    process.kill()
    process.wait()
    assert not (tmp_path / "run").exists()
    ended = run_command(*arguments, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert "epochs were done before" in ended.stdout
    check_same_run(tmp_path / "run", undisturbed)


# Control-C


def test_interrupt(few_labels, tmp_path):
    """As a terminal sends it, to the command and its loader processes."""
    unfinished = tmp_path / "run.unfinished"
    training = Training(
        tmp_path / "said", few_labels, "--out", tmp_path / "run", *SCRATCH, "--epochs", 500, "--workers", 2
    )
    training.wait_for(unfinished / "checkpoints" / "epoch-0002")
    for _ in range(5):
        # Python ignores an interrupt that comes while it forks, and says so; with epochs this short it forks all the
        # time.
        os.killpg(training.process.pid, signal.SIGINT)
        training.process.join(10)
        if not training.process.is_alive():
            break
    assert training.wait().code == 130, training.err
    # Python may add what torch's loader does when it is let go half made.
    said = [line for line in training.err.splitlines() if line.startswith("protein_atlas: ")]
    assert len(said) == 1, training.err
    check_one_line(
        said[0], "protein_atlas: interrupted; ", f" of 500 epochs are kept in {unfinished}: continue with --resume"
    )
    assert not (tmp_path / "run").exists() and unfinished.is_dir()


def test_interrupt_before_the_first_checkpoint(call_command, few_labels, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    import protein_atlas.train.sides  # noqa: F401

    monkeypatch.setattr(*before("train.sides", "balanced_split", interrupt))
    done = call_command("train", few_labels, "--out", tmp_path / "run")
    assert done.returncode == 130
    assert done.stderr == "protein_atlas: interrupted\n"
    assert not list(tmp_path.iterdir())


# A loss that is no number


def test_loss_that_is_no_number(call_command, few_labels, tmp_path):
    done = call_command("train", few_labels, "--out", tmp_path / "run", *SCRATCH, "--lr", 1e30, "--workers", 0)
    assert done.returncode == 2
    check_one_line(done.stderr, "epoch 1 of 3, batch ", "the training loss is ", "smaller one (--lr)")
    assert not list(tmp_path.iterdir()), "there is no epoch to keep"


def test_loss_that_is_no_number_later(call_command, few_labels, tmp_path, monkeypatch):
    from protein_atlas.vision.losses import MultiLabelFocalLoss

    forward = MultiLabelFocalLoss.forward

    def diverging(self, logits, targets):
        trained = (tmp_path / "run.unfinished" / "checkpoints").is_dir()
        return forward(self, logits, targets) * (float("nan") if trained else 1)

    monkeypatch.setattr(MultiLabelFocalLoss, "forward", diverging)
    done = call_command("train", few_labels, "--out", tmp_path / "run", *SCRATCH, "--workers", 0)
    assert done.returncode == 2
    check_one_line(
        done.stderr, "epoch 2 of 3, batch 1 of ", "loss is nan",
        f"1 of 3 epochs are kept in {tmp_path / 'run.unfinished'}",
    )
    assert [path.name for path in (tmp_path / "run.unfinished" / "checkpoints").iterdir()] == ["epoch-0001"]


# What is refused


def refusal(call_command, few_labels: Path, folder: Path, *arguments: object, contains: str) -> None:
    done = call_command("train", few_labels, "--out", folder / "run", *SCRATCH, "--workers", 0, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    check_one_line(done.stderr, contains)
    assert not (folder / "run").exists()


@pytest.fixture
def unfinished(stopped, tmp_path) -> Path:
    shutil.copytree(stopped / "run.unfinished", tmp_path / "run.unfinished")
    return tmp_path / "run.unfinished"


def state_of(folder: Path) -> dict[str, bytes]:
    """What a run that was stopped needs to go on."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_what_is_kept(unfinished):
    names = {name.split("/")[0] for name in state_of(unfinished)}
    assert names == {"settings.json", "depends.json", "checkpoints"}
    state = json.loads((unfinished / "checkpoints" / "epoch-0002" / "state.json").read_text(encoding="utf-8"))
    kept = {f"epoch-{epoch:04}" for epoch in (2, state["best_epoch"])}
    assert {path.name for path in (unfinished / "checkpoints").iterdir()} == kept


@pytest.mark.parametrize(
    ("arguments", "contains"),
    [
        ((), "2 of 3 epochs are kept in {}: continue with --resume, or remove it"),
        (("--resume", "--epochs", 4), "started with epochs 3, now it is 4"),
        (("--resume", "--seed", 1), "started with seed 0, now it is 1"),
        (
            ("--resume", "--channels", "red,green"),
            "started with channels ['red', 'green', 'blue', 'yellow'], now it is",
        ),
    ],
    ids=str,
)
def test_continued_otherwise(call_command, few_labels, unfinished, arguments, contains):
    before = state_of(unfinished)
    refusal(call_command, few_labels, unfinished.parent, *arguments, contains=contains.format(unfinished))
    assert state_of(unfinished) == before


def test_nothing_to_continue(call_command, few_labels, tmp_path):
    refusal(
        call_command, few_labels, tmp_path, "--resume",
        contains="run.unfinished: there is no such folder, so nothing to continue",
    )
    assert not list(tmp_path.iterdir())


def test_other_labels(call_command, few_labels, unfinished, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(few_labels / "train")
    first, second, *rest = (few_labels / "train.csv").read_text(encoding="utf-8").splitlines()
    (data / "train.csv").write_text("\n".join([first, *rest, second]) + "\n", encoding="utf-8")
    refusal(call_command, data, tmp_path, "--resume", contains="the labels in train.csv are not those")
    assert unfinished.is_dir()


def test_images_overwritten(call_command, few_labels, unfinished, tmp_path):
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    shutil.copy(few_labels / "train.csv", data)
    for path in (few_labels / "train").iterdir():
        if path.name.endswith("_green.png"):
            shutil.copy2(path, data / "train")  # another file of the same content, size, and time
        else:
            (data / "train" / path.name).symlink_to(path)
    before = state_of(unfinished)
    n = len(list((data / "train").glob("*_green.png")))
    refusal(call_command, data, tmp_path, "--resume", contains=f"{n} of {n} images, the first of them in row 1 of")
    assert state_of(unfinished) == before


@pytest.mark.parametrize("name", ["settings.json", "depends.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"{}"])
def test_notes_that_are_damaged(call_command, few_labels, unfinished, name, content):
    """What a run depends on is not known any more: it does not go on."""
    (unfinished / name).unlink() if content is None else (unfinished / name).write_bytes(content)
    refusal(call_command, few_labels, unfinished.parent, "--resume", contains=str(unfinished))
    assert (unfinished / "checkpoints" / "epoch-0002").is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_checkpoint(call_command, few_labels, unfinished, name):
    path = unfinished / "checkpoints" / "epoch-0002" / name
    path.write_bytes(path.read_bytes()[:-50])
    refusal(call_command, few_labels, unfinished.parent, "--resume", contains=str(path))
    path.unlink()
    refusal(call_command, few_labels, unfinished.parent, "--resume", contains=str(path))


def test_checkpoint_of_another_network(call_command, few_labels, unfinished):
    settings = json.loads((unfinished / "settings.json").read_text(encoding="utf-8"))
    (unfinished / "settings.json").write_text(json.dumps(settings | {"arch": "squeezenet1_1"}), encoding="utf-8")
    refusal(call_command, few_labels, unfinished.parent, "--resume", "--arch", "squeezenet1_1",
            contains="model.safetensors: these are not the weights of this network")  # fmt: skip


def test_two_runs_at_once(call_command, few_labels, unfinished, monkeypatch):
    import protein_atlas.train.resume

    training = Training(
        unfinished.parent / "said", few_labels, "--out", unfinished.parent / "other", *SCRATCH, "--epochs", 500
    )
    try:
        other = unfinished.parent / "other.unfinished"
        training.wait_for(other / "checkpoints" / "epoch-0001")
        monkeypatch.setattr(protein_atlas.train.resume, "_WAIT", 0.1)
        for resume in ((), ("--resume",)):
            done = call_command(
                "train", few_labels, "--out", unfinished.parent / "other", *SCRATCH, "--epochs", 500, *resume
            )
            check_one_line(done.stderr, f"{other}: in use: another process is writing it")
    finally:
        os.killpg(training.process.pid, signal.SIGKILL)
        training.wait()
