"""Fields without masks are segmented: what is drawn is found, what is none is not; the masks are opened as cells."""
import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from test_commands import check_quiet, check_refusal

from protein_atlas.cells.mask_files import read_mask
from protein_atlas.cells.masks import MaskWarning
from protein_atlas.cells.segmentation import PlainSegmentation, nucleus_diameter
from protein_atlas.cells.segmenting import segment_images
from protein_atlas.cells.source import open_cells
from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.evaluate.mask_overlap import cells_of_label_image, mask_iou
from protein_atlas.system.errors import ImageError

needs_skimage = pytest.mark.skipif(find_spec("skimage") is None, reason="needs the extra 'cells'")
TWO = Layout(("dapi", "er"))
PLAIN = PlainSegmentation(0, (1,))


def field(nuclei, side: int = 160, radius: int = 12, scale: int = 1) -> np.ndarray:
    """Round nuclei at these places (y, x), and bodies of twice the radius around them, with noise: uint8 (2, H, W)."""
    rows, columns = np.indices((side * scale, side * scale))
    rng, image = np.random.default_rng(0), np.full((2, side * scale, side * scale), 5.0)
    for y, x in nuclei:
        away = np.hypot(rows - y * scale, columns - x * scale) / scale
        image[0][away <= radius] = 120
        image[1] = np.maximum(image[1], 70 * np.clip(2.2 - away / radius, 0, 1))
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


APART, TOUCHING = [(40, 40), (110, 100), (0, 120)], [(60, 50), (60, 73), (82, 61)]


@needs_skimage
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("places", [APART, TOUCHING], ids=["apart", "touching"])
def test_drawn_nuclei_are_found(places, scale):
    found = PLAIN(field(places, scale=scale))
    assert found.cells.shape == found.nuclei.shape == (160 * scale, 160 * scale) and found.cells.dtype == np.int32
    assert found.nuclei.max() == found.cells.max() == len(places)
    at = [int(found.nuclei[y * scale, x * scale]) for y, x in places]
    assert sorted(at) == [1, 2, 3]
    assert (found.cells[found.nuclei > 0] == found.nuclei[found.nuclei > 0]).all()
    for number, (y, x) in zip(at, places):
        away = np.hypot(*(np.indices(found.nuclei.shape) - np.array([y, x])[:, None, None] * scale)) / scale
        assert 0.65 < ((found.nuclei == number) & (away <= 12)).sum() / ((found.nuclei == number) | (away <= 12)).sum()
        assert (found.cells == number).sum() > 1.5 * (found.nuclei == number).sum()


@needs_skimage
def test_fields_without_nuclei_have_no_cells():
    spot, half = np.zeros((2, 96, 96), np.uint8), np.zeros((2, 96, 96), np.uint8)
    spot[:, 30, 40] = 255
    half[:, :, :48] = 255
    rng = np.random.default_rng(1)
    noise = rng.poisson(4, (2, 96, 96)).astype(np.uint8)
    slope = (np.indices((96, 96))[0] + rng.normal(0, 3, (2, 96, 96))).clip(0, 255).astype(np.uint8)
    blank = field([(40, 40)]) * np.array([0, 1], np.uint8)[:, None, None]  # cells without nuclei are none
    for image in (spot * 0, spot * 0 + 255, spot, noise, slope, blank):
        found = PLAIN(image)
        assert not found.cells.any() and not found.nuclei.any()
    assert PLAIN(half).nuclei.max() <= 1  # a border that is saturated may pass for a nucleus, not for several


@needs_skimage
def test_cells_fill_what_nuclei_reach():
    image = field([(60, 50)])
    image[1, 130:150, 130:150] = 70  # what fills a cell, without a nucleus
    found = PLAIN(image)
    assert found.cells.max() == 1 and not found.cells[130:150, 130:150].any()
    image[1] = 0
    found = PLAIN(image)
    assert (found.cells == found.nuclei).all() and found.cells.any()


