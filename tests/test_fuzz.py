"""Ten thousand damaged files for each reader: it refuses them with its own error, or reads something sane.

The files go through the readers in a process of its own: a decoder that crashes, asks for gigabytes, hangs, or prints
what nobody asked for is seen from here. By hand, with other seeds or more files:

    python tests/test_fuzz.py images 100000 7
"""
import io
import logging
import os
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import PATIENCE
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from protein_atlas.data.images import Layout, open_image
from protein_atlas.data.labels import LOCATIONS, read_labels
from protein_atlas.system.errors import ImageError, LabelError
from protein_atlas.system.files import id_fault

FILES = 500
MAX_PIXELS = 2**20
MEMORY = 4 * 2**30  # of address space: the libraries take 1 GiB of it before the first file

# Whole files, to be damaged

GRAY = (np.add.outer(np.arange(24), np.arange(18) ** 2) % 251).astype(np.uint8)
DEEP = GRAY.astype(np.uint16) * 257
RED = np.dstack([GRAY, GRAY * 0, GRAY * 0])


def picture(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def images() -> list[bytes]:
    tiles = {"tile": (16, 16)}
    return [
        picture(GRAY, "PNG"), picture(DEEP, "PNG"), picture(RED, "PNG"), picture(GRAY, "PNG", transparency=3),
        picture(GRAY, "JPEG"), picture(GRAY, "JPEG", progressive=True), picture(RED, "JPEG"), tiff(GRAY), tiff(DEEP),
        tiff(RED, photometric="rgb"), tiff(GRAY, photometric="miniswhite"), tiff(DEEP.astype(">u2"), byteorder=">"),
        tiff(DEEP.astype(np.int32)), tiff(GRAY, bigtiff=True),
        tiff(np.moveaxis(RED, -1, 0), photometric="rgb", planarconfig="separate"),
        tiff(DEEP, compression="zlib", predictor=True), tiff(GRAY, compression="lzw", **tiles),
        tiff(DEEP, compression="lzw", predictor=True), tiff(GRAY, compression="packbits"),
        tiff(DEEP, compression="zstd", **tiles), tiff(GRAY, compression="lzma"),
        tiff(GRAY, compression="jpeg", **tiles),
    ]


def tables() -> list[bytes]:
    classes = ",".join(["Id", *LOCATIONS])
    return [
        b"Id,Target\na,0\nb,16 0\n", b'\xef\xbb\xbf"Id","Target"\r\n"a","1"\r\n"b ""c""","27 3"\r\n',
        b"Plate,Id,Target\nx,a,5\n,b,6\n", "Id,Target\nä,Nucleoplasm;Cytosol\nb,Nucleoli | Aggresome\n".encode(),
        f"{classes}\na,1{',0' * 27}\nb{',1' * 28}\n".encode(),
    ]


# What is done to them

INTERESTING = [
    b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f",
    b"\1\0", b"\0\1",
]
MARKS = [
    b'"', b",", b"\n", b"\r", b"\r\n", b"\0", b";", b"|", b" ", b"28", b"-1", b"1.0", b"Id", b"Target", b"\xff",
    b"\xef\xbb\xbf", "\u2028".encode(), b"../",
]


CHANGES = ("replace", "replace", "replace", "insert", "remove", "repeat", "cut")
STEP = 6  # bytes that say one change: which, where (two, as a share of the file), and the bytes to do it with


def damaged(content: bytes, program: bytes, pieces: list[bytes]) -> bytes:
    """A file after the changes that a program names. (To draw bytes is the fastest that hypothesis can do.)"""
    for start in range(0, len(program) - STEP + 1, STEP):
        which, high, low, choice, *own = program[start : start + STEP]
        what, place = CHANGES[which % len(CHANGES)], (high << 8 | low) * len(content) >> 16
        piece = pieces[choice % len(pieces)] if choice < 160 else bytes(own)
        n = len(piece)
        if what == "replace":
            content = content[:place] + piece + content[place + n :]
        elif what == "insert":
            content = content[:place] + piece + content[place:]
        elif what == "remove":
            content = content[:place] + content[place + n :]
        elif what == "repeat":
            content = content[:place] + content[place : place + 8 * n] * 2 + content[place + 8 * n :]
        else:
            content = content[: max(place, 1)]
    return content


def with_right_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums that belong to them: so that the damage is not all found by the first
    check."""
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        length = min(struct.unpack(">I", content[place : place + 4])[0], len(content) - place - 12)
        body = content[place + 4 : place + 8 + length]
        parts.append(struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(parts)


# What must come of it


def check_image(path: Path) -> bool:
    try:
        image = open_image([path], Layout(channels=("green",), max_pixels=MAX_PIXELS))
    except ImageError as error:
        assert str(path) in str(error) and len(str(error)) < 1000, error
        return False
    assert image.dtype == np.uint8 and image.ndim == 3 and len(image) == 1 and 0 < image.size <= MAX_PIXELS
    return True


def check_table(path: Path) -> bool:
    try:
        table = read_labels(path)
    except LabelError as error:
        assert str(path) in str(error) and len(str(error)) < 5000, error
        return False
    assert table.targets.shape == (len(table), 28) and table.targets.any(axis=1).all()
    assert len(set(table.ids)) == len(table) and not any(map(id_fault, table.ids.tolist()))
    if "Target" not in table.columns:  # as a column beside the class columns it would be there twice
        again = read_labels(table.save(path.with_name("again.csv")))
        assert again.ids.tolist() == table.ids.tolist() and (again.targets == table.targets).all()
    return True


KINDS: dict[str, tuple[Callable, list[bytes], Callable]] = {
    "images": (images, INTERESTING, check_image),
    "tables": (tables, MARKS, check_table),
}


def fuzz(kind: str, n: int, number: int | None) -> dict[str, int]:
    """Damage files n times; how many were read all the same."""
    make, pieces, check = KINDS[kind]
    whole, done = make(), {"files": 0, "read": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        for content in whole:
            path.write_bytes(content)
            assert check(path), content[:80]

        @settings(
            max_examples=n, derandomize=number is None, database=None, deadline=None,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        )
        @given(st.integers(0, 255), st.binary(min_size=STEP, max_size=4 * STEP))
        def one(choice: int, program: bytes) -> None:
            content = damaged(whole[choice % len(whole)], program, pieces)
            if choice >= 128 and content.startswith(b"\x89PNG"):
                content = with_right_checksums(content)
            path.write_bytes(content)
            done["files"] += 1
            done["read"] += check(path)

        (one if number is None else seed(number)(one))()
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, kind, str(FILES)], capture_output=True, text=True,
        timeout=PATIENCE,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    files, read = map(int, done.stdout.split())
    assert files >= FILES and 0.01 * files < read < 0.9 * files, "the damage is not of the kind that tests anything"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # as the command line does
    found = fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
    print(found["files"], found["read"])
