"""Damaged uploads: whatever is dropped is read, or refused by an error of the library that names the file."""
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile

from protein_atlas.app.uploads import unpack_upload
from protein_atlas.data.images import HPA_LAYOUT
from protein_atlas.system.errors import ProteinAtlasError

KINDS = {
    "plain": {}, "lzw": {"compression": "lzw"}, "zlib": {"compression": "zlib", "predictor": True},
    "tiled": {"tile": (16, 16), "compression": "zlib"}, "white": {"photometric": "miniswhite"},
    "big": {"bigtiff": True}, "swapped": {"byteorder": ">"}, "imagej": {"imagej": True},
}  # fmt: skip


def whole_files(rng: np.random.Generator) -> dict[str, bytes]:
    """Uploads of each kind as they should be: stacks of four pages, and zips of channel files."""
    files = {}
    for kind, options in KINDS.items():
        for dtype in (np.uint8, np.uint16):
            written = BytesIO()
            planes = rng.integers(0, 200, (4, 40, 48)).astype(dtype)
            tifffile.imwrite(written, planes, **{"photometric": "minisblack", **options})
            files[f"{kind} {np.dtype(dtype).itemsize}.tif"] = written.getvalue()
    single = BytesIO()
    tifffile.imwrite(single, rng.integers(0, 200, (40, 48)).astype(np.uint8), compression="lzw")
    methods = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED, "lzma": zipfile.ZIP_LZMA}
    for name, method in methods.items():
        written = BytesIO()
        with zipfile.ZipFile(written, "w", method) as archive:
            for channel in HPA_LAYOUT.channels:
                archive.writestr(f"cell_{channel}.tif", single.getvalue())
        files[f"{name}.zip"] = written.getvalue()
    return files


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The same with some bytes changed, mostly where headers are, or with a part cut off or put in twice."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 8)):
        place = int(rng.integers(len(changed))) if rng.random() < 0.4 else int(rng.choice([
            rng.integers(min(400, len(changed))), len(changed) - 1 - rng.integers(min(600, len(changed))),
        ]))  # fmt: skip
        changed[place] = int(rng.choice([0, 1, 255, changed[place] ^ (1 << int(rng.integers(8)))]))
    cut = rng.random()
    first = int(rng.integers(len(changed)))
    if cut < 0.15:
        return bytes(changed[:first])
    return bytes(changed[:first] + changed[first // 2 :]) if cut < 0.25 else bytes(changed)


def uploads(seeds: range) -> Iterator[tuple[str, bytes]]:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        files = whole_files(rng)
        name = sorted(files)[seed % len(files)]
        yield name, damaged(files[name], rng)


def check(seeds: range, folder: Path) -> tuple[int, int]:
    """How many were read, and how many refused; any other end is a failure that names its seed."""
    read = refused = 0
    for seed, (name, content) in zip(seeds, uploads(seeds), strict=True):
        path, place = folder / f"{seed} {name}", folder / f"{seed} unpacked"
        path.write_bytes(content)
        place.mkdir()
        try:
            upload = unpack_upload([path], place, HPA_LAYOUT, 10_000_000)
            for image_id in upload.ids:
                assert upload.folder.open(image_id).dtype == np.uint8
            read += 1
        except ProteinAtlasError as error:
            assert path.stem in str(error) or "cell_" in str(error), f"seed {seed}: {error}"
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {name}: {error!r}") from error
    return read, refused


def test_whole_uploads_are_read(tmp_path):
    for name, content in whole_files(np.random.default_rng(0)).items():
        (tmp_path / name).write_bytes(content)
        place = tmp_path / f"{name} unpacked"
        place.mkdir()
        upload = unpack_upload([tmp_path / name], place, HPA_LAYOUT)
        assert upload.folder.open(upload.ids[0]).shape == (4, 40, 48)


def test_damaged_uploads(tmp_path):
    read, refused = check(range(57), tmp_path)
    assert read > 2 and refused > 5  # damage to what a file says of itself is refused, too


@pytest.mark.full
def test_many_damaged_uploads(tmp_path):
    check(range(1000, 1400), tmp_path)