@needs_skimage
def test_a_said_diameter_and_sixteen_bits():
    image = field(TOUCHING)
    wide = nucleus_diameter(image[0])
    assert 20 < wide < 30
    for said in (PlainSegmentation(0, (1,), diameter=24), PlainSegmentation(0, (1,), micrometres=12)):
        assert said(image.astype(np.uint16) * 200, 0.5).nuclei.max() == 3
    assert PlainSegmentation(0, (1,), diameter=24, least=0.9)(field([(40, 40), (110, 100)])).nuclei.max() == 2
    small = field([(40, 40), (110, 100)])
    small[0, 75:79, 20:24] = 120  # debris
    assert PLAIN(small).nuclei.max() == 2


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Three fields of two stains: two cells, none, three."""
    folder = tmp_path_factory.mktemp("segmented") / "fields"
    folder.mkdir()
    for name, places in (("a", APART[:2]), ("b", []), ("c", TOUCHING)):
        save_image(folder, name, field(places), TWO)
    return folder


@needs_skimage
def test_segment_at_a_shell(call_command, fields, tmp_path):
    out = tmp_path / "masks"
    told = ("segment", fields, "--channels", "dapi,er", "--out", out, "--workers", 1)
    done = call_command(*told)
    assert done.returncode == 0, done.stderr
    check_quiet(done)
    assert "masks of 3 fields, 5 cells, 0 of them at the border of their field" in done.stdout
    assert "1 of 3 fields have no cell, the first b" in done.stdout
    names = [f"{name}_{part}.png" for name in "abc" for part in ("cell", "nucleus")]
    assert sorted(path.name for path in out.iterdir()) == names
    assert Image.open(out / "b_cell.png").mode.startswith("I") and not read_mask(out / "b_cell.png").any()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "c_cell.png").unlink()  # as after a kill between the two
    done = call_command(*told)
    assert "3 fields (2 of them by an earlier start)" in done.stdout
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    check_refusal(call_command(*told, "--diameter", 30), "a_nucleus.png: exists and is of another image, or was made "
                  "otherwise: give another folder", "0 of 3 fields are done")  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cells = open_cells(ImageFolder(fields, TWO), out, pattern="{id}_cell", nuclei=out,
                           nuclei_pattern="{id}_nucleus", workers=1)  # fmt: skip
    assert [str(each.message) for each in said if each.category is MaskWarning] == [
        f"{out}: 1 of 3 fields have no cell, the first 'b'"
    ]
    assert cells.ids == ["a#1", "a#2", "c#1", "c#2", "c#3"] and cells.cells["nuclei"].eq(1).all()
    assert cells.cells["pieces"].eq(1).all() and cells.open("c#2").shape[0] == 2


@needs_skimage
def test_masks_of_others_are_left_alone(fields, tmp_path):
    mine = Image.fromarray(np.zeros((160, 160), np.uint16))
    mine.save(tmp_path / "b_cell.png")
    before = (tmp_path / "b_cell.png").read_bytes()
    with pytest.raises(ImageError, match="b_cell.png: exists and was not made by this command") as caught:
        segment_images(ImageFolder(fields, TWO), tmp_path, PLAIN, workers=1)
    assert "1 of 3 fields are done" in caught.value.__notes__[0]
    assert (tmp_path / "b_cell.png").read_bytes() == before


def test_roles_that_are_not_known(call_command, fields, tmp_path):
    out = tmp_path / "masks"
    of = ("segment", fields, "--channels", "dapi,er", "--out", out)
    check_refusal(call_command(*of[:2], "--channels", "one=dapi,two=er", "--out", out), "--nucleus one")
    check_refusal(call_command(*of[:2], "--channels", "dapi", "--out", out), "none of the channels dapi is named as a "
                  "stain that fills cells")  # fmt: skip
    check_refusal(call_command(*of, "--cell", "dapi"), "--cell dapi: is the channel of nuclei")
    check_refusal(call_command(*of, "--nucleus", "blue"), "--nucleus blue: there is no such channel; expected one of "
                  "dapi, er")  # fmt: skip
    check_refusal(call_command(*of, "--method", "stardist"), "--method must be plain or cellpose")
    check_refusal(call_command(*of, "--model", "cyto3"), "--model: give it without --method plain")
    check_refusal(call_command(*of, "--diameter", "wide"), "--diameter must be pixels")
    assert not out.exists()


@needs_skimage
def test_micrometres_need_a_scale(call_command, fields, tmp_path):
    told = ("segment", fields, "--channels", "dapi,er", "--out", tmp_path / "m", "--diameter", "12um", "--workers", 1)
    check_refusal(call_command(*told), "a_dapi.png", "does not say how many micrometres a pixel has")
    assert "5 cells" in call_command(*told, "--pixel-size", 0.5).stdout


def test_without_what_is_needed_it_says_so(call_command, fields, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("skimage", "cellpose")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("skimage", "cellpose"):
        monkeypatch.setitem(sys.modules, name, None)
    told = ("segment", fields, "--channels", "dapi,er", "--out", tmp_path / "m", "--workers", 1)
    check_refusal(call_command(*told), "the extra 'cells': pip install 'protein_atlas[cells]'")
    check_refusal(call_command(*told[:-2], "--method", "cellpose"), "the extra 'cellpose'", "'cellpose<4'")


@needs_skimage
def test_cells_of_phantoms_are_found_without_their_masks(tmp_path):
    """At the measured share, less what eight fields may differ by (benchmarks/segmentation.py)."""
    known = simulate_phantoms(tmp_path / "phantoms", 8, 128, seed=5, workers=1, masks=True)
    segment_images(known, tmp_path / "masks", PlainSegmentation(2, (3, 0)), workers=1)
    hits = dict.fromkeys(("cell", "nucleus"), np.zeros(3, int))
    for path in (known / "masks").iterdir():
        both = (path, tmp_path / "masks" / path.name)
        true, found = (cells_of_label_image(read_mask(place)).values() for place in both)
        paired = int((mask_iou(list(true), list(found)) > 0.6).sum())
        part = path.stem.rpartition("_")[2]
        hits[part] = hits[part] + [len(true), len(found), paired]
    for part, least in (("nucleus", 0.85), ("cell", 0.75)):
        true, found, paired = hits[part]
        assert paired / true > least and paired / found > 0.9, (part, hits[part])
