"""What files use of their range of values is measured before work, said, and kept."""
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protein_atlas.data.images import Layout
from protein_atlas.data.intensity import Intensity, IntensityWarning
from protein_atlas.data.packing import append_images, pack_images
from protein_atlas.data.store import ImageStore, store_description

STAINS = ("dapi", "actin")
SIGNED = Layout(channels=STAINS, black_level=32768, white_level=36863)


def write(folder: Path, offset: int, ids: range = range(6)) -> Path:
    """Fields of 40 x 60 pixels by a camera of 12 bits, whose black is the offset."""
    folder.mkdir(exist_ok=True)
    for number in ids:
        rng = np.random.default_rng(number)
        for channel in STAINS:
            plane = rng.integers(0, 4096, (40, 60)) + offset
            Image.fromarray(plane.astype(np.uint16)).save(folder / f"f{number}_{channel}.png")
    return folder


@pytest.mark.parametrize(("offset", "options"), [
    (0, "--white-level 4095 would fit"), (32768, "--black-level 32768 --white-level 36863 would fit"),
])  # fmt: skip
def test_levels_that_waste_the_scale_are_said_before_packing(tmp_path, offset, options):
    images = write(tmp_path / "images", offset)
    with pytest.warns(IntensityWarning, match=rf"images: 6 images looked at: .*{options}"):
        pack_images(images, tmp_path / "store", layout=Layout(channels=STAINS), workers=1)


def test_levels_that_fit_are_silent_kept_and_used_by_an_append(tmp_path):
    images = write(tmp_path / "images", 32768)
    with warnings.catch_warnings():
        warnings.simplefilter("error", IntensityWarning)
        pack_images(images, tmp_path / "store", layout=SIGNED, workers=1)
        write(images, 32768, range(6, 8))
        append_images(images, tmp_path / "store", workers=1)
    store = ImageStore(tmp_path / "store")
    assert (store.layout.black_level, store.layout.white_level) == (32768, 36863)
    found = Intensity.from_json(store_description(tmp_path / "store")["made"][0]["intensity"])
    assert (found.images, found.black, found.white) == (6, 32768, 36863) and found.steps > 250
    raw = np.asarray(Image.open(images / "f7_actin.png")).astype(int) - 32768
    np.testing.assert_array_equal(store.open("f7")[1], (raw * 510 + 4095) // (2 * 4095))


def test_an_older_store_has_black_at_zero(tmp_path):
    layout = {"channels": ["a"], "suffixes": [".png"], "white_level": 4095, "max_pixels": 9, "bits": 8}
    assert Layout(**layout).black_level == 0


def test_the_command_finds_levels_and_takes_a_size_that_is_not_square(call_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "images", 32768)
    levels = ("--white-level", "auto", "--black-level", "auto")
    pack = ("--channels", "dapi,actin", "--workers", 1)
    done = call_command("pack", "images", "store", *pack, "--size", "20x30", *levels)
    assert done.returncode == 0, done.stderr
    assert "16-bit values from 32768 to 36863" in done.stdout
    assert "read from black 32768 to white 36863" in done.stdout
    assert "warning" not in done.stderr
    assert ImageStore("store").shape == (2, 20, 30)
    assert json.loads(Path("store/zarr.json").read_text())["attributes"]["protein_atlas"]["sizes"] == [[20, 30]]
    done = call_command("pack", "images", "other", *pack)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("protein_atlas: warning: images: 6 images looked at: 16-bit values from 32768 to 36863,")
    assert line.endswith("they use 17 of 256 gray levels: --black-level 32768 --white-level 36863 would fit")
    for wrong, says in (
        (("--size", "20by30"), "found '20by30'"), (("--white-level", "high"), "--white-level must be a 16-bit value"),
    ):
        done = call_command("pack", "images", "third", *pack, *wrong)
        assert done.returncode == 2 and says in done.stderr
