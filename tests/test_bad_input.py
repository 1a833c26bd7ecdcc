"""Bad input, kind by kind, and what must be said of it; and input that is odd but right, and what must come of it.

Each row of a table makes its input in a folder of its own, where a small data set lies:

    images/a_red.png ... images/c_yellow.png    three images of 32 pixels
    data/train.csv, data/train                  their label table (labels 0, 1, 2), and a link to them
    many/train.csv, many/train                  forty images (labels 0 and 1 in turn), links to the first three:
                                                where `many` is called, since 160 links take a while
"""
import errno
import hashlib
import http.server
import os
import pickle
import resource
import signal
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import torchvision
from conftest import PATIENCE, files_up_to
from PIL import Image
from test_commands import check_refusal
from test_faults import started_simulation

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import CHANNELS
from protein_atlas.data.labels import LOCATIONS, format_labels, read_labels
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.system.errors import NetworkError, ProteinAtlasError, ScoreError
from protein_atlas.system.files import sole_writer
from protein_atlas.vision.models import create_model

SIDE = 32
GRAY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
DARK = np.zeros((SIDE, SIDE), np.uint8)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The folder described above, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "data"):
        Path(folder).mkdir()
    for image_id in "abc":
        for shift, channel in enumerate(CHANNELS):
            Image.fromarray(np.roll(GRAY, 7 * shift + ord(image_id))).save(
                f"images/{image_id}_{channel}.png", compress_level=0
            )
    Path("data/train").symlink_to(tmp_path / "images")
    Path("data/train.csv").write_text("Id,Target\na,0\nb,1\nc,2\n")
    return tmp_path


# How the rows make their input


def green(name: str, write: Callable[[Path], object]) -> Callable[[], None]:
    """The green channel of image b is a file of this name, which `write` writes."""

    def make() -> None:
        Path("images/b_green.png").unlink()
        write(Path("images", name))

    return make


def table(content: str | bytes) -> Callable[[], None]:
    return lambda: Path("data/train.csv").write_bytes(content.encode() if isinstance(content, str) else content)


def rows(*lines: str, header: str = "Id,Target") -> Callable[[], None]:
    return table("\n".join([header, *lines]) + "\n")


def many(row: Callable[[int], dict], n: int = 40) -> Callable[[], None]:
    """Forty images, and the label table of n; `row` gives the columns beside Id."""

    def make() -> None:
        if not Path("many").exists():
            Path("many/train").mkdir(parents=True)
            for number, channel in product(range(40), CHANNELS):
                link = Path(f"many/train/i{number:02d}_{channel}.png")
                link.symlink_to(f"../../images/{'abc'[number % 3]}_{channel}.png")
        table = pd.DataFrame([{"Id": f"i{number:02d}", **row(number)} for number in range(n)])
        table.to_csv("many/train.csv", index=False)

    return make


in_turn = many(lambda number: {"Target": number % 2})


