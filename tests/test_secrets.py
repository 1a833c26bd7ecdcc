"""A password in a URL, and a signature, stand in nothing that is written or said."""
import shutil
import traceback
from pathlib import Path
from typing import ClassVar

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from protein_atlas.data.labels import read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.sources import open_images
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.predict.load import load_predictor
from protein_atlas.system.errors import ProteinAtlasError
from protein_atlas.train.learner import rgby_learner
from protein_atlas.train.settings import RunSettings
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
