"""Cells cut out of fields by their masks are images like others: packed, loaded, searched; bad masks are refused."""
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from tifffile import imwrite

from protein_atlas.cells.crop import CellCrop, parse_crop
from protein_atlas.cells.labels import cell_labels
from protein_atlas.cells.mask_files import read_mask
from protein_atlas.cells.masks import MaskWarning
from protein_atlas.cells.measure import measure_cells
from protein_atlas.cells.source import open_cells
from protein_atlas.data.duplicates import find_duplicates
from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.groups import join_groups
from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.labels import read_labels
from protein_atlas.data.packing import append_images, pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.sources import Images, map_images
from protein_atlas.data.split_audit import split_audit
from protein_atlas.data.splits import balanced_split
from protein_atlas.data.store import ImageStore
from protein_atlas.system.errors import ImageError

QUIET = pytest.mark.filterwarnings("ignore::protein_atlas.cells.masks.MaskWarning")
GREEN = Layout(("green",))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Phantoms whose cells are known."""
    return simulate_phantoms(tmp_path_factory.mktemp("cells") / "phantoms", 12, 96, seed=2, workers=1, masks=True)


@pytest.fixture(scope="module")
def cells(known):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskWarning)
        masks = known / "masks"
        return open_cells(known, masks, nuclei=masks, pattern="{id}_cell", nuclei_pattern="{id}_nucleus", workers=1)


def test_cells_of_phantoms_are_found(known, cells):
    assert isinstance(cells, Images) and len(cells) > 40 and len(set(cells.ids)) == len(cells)
    for field, of in cells.cells.groupby("field"):
        mask, nuclei = (read_mask(known / "masks" / f"{field}_{name}.png") for name in ("cell", "nucleus"))
        assert of["number"].tolist() == np.unique(mask)[1:].tolist()
        for row in of.itertuples():
            inside = mask == row.number
            assert row.area == inside.sum() and row.nucleus_area == (nuclei[inside] > 0).sum()
            assert (row.y, row.x) == pytest.approx(ndimage.center_of_mass(inside))
            edges = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
            assert row.on_border == edges.any()
    assert set(cells.cells["nuclei"]) <= {0, 1, 2}


def write_fields(folder, ids: str, field: np.ndarray | None = None) -> None:
    """Fields of these ids, black unless told otherwise, and an empty folder for their masks."""
    for place in ("fields", "masks"):
        (folder / place).mkdir()
    for name in ids:
        save_image(folder / "fields", name, np.zeros((1, 32, 32), np.uint8) if field is None else field, GREEN)


def put_back(cells, field: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What the crops of a field give, each at its place; and where they lie."""
    back, covered = np.zeros(shape, np.uint8), np.zeros(shape[1:], bool)
    for row in cells.cells[cells.cells["field"] == field].itertuples():
        crop = cells.open(row.Index)
        height, width = shape[1:]
        top, left = max(row.window_top, 0), max(row.window_left, 0)
        bottom, right = min(row.window_top + row.window_side, height), min(row.window_left + row.window_side, width)
        part = crop[:, top - row.window_top : bottom - row.window_top, left - row.window_left : right - row.window_left]
        if cells.crop.blank:
            back[:, top:bottom, left:right] |= part  # each cell's pixels are its own
        else:
            back[:, top:bottom, left:right] = part
        covered[top:bottom, left:right] = True
        whole = (row.window_side, row.window_side) == part.shape[1:]
        assert whole != row.padded and crop.sum(dtype=int) == part.sum(dtype=int)  # beyond the field it is black
    return back, covered


@QUIET
@pytest.mark.parametrize("crop", [CellCrop(), CellCrop(margin=0.5, blank=False), CellCrop(side=40)], ids=str)
def test_crops_put_back_give_the_field(known, crop):
    cells = open_cells(known, known / "masks", crop=crop, pattern="{id}_cell", workers=1)
    for field in cells.cells["field"].unique():
        image, mask = cells.fields.open(field), read_mask(known / "masks" / f"{field}_cell.png")
        back, covered = put_back(cells, field, image.shape)
        seen = (mask > 0) & covered if crop.blank else covered
        if not cells.cells.loc[cells.cells["field"] == field, "cut"].any():
            np.testing.assert_array_equal(back, image * seen)


