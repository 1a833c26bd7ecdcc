"""Screening and packing on a Ray cluster of two nodes: as on one machine; a worker and a node killed; URLs."""
import importlib.util
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import PATIENCE
from test_storage import Server
from typer.testing import CliRunner

from protein_atlas.cli import app
from protein_atlas.data.images import CHANNELS
from protein_atlas.data.labels import read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.store import ImageStore
from protein_atlas.data.tables import ImageTable
from protein_atlas.predict.load import load_onnx
from protein_atlas.predict.screening import screen
from protein_atlas.system.errors import ImageError, ProcessError
from protein_atlas.system.ray import RayCluster
from protein_atlas.system.storage import open_folder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'protein_atlas[distributed]'"
)
DAMAGED = 7, 133


@pytest.fixture(scope="module")
def storage():
    """An S3 server that the environment names, as it would a real one."""
    server = Server()
    named = {
        "AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in named.items():
            patch.setenv(name, value)
        server.client().create_bucket(Bucket="screening")
        yield server
    server.stop()


@pytest.fixture(scope="module")
def cluster(storage):
    """A head without processors, and a node with two."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        small = {"object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
        cluster.add_node(**small, num_cpus=2)
        cluster.few = small | {"num_cpus": 1}
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """240 images, two of them damaged."""
    data = simulate_phantoms(tmp_path_factory.mktemp("screening") / "phantoms", n=240, size=48, min_count=1)
    ids = read_labels(data / "train.csv").ids
    for row in DAMAGED:
        (data / "train" / f"{sorted(ids)[row]}_green.png").write_bytes(b"no picture")
    return data


@pytest.fixture(scope="module")
def model(phantoms) -> Path:
    from protein_atlas.evaluate.thresholds import Thresholds
    from protein_atlas.export.onnx import export_bundle
    from protein_atlas.train.learner import rgby_learner
    from protein_atlas.vision.data import protein_datablock
    from protein_atlas.vision.models import small_resnet

    table = read_labels(phantoms / "train.csv")
    rows = [row for row, image_id in enumerate(table.ids) if image_id not in np.sort(table.ids)[list(DAMAGED)]]
    dls = protein_datablock(phantoms / "train", table.vocab).dataloaders(table.take(rows[:64]), bs=16, num_workers=0)
    learn = rgby_learner(dls, small_resnet, pretrained=False)
    learn.save_bundle(phantoms / "bundle", Thresholds(np.full(28, 0.4), table.vocab, "fixed"))
    export_bundle(phantoms / "bundle", phantoms / "model.zip")
    return phantoms / "model.zip"


def workers_of(node) -> list[psutil.Process]:
    """The processes of a node that have run a job, or do: not its agents, without which it would end."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    names = {process: " ".join(process.cmdline()) for process in raylet.children(recursive=True)}
    return [process for process, name in names.items() if name.startswith(("ray::Map", "ray::IDLE"))]


def same_as_alone(out: str | Path, alone: pd.DataFrame, damaged: tuple[int, ...]) -> None:
    """The tables hold each image once, and say what one process says of it."""
    folder = f"{out}/predictions"
    options = {} if "://" not in str(out) else {"storage_options": {}}
    found = pd.read_parquet(folder, **options).sort_values("row").reset_index(drop=True)
    rows = np.setdiff1d(np.arange(len(alone)), damaged)
    assert found["row"].tolist() == (rows + 1).tolist()
    expected = alone.iloc[rows].reset_index(drop=True)
    for column in ("Id", "Predicted", "Indices"):
        assert found[column].tolist() == expected[column].tolist()
    np.testing.assert_allclose(found.iloc[:, 4:], expected.iloc[:, 3:], atol=1e-5)
    if damaged:
        errors = pd.read_parquet(f"{out}/errors", **options).sort_values("row")
        assert errors["row"].tolist() == [row + 1 for row in damaged]
        assert errors["Id"].tolist() == [alone["Id"][row] for row in damaged]
        assert errors["error"].str.contains("_green.png: not an image file").all()


def wait_for_parts(out: Path, n: int, is_alive: Callable) -> None:
    until = time.monotonic() + PATIENCE
    while len(list(out.glob("predictions/part-*"))) < n:
        assert is_alive() and time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.full
def test_a_worker_and_a_node_are_killed(cluster, phantoms, model, tmp_path):
    """Nothing is lost, nothing is there twice, and the figures are those of one process."""
    alone = load_onnx(model).predict(phantoms / "train", on_error="skip", workers=0, tta=True).frame()
    cluster.add_node(**cluster.few)
    cluster.wait_for_nodes()
    out, done = tmp_path / "out", []
    on_cluster = RayCluster(cluster.address)
    work = threading.Thread(
        target=lambda: done.append(
            screen(model, phantoms / "train", out, on_cluster, part_images=8, tta=True, engine="onnxruntime")
        ),
        daemon=True,
    )
    work.start()

    wait_for_parts(out, 2, work.is_alive)
    victims = workers_of(cluster.list_all_nodes()[1])
    assert victims
    for process in victims:
        process.send_signal(signal.SIGKILL)
    wait_for_parts(out, 8, work.is_alive)
    cluster.remove_node(cluster.list_all_nodes()[2], allow_graceful=False)
    lost_at = len(list(out.glob("predictions/part-*")))
    work.join(PATIENCE)
    assert done and (done[0].images, done[0].errors, done[0].parts) == (240, 2, 30)
    assert lost_at < 30, "the node was lost when all was done"
    same_as_alone(out, alone, DAMAGED)


@pytest.mark.full
def test_the_command_is_killed(cluster, phantoms, model, tmp_path):
    """The same command does the rest, and leaves what was done as it is."""
    alone = load_onnx(model).predict(phantoms / "train", on_error="skip", workers=0, tta=True).frame()
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "protein_atlas", "predict", model, phantoms / "train", "--out", out, "--engine",
        "ray:onnxruntime", "--address", cluster.address, "--part-images", "8", "--tta",
    ]
    first = subprocess.Popen(list(map(str, command)))
    wait_for_parts(out, 3, lambda: first.poll() is None)
    first.kill()
    first.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("predictions/part-*.parquet")}
    assert len(before) < 30, "it was killed when all was done"
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    kept = int(re.search(r"30 parts \((\d+) of them by an earlier start\)", done.stdout)[1])
    assert 3 <= len(before) <= kept  # what jobs still wrote after the kill counts too
    for name, written in before.items():
        assert (out / "predictions" / name).stat().st_mtime_ns == written
    same_as_alone(out, alone, DAMAGED)


