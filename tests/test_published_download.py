"""Weights that are fetched from a host on this machine: broken off, wrong, changed, damaged, not accepted, by two."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PATIENCE

from protein_atlas.data.images import save_image
from protein_atlas.predict.reading import NoticeWarning
from protein_atlas.system import download
from protein_atlas.system.errors import NetworkError
from protein_atlas.system.files import sole_writer
from protein_atlas.testing import FileServer
from protein_atlas.vision.weights import read_weights
from protein_atlas.zoo.cache import kept_path, published_folder, sha256_of
from protein_atlas.zoo.fetch import weights_of
from protein_atlas.zoo.miniature import miniature
from protein_atlas.zoo.published import WeightsFile, registered

HOST = "miniature.invalid"
FETCH = """
import sys, warnings
from protein_atlas.zoo.fetch import weights_of
from protein_atlas.zoo.miniature import miniature
warnings.simplefilter("ignore")
with miniature(sys.argv[1]) as model:
    print(*weights_of(model), flush=True)
"""


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small model, the server that has its files, and its files; the cache is empty."""
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setenv("PROTEIN_ATLAS_CACHE", str(tmp_path / "cache"))
    with miniature(folder) as model:
        files = [folder / file.name for file in model.files]
        with FileServer({f"{HOST}/{path.name}": path.read_bytes() for path in files}).listening() as server:
            monkeypatch.setenv("PROTEIN_ATLAS_MIRROR", server.url)
            yield model, server, files


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two cells of 64 pixels in four stains."""
    folder, rng = tmp_path_factory.mktemp("cells"), np.random.default_rng(0)
    for name in ("a", "b"):
        save_image(folder, name, rng.integers(0, 256, (4, 64, 64), dtype=np.uint8))
    return folder


def predict(cells: Path, out: Path, *others: object, name: str = "miniature") -> tuple:
    return ("predict", name, cells, "--pixel-size", 0.0800885, "--device", "cpu", "--workers", 0, "--out", out, *others)


def start(folder: Path) -> subprocess.Popen:
    """A process that fetches the weights of the same small model."""
    folder.mkdir()
    return subprocess.Popen([sys.executable, "-c", FETCH, folder], stdout=subprocess.PIPE, text=True)


def asked_for(server: FileServer, name: str) -> list[str | None]:
    """Of each question for a file, from where on."""
    return [headers.get("Range") for path, headers in server.asked if path.endswith(f"/{name}")]


def test_predict_fetches_weights_once(published, cells, call_command, tmp_path):
    """By its name alone: the scores that its files give, the licence said once, and nothing asked for again."""
    model, server, files = published
    given = [part for path in files for part in ("--weights", path)]
    done = call_command(*predict(cells, tmp_path / "given.csv", *given))
    assert done.returncode == 0 and done.stderr.count("miniature: licence MIT, see https://") == 1, done.stderr
    assert not server.asked
    done = call_command(*predict(cells, tmp_path / "fetched.csv"))
    assert done.returncode == 0 and "miniature: licence" not in done.stderr, done.stderr
    assert len(server.asked) == 3 and all("protein_atlas/" in headers["User-Agent"] for _, headers in server.asked)
    shown = call_command("models", "show", "miniature").stdout
    assert f"kept here: 3 of 3 files, 1.9 MB, in {published_folder(model)}" in re.sub(r"\d+\.\d MB", "1.9 MB", shown)
    assert not list(published_folder(model).glob("*.pth")), "what was unpickled is not kept"
    server.files.clear()
    done = call_command(*predict(cells, tmp_path / "kept.csv"))
    assert done.returncode == 0 and len(server.asked) == 3, done.stderr
    tables = [pd.read_csv(tmp_path / f"{name}.csv", index_col="Id") for name in ("given", "fetched", "kept")]
    assert tables[0].shape == (2, 33)
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def test_fetched_ahead_for_a_machine_without_internet(published, cells, call_command, tmp_path, monkeypatch):
    model, server, _ = published
    assert "kept here: no; fetched when first used" in call_command("models", "show", "miniature").stdout
    done = call_command("models", "fetch", "miniature")
    assert done.returncode == 0 and "miniature: 3 of 3 files" in done.stdout, done.stderr
    (tmp_path / "cache").rename(tmp_path / "copied")
    monkeypatch.setenv("PROTEIN_ATLAS_CACHE", str(tmp_path / "copied"))
    monkeypatch.setenv("PROTEIN_ATLAS_MIRROR", "http://127.0.0.1:9")
    assert call_command(*predict(cells, tmp_path / "scores.csv")).returncode == 0


def test_a_process_that_is_killed_is_gone_on_from(published, tmp_path):
    model, server, _ = published
    server.slow = 0.1
    part = kept_path(model, model.encoder).with_name(".encoder.fetched.pth.unfinished")
    process, deadline = start(tmp_path / "other"), time.monotonic() + PATIENCE
    while not part.is_file() or part.stat().st_size < 2**17:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=PATIENCE)
    server.slow, have = 0, part.stat().st_size
    found = weights_of(model)
    assert asked_for(server, "encoder.pth") == [None, f"bytes={have}-"]
    assert [path.stem for path in found] == ["encoder", "head_seed_0", "head_seed_1"]
    assert not list(published_folder(model).glob(".*")), "nothing is left of the download"


def test_a_connection_that_breaks_is_gone_on_from(published, monkeypatch):
    model, server, files = published
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server.cuts += [100_000, 200_000]
    weights_of(model)
    assert asked_for(server, "encoder.pth") == [None, "bytes=100000-", "bytes=300000-"]
    assert f'"published": "{sha256_of(files[0])}"' in kept_path(model, model.encoder).with_suffix(".json").read_text()


def test_a_file_that_changed_meanwhile_is_fetched_anew(published, tmp_path):
    """Half of the one and half of the other would be glued together."""
    model, server, files = published
    server.cuts += [100_000] * 4
    with pytest.raises(NetworkError, match=r"encoder.pth: not fetched \(attempt 4 of 4\)"):
        weights_of(model)
    torch.save({name: tensor + 1 for name, tensor in read_weights(files[0]).items()}, tmp_path / "other.pth")
    server.files[f"{HOST}/encoder.pth"] = (tmp_path / "other.pth").read_bytes()
    server.asked.clear()
    weights_of(model)
    note = kept_path(model, model.encoder).with_suffix(".json").read_text()
    assert asked_for(server, "encoder.pth")[0] == "bytes=400000-"
    assert f'"published": "{sha256_of(tmp_path / "other.pth")}"' in note


def test_a_file_that_its_authors_replaced_is_refused(published, tmp_path):
    """They publish no checksum: then that of the first time counts."""
    model, server, _ = published
    kept = weights_of(model)[0]
    kept.unlink()
    server.files[f"{HOST}/encoder.pth"] += b"0"
    with pytest.raises(NetworkError, match=r"invalid/encoder\.pth: is another file than on 20"):
        weights_of(model)
    assert not kept.exists() and not list(kept.parent.glob("*.pth"))


def test_a_wrong_checksum_is_refused(published, cells, call_command, tmp_path):
    model, _, files = published
    checked = replace(model, name="checked", encoder=replace(model.encoder, checksum=f"sha256:{'0' * 64}"))
    with registered(checked):
        done = call_command(*predict(cells, tmp_path / "scores.csv", name="checked"))
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert f"found sha256 {sha256_of(files[0])}, expected {'0' * 64}; what was fetched is removed" in said
    assert [path.name for path in published_folder(checked).iterdir()] == ["licence.json"]


@pytest.mark.parametrize("fault", ["404", "nobody listens"])
def test_a_host_that_has_it_not_is_named(published, cells, call_command, tmp_path, monkeypatch, fault):
    """In one line: which file, why not, and what to do then."""
    _, server, _ = published
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    if fault == "404":
        del server.files[f"{HOST}/head_seed_1.pth"]
        expected = f"/{HOST}/head_seed_1.pth: the server answers 404 Not Found"
    else:
        monkeypatch.setenv("PROTEIN_ATLAS_MIRROR", "http://127.0.0.1:9")
        expected = f"http://127.0.0.1:9/{HOST}/encoder.pth: not fetched (attempt 4 of 4): "
    done = call_command(*predict(cells, tmp_path / "scores.csv"))
    assert done.returncode == 2 and expected in done.stderr, done.stderr
    assert "give --weights FILE; or copy" in done.stderr and "models fetch miniature" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "scores.csv").exists()


def test_a_damaged_file_in_the_cache_is_named(published, cells, call_command, tmp_path):
    model, server, _ = published
    kept = weights_of(model)[1]
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    done = call_command(*predict(cells, tmp_path / "scores.csv"))
    assert done.returncode == 2 and f"{kept}: damaged: found sha256" in done.stderr, done.stderr
    kept.unlink()
    done = call_command(*predict(cells, tmp_path / "scores.csv"))
    assert done.returncode == 0 and len(asked_for(server, "head_seed_0.pth")) == 2


def test_a_cache_that_cannot_be_written(published, cells, call_command, tmp_path, monkeypatch):
    """What it has is used, and nothing in it is touched; what it lacks is refused with its name."""
    model, server, files = published
    kept = weights_of(model)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    for folder in (kept[0].parent, kept[0].parent.parent):
        folder.chmod(0o500)
    try:
        assert weights_of(model) == kept
    finally:
        for folder in (kept[0].parent, kept[0].parent.parent):
            folder.chmod(0o700)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROTEIN_ATLAS_CACHE", str(tmp_path / "file"))
    done = call_command(*predict(cells, tmp_path / "scores.csv"))
    assert done.returncode == 2 and "file/published" in done.stderr and "is a file, not a folder" in done.stderr
    given = [part for path in files for part in ("--weights", path)]
    assert call_command(*predict(cells, tmp_path / "scores.csv", *given)).returncode == 0


def test_a_licence_must_be_accepted(published, cells, call_command, tmp_path):
    """Before anything is fetched, also with files of one's own; once is enough."""
    model, server, files = published
    licence = {"licence": "for research", "licence_url": "https://lab.org/licence", "commercial": False}
    given = [part for path in files for part in ("--weights", path)]
    with registered(replace(model, name="bound", **licence)):
        for others in ((), given):
            done = call_command(*predict(cells, tmp_path / "scores.csv", *others, name="bound"))
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
            assert "the licence for research, see https://lab.org/licence. If you accept it, type --accept-licence" in (
                done.stderr
            )
        assert not server.asked
        with pytest.raises(NetworkError, match="accept_licence=True"):
            weights_of(replace(model, name="bound", **licence))
        done = call_command("models", "fetch", "bound", "--accept-licence")
        assert done.returncode == 0 and "bound: licence for research" in done.stderr, done.stderr
        assert call_command(*predict(cells, tmp_path / "scores.csv", name="bound")).returncode == 0
    done = call_command("predict", "run", cells, "--accept-licence")
    assert done.returncode == 2 and "--accept-licence: for published models alone" in done.stderr