def cut(path: Path, share: float, write: Callable[[Path], object]) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path: Path, width: int, height: int, bits: int, colour: int, content: bytes = b"") -> None:
    """A PNG with this header (colour 0: gray, 2: RGB, 4: gray and alpha, 6: RGBA) and these bytes as its pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header) + (chunk(b"IDAT", zlib.compress(content, 9)) if content else b"") + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def changed_byte(path: Path) -> None:
    Image.fromarray(GRAY).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def huge_tiles(path: Path) -> None:
    tifffile.imwrite(path, GRAY, tile=(16, 16), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for tag in (file.pages[0].tags["TileWidth"], file.pages[0].tags["TileLength"]):
            struct.pack_into({3: "<H", 4: "<I"}[tag.dtype], content, tag.valueoffset, 65520)
    path.write_bytes(content)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: to be turned by a quarter
    Image.fromarray(GRAY).save(path, exif=exif)


def saved(pixels: np.ndarray, **options) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(pixels).save(path, **options)


def of_mode(mode: str) -> Callable[[Path], object]:
    return lambda path: Image.new(mode, (SIDE, SIDE)).save(path)


def tiff(pixels: np.ndarray, **options) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


# A. One channel file is bad: `duplicates` and `pack` name it, and say why

BAD_FILES = [
    ("truncated PNG", "b_green.png", lambda path: cut(path, 0.6, saved(GRAY)), "damaged or truncated"),
    ("truncated JPEG", "b_green.jpg", lambda path: cut(path, 0.8, saved(GRAY, quality=95)), "damaged or truncated"),
    ("truncated TIFF", "b_green.tif", lambda path: cut(path, 0.9, tiff(GRAY)), "damaged or truncated"),
    ("truncated in the header", "b_green.png", lambda path: cut(path, 0.01, saved(GRAY)), "not an image file"),
    ("zero bytes", "b_green.png", lambda path: path.touch(), "an empty file, of 0 bytes"),
    ("text named png", "b_green.png", lambda path: path.write_text("Id,Target\n"), "not an image file"),
    ("one byte changed", "b_green.png", changed_byte, "damaged or truncated"),
    ("PNG without pixels", "b_green.png", lambda path: png(path, SIDE, SIDE, 8, 0), "damaged or truncated"),
    ("PNG of width 0", "b_green.png", lambda path: png(path, 0, SIDE, 8, 0, b"\0" * SIDE), "not an image file"),
    ("GIF named png", "b_green.png", saved(GRAY, format="GIF"), "not an image file"),
    ("PostScript named png", "b_green.png", saved(GRAY, format="EPS"), "not an image file"),
    ("1 bit deep", "b_green.png", of_mode("1"), "mode '1'"),
    ("2 bits deep", "b_green.png", lambda path: png(path, SIDE, SIDE, 2, 0, bytes(9 * SIDE)), "2 bits"),
    ("4 bits deep", "b_green.png", lambda path: png(path, SIDE, SIDE, 4, 0, bytes(17 * SIDE)), "4 bits"),
    (
        "RGB of 16 bits, PNG", "b_green.png", lambda path: png(path, SIDE, SIDE, 16, 2, bytes(SIDE * (6 * SIDE + 1))),
        "16 bits",
    ),
    ("RGB of 16 bits, TIFF", "b_green.tif", tiff(np.dstack([DEEP] * 3), photometric="rgb"), "16 bits"),
    ("palette", "b_green.png", of_mode("P"), "a palette file of 1 bits"),
    ("gray and alpha", "b_green.png", saved(np.dstack([GRAY, GRAY])), "transparent pixels"),
    ("RGB and alpha", "b_green.png", saved(np.dstack([GRAY] * 4)), "transparent pixels"),
    (
        "alpha of 16 bits", "b_green.png", lambda path: png(path, SIDE, SIDE, 16, 6, bytes(SIDE * (8 * SIDE + 1))),
        "16 bits",
    ),
    ("colour", "b_green.png", saved(np.dstack([GRAY, GRAY.T, GRAY[::-1]])), "a colour picture"),
    ("CMYK JPEG", "b_green.jpg", of_mode("CMYK"), "mode 'CMYK'"),
    ("animated PNG", "b_green.png", saved(GRAY, save_all=True, append_images=[Image.fromarray(DARK)]), "2 pages"),
    ("TIFF of three pages", "b_green.tif", tiff(np.stack([GRAY] * 3), photometric="minisblack"), "3 pages"),
    (
        "two values a pixel", "b_green.tif",
        tiff(np.dstack([GRAY] * 2), photometric="minisblack", planarconfig="contig"), "2 values a pixel",
    ),
    ("float TIFF with NaN", "b_green.tif", tiff(np.full((SIDE, SIDE), np.nan, np.float32)), "32-bit floating point"),
    ("double TIFF", "b_green.tif", tiff(np.zeros((SIDE, SIDE))), "64-bit floating point"),
    ("negative values", "b_green.tif", tiff(np.full((SIDE, SIDE), -1, np.int16)), "value -1,"),
    ("signed bytes", "b_green.tif", tiff(np.full((SIDE, SIDE), -1, np.int8)), "signed 8-bit values go from 0"),
    ("values over 16 bits", "b_green.tif", tiff(np.full((SIDE, SIDE), 65536, np.int32)), "value 65536,"),
    (
        "unsigned values over 31 bits", "b_green.tif", tiff(np.full((SIDE, SIDE), 4_000_000_000, np.uint32)),
        "value 4000000000,",
    ),
    ("turned by EXIF, JPEG", "b_green.jpg", turned, "orientation 6"),
    ("turned by EXIF, PNG", "b_green.png", turned, "orientation 6"),
    ("turned by its TIFF tag", "b_green.tif", tiff(GRAY, extratags=[(274, "H", 1, 6, True)]), "orientation 6"),
    (
        "decompression bomb", "b_green.png", lambda path: png(path, 60_000, 60_000, 8, 0, bytes(10**6)),
        "over the pixel limit",
    ),
    (
        "header over the limit", "b_green.png", lambda path: png(path, 8193, 8192, 8, 0, bytes(10**6)),
        "8193 x 8192 pixels, over",
    ),
    ("TIFF with a huge tile", "b_green.tif", huge_tiles, "tiles of 4292870400 pixels"),
    ("other size than its channels", "b_green.png", saved(GRAY[:, :30]), "30 x 32 pixels, but b_red.png has 32 x 32"),
    ("one pixel among larger channels", "b_green.png", saved(GRAY[:1, :1]), "1 x 1 pixels, but"),
    ("folder named as an image", "b_green.png", Path.mkdir, "a folder"),
    ("pipe named as an image", "b_green.png", os.mkfifo, "a pipe or device"),
    ("link to a device", "b_green.png", lambda path: path.symlink_to("/dev/zero"), "a pipe or device"),
    ("broken link", "b_green.png", lambda path: path.symlink_to("gone.png"), "no such file; it is a link to gone.png"),
    ("link to itself", "b_green.png", lambda path: path.symlink_to(path.name), "symbolic links"),
]


@pytest.mark.parametrize(("kind", "name", "write", "says"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_bad_file(call_command, place, kind, name, write, says):
    green(name, write)()
    before = sorted(place.iterdir())
    check_refusal(call_command("duplicates", "images", "--out", "found.csv", "--workers", 1), f"images/{name}", says)
    assert sorted(place.iterdir()) == before
    check_refusal(call_command("pack", "images", "store", "--workers", 1), f"images/{name}", says)
    assert not Path("store").exists()


def test_unreadable_file(run_command, place):
    Path("images/b_green.png").chmod(0)
    if os.access("images/b_green.png", os.R_OK):
        pytest.skip("this user may read every file (root)")
    check_refusal(run_command("duplicates", "images", "--out", "found.csv"), "images/b_green.png", "Permission denied")


# B. Folders, tables, outputs, settings: each refused by one command


@dataclass(frozen=True)
class Refused:
    """A kind of bad input: what makes it, the command that meets it, and what its one line must say."""

    kind: str
    make: Callable[[], object]
    command: str
    says: tuple[str, ...]
    warnings: int = 0  # lines that come before it


def nothing() -> None:
    pass


PACK, TRAIN = "pack images store --workers 1", "train data --out run"
MANY = "train many --out run --arch small_resnet --epochs 1 --workers 0 --bs 8"

BAD_FOLDERS = [
    Refused("missing channel", lambda: Path("images/b_green.png").unlink(), TRAIN, ("data/train", "'b'", "green")),
    Refused("missing channel, pack", lambda: Path("images/b_green.png").unlink(), PACK, ("images", "'b'", "green")),
    Refused("missing image", rows("a,0", "d,1"), TRAIN, ("data/train", "'d'")),
    Refused(
        "two files for a channel", lambda: saved(GRAY)(Path("images/b_green.tif")), PACK,
        ("'b'", "b_green.png", "b_green.tif"),
    ),
    Refused(
        "two spellings of a suffix", lambda: saved(GRAY)(Path("images/b_green.PNG")), PACK,
        ("'b'", "b_green.PNG", "b_green.png"),
    ),
    Refused("no image files", lambda: Path("empty").mkdir(), "pack empty store", ("empty", "<id>_red.png")),
    Refused("no folder", nothing, "pack nowhere store", ("nowhere", "no such folder")),
    Refused(
        "a file for a folder", nothing, "duplicates data/train.csv --out x.csv",
        ("data/train.csv", "column 'red' is missing"),
    ),
    Refused(
        "line break in a file name", green("b\nb_green.png", saved(GRAY)), PACK,
        (r"'b\nb_green.png'", "cannot be printed"),
    ),
    Refused(
        "file name that is no text", green("b\udcff_green.png", saved(GRAY)), PACK, ("_green.png'", "cannot be printed")
    ),
    Refused(
        "mixed sizes", lambda: [saved(GRAY[:30])(path) for path in Path("images").glob("c_*")], PACK,
        ("c_red.png", "32 x 30 pixels"),
    ),
    Refused(
        "mixed sizes, not square", lambda: [saved(GRAY[:30])(path) for path in Path("images").glob("c_*")],
        "pack images store --size 16 --workers 1", ("c_red.png", "height 30 and width 32"),
    ),
    Refused(
        "16 bits over white level", green("b_green.png", saved(np.full_like(DEEP, 4096))), PACK + " --white-level 4095",
        ("b_green.png", "value 4096", "white_level = 4095"), warnings=1,
    ),
    Refused("8 bits where 16 are kept", nothing, PACK + " --bits 16", ("_red.png", "8-bit")),
    Refused("other channels", nothing, PACK + " --channels red,dapi", ("'a'", "dapi")),
    Refused("a channel twice", nothing, PACK + " --channels red,red", ("different names",)),
]

CLASSES = ",".join(["Id", *(f'"{name}"' for name in LOCATIONS)])
BAD_TABLES = [
    Refused("no table", lambda: Path("data/train.csv").unlink(), TRAIN, ("data", "train.csv")),
    Refused("empty table", table(""), TRAIN, ("train.csv", "empty")),
    Refused("header only", rows(), TRAIN, ("train.csv", "no rows")),
    Refused("no header", table("a,0\nb,1\n"), TRAIN, ("train.csv", "'Id' is missing", "'a', '0'")),
    Refused("semicolons below commas", table("Id,Target\na;0\n"), TRAIN, ("train.csv", "row 1", "1 fields", "2")),
    Refused("unquoted semicolons", table("Id;Target\na;0;5\n"), TRAIN, ("train.csv", "row 1", "3 fields", "in quotes")),
    Refused("UTF-16 unmarked", table("Id,Target\na,0\n".encode("utf-16-le")), TRAIN, ("train.csv", "UTF-16")),
    Refused("Latin-1", table("Id,Target\né,0\n".encode("latin-1")), TRAIN, ("train.csv", "line 2", "0xe9", "iconv")),
    Refused("spreadsheet", table(b"PK\x03\x04\x14\x00\x00\x00"), TRAIN, ("train.csv", "spreadsheet", "save it as CSV")),
    Refused(
        "old spreadsheet", table(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600)), TRAIN,
        ("train.csv", "spreadsheet", "save it as CSV"),
    ),
    Refused(
        "two columns of ids", rows("a,b,0", header="id,ID,Target"), TRAIN,
        ("ids may stand in column 'id' or 'ID'", "type --id-column id", "id_column='id'"),
    ),
    Refused(
        "two columns of labels", rows("a,0,1", header="Id,TARGET,label"), TRAIN,
        ("labels may stand in column 'TARGET' or 'label'", "type --label-column TARGET", "label_column='TARGET'"),
    ),
    Refused("a blank label", rows("a,0;"), TRAIN, ("row 1", "unknown label ''", "nothing stands before or after")),
    Refused("a blank label first", rows("a,|0"), TRAIN, ("row 1", "unknown label ''", "remove it")),
    Refused("open quote", rows('"a,0'), TRAIN, ("train.csv", "line 2")),
    Refused("no column Id", rows("a,0", header="Name,Target"), TRAIN, ("train.csv", "'Id'", "'Name', 'Target'")),
    Refused("no column Target", rows("a,0", header="Id,Class"), TRAIN, ("train.csv", "'Target'", "'Id', 'Class'")),
    Refused(
        "numbers of unknown labels", rows("a,0|5", header="ID,Label"), TRAIN,
        ("train.csv: row 1 (id 'a'): column 'Label' holds numbers, '0|5'", "--labels", "--label-column Label"),
    ),
    Refused(
        "named column of ids", rows("a,0"), TRAIN + " --id-column id",
        ("column 'id' is missing", "if 'Id' is meant", "type --id-column Id"),
    ),
    Refused(
        "named column of labels", rows("a,0"), TRAIN + " --label-column gene",
        ("column 'gene' is missing; its columns are 'Id', 'Target'", "said by --label-column"),
    ),
    Refused("two separators", rows("a,0;5|1"), TRAIN, ("row 1 (id 'a')", "'0;5|1' has both ';' and '|'")),
    Refused("a column twice", rows("a,0,1", header="Id,Target,Target"), TRAIN, ("train.csv", "'Target' occurs twice")),
    Refused("a field too many", rows("a,0", "b,1,2"), TRAIN, ("train.csv", "row 2", "3 fields")),
    Refused("a field too many in each row", rows("a,0,7", "b,1,7"), TRAIN, ("train.csv", "row 1", "3 fields")),
    Refused("a field too few", rows("a,0", "b"), TRAIN, ("train.csv", "row 2", "1 fields")),
    Refused("duplicate ids", rows("a,0", "b,1", "a,2"), TRAIN, ("train.csv", "row 3", "'a'", "row 1")),
    Refused("blank id", rows("a,0", " ,1"), TRAIN, ("train.csv", "row 2", "blank")),
    Refused("id with a line break", rows('"a\nb",0'), TRAIN, ("train.csv", "row 1", r"'a\nb'")),
    Refused("id with a zero byte", table(b"Id,Target\na\0,0\n"), TRAIN, ("train.csv", "zero bytes")),
    Refused("id that steers the terminal", rows("a\x1b[2J,0"), TRAIN, ("train.csv", "row 1", r"\x1b")),
    Refused("id out of the folder", rows("../images/a,0"), TRAIN, ("train.csv", "row 1", "'../images/a'")),
    Refused("id with a folder", rows("plate/a,0"), TRAIN, ("train.csv", "row 1", "'plate/a'")),
    Refused("label out of range", rows("a,28"), TRAIN, ("train.csv", "row 1", "28", "0 to 27")),
    Refused("negative label", rows("a,-1"), TRAIN, ("train.csv", "row 1", "'-1'", "whole number")),
    Refused("float label", rows("a,1.5"), TRAIN, ("train.csv", "row 1", "'1.5'", "whole number")),
    Refused("label with a decimal comma", rows('a,"16,0"'), TRAIN, ("train.csv", "row 1", "'16,0'", "'16 0'")),
    Refused("a list cut off", rows('a,"[16, 0"'), TRAIN, ("train.csv", "row 1", "'[16, 0'")),
    Refused("label twice", rows("a,3 3"), TRAIN, ("train.csv", "row 1", "twice")),
    Refused("unknown name", rows("a,Nucleolus"), TRAIN, ("train.csv", "row 1", "'Nucleolus'", "'Nucleoli'")),
    Refused("NaN as a label", rows("a,nan"), TRAIN, ("train.csv", "row 1", "'nan'")),
    Refused(
        "empty target", rows("a,0", "b,"), TRAIN,
        ("train.csv", "1 of 2 images have no label: row 2 (id 'b')", "type --allow-none"),
    ),
    Refused(
        "blank target", rows("a,0", "b, ", "c,"), TRAIN,
        ("train.csv", "2 of 3 images", "row 2 (id 'b'), row 3 (id 'c')"),
    ),
    Refused(
        "a class column, and no class", rows("a,1" + ",0" * 27, "b" + ",0" * 28, header=CLASSES), TRAIN,
        ("train.csv", "row 2 (id 'b')", "--allow-none"),
    ),
    Refused(
        "empty target, duplicates", rows("a,0", "b,"), "duplicates images --out x.csv --table data/train.csv",
        ("data/train.csv", "row 2 (id 'b')", "--allow-none"),
    ),
    Refused(
        "no image shows a label", many(lambda number: {"Target": ""}), MANY + " --allow-none",
        ("many/train.csv", "none of the labels"),
    ),
    Refused(
        "a class column of halves", rows("a,0.5" + ",0" * 27, header=CLASSES), TRAIN,
        ("row 1", "'Nucleoplasm'", "'0.5'"),
    ),
    Refused(
        "a class column missing", rows("a" + ",1" * 27, header=CLASSES.rsplit(",", 1)[0]), TRAIN,
        ("train.csv", "'Rods & rings'"),
    ),
    Refused("no column to group by", nothing, TRAIN + " --group-column Plate", ("train.csv", "'Plate'")),
    Refused(
        "one group only", many(lambda number: {"Target": number % 2, "Plate": "p"}), MANY + " --group-column Plate",
        ("1 groups",),
    ),
    Refused(
        "too few images for the folds", many(lambda number: {"Target": number % 2}, n=12), MANY,
        ("2 images", "at least 5", "--valid-share above 0.2", "more images"),
    ),
    Refused("two images", rows("a,0", "b,1"), TRAIN, ("0 images for validation", "at least 5")),
    Refused("ids of another form", nothing, MANY + " --hpa-groups plate", ("row 0", "'i00'")),
]


def in_the_way(path: str) -> Callable[[], None]:
    def make() -> None:
        Path(path).mkdir()
        Path(path, "mine.txt").write_text("keep me")

    return make


BAD_PLACES = [
    Refused("output folder is full", in_the_way("run"), MANY, ("run", "not an empty folder")),
    Refused(
        "output folder is a file", nothing, "pack images data/train.csv", ("data/train.csv", "not an empty folder")
    ),
    Refused("output folder below a file", nothing, "pack images data/train.csv/store", ("data/train.csv is a file",)),
    Refused("output folder without a name", nothing, "pack images .", ("name of a new folder",)),
    Refused("output file in no folder", nothing, "duplicates images --out nowhere/x.csv", ("nowhere",)),
    Refused(
        "output file is a link to no folder", lambda: Path("link").symlink_to("nowhere/deep"),
        "duplicates images --out link", ("link: is a link to ", "no folder ", "nowhere: make it, or remove the link"),
    ),
    Refused(
        "output file below a link to nothing", lambda: Path("link").symlink_to("nowhere"),
        "duplicates images --out link/x.csv", ("link/x.csv: link is a link to ", "nowhere: make it"),
    ),
    Refused(
        "store that would be read for the images", nothing, "pack images images/train --workers 1",
        ("images/train: a folder train in images is what is read instead", "another name"),
    ),
    Refused("output file is a folder", nothing, "duplicates images --out data", ("data", "is a folder")),
    Refused("output file is a device", nothing, "duplicates images --out /dev/null", ("/dev/null", "device")),
    Refused("negative seed", nothing, "simulate new --n 4 --seed -1", ("seed", "-1")),
    Refused("negative workers", nothing, "duplicates images --out x.csv --workers -1", ("workers", "-1")),
    Refused("unknown network", nothing, MANY + " --arch resnt18", ("'resnt18'", "resnet18")),
    Refused("label names twice", nothing, TRAIN + " --labels a,a", ("twice: a",)),
    Refused("negatives over 1", nothing, "simulate new --n 4 --negatives 1.5", ("negatives", "1.5")),
    Refused("more memory than there is", nothing, "simulate new --n 1 --size 10000000", ("new", "are needed")),
]


BAD_RUNS = [
    Refused(
        "empty cell of a group column",
        many(lambda number: {"Target": number % 2, "Plate": "" if number == 7 else number // 4}),
        MANY + " --group-column Plate", ("many/train.csv", "row 8", "'Plate'"),
    ),
    Refused(
        "one class only, on every image", many(lambda number: {"Target": 5}), MANY, ("every image", "Nuclear bodies")
    ),
    Refused(
        "images of one pixel", lambda: [saved(GRAY[:1, :1])(path) for path in Path("images").iterdir()], MANY,
        ("1 x 1",),
    ),
    Refused("unknown device", nothing, MANY + " --device gpu9", ("device", "gpu9")),
    Refused(
        "output file in no folder, before any work", nothing, "predict run images --out nowhere/x.csv", ("nowhere",)
    ),
]


@pytest.mark.parametrize("row", [*BAD_FOLDERS, *BAD_TABLES, *BAD_PLACES, *BAD_RUNS], ids=lambda row: row.kind)
def test_refused(call_command, place, row):
    if row.command.startswith(MANY):
        in_turn()
    row.make()
    before = sorted(place.iterdir())
    check_refusal(call_command(*row.command.split()), *row.says, warnings=row.warnings)
    left = [path.name for path in sorted(place.iterdir()) if path not in before]
    # What `pack` has read it keeps for the next call, and lists what it could not read: but there is no store.
    assert set(left) <= {".store.part", "store.unreadable.csv"}, left


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", ""), "DATA_DIR is empty"), (("train", "data", "--out", ""), "--out is empty"),
        (("train", "data", "--out="), "--out is empty"), (("train", "data", "--store", ""), "--store is empty"),
        (("predict", "run", ""), "IMAGES is empty"), (("predict", "", "images"), "MODEL is empty"),
        (("predict", "run", "images", "--also", "run", "--also", ""), "--also is empty"),
        (("duplicates", ""), "IMAGES is empty"), (("pack", "images", ""), "STORE is empty"),
        (("simulate", ""), "FOLDER is empty"), (("verify", ""), "PATH is empty"), (("report", ""), "is empty"),
        (("compare", "run", ""), "is empty"), (("export", "", "x"), "MODEL is empty"), (("app", ""), "MODEL is empty"),
        (("demo", "--out", ""), "--out is empty"),
    ],
    ids=lambda of: " ".join(map(repr, of)) if isinstance(of, tuple) else "",
)  # fmt: skip
def test_empty_texts(call_command, place, arguments, says):
    """What a shell makes of a variable that is not set."""
    before = sorted(place.iterdir())
    help_ = f"see protein_atlas {arguments[0]} --help"
    check_refusal(call_command(*arguments), says, "the name of a file, folder or choice is expected", help_)
    assert sorted(place.iterdir()) == before


def test_full_disk_in_a_training(call_command, place):
    """What is kept of it, and what to type."""
    in_turn()
    with files_up_to(100_000):
        done = call_command(*MANY.split())
    check_refusal(done, os.strerror(errno.EFBIG), "no epoch is kept", "start again without --resume")
    assert not Path("run").exists() and not Path("run.unfinished").exists()


# C. Outputs that another process writes, or the disk has no room for


@pytest.mark.parametrize("command", [MANY, "simulate run --n 4 --size 32", "pack images run --workers 1"])
def test_output_in_use(call_command, place, command):
    in_turn()
    with sole_writer("run.unfinished" if command == MANY else "run"):
        check_refusal(call_command(*command.split()), "run", "in use")
    assert not Path("run").exists() and not list(place.glob(".*"))


def test_store_in_use_by_an_append(call_command, place):
    assert call_command(*PACK.split()).returncode == 0
    with sole_writer("store"):
        check_refusal(call_command(*PACK.split(), "--append"), "store", "in use")
    assert call_command(*PACK.split(), "--append").returncode == 0
    assert len(ImageStore("store")) == 3


def test_output_in_use_by_another_process(command, call_command, tmp_path):
    process = started_simulation(command, tmp_path / "data")
    try:
        check_refusal(call_command("simulate", tmp_path / "data", "--n", 4, "--size", 32), "data", "in use")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    # The system has let the lock of the killed process go.
    assert call_command("simulate", tmp_path / "data", "--n", 4, "--size", 32).returncode == 0


@pytest.mark.parametrize(
    "arguments", ["simulate new --n 4 --size 32", PACK, "duplicates images --out found.csv --workers 1"]
)
def test_full_disk(command, place, arguments):
    """No file may grow over a few bytes, as on a disk that is full."""
    for path in Path("images").glob("a_*"):  # a copy, for `duplicates` to have something to write
        Path("images", path.name.replace("a_", "copy_")).symlink_to(path.name)
    before = sorted(place.iterdir())
    done = subprocess.run(
        [command, *arguments.split()], capture_output=True, text=True, timeout=PATIENCE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
    )  # fmt: skip
    check_refusal(done, os.strerror(errno.EFBIG))
    left = [path.name for path in sorted(place.iterdir()) if path not in before]
    assert set(left) <= {".store.part"}, left


def test_read_only_folder(run_command, place):
    Path("locked").mkdir(mode=0o500)
    if os.access("locked", os.W_OK):
        pytest.skip("this user may write into read-only folders (root)")
    for arguments in ("simulate locked/new --n 4", "pack images locked/store", "duplicates images --out locked/x.csv"):
        check_refusal(run_command(*arguments.split()), "locked", "Permission denied")


# D. Weights


class Touch:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def weights_of(network: str) -> Callable[[], None]:
    return lambda: torch.save(getattr(torchvision.models, network)(weights=None).state_dict(), "w.pth")


def truncated_weights() -> None:
    weights_of("squeezenet1_1")()
    os.truncate("w.pth", os.path.getsize("w.pth") // 2)


BAD_WEIGHTS = [
    Refused("no weights file", nothing, MANY + " --weights w.pth", ("w.pth", "no such")),
    Refused(
        "weights file is a folder", lambda: Path("w.pth").mkdir(), MANY + " --weights w.pth",
        ("w.pth", "no such weights file"),
    ),
    Refused("weights file truncated", truncated_weights, MANY + " --weights w.pth", ("w.pth", "not a file of weights")),
    Refused(
        "weights file empty", lambda: Path("w.pth").touch(), MANY + " --weights w.pth",
        ("w.pth", "not a file of weights"),
    ),
    Refused(
        "safetensors truncated", lambda: Path("w.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{}"),
        MANY + " --weights w.safetensors", ("w.safetensors", "not a file of weights"),
    ),
    Refused(
        "weights of another network", weights_of("squeezenet1_1"), MANY + " --weights w.pth",
        ("w.pth", "not the weights of"),
    ),
    Refused(
        "code for weights", lambda: Path("w.pth").write_bytes(pickle.dumps(Touch())), MANY + " --weights w.pth",
        ("w.pth", "not a file of weights", "else than tensors"),
    ),
    Refused(
        "code in a torch file", lambda: torch.save({"a": Touch()}, "w.pth"), MANY + " --weights w.pth",
        ("w.pth", "not a file of weights", "else than tensors"),
    ),
]


@pytest.mark.parametrize("row", BAD_WEIGHTS, ids=lambda row: row.kind)
def test_bad_weights(call_command, place, row):
    in_turn()
    row.make()
    done = call_command(*row.command.split())
    check_refusal(done, *row.says)
    assert len(done.stderr) < 600, "hundreds of layers listed"
    assert not Path("unpickled").exists() and not Path("run").exists()


def test_interrupted_download_of_weights(place, monkeypatch, capfd):
    """The server ends the connection half-way: an error that says so, no half file, and the next try works."""
    network = torchvision.models.squeezenet1_1(weights=None)
    torch.save(network.state_dict(), "weights.pth")
    content = Path("weights.pth").read_bytes()
    share = [0.5, 1.0]

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: int(len(content) * share.pop(0))])

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name = f"squeezenet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        monkeypatch.setenv("TORCH_HOME", str(place / "hub"))
        monkeypatch.setattr(
            torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value, "url",
            f"http://127.0.0.1:{server.server_port}/{name}",
        )
        with pytest.raises(NetworkError, match="squeezenet1_1 could not be downloaded or read .*hash.*weights='path'"):
            create_model(torchvision.models.squeezenet1_1, 5)
        assert not [path for path in Path("hub").rglob("*") if path.is_file()], "half a file is left"
        model = create_model(torchvision.models.squeezenet1_1, 5)
        server.shutdown()
    assert torch.equal(model[0][0][3].squeeze.weight, network.features[3].squeeze.weight)
    assert "\r" not in capfd.readouterr().err, "a progress bar, without a terminal"


def test_code_in_the_cache_of_downloads(place, monkeypatch):
    """A file that lies where the download would go is not checked against its hash: it is not unpickled either."""
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value
    cached = Path("hub/hub/checkpoints") / weights.url.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    torch.save({"a": Touch()}, cached)
    monkeypatch.setenv("TORCH_HOME", str(place / "hub"))
    with pytest.raises(NetworkError, match="squeezenet1_1 could not be downloaded or read"):
        create_model(torchvision.models.squeezenet1_1, 5)
    assert not Path("unpickled").exists()


# E. Thresholds, submissions: what the library refuses


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not a thresholds file"), ("[0.5]", "not a thresholds file"),
        ('{"thresholds": [0.5]}', "not a thresholds file"),
        ('{"rule": "fixed", "thresholds": {"a": 1.5}}', "threshold of a"),
        ('{"rule": "fixed", "thresholds": {"a": NaN}}', "threshold of a"),
        ('{"rule": "fixed", "thresholds": {"a": "half"}}', "half"),
        ('{"rule": "fixed", "thresholds": {"a": 0.5}, "allow_none": 1}', "allow_none must be true or false, found 1"),
        ('{"rule": "fixed", "thresholds": {}}', "vocabulary is empty"), ("[" * 100_000, "not a thresholds file"),
        ("\0", "not a thresholds file"),
    ],
    ids=["empty", "list", "no names", "over 1", "NaN", "text", "no choice", "no labels", "deep", "zero byte"],
)
def test_bad_thresholds(tmp_path, content, says):
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    with pytest.raises(ScoreError, match=says) as refused:
        Thresholds.load(path)
    assert str(path) in str(refused.value)


def test_thresholds_of_other_classes():
    thresholds = Thresholds([0.5, 0.5], ("a", "b"), "fixed")
    with pytest.raises(ScoreError, match="scores of 3 labels, thresholds of 2"):
        thresholds.decide(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ("Id,Predicted\na,0\nd,0\n", "'d'"), ("Id,Predicted\n../a,0\n", "'../a'"),
        ("Name,Predicted\na,0\n", "'Id' is missing"), ("Id,Predicted\na,0\na,0\n", "twice"), ("", "sample.csv"),
        ("Id,Predicted\n", "no rows"), ("Id,Predicted\n\0a,0\n", "zero bytes"), ("Id;Predicted\na;0;1\n", "3 fields"),
        ("Id,Predicted\na,0,1\n", "3 fields"),
    ],
    ids=[
        "missing image", "out of the folder", "no column Id", "id twice", "empty", "header only", "zero byte",
        "semicolons", "a field too many",
    ],
)
def test_bad_submission(call_command, trained, place, sample, says):
    Path("sample.csv").write_text(sample)
    done = call_command("predict", trained[0], "images", "--submission", "sample.csv", "--out", "s.csv")
    check_refusal(done, says, warnings=done.stderr.count("protein_atlas: warning: images: "))  # noise, where it is read
    assert not Path("s.csv").exists()


# F. --debug, and faults of the program itself


def test_debug_shows_where_an_error_comes_from(call_command, place):
    check_refusal(call_command("verify", "images"), "no packed store")
    done = call_command("--debug", "verify", "images")
    assert done.returncode == 2 and "Traceback" in done.stderr and "ImageError" in done.stderr
    assert done.stderr.splitlines()[-1] == "protein_atlas: images: no packed store (there is no zarr.json in it)"


def test_fault_of_the_program(call_command, place, monkeypatch):
    def broken(*arguments):
        raise KeyError("line\nbreak")

    monkeypatch.setattr("protein_atlas.data.packing.verify_store", broken)
    done = call_command("verify", "images")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "protein_atlas: KeyError" in done.stderr and "--debug" in done.stderr
    assert "Traceback" in call_command("--debug", "verify", "images").stderr


def test_line_break_in_a_folder_name(call_command, place):
    Path("two\nlines").mkdir()
    check_refusal(call_command("pack", "two\nlines", "store"), "two lines: no image files")


# G. Odd, but right: nothing is lost


def renamed(new: Callable[[str], str]) -> Callable[[], None]:
    return lambda: [path.rename(path.with_name(new(path.name))) for path in list(Path("images").iterdir())]


def linked() -> None:
    Path("images").rename("elsewhere")
    Path("images").mkdir()
    for path in Path("elsewhere").iterdir():
        Path("images", path.name).symlink_to(Path("..", path))


def every(pixels: Callable[[np.ndarray], np.ndarray], channel: str = "*") -> Callable[[], None]:
    """All files of a channel hold what `pixels` makes of theirs."""

    def make() -> None:
        for path in Path("images").glob(f"*_{channel}.png"):
            saved(pixels(np.asarray(Image.open(path))).astype(np.uint8))(path)

    return make


def interlaced(path: Path) -> None:
    """Adam7: seven passes over ever finer grids."""
    lines = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
    ):
        lines += b"".join(b"\0" + bytes(line) for line in GRAY[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 1)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def leave_files_of_others() -> None:
    green("b_green.png", saved(GRAY))()
    saved(GRAY)(Path("images/b_white.png"))
    for name in ("Thumbs.db", ".DS_Store", "._b_green.png", "notes.txt", "b_green.png.bak", "green.png"):
        Path("images", name).write_bytes(b"\0\5\x16\7")


RED = np.dstack([DARK, GRAY, DARK])
SIXTEEN = ((DEEP.astype(np.uint64) * 255 + 32767) // 65535).astype(np.uint8)
ODD_IMAGES = [
    ("as the others", green("b_green.png", saved(GRAY)), "b", GRAY),
    ("upper-case suffix", green("b_green.PNG", saved(GRAY)), "b", GRAY),
    ("TIFF among PNGs", green("b_green.TIFF", tiff(GRAY)), "b", GRAY),
    ("gray of 16 bits among 8", green("b_green.png", saved(DEEP)), "b", SIXTEEN),
    ("big-endian TIFF", green("b_green.tif", tiff(DEEP.astype(">u2"), byteorder=">")), "b", SIXTEEN),
    (
        "BigTIFF in LZW tiles",
        green("b_green.tif", tiff(DEEP, bigtiff=True, tile=(16, 16), compression="lzw", predictor=True)), "b", SIXTEEN,
    ),
    ("white is zero", green("b_green.tif", tiff(~GRAY, photometric="miniswhite")), "b", GRAY),
    ("white is zero, 16 bits", green("b_green.tif", tiff(~DEEP, photometric="miniswhite")), "b", SIXTEEN),
    ("RGB with one lit colour", green("b_green.png", saved(RED)), "b", GRAY),
    (
        "RGB in planes",
        green("b_green.tif", tiff(np.moveaxis(RED, -1, 0), photometric="rgb", planarconfig="separate")), "b", GRAY,
    ),
    ("interlaced PNG", green("b_green.png", interlaced), "b", GRAY),
    ("PNG with a transparent gray level", green("b_green.png", saved(GRAY, transparency=5)), "b", GRAY),
    ("images of one pixel", every(lambda pixels: GRAY[:1, :1]), "b", GRAY[:1, :1]),
    ("blanks in names", renamed(lambda name: f"my {name}"), "my b", np.roll(GRAY, 7 + ord("b"))),
    ("Unicode in names", renamed(lambda name: f"Zelle_ä日🔬_{name}"), "Zelle_ä日🔬_b", np.roll(GRAY, 7 + ord("b"))),
    ("quotes and commas in names", renamed(lambda name: f'"x", {name}'), '"x", b', np.roll(GRAY, 7 + ord("b"))),
    ("a formula for a name", renamed(lambda name: f"=1+1{name}"), "=1+1b", np.roll(GRAY, 7 + ord("b"))),
    ("an option for a name", renamed(lambda name: f"--{name}"), "--b", np.roll(GRAY, 7 + ord("b"))),
    ("links out of the folder", linked, "b", np.roll(GRAY, 7 + ord("b"))),
    ("surplus channel and files of others", leave_files_of_others, "b", GRAY),
]


@pytest.mark.parametrize(("kind", "make", "image_id", "pixels"), ODD_IMAGES, ids=[row[0] for row in ODD_IMAGES])
def test_odd_but_right_images(call_command, place, kind, make, image_id, pixels):
    make()
    done = call_command(*PACK.split())
    assert done.returncode == 0 and not done.stderr, done.stderr
    store = ImageStore("store")
    assert len(store) == 3
    np.testing.assert_array_equal(store.open(image_id)[1], pixels)
    np.testing.assert_array_equal(ImageFolder("images").open(image_id)[1], pixels)
    done = call_command("duplicates", "images", "--out", "found.csv", "--workers", 1)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert list(pd.read_csv("found.csv").columns[:2]) == ["first", "second"]


# Nothing in the files is wrong, so nothing refuses them; what is lost is said.
DIM = "green: 99.9 % of the pixels lie below 0.098 of full brightness. Look at the files of green"
SAID_IMAGES = [
    ("a stain that is black", every(lambda pixels: pixels * 0, "green"), "images", "green is black in 3 of 3 images"),
    ("a stain black in one image of three", green("b_green.png", saved(DARK)), "images", "green is black in 1 of 3"),
    ("a stain of one level", every(lambda pixels: pixels * 0 + 90, "green"), "images", "green is of one level in 3 of"),
    ("a stain at a tenth of its brightness", every(lambda pixels: pixels // 10, "green"), "many", DIM),
    ("all-black images", every(lambda pixels: pixels * 0), "images", "red is black in 3 of 3 images; green is black"),
]


@pytest.mark.parametrize(("kind", "make", "source", "says"), SAID_IMAGES, ids=[row[0] for row in SAID_IMAGES])
def test_packed_and_said(call_command, place, kind, make, source, says):
    in_turn()
    make()
    done = call_command("pack", source, "store", "--workers", 1)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 0 and line.startswith("protein_atlas: warning: ") and says in line, done.stderr
    assert len(ImageStore("store")) == {"images": 3, "many": 40}[source]


@pytest.mark.parametrize("kind", ["a stain that is black", "a stain at a tenth of its brightness"])
def test_trained_and_said(call_command, place, kind):
    make, says = next((row[1], row[3].partition(" in ")[0]) for row in SAID_IMAGES if row[0] == kind)
    in_turn()
    make()
    done = call_command(*MANY.split())
    assert done.returncode == 0 and done.stdout.count(f"warning: {says}") == 1, done.stdout + done.stderr


ODD_TABLES = [
    ("byte order mark", "\ufeffId,Target\na,0\nb,1 2\n"),
    ("CRLF", "Id,Target\r\na,0\r\nb,1 2\r\n"),
    ("CR", "Id,Target\ra,0\rb,1 2\r"),
    ("no line end at the end", "Id,Target\na,0\nb,1 2"),
    ("blank lines", "Id,Target\n\na,0\n\n\nb,1 2\n\n"),
    ("quotes", '"Id","Target"\n"a","0"\n"b","1 2"\n'),
    ("further columns", 'Plate,Id,Note,Target\np,a,"x, y",0\nq,b,,1 2\n'),
    ("labels in other order", "Id,Target\na,0\nb,2 1\n"),
    ("blanks around labels", "Id,Target\na, 0 \nb,1  2\n"),
    ("leading zeros", "Id,Target\na,00\nb,01 02\n"),
    ("names", "Id,Target\na,Nucleoplasm\nb,Nucleoli;Nuclear membrane\n"),
    ("names with bars", "Id,Target\na,Nucleoplasm\nb,Nucleoli | Nuclear membrane\n"),
    ("blanks around the names of columns", " Id , Target\na,0\nb,1 2\n"),
    ("sep= in quotes", '"sep=;"\r\nId;Target\r\na;0\r\nb;1 2\r\n'),
    ("a column a class", f"{CLASSES}\na,1{',0' * 27}\nb,0,1,1{',0' * 25}\n"),
]


@pytest.mark.parametrize(("kind", "content"), ODD_TABLES, ids=[row[0] for row in ODD_TABLES])
def test_odd_but_right_tables(tmp_path, kind, content):
    path = tmp_path / "train.csv"
    path.write_bytes(content.encode())
    found = read_labels(path)
    assert found.ids.tolist() == ["a", "b"]
    assert [format_labels(row) for row in found.targets] == ["0", "1 2"]
    again = read_labels(found.save(tmp_path / "again.csv"))
    assert again.ids.tolist() == ["a", "b"] and (again.targets == found.targets).all()
    assert again.columns.to_numpy().tolist() == found.columns.to_numpy().tolist()


def test_a_store_among_the_images_is_not_taken_for_them(call_command, place):
    """What reads the folder reads its files, as before."""
    done = call_command("pack", "images", "images/st", "--workers", 1)
    assert done.returncode == 0, done.stderr
    for name in "abc":
        Path(f"images/{name}_green.png").write_bytes(Path(f"images/{name}_red.png").read_bytes())
    np.testing.assert_array_equal(ImageFolder("images").open("a")[1], ImageFolder("images").open("a")[0])
    for command in ("pack images again --workers 1", "pack data third --workers 1", "duplicates images --out x.csv"):
        done = call_command(*command.split())
        assert done.returncode == 0, done.stderr
    for store in ("again", "third"):
        assert ImageStore(store).ids == ["a", "b", "c"]
        np.testing.assert_array_equal(ImageStore(store).open("a")[1], ImageStore(store).open("a")[0])
    assert (ImageStore("images/st").open("a")[1] != ImageStore("images/st").open("a")[0]).any()


def test_ids_in_other_order(call_command, trained, place):
    """A submission has the sample's order; what is predicted for an image does not depend on it."""
    predicted = {}
    for order in ("abc", "cab"):
        Path("sample.csv").write_text("".join(["Id,Predicted\r\n", *(f"{image_id},0\r\n" for image_id in order)]))
        done = call_command("predict", trained[0], "images", "--submission", "sample.csv", "--out", "s.csv")
        assert done.returncode == 0, done.stderr
        table = pd.read_csv("s.csv", dtype=str)
        assert table["Id"].tolist() == list(order)
        predicted[order] = dict(zip(table["Id"], table["Predicted"]))
    assert predicted["abc"] == predicted["cab"]


ODD_TARGETS = [
    ("a class on every image", lambda number: {"Target": f"0 {1 + number % 2}"}, 3, ""),
    (
        "a class on one image", lambda number: {"Target": "0 5" if number == 0 else number % 2}, 3,
        "warning: 1 of 3 labels have no positive image to fit a threshold on (Nuclear bodies)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "labels", "warned"), ODD_TARGETS, ids=[row[0] for row in ODD_TARGETS])
def test_odd_but_right_targets(call_command, place, kind, row, labels, warned):
    many(row)()
    done = call_command(*MANY.split())
    assert done.returncode == 0 and (warned in done.stderr if warned else not done.stderr), done.stderr
    assert f"40 images, {labels} labels" in done.stdout
    assert len(pd.read_csv("run/labels.csv")) == labels


def test_number_of_kinds():
    refused = [row[0] for row in BAD_FILES] + [
        row.kind for row in (*BAD_FOLDERS, *BAD_TABLES, *BAD_PLACES, *BAD_WEIGHTS)
    ]
    assert len(refused) == len(set(refused)), "a kind stands in the tables twice"
    assert len(refused) >= 60
    assert issubclass(ScoreError, ProteinAtlasError)
