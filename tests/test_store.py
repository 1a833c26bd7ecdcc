"""The packed store as others see it: other tools, kills, Ctrl-C, object storage, memory, and random input."""
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE, REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.packing import append_images, pack_images, verify_store
from protein_atlas.data.store import ImageStore
from protein_atlas.data.store_format import CODECS, decode_shard, encode_shard
from protein_atlas.system.errors import ImageError

TWO = Layout(channels=("dapi", "actin"))


def make_images(folder: Path, n: int, size: int = 24, first: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """n images of random pixels in a folder, and what they are by id."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = {f"im{i:04}": rng.integers(0, 256, (4, size, size), dtype=np.uint8) for i in range(first, first + n)}
    for image_id, image in images.items():
        save_image(folder, image_id, image)
    return images


# Other tools


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_zarr_and_tensorstore_read_it(tmp_path, codec, dtype):
    zarr, tensorstore = pytest.importorskip("zarr"), pytest.importorskip("tensorstore")
    bits = np.dtype(dtype).itemsize * 8
    layout, rng = Layout(channels=("dapi", "actin"), bits=bits), np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max, (70, 2, 12, 20), dtype=dtype)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        for channel, plane in zip(layout.channels, image):
            Image.fromarray(plane).save(tmp_path / "images" / f"im{number:02}_{channel}.png")
    pack_images(tmp_path / "images", tmp_path / "store", layout=layout, codec=codec, workers=1)

    group = zarr.open_group(tmp_path / "store", mode="r")
    array = group["12x20"]
    assert array.shape == (70, 2, 12, 20) and array.dtype == dtype and array.chunks == (1, 2, 12, 20)
    assert array.shards == (64, 2, 12, 20) and array.metadata.dimension_names == ("image", "channel", "y", "x")
    np.testing.assert_array_equal(array[:], images)
    assert group.attrs["protein_atlas"]["channels"] == ["dapi", "actin"]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "store" / "12x20")}}
    np.testing.assert_array_equal(tensorstore.open(spec, read=True).result()[5:69].read().result(), images[5:69])


def test_images_that_could_not_be_read_are_fill_values_to_others(tmp_path):
    zarr = pytest.importorskip("zarr")
    images = make_images(tmp_path / "images", 3)
    (tmp_path / "images" / "im0001_red.png").write_bytes(b"no image")
    pack_images(tmp_path / "images", tmp_path / "store", 24, on_error="list", workers=1)
    array = zarr.open_group(tmp_path / "store", mode="r")["24"]
    np.testing.assert_array_equal(array[0], images["im0000"])
    assert not array[1].any()


# Interrupted


PACK = (
    "from protein_atlas.data.packing import pack_images; import sys; "
    "pack_images(sys.argv[1], sys.argv[2], [24, 12], workers=2)"
)


def start_packing(folder: Path, store: Path) -> subprocess.Popen:
    # A shell makes background jobs, and all they start, ignore Ctrl-C: as users run it, it is not ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + PACK
    command = [sys.executable, "-c", code, folder, store]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_packing_goes_on(tmp_path, how):
    images = make_images(tmp_path / "images", 600)
    store, part = tmp_path / "store", tmp_path / ".store.part"
    process = start_packing(tmp_path / "images", store)
    deadline = time.monotonic() + PATIENCE
    while len(list(part.glob("journal/[0-9]*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.stdout.read()
    os.killpg(process.pid, how) if how == signal.SIGKILL else os.kill(process.pid, how)
    process.wait(timeout=PATIENCE)
    assert process.returncode != 0 and not store.exists()
    done = len(list(part.glob("journal/[0-9]*.json")))

    report = pack_images(tmp_path / "images", store, [24, 12], workers=2)
    assert done <= report.kept < 10
    assert not part.exists() and not list(store.rglob("*part*"))
    np.testing.assert_array_equal(ImageStore(store, 24).read_rows(range(600)), np.stack(list(images.values())))


def test_a_file_changed_meanwhile_is_packed_again(tmp_path):
    make_images(tmp_path / "images", 70)
    (tmp_path / "images" / "im0069_red.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match="1 of 70 images cannot be read"):
        pack_images(tmp_path / "images", tmp_path / "store", 24, workers=1)
    new = make_images(tmp_path / "images", 1, first=2, seed=5) | make_images(tmp_path / "images", 1, first=69, seed=6)
    report = pack_images(tmp_path / "images", tmp_path / "store", 24, workers=1)
    said = "2 shards of an interrupted call were made anew"
    assert (report.kept, report.again) == (0, 2) and said in report.describe()
    store = ImageStore(tmp_path / "store")
    for image_id, image in new.items():
        np.testing.assert_array_equal(store.open(image_id), image)


def test_append_that_was_killed_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    """Whatever the moment of the end: before the last rename the old images are read, after it all of them."""
    images = make_images(tmp_path / "images", 70)
    pack_images(tmp_path / "images", tmp_path / "store", 24, workers=1)
    images |= make_images(tmp_path / "images", 70, first=70, seed=1)
    rename, renamed = os.replace, []

    def fail_at(moment):
        def replace(source, target):
            if str(tmp_path / "store") + os.sep in str(target):
                renamed.append(target)
                if len(renamed) == moment:
                    raise KeyboardInterrupt
            rename(source, target)

        return replace

    for moment in range(1, 6):  # two shards, images.csv, the array's zarr.json, the group's
        renamed.clear()
        monkeypatch.setattr(os, "replace", fail_at(moment))
        with pytest.raises(KeyboardInterrupt):
            append_images(tmp_path / "images", tmp_path / "store", workers=1)
        monkeypatch.setattr(os, "replace", rename)
        store = ImageStore(tmp_path / "store")
        assert len(store) == 70 and verify_store(tmp_path / "store", workers=1) == 70
    assert append_images(tmp_path / "images", tmp_path / "store", workers=1).images == 140
    np.testing.assert_array_equal(ImageStore(tmp_path / "store").read_rows(range(140)), np.stack(list(images.values())))


@pytest.mark.parametrize("there", [True, False], ids=["an empty folder", "no folder yet"])
def test_packed_and_appended_behind_a_link(tmp_path, there):
    """The link stays one: what it leads to becomes the store, also after a call that was cut short."""
    images = make_images(tmp_path / "images", 70)
    if there:
        (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    whole = (tmp_path / "images" / "im0066_red.png").read_bytes()
    (tmp_path / "images" / "im0066_red.png").write_bytes(whole[:40])
    with pytest.raises(ImageError, match="1 of 68 images cannot be read"):
        pack_images(tmp_path / "images", tmp_path / "link", ids=list(images)[:68], workers=1)
    (tmp_path / "images" / "im0066_red.png").write_bytes(whole)
    report = pack_images(tmp_path / "images", tmp_path / "link", ids=list(images)[:68], workers=1)
    assert (report.images, report.kept, report.again) == (68, 1, 1)
    append_images(tmp_path / "images", tmp_path / "link", workers=1)
    assert (tmp_path / "link").is_symlink() and verify_store(tmp_path / "elsewhere", workers=1) == 70
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# Random input


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.none() | st.binary(min_size=1, max_size=50), max_size=64))
def test_shards_give_back_their_chunks(chunks):
    assert decode_shard(encode_shard(chunks)) == chunks + [None] * (64 - len(chunks))


@settings(max_examples=60, deadline=None, report_multiple_bugs=False)
@given(data=st.data())
def test_damaged_stores_are_refused_or_right(tmp_path_factory, data):
    """Any byte of a store changed, or the end cut off: the pixels that were packed, or a `ImageError`; nothing else."""
    folder = tmp_path_factory.mktemp("damaged")
    images = make_images(folder / "images", 3, size=6)
    pack_images(folder / "images", folder / "store", 6, workers=1)
    file = data.draw(st.sampled_from(sorted(path for path in (folder / "store").rglob("*") if path.is_file())))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    file.write_bytes(content)
    try:
        store = ImageStore(folder / "store")
        found = {image_id: store.open(image_id) for image_id in store.ids}
    except ImageError:
        return
    assert list(found) == list(images)
    for image_id, image in found.items():
        np.testing.assert_array_equal(image, images[image_id])
    assert store.layout == Layout() and store.white == 255
    verify_store(folder / "store", workers=1)


def edit_table(store: Path, change) -> None:
    """Change the rows of a store's table, without its head."""
    head, *rows = (store / "images.csv").read_text().splitlines()
    (store / "images.csv").write_text("\n".join([head, *change(rows)]) + "\n")


@pytest.mark.parametrize("change", [
    lambda rows: [rows[0].replace("im0000", "im0001"), *rows[1:]],  # an id twice
    lambda rows: [rows[1].split(",")[0] + "," + rows[0].split(",", 1)[1],
                  rows[0].split(",")[0] + "," + rows[1].split(",", 1)[1], rows[2]],  # two ids swapped
    lambda rows: [rows[1], rows[0], rows[2]],
    lambda rows: [rows[0], rows[1].replace(",,", ",cannot be read,"), rows[2]],
    lambda rows: rows[:2],
], ids=["an id twice", "ids swapped", "rows swapped", "an image said to be unreadable", "a row lost"])  # fmt: skip
def test_a_changed_table_is_found(tmp_path, change):
    make_images(tmp_path / "images", 3)
    pack_images(tmp_path / "images", tmp_path / "store", workers=1)
    edit_table(tmp_path / "store", change)
    for use in (ImageStore, verify_store, lambda store: append_images(tmp_path / "images", store)):
        with pytest.raises(ImageError, match="images.csv: not the table that was packed"):
            use(tmp_path / "store")


def test_what_the_description_says_is_sealed(tmp_path):
    """Other channels, white, statistics, layout: found. The same, laid out otherwise, is no change."""
    make_images(tmp_path / "images", 3)
    pack_images(tmp_path / "images", tmp_path / "store", workers=1)
    group = tmp_path / "store" / "zarr.json"
    written = json.loads(group.read_text())

    def changed(**of_description) -> None:
        about = {**written["attributes"]["protein_atlas"], **of_description}
        group.write_text(json.dumps({**written, "attributes": {"protein_atlas": about}}))

    made = written["attributes"]["protein_atlas"]["made"]
    for change in (
        {"channels": ["green", "red", "blue", "yellow"]}, {"white": 250}, {"images": 2}, {"version": 1},
        {"statistics": {"24": {"mean": [0.0] * 4, "std": [1.0] * 4}}}, {"made": [{**made[0], "codec": "raw"}]},
        {"table": {"bytes": 3, "sha256": "0" * 64}},
    ):  # fmt: skip
        changed(**change)
        with pytest.raises(ImageError, match="zarr.json: not what was written when the store was packed"):
            ImageStore(tmp_path / "store")
    changed()
    assert verify_store(tmp_path / "store", workers=1) == 3


# Memory and clean ends


LOOP = """
import gc, os, sys, threading
import pandas as pd, psutil, torch
from fastai.data.transforms import IndexSplitter
from protein_atlas.data.store import ImageStore
from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock

torch.set_num_threads(1)
kind, source, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
images = ImageStore(source) if kind == "store" else source
table = pd.DataFrame({"Id": [f"im{i:04}" for i in range(n)], "Target": ["Cytosol", "Golgi apparatus"] * (n // 2)})
block = protein_datablock(images, ("Cytosol", "Golgi apparatus"), splitter=IndexSplitter(range(n - 10, n)))
dls = oversampled_dataloaders(block, table, bs=16, num_workers=2)
"""


def run_loop(code: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-c", LOOP + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=REPOSITORY, **options)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["store", "files"])
def test_memory_does_not_grow(tmp_path, kind):
    """Over 20 epochs, resident memory stays; were every epoch's images kept, as bytes, it would be 74 MB more."""
    pytest.importorskip("psutil")
    make_images(tmp_path / "images", 200, size=76)
    if kind == "store":
        pack_images(tmp_path / "images", tmp_path / "store", 76, workers=2)
    code = """
def resident():
    gc.collect()
    me = psutil.Process()
    return sum(p.memory_info().rss for p in [me, *me.children(recursive=True)]) / 2**20
sizes = []
for epoch in range(20):
    for batch in dls.train: pass
    sizes.append(resident())
grown = sorted(sizes[-5:])[2] - sorted(sizes[3:8])[2]
living = len(psutil.Process().children())
del dls, block, batch
gc.collect()
print(grown, living, threading.active_count(), len(psutil.Process().children()))
"""
    done = run_loop(code, kind, tmp_path / ("store" if kind == "store" else "images"), 200)
    assert done.returncode == 0, done.stderr
    grown, living, threads, children = map(float, done.stdout.split())
    assert grown < 25, f"{grown} MiB more after 12 epochs"
    assert living == (2 if kind == "files" else 0), "processes that read files live on between epochs"
    assert children == 0 and threads <= 2  # tqdm keeps a thread that watches its bars


@pytest.mark.parametrize("kind", ["store", "files"])
def test_interrupted_loop_ends_at_once(tmp_path, kind):
    make_images(tmp_path / "images", 200)
    if kind == "store":
        pack_images(tmp_path / "images", tmp_path / "store", 24, workers=2)
    code = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    for epoch in range(10000):
        for number, batch in enumerate(dls.train):
            if epoch == 1 and number == 2: os.killpg(0, signal.SIGINT)
except KeyboardInterrupt:
    del dls, block, batch
    gc.collect()
    while psutil.Process().children() or any(t.name.startswith("read images") for t in threading.enumerate()):
        time.sleep(0.05)  # what lives on keeps this process until it counts as hanging
    print("interrupted", epoch)
"""
    done = run_loop(code, kind, tmp_path / ("store" if kind == "store" else "images"), 200, start_new_session=True)
    assert done.stdout.strip() == "interrupted 1", done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0


def test_store_in_object_storage_trains_as_a_local_one(tmp_path):
    """The same batches, from a local server that speaks S3, by several threads, with a bounded cache on disk."""
    server_module, s3fs = pytest.importorskip("moto.server"), pytest.importorskip("s3fs")
    from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock

    make_images(tmp_path / "images", 100)
    pack_images(tmp_path / "images", tmp_path / "store", [24, 12], workers=1)
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"key": "x", "secret": "y", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
        files = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        files.mkdir("atlas")
        files.put(str(tmp_path / "store"), "atlas/store", recursive=True)
        remote = ImageStore(
            "s3://atlas/store", 24, storage_options=options, cache=tmp_path / "cache", cache_bytes=2**20
        )
        local = ImageStore(tmp_path / "store", 24)
        assert remote.ids == local.ids
        table = pd.DataFrame({"Id": local.ids, "Target": ["Cytosol", "Golgi apparatus"] * 50})
        for source in (local, remote):
            block = protein_datablock(source, ("Cytosol", "Golgi apparatus"), batch_tfms=[])
            dls = oversampled_dataloaders(block, table, bs=16, num_workers=3)
            batches = [images.numpy() for images, _ in dls.valid]
            assert sum(len(images) for images, _ in dls.train) == 80
            if source is local:
                expected = batches
        for found, wanted in zip(batches, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        with pytest.raises(ImageError, match="no image 'gone'"):
            remote.open("gone")
    finally:
        server.stop()
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert 0 < size <= 2**20
    gc.collect()


def test_table_rows_follow_the_array(tmp_path):
    """images.csv alone says which row is which image: what a user of zarr-python needs."""
    images = make_images(tmp_path / "images", 5)
    order = ["im0003", "im0000", "im0004"]
    pack_images(tmp_path / "images", tmp_path / "store", [24], ids=order, workers=1)
    table = pd.read_csv(tmp_path / "store" / "images.csv", dtype=str, keep_default_na=False)
    assert table["Id"].tolist() == order and list(table.columns) == ["Id", "error", "bytes", "stamp", "crc32_24"]
    about = json.loads((tmp_path / "store" / "zarr.json").read_text())["attributes"]["protein_atlas"]
    assert about["images"] == 3 and about["sizes"] == [[24, 24]] and about["made"][0]["images"] == 3
    np.testing.assert_array_equal(ImageStore(tmp_path / "store").read_rows([2]), images["im0004"][None])


@pytest.mark.parametrize("name", ["a b", "ünïcode_细胞", 'quote"d,comma'])
def test_odd_ids(tmp_path, name):
    image = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
    save_image(tmp_path, name, image)
    pack_images(tmp_path, tmp_path / "store", workers=1)
    store = ImageStore(tmp_path / "store")
    assert store.ids == [name]
    np.testing.assert_array_equal(store.open(name), image)