def test_files_that_are_given_to_those_who_ask(published, cells, call_command, tmp_path):
    model, server, _ = published
    asked = WeightsFile(None, page="https://lab.org/form", called="encoder-*.pth")
    with registered(replace(model, name="asked", encoder=asked)):
        for line in (predict(cells, tmp_path / "scores.csv", name="asked"), ("models", "fetch", "asked")):
            done = call_command(*line)
            assert done.returncode == 2 and not server.asked
            assert "give encoder-*.pth to those who ask at https://lab.org/form; then give --weights" in done.stderr
        assert "kept here: cannot be" in call_command("models", "show", "asked").stdout


def test_two_processes_fetch_it_once(published, tmp_path):
    model, server, _ = published
    server.slow = 0.05
    processes = [start(tmp_path / name) for name in ("first", "second")]
    said = [process.communicate(timeout=PATIENCE)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0] == said[1] == list(map(str, weights_of(model)))
    assert [len(asked_for(server, file.name)) for file in model.files] == [1, 1, 1]


def test_one_that_waits_says_so(published, monkeypatch):
    model, _, _ = published
    monkeypatch.setattr("protein_atlas.zoo.fetch._PATIENCE", 0.1)
    path = kept_path(model, model.encoder)
    with sole_writer(path), pytest.warns(NoticeWarning, match="waiting for another process that fetches encoder.pth"):
        with pytest.raises(NetworkError, match="encoder.safetensors: in use: another process is writing it"):
            weights_of(model)