@QUIET
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), margin=st.floats(0, 2), blank=st.booleans())
def test_random_masks_put_back(tmp_path_factory, seed, margin, blank):
    """Cells of any shape and number, at any place; of each the largest piece."""
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("random")
    shape = tuple(rng.integers(3, 30, 2).tolist())
    field = rng.integers(1, 256, (1, *shape)).astype(np.uint8)
    mask = rng.integers(0, 4, shape).astype(np.uint16) * rng.choice([1, 300, 9999]).astype(np.uint16)
    write_fields(folder, "f", field)
    imwrite(folder / "masks" / "f_cp_masks.tif", mask)
    if not mask.any():
        return
    crop = CellCrop(margin=margin, blank=blank)
    crop = replace(crop, pieces="largest")
    cells = open_cells(ImageFolder(folder / "fields", GREEN), folder / "masks", crop=crop, workers=1)
    back, covered = put_back(cells, "f", field.shape)
    if not blank:
        np.testing.assert_array_equal(back, field * covered)
        return
    kept = np.zeros(shape, bool)
    for number in np.unique(mask[mask > 0]):
        labelled, n = ndimage.label(mask == number, np.ones((3, 3)))
        areas = [int((labelled == piece).sum()) for piece in range(1, n + 1)]
        kept |= labelled == 1 + int(np.argmax(areas))
    np.testing.assert_array_equal(back, field * kept)


def test_a_field_is_opened_once_for_its_cells(cells):
    opened = []

    class Counting(ImageFolder):
        def open(self, image_id, size=None):
            opened.append(image_id)
            return super().open(image_id, size)

    counted = pickle.loads(pickle.dumps(cells))
    counted.fields = Counting(cells.place)
    found = counted.read(cells.ids, 48)
    assert opened == list(dict.fromkeys(cells.cells["field"]))
    np.testing.assert_array_equal(found[5], cells.open(cells.ids[5], 48))


def test_cells_are_packed(cells, tmp_path):
    pack_images(cells, tmp_path / "store", size=48, ids=cells.ids[:20], workers=2)
    done = append_images(cells, tmp_path / "store", ids=cells.ids[:30], workers=1)
    assert (done.added, done.there) == (10, 20)
    np.testing.assert_array_equal(ImageStore(tmp_path / "store").read(cells.ids[:30]), cells.read(cells.ids[:30], 48))


def test_cells_are_read_by_processes(cells):
    found = list(map_images(np.sum, cells, cells.ids, 32, workers=2))
    assert found == [cells.open(image_id, 32).sum() for image_id in cells.ids]


def test_cells_are_searched_for_duplicates(cells):
    some = cells.ids[:12]
    pairs = find_duplicates(cells, cells, some, some, workers=1)
    assert sorted(pairs.loc[pairs["same"], "first"]) == sorted(some)


@pytest.mark.parametrize("workers", [0, 2])
def test_cells_are_loaded_for_training(known, cells, workers):
    from fastai.data.transforms import IndexSplitter

    from protein_atlas.vision.data import protein_datablock

    table = cell_labels(cells, read_labels(known / "train.csv").present())
    block = protein_datablock(cells, table.vocab, size=32, splitter=IndexSplitter(range(6)))
    dls = block.dataloaders(table, bs=4, num_workers=workers, device="cpu")
    seen = np.concatenate([np.asarray(dls.valid.decode((x, y))[0]) for x, y in dls.valid])
    np.testing.assert_allclose(seen, cells.read(cells.ids[:6], 32), atol=1e-3)


@pytest.mark.filterwarnings("ignore::protein_atlas.data.splits.SplitWarning")
def test_cells_of_a_field_are_not_parted(known, cells):
    labels = read_labels(known / "train.csv")
    table = cell_labels(cells, labels)
    assert table.ids.tolist() == cells.ids and table.columns["Field"].tolist() == cells.cells["field"].tolist()
    of = dict(zip(labels.ids, labels.targets.tolist()))
    assert table.targets.tolist() == [of[field] for field in table.columns["Field"]]
    groups = join_groups(table.columns["Field"].to_numpy())
    train, valid = balanced_split(table.targets, 0.3, groups=groups, strict=False)
    assert not split_audit(table.targets, {"train": train, "valid": valid}, table.vocab, groups).leaked


def test_a_damaged_field_is_named_for_each_cell(tmp_path):
    write_fields(tmp_path, "ab")
    mask = np.zeros((32, 32), np.uint8)
    mask[2:9, 2:9], mask[12:20, 12:20] = 1, 2
    for name in "ab":
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    cells = open_cells(ImageFolder(tmp_path / "fields", GREEN), tmp_path / "masks", workers=1)
    (tmp_path / "fields" / "b_green.png").write_bytes(b"\x89PNG broken")
    found = list(cells.each(["a#1", "b#1", "b#2", "a#2"], [None]))
    assert [isinstance(one, ImageError) for one in found] == [False, True, True, False]
    assert "b_green.png" in str(found[2])
    before = cells.fingerprint("a#1")
    Image.fromarray(mask * 2).save(tmp_path / "masks" / "a.png")
    assert cells.fingerprint("a#1") != before


def square(n: int = 1) -> np.ndarray:
    mask = np.zeros((32, 32), np.int32)
    mask[4:12, 4:12] = n
    return mask


