"""Byte ranges from a real S3 server on this machine (moto), its faults, and the cache under several processes."""
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from conftest import PATIENCE

from protein_atlas.system.errors import StorageError
from protein_atlas.system.range_cache import RangeCache
from protein_atlas.system.storage import RemoteFolder

START_METHODS = [name for name in ("fork", "spawn") if name in multiprocessing.get_all_start_methods()]
KIB, MIB = 2**10, 2**20


class Server:
    """moto's S3 over HTTP, which counts what it is asked for, and fails when told to."""

    def __init__(self):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.moto, self.asked, self.faults = DomainDispatcherApplication(create_backend_app), [], []
        self.http = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path, environ.get("HTTP_RANGE")))
        if self.faults and "HTTP_RANGE" in environ:
            status, headers, body = self.faults.pop()
            start_response(status, headers)
            return [body]
        return self.moto(environ, start_response)

    def ranges_asked(self) -> int:
        return sum(asked is not None for _, _, asked in self.asked)

    def none_twice(self) -> bool:
        """Whether nothing was asked for twice since this was asked last: what cannot succeed is not to be retried."""
        asked, self.asked = self.asked, []
        return 0 < len(asked) == len(set(asked))

    def stop(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def client(self):
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id="x", aws_secret_access_key="y", region_name="us-east-1"
        )

    def options(self, **more) -> dict:
        return {"key": "x", "secret": "y", "client_kwargs": {"endpoint_url": self.url}, **more}

    def folder(self, cache: Path | None = None, cache_bytes: int = 2**30) -> RemoteFolder:
        return RemoteFolder("s3://bucket/store", self.options(), cache, cache_bytes)


@pytest.fixture
def server():
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'protein_atlas[s3]'")
    pytest.importorskip("moto.server", reason="moto's server is not installed: pip install 'moto[s3]' flask flask-cors")
    server = Server()
    yield server
    if server.thread.is_alive():
        server.stop()


@pytest.fixture
def connections(monkeypatch) -> list[int]:
    """The port of each connection that this process tries to open, whether or not anybody answers."""
    ports, connect = [], socket.socket.connect

    def counted(self, address):
        ports.extend(address[1:2] if isinstance(address, tuple) else ())
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", counted)
    return ports


@pytest.fixture
def files(server) -> dict[str, bytes]:
    """Five objects of random bytes and one small one below s3://bucket/store, and the same bytes here."""
    generator, client = np.random.default_rng(0), server.client()
    files = {f"512/c/{i}/0/0/0": generator.bytes(300 * KIB + i) for i in range(5)}
    files["zarr.json"] = b'{"zarr_format": 3}'
    client.create_bucket(Bucket="bucket")
    for name, data in files.items():
        client.put_object(Bucket="bucket", Key=f"store/{name}", Body=data)
    server.asked.clear()
    return files


def random_ranges(files: dict[str, bytes], n: int, seed: int = 0) -> tuple[list, list, list, list[bytes]]:
    generator, shards = np.random.default_rng(seed), sorted(name for name in files if "/c/" in name)
    names = [shards[i] for i in generator.integers(0, len(shards), n)]
    starts = [generator.integers(0, len(files[name]) - 1) for name in names]
    lengths = [
        generator.integers(1, min(20 * KIB, len(files[name]) - start) + 1)
        for name, start in zip(names, starts, strict=True)
    ]
    expected = [files[name][a : a + b] for name, a, b in zip(names, starts, lengths, strict=True)]
    return names, starts, lengths, expected


def test_whole_files_and_ranges(server, files):
    folder = server.folder()
    assert folder.read("zarr.json") == files["zarr.json"]
    assert [folder.exists(name) for name in ("zarr.json", "512/c/4/0/0/0", "512/c/5/0/0/0")] == [True, True, False]
    *ranges, expected = random_ranges(files, 200)
    assert folder.read_ranges(*ranges) == expected
    assert server.ranges_asked() == 200