@pytest.fixture
def joined(cluster):
    """This process belongs to the cluster from before: its calls do not join and part, which takes seconds."""
    import ray

    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster
    ray.shutdown()


@pytest.mark.full
def test_object_storage(joined, phantoms, model, tmp_path):
    """A folder, a table and a store behind URLs give what the folder on the disk does; results and store are behind
    URLs too."""
    bucket, ids = open_folder("s3://screening"), sorted(read_labels(phantoms / "train.csv").ids)
    rows = [5, 6, 7, *range(20, 80)]  # one of them damaged
    for row in rows:
        for channel in CHANNELS:
            bucket.write(
                f"plate/{ids[row]}_{channel}.png", (phantoms / "train" / f"{ids[row]}_{channel}.png").read_bytes()
            )
    alone = load_onnx(model).predict(phantoms / "train", [ids[row] for row in rows], on_error="skip", workers=0).frame()
    options = ["--engine", "ray:onnxruntime", "--address", joined.address, "--part-images", "25"]

    def said(*arguments) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.exception
        return done.output

    output = said("predict", model, "s3://screening/plate", "--out", "s3://screening/screened", *options)
    assert (
        "63 images in 3 parts, by onnxruntime fp32" in output
        and "1 images could not be read: s3://screening/screened/errors" in output
    )
    same_as_alone("s3://screening/screened", alone, (2,))
    assert "(3 of them by an earlier start)" in said(
        "predict", model, "s3://screening/plate", "--out", "s3://screening/screened", *options
    )

    lines = [
        ",".join([ids[row], *(f"s3://screening/plate/{ids[row]}_{channel}.png" for channel in CHANNELS)])
        for row in rows[::-1]
    ]
    bucket.write("tables/images.csv", "\n".join(["Id," + ",".join(CHANNELS), *lines]).encode())
    said("predict", model, "s3://screening/tables/images.csv", "--out", tmp_path / "of_table", *options)
    same_as_alone(tmp_path / "of_table", alone[::-1].reset_index(drop=True), (len(rows) - 3,))

    packing = "pack", "s3://screening/plate", "s3://screening/store", "--engine", "ray", "--address", joined.address
    refused = CliRunner().invoke(app, [*packing])
    assert "1 of 63 images cannot be read; s3://screening/store.unreadable.csv lists them" in str(refused.exception)
    assert "62 images" in said(*packing, "--on-error", "list")
    here = tmp_path / "store"
    pack_images(phantoms / "train", here, ids=[ids[row] for row in rows], on_error="list", workers=1)
    assert list(open_folder("s3://screening/store").files()) == list(open_folder(here).files())
    far, near = ImageStore("s3://screening/store"), ImageStore(here)
    np.testing.assert_array_equal(far.read(far.ids), near.read(near.ids))
    assert "62 images are what was packed" in said("verify", "s3://screening/store", "--workers", "1")
    said("predict", model, "s3://screening/store", "--out", tmp_path / "of_store", *options)
    same_as_alone(tmp_path / "of_store", alone.drop(index=2).reset_index(drop=True), ())


