"""Where things are written is settled before the work, whatever stands there; and what a kill has left is removed."""
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATIENCE

from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.predict.submissions import write_submission
from protein_atlas.system.errors import StorageError
from protein_atlas.system.files import settle, whole_folder

NOBODY = 65534


def killed(code: str, left: Path, until: str) -> None:
    """Run a program until there is such a file below the folder, and kill it."""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while not list(left.rglob(until)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=PATIENCE)


@pytest.mark.parametrize("opened", ["whole_file({!r} + '/x.csv')", "whole_folder({!r} + '/run')"])
def test_what_a_kill_leaves_is_swept(tmp_path, opened):
    """By the next that writes there, whatever it writes; not while its process lives, and nothing of the user's."""
    mine = tmp_path / ".run.backup.part"
    mine.write_text("of the user")
    write = opened.format(str(tmp_path))
    code = f"with {write}: Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(100)"
    code = f"import time\nfrom pathlib import Path\nfrom protein_atlas.system.files import *\n{code}"
    killed(code, tmp_path, "ready")
    assert len(list(tmp_path.glob(".*.part*"))) == 2
    with whole_folder(tmp_path / "living") as part:
        settle(tmp_path / "other.csv")
        assert part.is_dir() and mine.is_file()
        hidden = sorted(path.name for path in tmp_path.glob(".*"))
        assert hidden == sorted([part.name, mine.name, ".living.lock"])


def test_a_simulation_sweeps_the_last_one(tmp_path, run_command):
    code = f"simulate_phantoms({str(tmp_path / 'a')!r}, 5000, workers=1)"
    killed(f"from protein_atlas.data.phantoms import *\n{code}", tmp_path, "*.png")
    assert len(list(tmp_path.glob(".a.*.part"))) == 1
    done = run_command("simulate", tmp_path / "b", "--n", 4, "--size", 32)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def open_to_all(folder: Path) -> None:
    """Let every user into a folder of pytest's, which is its user's alone."""
    while folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & stat.S_ISVTX and folder != folder.parent:
        folder.chmod(0o755)
        folder = folder.parent