@pytest.mark.parametrize("with_cache", [False, True])
def test_concurrent_readers(server, files, tmp_path, with_cache):
    """Threads that share one folder, opened by whichever comes first."""
    folder = server.folder(tmp_path if with_cache else None)

    def read(seed: int) -> bool:
        *ranges, expected = random_ranges(files, 10, seed % 4)
        return folder.read_ranges(*ranges) == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))
    assert len(folder._opened) == 1


def _read(folder: RemoteFolder, ranges: list, sender) -> None:
    sender.send(folder.read_ranges(*ranges))


@pytest.mark.parametrize("method", START_METHODS)
def test_a_reader_in_another_process(server, files, tmp_path, method):
    """A child reads with a folder its parent has used, and the parent goes on after it."""
    folder, context = server.folder(tmp_path), multiprocessing.get_context(method)
    *ranges, expected = random_ranges(files, 5)
    assert folder.read_ranges(*ranges) == expected
    for seed in (1, 2):
        *other, expected = random_ranges(files, 5, seed)
        receiver, sender = context.Pipe(duplex=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # fork beside threads: what is tested
            child = context.Process(target=_read, args=(folder, other, sender), daemon=True)
            child.start()
        assert receiver.poll(PATIENCE), "the child does not answer"
        assert receiver.recv() == expected
        child.join(PATIENCE)
        assert child.exitcode == 0
    *ranges, expected = random_ranges(files, 5, 3)
    assert folder.read_ranges(*ranges) == expected


def test_cached_ranges_are_not_asked_for(server, files, tmp_path):
    *ranges, expected = random_ranges(files, 40)
    folder = server.folder(tmp_path)
    assert folder.read_ranges(*ranges) == expected
    assert server.ranges_asked() == 40
    again = server.folder(tmp_path)
    assert again.read_ranges(*ranges) == expected
    assert server.ranges_asked() == 40
    server.stop()
    assert again.read_ranges(*ranges) == folder.read_ranges(*ranges) == expected


def test_a_rewritten_object_is_read_anew(server, files, tmp_path):
    name = "512/c/0/0/0/0"
    assert server.folder(tmp_path).read_ranges([name], [10], [100]) == [files[name][10:110]]
    rewritten = bytes(reversed(files[name]))
    server.client().put_object(Bucket="bucket", Key=f"store/{name}", Body=rewritten)
    assert server.folder(tmp_path).read_ranges([name], [10], [100]) == [rewritten[10:110]]


def test_a_damaged_cache_file_is_fetched_again(server, files, tmp_path):
    *ranges, expected = random_ranges(files, 10)
    folder = server.folder(tmp_path)
    folder.read_ranges(*ranges)
    cached = sorted(tmp_path.glob("*.range"))
    for path, damage in zip(cached, (b"", cached[1].read_bytes()[:-1], cached[2].read_bytes() + b"x"), strict=False):
        path.write_bytes(damage)
    turned = bytearray(cached[3].read_bytes())
    turned[-1] ^= 1
    cached[3].write_bytes(turned)
    server.asked.clear()
    assert folder.read_ranges(*ranges) == expected
    assert server.ranges_asked() == 4
    assert folder.read_ranges(*ranges) == expected
    assert server.ranges_asked() == 4


def test_transient_faults_are_retried(server, files):
    error = b"<Error><Code>%s</Code><Message>for now</Message></Error>"
    xml = [("Content-Type", "application/xml")]
    server.faults = [
        ("503 Service Unavailable", xml, error % b"SlowDown"),
        ("500 Internal Server Error", xml, error % b"InternalError"),
        ("206 Partial Content", [("Content-Length", "5000")], b"cut off"),
    ]
    *ranges, expected = random_ranges(files, 10)
    assert server.folder().read_ranges(*ranges) == expected
    assert not server.faults and server.ranges_asked() == 13


def test_a_short_answer_is_an_error(server, files):
    server.faults = [("206 Partial Content", [("Content-Length", "7")], b"7 bytes")]
    with pytest.raises(StorageError, match="s3://bucket/store/512/c/1/0/0/0: expected 10 bytes from 5, found 7"):
        server.folder().read_ranges(["512/c/1/0/0/0"], [5], [10])
    size = len(files["512/c/1/0/0/0"])
    with pytest.raises(StorageError, match=f"512/c/1/0/0/0: expected 10 bytes from {size - 4}, found 4"):
        server.folder().read_ranges(["512/c/1/0/0/0"], [size - 4], [10])
    with pytest.raises(StorageError, match="512/c/1/0/0/0: .*range"):
        server.folder().read_ranges(["512/c/1/0/0/0"], [size], [10])


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_missing_object_or_bucket(server, files, tmp_path, with_cache):
    cache = tmp_path if with_cache else None
    folder, elsewhere = server.folder(cache), RemoteFolder("s3://no-such-bucket/store", server.options(), cache)
    with pytest.raises(StorageError, match="s3://bucket/store/zarr.jsn: FileNotFoundError"):
        folder.read("zarr.jsn")
    assert server.none_twice()
    with pytest.raises(StorageError, match="s3://bucket/store/512/c/9/0/0/0: FileNotFoundError"):
        folder.read_ranges(["512/c/0/0/0/0", "512/c/9/0/0/0"], [0, 0], [9, 9])
    assert server.none_twice()
    with pytest.raises(StorageError, match="s3://no-such-bucket/store/zarr.json: FileNotFoundError"):
        elsewhere.read("zarr.json")
    assert server.none_twice()
    with pytest.raises(StorageError, match="s3://no-such-bucket/store/512/c/0/0/0/0: FileNotFoundError"):
        elsewhere.read_ranges(["512/c/0/0/0/0"], [0], [9])
    assert server.none_twice()
    assert not elsewhere.exists("zarr.json")
    assert server.none_twice()


def test_wrong_credentials(server, files):
    from moto.core import set_initial_no_auth_action_count

    folder = server.folder()

    @set_initial_no_auth_action_count(0)  # moto checks keys from here on, and knows none
    def ask():
        with pytest.raises(StorageError, match="s3://bucket/store/zarr.json: PermissionError") as raised:
            folder.read("zarr.json")
        assert server.none_twice()
        with pytest.raises(StorageError, match="s3://bucket/store/zarr.json: PermissionError"):
            folder.exists("zarr.json")
        assert server.none_twice()
        with pytest.raises(StorageError, match="s3://bucket/store/512/c/0/0/0/0: PermissionError"):
            folder.read_ranges(["512/c/0/0/0/0"], [0], [9])
        assert server.none_twice()
        return str(raised.value)

    assert "'y'" not in ask(), "the message tells the secret"


def test_a_server_that_is_gone(server, files, connections):
    folder = server.folder()
    assert folder.exists("zarr.json")
    server.stop()
    connections.clear()
    with pytest.raises(StorageError, match="s3://bucket/store/zarr.json: EndpointConnectionError"):
        folder.read("zarr.json")
    with pytest.raises(StorageError, match="s3://bucket/store/512/c/0/0/0/0: EndpointConnectionError"):
        folder.read_ranges(["512/c/0/0/0/0"], [0], [9])
    assert len(connections) == 2 * 3, "botocore's three tries of each, not s3fs's around them"


def test_a_silent_server_and_the_users_own_timeouts(server, connections):
    """Connections are taken, and never answered; the user's timeouts and retries are kept."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        folder = RemoteFolder("s3://bucket/store", {
            "key": "x", "secret": "y", "endpoint_url": f"http://127.0.0.1:{port}",
            "config_kwargs": {"read_timeout": 1, "retries": {"total_max_attempts": 1}},
        })  # fmt: skip
        with pytest.raises(StorageError, match="s3://bucket/store/zarr.json: ReadTimeoutError"):
            folder.read("zarr.json")
        assert connections.count(port) == 2, "one try of botocore's, as the user says, and one retry of s3fs's"
        config = folder._open()[0].s3.meta.config
        assert (config.read_timeout, config.connect_timeout) == (1, 5)  # what the user does not say is the library's


def test_without_s3fs():
    """In a new process: fsspec remembers what it has imported."""
    code = """import sys
sys.modules["s3fs"] = None
from protein_atlas.system.storage import RemoteFolder
RemoteFolder("s3://bucket/store").read("zarr.json")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert re.search(r"StorageError: s3://bucket/store: .*pip install 'protein_atlas\[s3\]'$", done.stderr.strip())


def test_nothing_heavy_is_imported():
    code = """import sys
import protein_atlas.system.storage
print(sorted({"torch", "fastai", "fsspec", "s3fs"} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "[]\n"


def used(folder: Path) -> int:
    """Bytes that the ranges of a cache take on the disk, in blocks of 4 kB."""
    sizes = []
    for path in folder.glob("*.range"):
        try:
            sizes.append(-(-path.stat().st_size // 4096) * 4096)
        except FileNotFoundError:  # removed by a process that is still writing
            continue
    return sum(sizes)


def test_the_bound_holds_and_the_least_recently_used_go_first(tmp_path):
    cache, data = RangeCache(tmp_path, 10 * MIB), bytes(MIB)
    for i in range(50):
        cache.put({f"{i}": data})
        assert used(tmp_path) <= 10 * MIB
        assert cache.get("0", MIB) == data, "the first range is used all the time"
        time.sleep(0.005)
    kept = sorted(int(path.stem) for path in tmp_path.glob("*.range"))
    assert kept == [0, *range(50 - len(kept) + 1, 50)] and len(kept) >= 7


def _fill(folder: Path, bound: int, seed: int, batches: int) -> None:
    cache, generator = RangeCache(folder, bound), np.random.default_rng(seed)
    for batch in range(batches):
        cache.put({f"{seed}-{batch}-{i}": generator.bytes(20 * KIB) for i in range(8)})


def test_processes_share_the_bound(tmp_path):
    """Four writers that know nothing of each other but the folder."""
    bound, batch = 4 * MIB, 8 * 24 * KIB
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_fill, args=(tmp_path, bound, seed, 60)) for seed in range(4)]
    for writer in writers:
        writer.start()
    most = 0
    while any(writer.is_alive() for writer in writers):
        most = max(most, used(tmp_path))
        time.sleep(0.01)
    assert all(writer.exitcode == 0 for writer in writers)
    assert bound / 2 < most <= bound + 2 * len(writers) * batch
    assert used(RangeCache(tmp_path, bound).folder) <= bound
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed by SIGKILL")
def test_a_killed_writer_leaves_whole_ranges(tmp_path):
    writer = multiprocessing.get_context("spawn").Process(target=_fill, args=(tmp_path, 64 * MIB, 0, 10**9))
    writer.start()
    while len(list(tmp_path.glob("*.range"))) < 50:
        assert writer.is_alive()
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    for path in tmp_path.glob("*.part"):
        os.utime(path, (1, 1))
    cache = RangeCache(tmp_path, 64 * MIB)
    names = [path.stem for path in tmp_path.glob("*.range")]
    assert len(names) >= 50 and all(cache.get(name, 20 * KIB) is not None for name in names)
    assert not list(tmp_path.glob("*.part"))
    assert abs(cache.ledger.stat().st_size * 4096 - used(tmp_path)) == 0


def test_a_folder_that_cannot_be_a_cache(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file: cannot be used as a cache"):
        RemoteFolder("memory://store", cache=tmp_path / "file")
    folder = pickle.loads(pickle.dumps(RemoteFolder("memory://store", cache=tmp_path / "cache", cache_bytes=5000)))
    assert folder._cache.bound == 5000
