"""A password in a URL, and a signature, stand in nothing that is written or said."""
import shutil
import socket
import traceback
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from protein_atlas.data.intensity import measure_intensity
from protein_atlas.data.labels import read_labels
from protein_atlas.data.packing import pack_images, verify_store
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.sources import open_images
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.predict.load import load_predictor
from protein_atlas.predict.selection import Selection
from protein_atlas.report.fields import shown_setting
from protein_atlas.system.errors import ProteinAtlasError
from protein_atlas.system.files import settle
from protein_atlas.system.ray import RayCluster
from protein_atlas.system.storage import RemoteFile, RemoteFolder
from protein_atlas.train.learner import rgby_learner
from protein_atlas.train.settings import RunSettings
from protein_atlas.train.sides import split_data
from protein_atlas.vision.data import protein_datablock
from protein_atlas.vision.models import small_resnet

TRAP = "hunter2trap"
VAULT = f"vault://me:{TRAP}@host"
SIGNED = f"?X-Amz-Credential=a/b&X-Amz-Signature={TRAP}"


class Vault(MemoryFileSystem):
    """Files in memory, behind a password; an error tells all of the question, as those of some libraries do."""

    protocol = "vault"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        if path.startswith("vault://"):
            path = path.removeprefix("vault://").partition("/")[2]
        path = path.partition("?")[0].strip("/")
        return f"/{path}" if path else ""

    def cat_file(self, path: str, *args, **kwargs) -> bytes:
        if "locked" in path:
            raise PermissionError(f"403: GET {VAULT}{path}{SIGNED} by {TRAP}")
        return super().cat_file(path, *args, **kwargs)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return simulate_phantoms(tmp_path_factory.mktemp("phantoms") / "data", n=12, size=32)


@pytest.fixture(scope="module")
def bundle(phantoms, tmp_path_factory) -> Path:
    """Of a network that has learned nothing: it predicts as well as any."""
    table = read_labels(phantoms / "train.csv")
    dls = protein_datablock(phantoms / "train", table.vocab).dataloaders(table, bs=4, num_workers=0)
    place = tmp_path_factory.mktemp("bundle") / "bundle"
    thresholds = Thresholds([0.5] * len(table.vocab), table.vocab, "fixed")
    rgby_learner(dls, small_resnet, pretrained=False).save_bundle(place, thresholds)
    return place


@pytest.fixture
def vault(phantoms):
    """The phantoms behind a password: as a folder, and as a table of signed URLs, one of which is not to be opened."""
    fsspec.register_implementation("vault", Vault, clobber=True)
    files = fsspec.filesystem("vault", skip_instance_cache=True)
    files.store.clear()
    ids = sorted({path.name.rpartition("_")[0] for path in (phantoms / "train").iterdir()})
    for image_id in ids:
        for path in (phantoms / "train").glob(f"{image_id}_*"):
            files.pipe_file(f"/data/train/{path.name}", path.read_bytes())
    table = {"Id": ids[:6]}
    for channel in ("red", "green", "blue", "yellow"):
        table[channel] = [f"{VAULT}/data/train/{image_id}_{channel}.png{SIGNED}" for image_id in ids[:6]]
    table["red"][3] = f"{VAULT}/data/train/locked.png{SIGNED}"
    files.pipe_file("/data/images.csv", pd.DataFrame(table).to_csv(index=False).encode())
    yield files
    files.store.clear()


def trapped(folder: Path, vault: Vault) -> list[str]:
    """Every file that was written and has the secret in it."""
    here = [str(path) for path in folder.rglob("*") if path.is_file() and TRAP.encode() in path.read_bytes()]
    there = [name for name, file in vault.store.items() if TRAP.encode() in file.getvalue()]
    there.remove("/data/images.csv")
    return here + there