def test_reading_processes_of_a_job(phantoms, model, tmp_path, cluster):
    """A job with room reads its images in several processes."""
    alone = load_onnx(model).predict(phantoms / "train", on_error="skip", workers=0).frame()
    screen(
        model, phantoms / "train", tmp_path / "out", RayCluster(cluster.address, cpus=2), part_images=240,
        engine="onnxruntime", bs=16,
    )
    same_as_alone(tmp_path / "out", alone, DAMAGED)


def test_no_machine_has_so_much(joined, monkeypatch):
    """A cluster may get the machine later, so it is waited for; this machine alone will not."""
    said = "a job holds 1 processors and 1 graphics cards, but no machine of the cluster has them: 0 and 0; 2 and 0"
    with pytest.raises(ProcessError, match=said):
        list(RayCluster(gpus=1).map(len, ["x"], "measure", "text"))
    monkeypatch.setattr(RayCluster, "_results", lambda self, function, jobs: self._check_room() or [(0, 1)])
    with pytest.warns(UserWarning, match=f"{said}; the work waits for one to join"):
        assert list(RayCluster(joined.address, gpus=1).map(len, ["x"], "measure", "text")) == [1]


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_table_is_not_unpickled(phantoms, tmp_path):
    """Where Ray is imported, pyarrow would make Python objects of a column of its pickled ones."""
    import pyarrow
    from pyarrow import parquet
    from ray.data.extensions import ArrowPythonObjectArray

    trap = ArrowPythonObjectArray.from_objects([Trap(tmp_path / "it_ran")])
    columns = {"Id": pyarrow.array(["one"]), **{channel: pyarrow.array(["x"]) for channel in CHANNELS}}
    for column in ("Id", "red"):
        parquet.write_table(pyarrow.table(columns | {column: trap}), tmp_path / "images.parquet")
        with pytest.raises(ImageError, match=f"images.parquet: column '{column}' holds .*, text is expected"):
            ImageTable(tmp_path / "images.parquet")
    assert not (tmp_path / "it_ran").exists()
    parquet.read_table(tmp_path / "images.parquet")["red"].to_pylist()
    assert (tmp_path / "it_ran").exists(), "the trap works"
