"""What is left when things go wrong in the middle: nothing under the final name, and the reason said."""
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE
from fastai.data.block import DataBlock, MultiCategoryBlock

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.hashes import hash_images
from protein_atlas.data.images import HPA_LAYOUT, save_image
from protein_atlas.data.labels import read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.sources import Images
from protein_atlas.data.splits import balanced_split
from protein_atlas.data.store_format import SHARD_IMAGES
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.predict.engines import Engine
from protein_atlas.predict.predictor import Predictor
from protein_atlas.predict.reading import ScoringModel
from protein_atlas.system.errors import ImageError, ProcessError
from protein_atlas.vision.data import RGBYBlock

SMALL = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--bs", 16)


def started_simulation(command: Path, folder: Path) -> subprocess.Popen:
    """A simulation, in a process group of its own, that has written its first images and is far from its last."""
    process = subprocess.Popen(
        [command, "simulate", folder, "--n", "20000", "--size", "64"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts background jobs deaf to Control-C, and what they start is deaf as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.parent.rglob("*.png"))) < 4:
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"no images: {process.communicate()}")
        time.sleep(0.05)
    return process


def test_killed_simulation_leaves_no_folder(command, tmp_path):
    """SIGKILL cannot be answered: what was written has another name, so nobody takes it for a whole data set."""
    process = started_simulation(command, tmp_path / "data")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "data").exists()


def test_interrupted_simulation_cleans_up(command, tmp_path):
    """Control-C, which a terminal sends to the whole process group."""
    process = started_simulation(command, tmp_path / "data")
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode not in (0, None)
    assert not list(tmp_path.iterdir()), "unfinished files were left behind"


def test_simulation_works_after_one_that_was_killed(command, run_command, tmp_path):
    process = started_simulation(command, tmp_path / "data")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    done = run_command("simulate", tmp_path / "data", "--n", 4, "--size", 32)
    assert done.returncode == 0, done.stderr
    assert len(read_labels(tmp_path / "data" / "train.csv")) == 4


@pytest.mark.parametrize("workers", [0, 2])  # with loader processes, the error comes from one of them
def test_training_on_a_damaged_image(call_command, phantoms, tmp_path, workers):
    """The image stands last on the validation side, so it is opened only after the first epoch's training."""
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    table = read_labels(data / "train.csv")
    _, valid = balanced_split(table.targets)
    damaged = data / "train" / f"{table.ids[valid[-1]]}_green.png"
    damaged.write_bytes(damaged.read_bytes()[:100])

    done = call_command("train", data, "--out", tmp_path / "run", *SMALL, "--workers", workers)
    assert done.returncode == 2, done.stdout + done.stderr
    assert str(damaged) in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "something of the run was left behind"


