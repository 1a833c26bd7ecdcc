"""Public images of the Human Protein Atlas, from a host of these tests: whole, going on, politely, all named."""
import hashlib
import io
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE
from PIL import Image
from test_commands import check_quiet, check_refusal

import protein_atlas.fetch.folder as folder_module
from protein_atlas.data.labels import LOCATIONS, read_labels
from protein_atlas.data.sources import open_images
from protein_atlas.fetch.atlas import Atlas
from protein_atlas.fetch.folder import fetch_fields
from protein_atlas.fetch.hpa import fetch_hpa
from protein_atlas.fetch.tables import table_fields
from protein_atlas.system.errors import StorageError
from protein_atlas.testing import FileServer

DATA = Path(os.environ.get("PROTEIN_ATLAS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
GENES = {f"ENSG{n:011}": f"GENE{n}" for n in range(1, 13)}


def jpeg(lit: tuple[int, int, int], size: int = 32, seed: int = 0) -> bytes:
    """A picture of one stain in its colour, as the atlas serves it."""
    gray = np.random.default_rng(seed).integers(0, 255, (size, size), np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([gray * on for on in lit], axis=-1)).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


class Host(FileServer):
    """A server that looks like the atlas: twelve genes, of each an antibody in two cell lines with two fields each."""

    def open(self, picture_size: int = 32) -> "Host":
        hits = [{"Gene": name, "Ensembl": gene} for gene, name in GENES.items()]
        self.files["api/search_download.php"] = json.dumps(hits).encode()
        for number, gene in enumerate(GENES, start=1):
            self.files[f"{gene}.xml"] = self.entry(gene, number).encode()
            for field in ("1_A1_1", "1_A1_2", "2_B1_1", "2_B1_2"):
                for place, (color, lit) in enumerate(COLORS.items()):
                    name = f"images/{number}/{field}_{color}.jpg"
                    self.files[name] = jpeg(lit, picture_size, 10 * number + place)
        return self

    def entry(self, gene: str, number: int, data: str | None = None) -> str:
        shown = LOCATIONS[number % 3].lower()
        data = data or "".join(
            self.data(number, line, fields, shown, "vesicles")
            for line, fields in (("U-2 OS", ("1_A1_1", "1_A1_2")), ("A-431", ("2_B1_1", "2_B1_2")))
        )
        return (
            f'<?xml version="1.0"?><proteinAtlas><entry version="25.0"><name>{GENES[gene]}</name>'
            f'<identifier id="{gene}" db="Ensembl"/><antibody id="HPA{number:06}"><cellExpression source="HPA" '
            f'technology="ICC/IF"><subAssay type="human"><verification type="validation">approved</verification>{data}'
            "</subAssay></cellExpression></antibody></entry></proteinAtlas>"
        )

    def data(self, number: int, line: str, fields: tuple[str, ...], *locations: str) -> str:
        images = "".join(
            f'<image imageType="sampleImage"><imageUrl>{self.url}/images/{number}/{field}_blue_red_green.jpg</imageUrl>'
            "</image>" for field in fields
        )  # fmt: skip
        said = "".join(f"<location>{name}</location>" for name in locations)
        return f"<data><cellLine>{line}</cellLine>{said}<assayImage>{images}</assayImage></data>"

    def asked_for(self, ending: str = "") -> list[str]:
        return [name for name, _ in self.asked if name.endswith(ending)]


@pytest.fixture
def host():
    with Host({}).listening() as server:
        yield server.open()


def same_images(one: Path, two: Path) -> bool:
    return {path.name: path.read_bytes() for path in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


# What comes


def test_fetched_images_are_trained_on_packed_and_predicted(call_command, host, tmp_path):
    out = tmp_path / "atlas"
    wanted = [word for gene in GENES.values() for word in ("--gene", gene)]
    done = call_command("fetch", "hpa", out, *wanted, "--server", host.url)
    assert done.returncode == 0, done.stderr
    assert f"{out}: 48 fields of four stains" in done.stdout
    assert "locations that are none of the 28 labels, and in how many fields: vesicles (48)" in done.stdout
    check_quiet(done)
    served = {name.removeprefix("images/").replace("/", "_"): c for name, c in host.files.items() if "images/" in name}
    assert {path.name: path.read_bytes() for path in (out / "train").iterdir()} == served
    table = read_labels(out / "train.csv")
    assert set(table.columns["Group"]) == set(GENES) and set(table.columns["CellLine"]) == {"U-2 OS", "A-431"}
    assert set(table.present().vocab) == set(LOCATIONS[:3])
    assert "Image credit: Human Protein Atlas" in (out / "LICENCE.txt").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "LICENCE.txt", "entries", "fetch.json", "left_out.csv", "train", "train.csv",
    ]  # fmt: skip
    done = call_command("pack", out / "train", tmp_path / "store", "--size", 32, "--workers", 1)
    assert done.returncode == 0, done.stderr
    done = call_command(
        "train", out, "--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--bs", 8, "--size", 32,
        "--workers", 0, "--group-column", "Group", "--valid-share", 0.5, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    split = pd.read_csv(tmp_path / "run" / "split.csv")
    groups = dict(zip(table.ids, table.columns["Group"], strict=True))
    assert (split.groupby(split["Id"].map(groups))["side"].nunique() == 1).all() and split["side"].nunique() == 2
    done = call_command("predict", "simulated", out / "train", "--out", tmp_path / "scores.csv")
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 48


def test_antibodies_cell_lines_and_limits(host, tmp_path):
    by_antibody = fetch_hpa(tmp_path / "a", antibodies=["HPA000002"], cell_lines=["U2OS"], server=host.url)
    assert sorted({path.name[:8] for path in (tmp_path / "a" / "train").iterdir()}) == ["2_1_A1_1", "2_1_A1_2"]
    assert (by_antibody.fields, by_antibody.left_out) == (2, ())
    gene = list(GENES)[0]
    assert fetch_hpa(tmp_path / "b", genes=[gene], limit=3, server=host.url).fields == 3
    with pytest.raises(ValueError, match="the first HPA000099: the entries of its genes show no field of this"):
        fetch_hpa(tmp_path / "c", antibodies=["HPA000099"], server=host.url)


def test_the_server_is_told_who_asks_over_few_connections(host, tmp_path, monkeypatch):
    at_once, most, lock = 0, 0, threading.Lock()
    real = folder_module.download

    def counted(*arguments, **options):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        try:
            return real(*arguments, **options)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setattr(folder_module, "download", counted)
    fetch_hpa(tmp_path / "a", genes=list(GENES)[:2], server=host.url)
    assert most == 2
    assert all(headers["User-Agent"].startswith("protein_atlas/0.") for _, headers in host.asked)
    assert len(host.asked_for(".jpg")) == 32


# What does not come


def test_what_the_atlas_lacks_or_sends_wrong_is_named(call_command, host, tmp_path):
    """Every kind of wrong picture, each in a field of its own: none of it becomes an image."""
    del host.files["images/1/1_A1_1_yellow.jpg"]
    host.files["images/1/1_A1_2_red.jpg"] = b"<html>Back soon</html>"
    host.files["images/1/2_B1_1_green.jpg"] = host.files["images/1/2_B1_1_green.jpg"][:-300]
    host.files["images/1/2_B1_2_blue.jpg"] = jpeg(COLORS["blue"], 16)
    several = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    file = io.BytesIO()
    several.save(file, "JPEG")
    host.files["images/2/1_A1_1_red.jpg"] = file.getvalue()
    gene, second, *_ = GENES
    out = tmp_path / "atlas"
    words = ("fetch", "hpa", out, "--gene", gene, "--gene", second, "--gene", "ENSG00000000099", "--server", host.url)
    done = call_command(*words)
    assert done.returncode == 0, done.stderr
    assert "3 fields of four stains" in done.stdout and "6 left out, all named in left_out.csv" in done.stdout
    left = pd.read_csv(out / "left_out.csv").set_index("Id")
    reasons = {
        "ENSG00000000099": "the atlas has no entry of this gene: 404",
        "1_1_A1_1": "its picture of yellow is not there: 404",
        "1_1_A1_2": "what was sent is no picture of one stain: 1_1_A1_2_red.jpg: not an image file that can be read",
        "1_2_B1_1": "what was sent is no picture of one stain: 1_2_B1_1_green.jpg: damaged or truncated",
        "1_2_B1_2": "its stains are of several sizes: red 32 x 32, green 32 x 32, blue 16 x 16, yellow 32 x 32",
        "2_1_A1_1": "what was sent is no picture of one stain: 2_1_A1_1_red.jpg: a colour picture",
    }  # fmt: skip
    assert set(left.index) == set(reasons)
    for name, reason in reasons.items():
        assert left.loc[name, "Reason"].startswith(reason)
    assert left.loc["1_1_A1_1", "Address"] == f"{host.url}/images/1/1_A1_1_yellow.jpg"
    ids = ["2_1_A1_2", "2_2_B1_1", "2_2_B1_2"]
    assert list(read_labels(out / "train.csv").ids) == ids == list(open_images(out / "train").ids)
    # Once the host has it, the same command takes it, and asks for nothing else that is there.
    host.files["images/1/1_A1_1_yellow.jpg"] = jpeg(COLORS["yellow"])
    host.asked.clear()
    assert call_command(*words).returncode == 0
    assert list(read_labels(out / "train.csv").ids) == ["1_1_A1_1", *ids]
    assert not [name for name in host.asked_for(".jpg") if name.startswith(("images/2/1_A1_2", "images/2/2_B1"))]


def test_fields_without_a_label_are_named_and_not_asked_for(host, tmp_path):
    gene = list(GENES)[0]
    data = host.data(1, "U-2 OS", ("1_A1_1",), "vesicles", "nucleus") + host.data(1, "A-431", ("2_B1_1",))
    data += host.data(1, "HeLa", ("1_A1_2",), "Cytosol")
    host.files[f"{gene}.xml"] = host.entry(gene, 1, data).encode()
    done = fetch_hpa(tmp_path / "a", genes=[gene], server=host.url)
    assert [(one.id, one.reason) for one in done.left_out] == [
        ("1_1_A1_1", "shows none of the 28 labels, but nucleus, vesicles"), ("1_2_B1_1", "no location is said of it"),
    ]  # fmt: skip
    assert done.others == {"nucleus": 1, "vesicles": 1}
    assert len(host.asked_for(".jpg")) == 4


def test_an_entry_may_not_lead_elsewhere(host, tmp_path):
    """Nor grow to gigabytes, nor open a file of this machine."""
    gene = list(GENES)[0]
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha" * 10}">' for n in range(9))
    for entities in (bomb, '<!ENTITY e8 SYSTEM "file:///etc/passwd">'):
        host.files[f"{gene}.xml"] = f"<!DOCTYPE a [{entities}]><entry>&e8;</entry>".encode()
        with pytest.raises(ValueError, match=r"ENSG00000000001\.xml: declares an entity, 'e[08]', as no entry"):
            fetch_hpa(tmp_path / hashlib.sha256(entities.encode()).hexdigest()[:8], genes=[gene], server=host.url)
    elsewhere = host.data(1, "U-2 OS", ("1_A1_1",), "cytosol").replace(host.url, "http://192.0.2.1")
    elsewhere += host.data(1, "U-2 OS", ("../../../x",), "cytosol") + host.data(1, "U-2 OS", ("1_A1_2",), "cytosol")
    host.files[f"{gene}.xml"] = host.entry(gene, 1, elsewhere).encode()
    done = fetch_hpa(tmp_path / "a", genes=[gene], server=host.url)
    assert (done.fields, len(done.left_out)) == (1, 2)
    assert "lies neither at proteinatlas.org nor on the server" in done.left_out[0].reason
    assert "is not of the form" in done.left_out[1].reason
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_dir()) == []


# What is stopped goes on


def test_a_connection_that_breaks_is_gone_on_with(host, tmp_path):
    gene = list(GENES)[0]
    fetch_hpa(tmp_path / "whole", genes=[gene], server=host.url, connections=1)
    host.asked.clear()
    host.cuts += [10**9, 200, 10**9, 300, 200]  # the entry is whole; the first picture, and the third, break off
    fetch_hpa(tmp_path / "a", genes=[gene], server=host.url, connections=1)
    asked = [(name, headers.get("Range")) for name, headers in host.asked]
    assert asked[1:3] == [("images/1/1_A1_1_red.jpg", None), ("images/1/1_A1_1_red.jpg", "bytes=200-")]
    assert same_images(tmp_path / "whole" / "train", tmp_path / "a" / "train")


def test_a_busy_server_is_waited_for(host, tmp_path):
    host.refusals += [(503, {"Retry-After": "1"}), (429, {"Retry-After": "1"})]
    started = time.monotonic()
    assert fetch_hpa(tmp_path / "a", genes=[list(GENES)[0]], server=host.url).fields == 4
    assert time.monotonic() - started >= 2


def test_a_server_that_asks_for_peace_is_left_in_peace(host, tmp_path, monkeypatch):
    """It ends there; the same call then asks for what is not there yet."""
    real, calls = folder_module.download, []

    def refused_at_the_fifth(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 5:
            host.refusals.append((503, {"Retry-After": "1000"}))
        return real(*arguments, **options)

    monkeypatch.setattr(folder_module, "download", refused_at_the_fifth)
    asked = {"genes": [list(GENES)[0]], "server": host.url, "connections": 1}
    with pytest.raises(StorageError, match=r"attempt 1 of 4\).*503.* asks to wait 1000 seconds") as error:
        fetch_hpa(tmp_path / "a", **asked)
    assert error.value.__notes__ == [
        f"1 of 4 fields are whole in {tmp_path / 'a'}; the same call goes on from there"
    ]
    assert len(host.asked_for(".jpg")) == len(calls) == 5 and not (tmp_path / "a" / "train.csv").exists()
    host.asked.clear()
    assert fetch_hpa(tmp_path / "a", **asked).fields == 4
    assert len(host.asked) == 12


def test_a_server_that_forbids_ends_it(call_command, host, tmp_path):
    host.refusals += [(403, {})]
    done = call_command("fetch", "hpa", tmp_path / "a", "--gene", list(GENES)[0], "--server", host.url)
    check_refusal(done, "ENSG00000000001.xml: the server answers 403 Forbidden")
    assert len(host.asked) == 1


def test_a_killed_fetch_goes_on(command, run_command, host, tmp_path):
    """SIGKILL at several moments: what was whole is not asked for again, and the end is as of one start."""
    host.open(picture_size=500)  # some 200 kB each, which come slowly
    wanted = [word for gene in list(GENES)[:2] for word in ("--gene", gene)]
    assert run_command("fetch", "hpa", tmp_path / "whole", *wanted, "--server", host.url).returncode == 0
    host.slow, out = 0.03, tmp_path / "killed"
    words = ["fetch", "hpa", out, *wanted, "--server", host.url]
    for pictures in (3, 17):
        host.asked.clear()
        before = {path.name for path in out.rglob("*.jpg") if not path.name.startswith(".")}
        process = subprocess.Popen([command, *map(str, words)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while len(host.asked_for(".jpg")) < pictures and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "train.csv").exists()
        again = {Path(name).parent.name + "_" + Path(name).name for name in host.asked_for(".jpg")}
        assert not again & before
    host.slow = 0
    done = run_command(*words)
    assert done.returncode == 0, done.stderr
    assert same_images(tmp_path / "whole" / "train", out / "train")
    tables = [pd.read_csv(place / "train.csv") for place in (tmp_path / "whole", out)]
    assert tables[0].equals(tables[1])
    assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_a_folder_belongs_to_one_question(call_command, host, tmp_path):
    gene, second, *_ = GENES
    out = tmp_path / "a"
    words = ("fetch", "hpa", out, "--server", host.url, "--gene", gene)
    assert call_command(*words).returncode == 0
    check_refusal(call_command(*words, "--gene", second), "was fetched with genes ['ENSG00000000001'], now")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    check_refusal(call_command(*words[:2], tmp_path / "b", *words[3:]), "exists and is not an empty folder")
    check_refusal(call_command("fetch", "hpa", tmp_path / "c"), "which images of the atlas is not said")
    check_refusal(call_command("fetch", "idr", tmp_path / "c", "--gene", gene), "'idr' is no source of public images")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# By a table; real ones where they are


def test_by_a_table(call_command, host, tmp_path):
    rows = ["Id,Gene,CellLine,Target", f"1_1_A1_1,{list(GENES)[0]},U-2 OS,25 0", f"2_1_A1_1,{list(GENES)[1]},A-431,2"]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    words = ("--table", tmp_path / "table.csv", "--server", host.url)
    done = call_command("fetch", "hpa", tmp_path / "a", *words, "--cell-line", "U2OS")
    assert done.returncode == 0, done.stderr
    frame = read_labels(tmp_path / "a" / "train.csv").frame()
    assert frame[["Id", "Target", "Group"]].values.tolist() == [["1_1_A1_1", "Nucleoplasm;Cytosol", list(GENES)[0]]]
    assert not host.asked_for(".xml")
    (tmp_path / "table.csv").write_text("Id,Target\n1_1_A1_1,cytosole\n")
    check_refusal(call_command("fetch", "hpa", tmp_path / "b", *words), "table.csv: row 1: unknown label 'cytosole'")
    assert not (tmp_path / "b").exists()


def test_tables_of_version_18_are_read():
    path = DATA / "tables" / "hpa_v18_genes.csv"
    if not path.is_file():
        pytest.skip(f"no real data: {path} does not exist (PROTEIN_ATLAS_DATA names its folder)")
    fields, at_odds = table_fields(path, "https://host")
    assert (len(fields), len(at_odds)) == (75_040 - 148, 148)
    reasons = {one.id: one.reason for one in at_odds}
    expected = "entries of ENSG00000008128 and ENSG00000248333 say different things of it"
    assert reasons["73626_1606_F12_1"] == expected
    chosen, _ = table_fields(path, "https://host", antibodies=["HPA004109"])
    assert chosen and {one.address.rpartition("/")[0] for one in chosen} == {"https://host/4109"}
    table = DATA / "tables" / "hpa_v18_cell_lines.csv"
    assert len(table_fields(table, "https://host", cell_lines=["U2OS"])[0]) == 24_718


def test_pictures_of_the_atlas_are_taken_as_they_are(host, tmp_path):
    """Real ones, colour JPEGs of one stain, 1728 and 2048 pixels."""
    place = DATA / "public_fields"
    if not place.is_dir():
        pytest.skip(f"no real data: {place} does not exist (PROTEIN_ATLAS_DATA names its folder)")
    for path in (place / "train").iterdir():
        number, _, name = path.name.partition("_")
        host.files[f"images/{number}/{name}"] = path.read_bytes()
    fields, _ = table_fields(place / "train.csv", Atlas(host.url).images)
    folder = tmp_path / "a"
    folder.mkdir()
    done = fetch_fields(fields, [], folder, Atlas(host.url))
    assert done.fields + len(done.left_out) == len(fields) and done.fields >= 6
    assert all("is not there: 404" in one.reason for one in done.left_out), done.left_out
    images = open_images(folder / "train")
    assert len(images.ids) == done.fields