def test_commands_tell_no_secret(vault, bundle, tmp_path, call_command):
    said, run = "", bundle
    for arguments in (
        ("pack", f"{VAULT}/data", tmp_path / "store", "--workers", 1),
        ("pack", f"{VAULT}/data", f"{VAULT}/store", "--workers", 1), ("verify", f"{VAULT}/store", "--workers", 1),
        ("pack", f"{VAULT}/data/images.csv{SIGNED}", tmp_path / "some", "--workers", 1, "--on-error", "list"),
        ("duplicates", f"{VAULT}/data", "-o", tmp_path / "pairs.csv", "--workers", 1),
        ("predict", run, f"{VAULT}/data", "-o", tmp_path / "all.csv", "--workers", 0),
        ("predict", run, f"{VAULT}/data/images.csv{SIGNED}", "-o", tmp_path / "some.csv", "--workers", 0,
         "--on-error", "skip"),
    ):
        done = call_command(*arguments)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    assert "vault://***@host/store: 12 images" in said
    errors = pd.read_csv(tmp_path / "some.errors.csv")["error"].tolist()
    assert len(errors) == 1 and "vault://***@host/data/train/locked.png?***: PermissionError: 403" in errors[0]
    for arguments, told in (
        (("pack", f"{VAULT}/gone", tmp_path / "x"), "vault://***@host/gone"),
        (("pack", f"{VAULT}/data/images.csv{SIGNED}", tmp_path / "y", "--workers", 1), "locked.png?***"),
        (("predict", run, f"{VAULT}/data/images.csv{SIGNED}", "-o", tmp_path / "z.csv", "--workers", 0), "png?***"),
        (("train", f"{VAULT}/gone", "-o", tmp_path / "run"), "vault://***@host/gone"),
        (("verify", f"{VAULT}/gone"), "vault://***@host/gone"), (("duplicates", f"{VAULT}/gone"), "vault://***@host/gone"),
        (("--debug", "verify", f"{VAULT}/data/locked"), "***"),
    ):
        done = call_command(*arguments)
        assert done.returncode == 2 and told in done.stderr, (arguments, done)
        said += done.stdout + done.stderr
    assert TRAP not in said
    assert trapped(tmp_path, vault) == []


def test_journal_tells_no_secret(vault, bundle, tmp_path):
    """A prediction that stops in the middle leaves its journal; a new signature is no reason to begin anew."""
    table = open_images(f"{VAULT}/data/images.csv{SIGNED}")
    with pytest.raises(ProteinAtlasError, match="locked.png") as stopped:
        load_predictor(bundle).predict(table, out=tmp_path / "out.csv", bs=1, workers=0)
    assert (tmp_path / "out.csv.unfinished").is_dir()
    assert trapped(tmp_path, vault) == []
    assert TRAP not in "".join(traceback.format_exception(stopped.value))


def test_settings_tell_no_secret(tmp_path):
    settings = RunSettings(store=f"{VAULT}/store{SIGNED}")
    assert settings.store == f"{VAULT}/store{SIGNED}"
    assert TRAP not in settings.toml() and TRAP not in str(settings.shown())
    (tmp_path / "run.toml").write_text(settings.toml(), encoding="utf-8")
    with pytest.raises(ProteinAtlasError, match=r"--store \(store\) must be given whole"):
        RunSettings.read(tmp_path / "run.toml")


def test_store_of_a_secret_url_can_be_handed_on(vault, tmp_path):
    pack_images(f"{VAULT}/data", tmp_path / "store", workers=1)
    shutil.make_archive(str(tmp_path / "handed_on"), "tar", tmp_path / "store")
    assert trapped(tmp_path, vault) == []
    assert '"source": "vault://***@host/data/train"' in (tmp_path / "store/zarr.json").read_text(encoding="utf-8")


class Unwilling(BaseHTTPRequestHandler):
    """A web server that finds a fault with every question, and repeats it."""

    def do_GET(self):  # noqa: N802  as http.server calls it
        asked = f"{self.path} {self.headers.get('Authorization')} {TRAP}".encode()
        if "/elsewhere" in self.path:
            self.send_response(302)
            self.send_header("Location", f"/forbidden?token={TRAP}")
        else:
            self.send_response(404 if "/gone" in self.path else 500 if "/broken" in self.path else 403, TRAP)
        self.send_header("Content-Length", str(len(asked) + 10 * ("/cut" in self.path)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(asked)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def unwilling():
    """The address of such a server, with a password in it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unwilling)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:{TRAP}@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def table_of(folder: Path, url: str) -> Path:
    columns = ("Id", "red", "green", "blue", "yellow")
    rows = [columns, ("a", *[f"{url}/a_{channel}.png{SIGNED}" for channel in columns[1:]])]
    (folder / "files.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    return folder / "files.csv"


def closed() -> str:
    """A port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


NOBODY = f"http://me:{TRAP}@{closed()}"
WEB = {
    "read": lambda url, folder: RemoteFolder(url).read(f"x{SIGNED}"),
    "read together": lambda url, folder: RemoteFolder(url).read_together([f"x{SIGNED}"])[0].args[0],
    "ranges": lambda url, folder: RemoteFolder(url).read_ranges([f"x{SIGNED}"], [0], [4]),
    "cached ranges": lambda url, folder: RemoteFolder(url, cache=folder / "c").read_ranges([f"x{SIGNED}"], [0], [4]),
    "facts": lambda url, folder: RemoteFolder(url).facts(f"x{SIGNED}"),
    "exists": lambda url, folder: RemoteFolder(url).exists(f"x{SIGNED}"),
    "listing": lambda url, folder: RemoteFolder(f"{url}/x").files(),
    "write": lambda url, folder: RemoteFolder(url).write(f"x{SIGNED}", b"x"),
    "remove": lambda url, folder: RemoteFolder(url).remove([f"x{SIGNED}"]),
    "option": lambda url, folder: RemoteFolder(url, {"headers": {"Authorization": f"Bearer {TRAP}"}}).read("x"),
    "table of files": lambda url, folder: open_images(table_of(folder, url)).read(["a"]),
    "fingerprint": lambda url, folder: open_images(table_of(folder, url)).fingerprint("a"),
    "measured": lambda url, folder: measure_intensity(open_images(table_of(folder, url))),
    "packed": lambda url, folder: pack_images(table_of(folder, url), folder / "store", workers=1),
    "table": lambda url, folder: open_images(f"{url}/images.csv{SIGNED}"),
    "Parquet": lambda url, folder: open_images(f"{url}/images.parquet{SIGNED}"),
    "folder": lambda url, folder: open_images(f"{url}/images"),
    "store": lambda url, folder: ImageStore(f"{url}/store"),
    "verify": lambda url, folder: verify_store(f"{url}/store", workers=1),
    "labels": lambda url, folder: read_labels(f"{url}/train.csv{SIGNED}"),
    "loaders": lambda url, folder: protein_datablock(f"{url}/images"),
    "training data": lambda url, folder: split_data(url, RunSettings(store=f"{url}/store{SIGNED}")),
    "destination": lambda url, folder: settle(f"{url}/x{SIGNED}", folder=True),
}


PLACES = [(way, place) for way in WEB for place in ("forbidden", "nobody")]
OTHERS = ("gone", "broken", "cut", "elsewhere")
PLACES += [(way, place) for way in ("read", "facts", "listing", "store") for place in OTHERS]


@pytest.mark.parametrize(("way", "place"), PLACES)
def test_errors_of_a_web_server_tell_no_secret(unwilling, tmp_path, way, place, capfd, caplog):
    """Nor does what caused them, where a traceback shows it, what is logged or printed, and what is written."""
    pytest.importorskip("aiohttp")
    url = NOBODY if place == "nobody" else unwilling
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            said = str(WEB[way](f"{url}/{place}", tmp_path))
        except Exception as error:
            said = "".join(traceback.format_exception(error)) + repr(error) + str(error.args)
    said += "".join(str(one.message) for one in warned) + caplog.text + "".join(capfd.readouterr())
    assert TRAP not in said, said
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "files.csv"]
    assert [path for path in written if TRAP.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("way", ["read", "listing", "write"])
def test_errors_of_an_endpoint_of_the_environment_tell_no_secret(way, tmp_path, monkeypatch, caplog, capfd):
    """botocore says where it tried to go; a password may stand there, too."""
    pytest.importorskip("s3fs")
    for name, value in {"AWS_ENDPOINT_URL": NOBODY, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": TRAP,
                        "AWS_SESSION_TOKEN": TRAP, "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ProteinAtlasError) as failed:
        WEB[way]("s3://bucket", tmp_path)
    said = "".join(traceback.format_exception(failed.value)) + repr(failed.value) + caplog.text
    assert TRAP not in said + "".join(capfd.readouterr()), said


SHOWN = {
    "store": lambda: ImageStore(f"{VAULT}/store"), "store's address": lambda: ImageStore(f"{VAULT}/store").some([]),
    "name of an image": lambda: ImageStore(f"{VAULT}/store").name("a"),
    "store's error": lambda: stopped(lambda: ImageStore(f"{VAULT}/store").open("none")),
    "pack report": lambda: pack_images(f"{VAULT}/data", f"{VAULT}/other", workers=1),
    "settings": lambda: RunSettings(store=f"{VAULT}/store{SIGNED}"),
    "settings' error": lambda: stopped(lambda: RunSettings(store=f"{VAULT}/store{SIGNED}", bs=0)),
    "file": lambda: RemoteFile(RemoteFolder(VAULT), f"a.png{SIGNED}"), "folder": lambda: RemoteFolder(VAULT),
    "path of a table": lambda: open_images(f"{VAULT}/data/images.csv{SIGNED}").paths(IDS[0]),
    "place of a table": lambda: open_images(f"{VAULT}/data/images.csv{SIGNED}").place,
    "name of an image of a table": lambda: open_images(f"{VAULT}/data/images.csv{SIGNED}").name(IDS[0]),
    "selection": lambda: Selection(open_images(f"{VAULT}/store"), (), ()),
    "cluster": lambda: stopped(lambda: list(RayCluster(f"ray://me:{TRAP}@{closed()}").map(str, [1], "x", "x"))),
    "setting on a page": lambda: shown_setting("store", f"{VAULT}/store{SIGNED}"),
}
IDS = ["phantom-0-00000"]


def stopped(call) -> str:
    with pytest.raises(ProteinAtlasError) as failed:
        call()
    return "".join(traceback.format_exception(failed.value))


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_shown_tells_no_secret(vault, phantoms, what):
    """In a notebook, or wherever an object is printed."""
    pack_images(f"{VAULT}/data", f"{VAULT}/store", workers=1)
    IDS[:] = open_images(f"{VAULT}/data/images.csv").ids[:1]
    found = SHOWN[what]()
    assert TRAP not in repr(found) + str(found)


@pytest.mark.full
def test_ray_logs_no_secret(unwilling, bundle, tmp_path, capfd):
    """Of a screening, and of a pack, whose images cannot be read."""
    pytest.importorskip("ray")
    from protein_atlas.predict.screening import screen

    table, cluster = table_of(tmp_path, f"{unwilling}/gone"), RayCluster()
    with warnings.catch_warnings(), cluster.joined():
        import ray

        logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
        warnings.simplefilter("ignore")
        assert screen(bundle, table, tmp_path / "out", cluster).errors == 1
        with pytest.raises(ProteinAtlasError, match="images cannot be read"):
            pack_images(table, tmp_path / "store", 32, cluster=cluster)
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert files and [path for path in files if TRAP.encode() in path.read_bytes()] == []
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != table]
    assert written and [path for path in written if TRAP.encode() in path.read_bytes()] == []
    assert TRAP not in "".join(capfd.readouterr())