@pytest.mark.parametrize("workers", [0, 2])
def test_predicting_a_damaged_image(call_command, trained, phantoms, tmp_path, workers):
    images = tmp_path / "images"
    shutil.copytree(phantoms / "train", images)
    damaged = sorted(images.iterdir())[-1]
    damaged.write_bytes(b"")

    out = tmp_path / "predictions.csv"
    done = call_command("predict", trained[0], images, "--out", out, "--workers", workers)
    assert done.returncode == 2, done.stdout + done.stderr
    assert str(damaged) in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    # The images before it are done: the same command, once the file is mended, goes on there.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "predictions.csv.unfinished"]
    assert "rows are kept in" in done.stderr


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_predicting_with_a_damaged_bundle(call_command, trained, phantoms, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    path = run / "bundle" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    done = call_command("predict", run, phantoms / "train", "--out", tmp_path / "predictions.csv")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{path.parent}: {name} is not the file that was saved" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "predictions.csv").exists()


def test_output_folder_that_is_read_only(run_command, trained, phantoms, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    try:
        (locked / "probe").touch()
    except PermissionError:
        pass
    else:
        pytest.skip("this user may write into read-only folders (root)")
    for arguments in (
        ("simulate", locked / "data", "--n", 4, "--size", 32),
        ("train", phantoms, "--out", locked / "run", "--epochs", 1),
        ("predict", trained[0], phantoms / "train", "--out", locked / "predictions.csv"),
    ):
        done = run_command(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert str(locked) in done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    assert not list(locked.iterdir())


# Reading that goes wrong in another process


def dies_in_another_process(function: Callable) -> Callable:
    """The function, in this process; in a fork of it, the end of that process, as when memory runs out."""
    here = os.getpid()

    def called(*args):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    return called


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="what is changed is not seen elsewhere")
def test_reader_that_is_killed(call_command, phantoms, tmp_path, monkeypatch):
    from protein_atlas.data import folders

    monkeypatch.setattr(folders, "open_at_sizes", dies_in_another_process(folders.open_at_sizes))
    done = call_command("train", phantoms, "--out", tmp_path / "run", *SMALL, "--workers", 2)
    assert done.returncode == 2, done.stdout + done.stderr
    for part in ("read image files: a worker process was ended from outside (SIGKILL)", "--workers 0", "--shm-size"):
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir()), "something of the run was left behind"


@pytest.fixture
def few_images(tmp_path) -> Path:
    """Twelve small images."""
    for number in range(12):
        save_image(tmp_path, f"image {number:02}", np.full((4, 8, 8), number, np.uint8))
    return tmp_path


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="what is changed is not seen elsewhere")
@pytest.mark.parametrize("what", ["pack", "duplicates", "predict"])
def test_reader_that_is_killed_wherever_images_are_read(few_images, monkeypatch, what):
    from protein_atlas.data import folders

    engine = Engine(lambda images: np.full((len(images), 2), 0.5, np.float32), "torch", "fp32", "cpu", "halves")
    thresholds = Thresholds([0.5, 0.5], ("a", "b"), "fixed")
    predictor = Predictor((ScoringModel(engine, (8, 8)),), ("a", "b"), HPA_LAYOUT, thresholds)
    rows = "".join(f"{row},{','.join(['image 00_red.png'] * 4)}\n" for row in range(SHARD_IMAGES + 1))
    (twice := few_images / "images.csv").write_text("Id,red,green,blue,yellow\n" + rows)  # more than one process packs
    calls = {
        "pack": lambda: pack_images(twice, few_images / "store", [8], workers=2),
        "duplicates": lambda: hash_images(few_images, workers=2),
        "predict": lambda: predictor.predict(few_images, out=few_images / "out.csv", bs=2, workers=2),
    }
    assert calls["predict"]().scores.shape == (12, 2)
    (few_images / "out.csv").unlink()
    monkeypatch.setattr(folders, "open_at_sizes", dies_in_another_process(folders.open_at_sizes))
    with pytest.raises(ProcessError, match=r"ended from outside \(SIGKILL\)"):
        calls[what]()
    assert not (few_images / "out.csv").exists() and not (few_images / "store").exists()


class Own(Images):
    """A source of one's own, read in threads, that does not take the memory it is given."""

    def __init__(self, of: Images, in_threads: bool, leave: int):
        self.place, self.ids, self.layout, self.of = of.place, of.ids, of.layout, of
        self.in_threads, self.size, self.leave = in_threads, (8, 8) if in_threads else None, leave

    def open(self, image_id, size=None):
        return self.of.open(image_id, size)

    def fingerprint(self, image_id):
        return self.of.fingerprint(image_id)

    def each(self, ids, sizes):
        yield from list(self.of.each(ids, sizes))[: len(ids) - self.leave]

    def read(self, ids, size=None, take=np.empty):
        return self.of.read(ids, size)[: len(ids) - self.leave]


@pytest.mark.parametrize("in_threads", [True, False])
def test_a_source_that_gives_less(few_images, in_threads):
    """Each road counts what a source gives; and takes it, wherever it lies."""
    whole, less = (Own(ImageFolder(few_images), in_threads, leave) for leave in (0, 1))
    engine = Engine(lambda images: images.mean((2, 3))[:, :2] / 255, "torch", "fp32", "cpu", "means")
    thresholds = Thresholds([0.5, 0.5], ("a", "b"), "fixed")
    predictor = Predictor((ScoringModel(engine, (8, 8)),), ("a", "b"), HPA_LAYOUT, thresholds)

    def loaded(source: Images) -> list:
        block = DataBlock((RGBYBlock(source), MultiCategoryBlock(vocab=["a"])), get_y=lambda _: ["a"],
                          splitter=lambda items: ([0], list(range(len(items)))))
        loader = block.dataloaders(source.ids, bs=6, num_workers=2 if in_threads else 0, device="cpu").valid
        return np.rint(np.concatenate([x.numpy() for x, _ in loader])[:, 0, 0, 0] * 255).tolist()

    assert loaded(whole) == list(range(12))
    np.testing.assert_allclose(predictor.scores(whole)[:, 0] * 255, range(12), rtol=1e-6)
    for call in (
        lambda: loaded(less), lambda: predictor.scores(less, workers=0), lambda: hash_images(less, workers=1),
        lambda: pack_images(less, few_images / "store", [8], workers=1),
    ):  # fmt: skip
        with pytest.raises(ImageError, match="its source gives"):
            call()


@pytest.mark.parametrize("method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.full)])
def test_readers_however_they_are_started(phantoms, method):
    """The same batches, from processes that outlive the epoch and have not imported torch."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    code = f"""
import multiprocessing, sys
from pathlib import Path
if __name__ == "__main__":
    if multiprocessing.get_start_method() != {method!r}:
        multiprocessing.set_start_method({method!r}, force=True)
    others = set(multiprocessing.active_children())
    import torch
    from protein_atlas.data.labels import read_labels
    from protein_atlas.vision.data import protein_datablock
    table = read_labels({str(phantoms / "train.csv")!r})
    block = protein_datablock({str(phantoms / "train")!r}, table.vocab)
    dls = block.dataloaders(table, bs=8, num_workers=2, device="cpu")
    alone = block.dataloaders(table, bs=8, num_workers=0, device="cpu")
    for epoch in range(2):
        pairs = zip(dls.valid, alone.valid, strict=True)
        assert all(torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in pairs)
        children = [child for child in multiprocessing.active_children() if child not in others]
        assert len(children) == 2 and (epoch == 0 or set(children) == before), children
        before = set(children)
    maps = [Path(f"/proc/{{child.pid}}/maps") for child in children]
    if {method!r} != "fork" and all(path.exists() for path in maps):
        assert not any("libtorch" in path.read_text() for path in maps)
    print("the same")
"""
    if method == multiprocessing.get_start_method():  # as this process starts them: it need not be a fresh one
        exec(code, known := {"__name__": "__main__"})
        known.clear()  # the loaders, and with them their processes
        gc.collect()
        return
    script = phantoms.parent / f"read_by_{method}.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stdout + done.stderr


def small_shared_memory(kilobytes: int, *command: object) -> list[str]:
    """A command that runs where /dev/shm has this size, as in a container."""
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm"
    return ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *map(str, command)]


@pytest.mark.full
def test_shared_memory_of_a_small_container(command, phantoms, tmp_path):
    """64 kB, a fraction of one batch: images come over pipes, and none is missing."""
    if not shutil.which("unshare") or subprocess.run(small_shared_memory(64, "true"), capture_output=True).returncode:
        pytest.skip("this user may not mount a small /dev/shm")
    arguments = (
        "--out", tmp_path / "run", "--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--bs", 16,
        "--workers", 2,
    )  # fmt: skip
    trained = small_shared_memory(64, command, "train", phantoms, *arguments)
    done = subprocess.run(trained, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_fewer_images_than_a_batch(call_command, few_labels, tmp_path, without_evidence):
    """24 images for training, batches of 32: they are made smaller, and weights move."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(few_labels / "train")
    rows = (few_labels / "train.csv").read_text(encoding="utf-8").splitlines()
    (data / "train.csv").write_text("\n".join(rows[:31]) + "\n", encoding="utf-8")
    arguments = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--workers", 0)
    done = call_command("train", data, "--out", tmp_path / "run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "images for training are less than a batch of 32: batches of 2" in done.stdout
    history = (tmp_path / "run" / "history.csv").read_text(encoding="utf-8").splitlines()
    assert float(history[1].split(",")[2]) > 0, history
    assert "bs = 2" in (tmp_path / "run" / "run.toml").read_text(encoding="utf-8")