TORN = square()
TORN[20:24, 20:24] = 1
BAD = {
    "another size": (square()[:30], "f.npy: 32 x 30 pixels, but its field, .*f_green.png, has 32 x 32"),
    "floats": (square().astype(np.float32), "f.npy: 32-bit floating point, as probabilities and flows are"),
    "whole floats": (square().astype(float), "f.npy: 64-bit floating point"),
    "yes and no": (square() > 0, "f.npy: yes or no a pixel"),
    "65,536 cells": (np.arange(65_537).reshape(1, -1), "f.npy: 65,536 cells; expected 65,535 at most"),
    "two pieces": (TORN, "f.npy: 1 of 1 cells lie in several pieces: number 1 in 2"),
    "below 0": (-square(), "f.npy: value -1"),
    "a stack": (np.stack([square()] * 2), r"f.npy: values of shape \(2, 32, 32\); expected one plane"),
    "without a cell": (square() * 0, "masks: no cell in any of 1 mask"),
    "a pickle": (np.array({"masks": square()}), "f.npy: Python objects, pickled, as in Cellpose's _seg.npy"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_masks_are_refused(tmp_path, kind):
    write_fields(tmp_path, "f")
    mask, message = BAD[kind]
    np.save(tmp_path / "masks" / "f.npy", mask)
    with pytest.raises(ImageError, match=message):
        open_cells(ImageFolder(tmp_path / "fields", GREEN), tmp_path / "masks", workers=1)


def test_masks_that_are_missing_or_empty(tmp_path):
    write_fields(tmp_path, "fg")
    np.save(tmp_path / "masks" / "f_cp_masks.npy", square(3))
    with pytest.raises(ImageError, match="no mask of the field 'g'; found 1 file, the first 'f_cp_masks.npy'"):
        open_cells(ImageFolder(tmp_path / "fields", GREEN), tmp_path / "masks", workers=1)
    np.save(tmp_path / "masks" / "g_cp_masks.npy", square(0))
    with pytest.warns(MaskWarning, match="1 of 2 fields have no cell, the first 'g'"):
        assert open_cells(ImageFolder(tmp_path / "fields", GREEN), tmp_path / "masks", workers=1).ids == ["f#3"]
    np.save(tmp_path / "masks" / "f_cp_masks.npy", TORN)
    with pytest.warns(MaskWarning, match="1 of 1 cells lie in several pieces, of which the largest is taken"):
        fields = ImageFolder(tmp_path / "fields", GREEN)
        cells = open_cells(fields, tmp_path / "masks", ["f"], crop=CellCrop(pieces="largest"), workers=1)
    assert cells.cells[["area", "bottom"]].to_numpy().tolist() == [[64, 12]]


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int16", "int32", "int64"])
def test_masks_of_every_kind_are_the_same(tmp_path, kind):
    mask = square(200).astype(kind) if kind == "uint8" else square(30_000).astype(kind)
    np.save(tmp_path / "m.npy", mask)
    found = [read_mask(tmp_path / "m.npy")]
    if kind != "int64":
        imwrite(tmp_path / "m.tif", mask, compression="zlib", tile=(16, 16))
        found.append(read_mask(tmp_path / "m.tif"))
    if kind.startswith("uint") and kind != "uint32":
        Image.fromarray(mask).save(tmp_path / "m.png")
        found.append(read_mask(tmp_path / "m.png"))
    for one in found:
        assert one.dtype == np.int32 and measure_cells(one).cells["area"].tolist() == [64]
        np.testing.assert_array_equal(one, mask)


def test_turned_cells_lie_level(tmp_path):
    """A bar at any angle is a level bar, as long and as bright, wherever in the field it lies."""
    rows, columns = np.indices((64, 64))
    write_fields(tmp_path, "")
    for number, angle in enumerate(np.linspace(-1.5, 1.5, 7)):
        along = (columns - 30) * np.cos(angle) + (rows - 34) * np.sin(angle)
        across = (rows - 34) * np.cos(angle) - (columns - 30) * np.sin(angle)
        bar = (abs(along) <= 20) & (abs(across) <= 3)
        save_image(tmp_path / "fields", f"f{number}", 200 * bar[None].astype(np.uint8), GREEN)
        np.save(tmp_path / "masks" / f"f{number}.npy", bar.astype(np.uint8))
    fields = ImageFolder(tmp_path / "fields", GREEN)
    cells = open_cells(fields, tmp_path / "masks", crop=CellCrop(side=48, turned=True), workers=1)
    assert cells.layout.cells == "side=48,turned" and parse_crop(cells.layout.cells) == cells.crop
    for cell in cells.ids:
        lit = cells.open(cell)[0] > 100
        assert 39 <= lit.any(0).sum() <= 43 and 5 <= lit.any(1).sum() <= 9, cell
        assert lit[23:25, 6:42].all(), cell