def as_nobody(code: str, imports: str = "") -> subprocess.CompletedProcess:
    """Run a program as a user who owns nothing here, and perhaps may not even read these imports."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    code = f"import os\nos.setgid({NOBODY})\nos.setuid({NOBODY})\n{code}"
    code = f"from pathlib import Path\nfrom protein_atlas.system.files import *\n{imports}\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_an_empty_folder_in_a_foreign_one_is_filled(tmp_path):
    """Nothing can be made beside it: what is not whole is kept inside, and its owner and rights stay."""
    open_to_all(tmp_path)
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / "mine", NOBODY, NOBODY)
    code = "with whole_folder({!r}) as part:\n    (part / 'a.txt').write_text('a')".format(str(tmp_path / "mine"))
    done = as_nobody(code)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["a.txt"]
    assert (tmp_path / "mine").stat().st_uid == NOBODY


def test_what_cannot_be_written_is_known_before(tmp_path):
    open_to_all(tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "theirs.csv").write_text("x")
    for path, folder, said in (
        (tmp_path / "a.csv", False, "Permission denied"), (tmp_path / "run", True, "Permission denied"),
        (shared / "theirs.csv", False, "is another user's"),
    ):  # fmt: skip
        done = as_nobody(f"settle({str(path)!r}, folder={folder})")
        assert done.returncode == 1 and "StorageError" in done.stderr and said in done.stderr, done.stderr


@pytest.fixture
def disk(tmp_path) -> Path:
    """An empty disk of 4 MB, mounted; only root may."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_mounted_disk_is_filled(call_command, disk, tmp_path):
    done = call_command("simulate", disk, "--n", 30, "--size", 32)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in disk.iterdir()) == ["train", "train.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_a_store_on_a_mounted_disk(call_command, disk, phantoms):
    for _ in range(2):
        done = call_command("pack", phantoms, disk, "--workers", 1)
        assert done.returncode == (2 if _ else 0), done.stderr
    assert call_command("verify", disk, "--workers", 1).returncode == 0
    assert not list(disk.glob(".*"))


def test_too_little_room_is_known_before(disk):
    with pytest.raises(StorageError, match="bytes are needed, .* are free"):
        simulate_phantoms(disk / "data", 1000, 128)
    assert not list(disk.iterdir())


def test_a_folder_mounted_in_its_own_disk(tmp_path):
    """A bind mount has its disk's number, and cannot be renamed over."""
    for name in ("of", "at"):
        (tmp_path / name).mkdir()
    if subprocess.run(["mount", "--bind", tmp_path / "of", tmp_path / "at"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with whole_folder(tmp_path / "at") as part:
            (part / "a.txt").write_text("a")
    finally:
        subprocess.run(["umount", tmp_path / "at"], check=True)
    assert [path.name for path in (tmp_path / "of").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("link", [False, True])
def test_no_command_overwrites_what_it_reads(call_command, trained, phantoms, tmp_path, link):
    kept = {}
    for name, text in (("table.csv", (phantoms / "train.csv").read_text()), ("ids.csv", "Id\nphantom-0-00001\n"),
                       ("mine.errors.csv", "Id\nphantom-0-00001\n")):  # fmt: skip
        (tmp_path / name).write_text(text)
        kept[tmp_path / name] = text

    def out(name: str) -> Path:
        if link:
            (tmp_path / f"to_{name}").unlink(missing_ok=True)
            (tmp_path / f"to_{name}").symlink_to(tmp_path / name)
        return tmp_path / (f"to_{name}" if link else name)

    run, images = trained[0], phantoms / "train"
    commands = [
        ("duplicates", images, "--table", tmp_path / "table.csv", "--out", out("table.csv")),
        ("predict", run, images, "--ids", tmp_path / "ids.csv", "--out", out("ids.csv")),
        ("pack", phantoms, phantoms if not link else tmp_path / "to_data"), ("export", run / "bundle", run / "bundle"),
    ]  # fmt: skip
    if not link:
        commands.append(("predict", run, images, "--ids", tmp_path / "mine.errors.csv", "--out", tmp_path / "mine.csv"))
    else:
        (tmp_path / "to_data").symlink_to(phantoms)
    for arguments in commands:
        done = call_command(*arguments)
        assert done.returncode == 2 and "is what is read" in done.stderr, (arguments, done.stderr)
    assert kept == {path: path.read_text() for path in kept}


def test_no_image_and_no_table_of_the_data_is_overwritten(call_command, trained, phantoms):
    image = sorted((phantoms / "train").iterdir())[0]
    for arguments in (("predict", trained[0], phantoms, "--out", phantoms / "train.csv"),
                      ("duplicates", phantoms / "train", "--out", image.with_suffix(".csv"))):  # fmt: skip
        before = image.read_bytes()
        done = call_command(*arguments)
        assert done.returncode == 2 and "which is read, and would be overwritten" in done.stderr, done.stderr
        assert image.read_bytes() == before


@pytest.mark.parametrize("asked", [
    "predict {run} {data}/train --out {table}", "duplicates {data}/train --out {table}",
    "compare {run} {run} --out {table}", "report {run} --out {table}",
])  # fmt: skip
def test_only_an_earlier_result_is_replaced(call_command, trained, phantoms, tmp_path, asked):
    """A label table beside the images is not read by these commands, and must not be lost."""
    table = shutil.copy(phantoms / "train.csv", tmp_path / "train.csv")
    done = call_command(*asked.format(run=trained[0], data=phantoms, table=table).split())
    assert done.returncode == 2 and "exists and is no earlier result of this kind" in done.stderr, done.stderr
    assert table.read_bytes() == (phantoms / "train.csv").read_bytes()


def test_a_report_of_a_run_is_not_replaced_by_a_comparison(call_command, trained):
    before = (trained[0] / "report.html").read_bytes()
    done = call_command("compare", trained[0], trained[0], "--out", trained[0] / "report.html")
    assert done.returncode == 2 and "which is read, and would be overwritten" in done.stderr, done.stderr
    assert (trained[0] / "report.html").read_bytes() == before


@pytest.mark.parametrize("asked", ["train {data} --out", "predict {run} {data} --out", "duplicates {data} --out"])
def test_no_name_is_named(call_command, trained, phantoms, asked):
    """As a shell gives it for a variable that is not set."""
    done = call_command(*asked.format(run=trained[0], data=phantoms).split(), "")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "the name of a" in done.stderr, done.stderr


def test_a_submission_is_not_written_over_its_sample(tmp_path):
    (tmp_path / "sample.csv").write_text("Id,Predicted\na,0\n")
    (tmp_path / "to.csv").symlink_to(tmp_path / "sample.csv")
    with pytest.raises(StorageError, match="is what is read"):
        write_submission(tmp_path / "to.csv", tmp_path / "sample.csv", ["a"], [[1] + [0] * 27])
    assert (tmp_path / "sample.csv").read_text() == "Id,Predicted\na,0\n"


def test_a_run_is_written_through_a_link(call_command, phantoms, tmp_path):
    """To an empty folder; until it is whole it lies beside the folder, not beside the link."""
    (tmp_path / "there").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "empty")
    from protein_atlas.train.resume import UnfinishedRun

    assert UnfinishedRun.of(tmp_path / "run").path == tmp_path / "empty.unfinished"
    done = call_command("simulate", tmp_path / "run", "--n", 4, "--size", 32)
    assert done.returncode == 0 and (tmp_path / "run").is_symlink(), done.stderr
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["train", "train.csv"]


@pytest.mark.parametrize("asked", [
    "pack {data} {new}", "pack {data} {store} --append", "train {data} -o {new} --epochs 1 --workers 0",
    "predict {run} {data} -o {new}.csv --workers 0", "export {run} {new}", "export {run} {new}.zip", "report {run}",
    "predict {run} {data} -o {new} --engine ray",
])  # fmt: skip
def test_no_work_begins_without_room(call_command, trained, phantoms, tmp_path, monkeypatch, asked):
    """Where at least so many bytes are needed that they are not there, and that is known."""
    from protein_atlas.data.packing import pack_images

    pack_images(phantoms, tmp_path / "store", ids=["phantom-0-00001"], workers=1)
    free = shutil.disk_usage(tmp_path)._replace(free=2000)
    monkeypatch.setattr("protein_atlas.system.files.shutil.disk_usage", lambda place: free)
    places = {"data": phantoms, "run": trained[0], "store": tmp_path / "store", "new": tmp_path / "new"}
    before = sorted(tmp_path.rglob("*"))
    done = call_command(*asked.format(**places).split())
    assert done.returncode == 2 and "bytes are needed, 2,000 are free in " in done.stderr, done
    assert sorted(tmp_path.rglob("*")) == before


def test_abandoned_parts_make_room(tmp_path, monkeypatch):
    """What a killed process left is swept before it is asked how much is free."""
    left = tmp_path / ".x.0123456789abcdef.part"
    left.mkdir()
    usage = shutil.disk_usage(tmp_path)
    now = lambda _: usage._replace(free=0 if left.exists() else 10**9)  # noqa: E731
    monkeypatch.setattr("protein_atlas.system.files.shutil.disk_usage", now)
    settle(tmp_path / "x", folder=True, room=10**6)


def test_a_store_that_cannot_grow_is_not_appended_to(tmp_path, phantoms):
    """It is known before an image is read."""
    from protein_atlas.data.packing import pack_images

    open_to_all(tmp_path)
    pack_images(phantoms, tmp_path / "store", ids=["phantom-0-00001"], workers=1)
    call = f"append_images('/no/such/images', {str(tmp_path / 'store')!r})"
    done = as_nobody(call, "from protein_atlas.data.packing import append_images")
    assert done.returncode == 1 and "nothing can be written in" in done.stderr, done.stderr


def test_a_killed_export_is_swept(trained, tmp_path):
    """Of a zip, too: what is not whole lies where the next looks for it."""
    out = str(tmp_path / "model.zip")
    code = f"with new_bundle({out!r}): Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(100)"
    code = f"import time\nfrom pathlib import Path\nfrom protein_atlas.vision.network import new_bundle\n{code}"
    killed(code, tmp_path, "ready")
    assert len(list(tmp_path.glob(".model.zip.*.part"))) == 1
    settle(tmp_path / "other.csv")
    assert [path.name for path in tmp_path.glob(".*.part")] == []


@pytest.mark.parametrize("out", ["s3://bucket/x", "file:///tmp/x", "http://me:secret@host/x", "~/x", "~nobody/x"])
def test_no_folder_is_made_of_a_url_or_a_tilde(call_command, trained, phantoms, tmp_path, monkeypatch, out):
    """Where only a place on this machine will do."""
    monkeypatch.chdir(tmp_path)
    run, data = trained[0], phantoms / "train"
    for arguments in (("simulate", out), ("train", phantoms, f"--out={out}"), ("duplicates", data, f"--out={out}.csv"),
                      ("predict", run, data, f"--out={out}.csv"), ("export", run, out), ("report", run, f"--out={out}"),
                      ("compare", run, run, f"--out={out}"), ("demo", f"--out={out}")):  # fmt: skip
        done = call_command(*arguments)
        assert done.returncode == 2, (arguments, done)
        assert "is a URL, a path of this machine" in done.stderr or "there is no folder '~" in done.stderr, done.stderr
        assert "secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []
