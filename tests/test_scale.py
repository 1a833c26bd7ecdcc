"""Micrometres a pixel, from the files of several microscopes to the report and to predictions."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from conftest import keep_four_labels

from protein_atlas.data import pictures
from protein_atlas.data.geometry import resize_image
from protein_atlas.data.images import Layout
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.scale import Scale, measure_scale, mixed_scale
from protein_atlas.data.sources import open_images
from protein_atlas.data.store import ImageStore
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.system.errors import ImageError

STAINS = ["red", "green", "blue", "yellow"]
SMALL = (
    "--arch", "small_resnet", "--pretrained", "none", "--epochs", "1", "--workers", "0", "--device", "cpu",
)  # fmt: skip
SIDES = {0.05: 128, 0.1: 64, 0.2: 32}  # pixels of one field of 6.4 µm


def as_microscope(folder, images, ids, pixel_size):
    """Write the fields as OME-TIFFs of a microscope of this scale."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"axes": "CYX", "Channel": {"Name": STAINS}, "PhysicalSizeX": pixel_size, "PhysicalSizeXUnit": "µm"}
    for image_id in ids:
        image = resize_image(images.open(image_id), SIDES[pixel_size])
        tifffile.imwrite(folder / f"{image_id}.ome.tif", image, metadata=about)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """40 fields: `single`, PNG files of 0.05 µm a pixel that do not say it; `mixed`, OME-TIFFs of 0.1, and of 0.2;
    `fine`, all of 0.05."""
    place = tmp_path_factory.mktemp("scales")
    simulate_phantoms(place / "single", 40, 128, seed=3)
    keep_four_labels(place / "single/train.csv")
    images = open_images(place / "single")
    as_microscope(place / "mixed/train", images, images.ids[::2], 0.1)
    as_microscope(place / "mixed/train", images, images.ids[1::2], 0.2)
    as_microscope(place / "fine", images, images.ids, 0.05)
    (place / "mixed/train.csv").write_bytes((place / "single/train.csv").read_bytes())
    return place


def scores(path):
    return pd.read_csv(path).select_dtypes("number").to_numpy(float)


def test_two_microscopes_train_and_a_third_is_predicted(call_command, fields, tmp_path, monkeypatch):
    mixed, third = (open_images(fields / name, Layout(resample=0.2)) for name in ("mixed/train", "fine"))
    for image_id in mixed.ids[:4]:
        one, other = mixed.open(image_id, 48).astype(int), third.open(image_id, 48).astype(int)
        assert np.abs(one - other).max() <= 1
    bars = []
    monkeypatch.setattr(pictures, "_draw_bar", lambda axes, height, width, pixel_size: bars.append(pixel_size))
    run = tmp_path / "run"
    done = call_command("train", fields / "mixed", "--out", run, "--resample", "0.2", "--size", "48", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "images are brought to 0.2 micrometres a pixel" in done.stdout and "several sizes" not in done.stdout
    assert bars and set(bars) == {0.2}
    assert json.loads((run / "metrics.json").read_text())["scale"] == {"images": 8, "least": 0.2, "most": 0.2}
    with open_bundle(run) as bundle:
        assert (bundle.description.layout.resample, bundle.description.layout.pixel_size) == (0.2, None)
    for name in ("mixed/train", "fine"):
        done = call_command("predict", run, fields / name, "--out", tmp_path / "scores.csv", "--device", "cpu")
        assert done.returncode == 0 and "micrometres" not in done.stderr, done.stderr
        (tmp_path / "scores.csv").rename(tmp_path / f"{name[:4]}.csv")
    assert np.abs(scores(tmp_path / "mixe.csv") - scores(tmp_path / "fine.csv")).max() < 0.02
    single = fields / "single/train"
    done = call_command("predict", run, single, "--out", tmp_path / "png.csv", "--device", "cpu")
    assert done.returncode == 2
    assert "does not say how many micrometres a pixel has, which --resample 0.2 needs: say it, such" in done.stderr
    say = ("--out", tmp_path / "png.csv", "--device", "cpu", "--pixel-size")
    done = call_command("predict", run, single, *say, "0.05")
    assert done.returncode == 0, done.stderr
    assert np.abs(scores(tmp_path / "png.csv") - scores(tmp_path / "fine.csv")).max() < 1e-4
    done = call_command("predict", run, fields / "fine", *say, "0.1")
    assert done.returncode == 2 and "says 0.05 micrometres a pixel, but 0.1 is said of it (--pixel-size" in done.stderr


def test_without_a_scale_training_is_refused(call_command, fields, tmp_path):
    done = call_command("train", fields / "single", "--out", tmp_path / "run", "--resample", "0.2", *SMALL)
    assert done.returncode == 2 and "_red.png: does not say how many micrometres a pixel has" in done.stderr
    done = call_command("train", fields / "single", "--out", tmp_path / "run", "--resample", "0", *SMALL)
    assert done.returncode == 2 and "--resample (resample) must be positive, in micrometres a pixel" in done.stderr


def test_a_store_keeps_its_scale(call_command, fields, tmp_path, without_evidence):
    store, run, single = tmp_path / "store", tmp_path / "run", fields / "single/train"
    done = call_command(
        "pack", single, store, "--pixel-size", "0.05", "--resample", "0.2", "--size", "32", "--workers", "1"
    )
    assert done.returncode == 0, done.stderr
    packed = ImageStore(store)
    assert (packed.layout.resample, measure_scale(packed)) == (0.2, Scale(8, 0.2, 0.2))
    first = packed.ids[0]
    assert np.array_equal(packed.open(first), resize_image(open_images(single).open(first), 32))
    train = ("train", fields / "single", "--store", store, "--out", run, *SMALL)
    done = call_command(*train, "--resample", "0.3")
    assert done.returncode == 2
    assert "store: its images are brought to 0.2 micrometres a pixel, but --resample 0.3 is asked for" in done.stderr
    done = call_command("pack", single, store, "--append", "--resample", "0.2")
    assert done.returncode == 2 and "as the store's were read: give it without --resample" in done.stderr
    done = call_command(*train)
    assert done.returncode == 0, done.stderr
    assert "images are brought to 0.2 micrometres a pixel" in done.stdout
    predict = ("predict", run, single, "--device", "cpu", "--out")
    done = call_command(*predict, tmp_path / "assumed.csv")
    assert done.returncode == 0, done.stderr
    assert "0.05 is assumed, as of those that the model was trained on; --pixel-size says another" in done.stderr
    done = call_command(*predict, tmp_path / "said.csv", "--pixel-size", "0.05")
    assert done.returncode == 0 and "assumed" not in done.stderr, done.stderr
    done = call_command("predict", run, store, "--device", "cpu", "--out", tmp_path / "packed.csv")
    assert done.returncode == 0 and "micrometres" not in done.stderr, done.stderr
    found = [scores(tmp_path / f"{name}.csv") for name in ("assumed", "said", "packed")]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    done = call_command("predict", run, store, "--out", tmp_path / "x.csv", "--pixel-size", "0.1")
    assert done.returncode == 2 and "what is packed was read when it was packed: give it without" in done.stderr


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_pixels_that_are_not_square(tmp_path, kind):
    """They are said, and become square where a scale is asked for."""
    image = np.arange(32 * 64, dtype=np.uint16).reshape(1, 32, 64).repeat(2, 0)
    about = {"axes": "CYX", "Channel": {"Name": ["x", "y"]}, "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2}
    if kind == "ome":
        tifffile.imwrite(tmp_path / "a.ome.tif", image, metadata=about)
    else:
        written = {"axes": "CYX", "unit": "um", "Labels": ["x", "y"]}
        tifffile.imwrite(tmp_path / "a.tif", image, imagej=True, resolution=(10, 5), metadata=written)
    plain = open_images(tmp_path, Layout(("x", "y")))
    assert plain.facts("a").pixel_size == pytest.approx((0.2, 0.1))
    assert "longer one way than they are" in mixed_scale(measure_scale(plain))
    square = open_images(tmp_path, Layout(("x", "y"), resample=0.2))
    assert square.open("a").shape == (2, 32, 32) and mixed_scale(measure_scale(square)) is None
    said = r"says 0\.2 by 0\.1 micrometres a pixel, but 0\.1 is said of it"
    with pytest.raises(ImageError, match=said):
        open_images(tmp_path, Layout(("x", "y"), pixel_size=0.1)).open("a")


def test_a_scale_that_leaves_nothing(call_command, fields, tmp_path):
    line = ("pack", fields / "fine", tmp_path / "store", "--workers", "1", "--resample")
    done = call_command(*line, "1000")
    assert done.returncode == 2
    assert "its 128 x 128 pixels become 0 x 0 at the scale that is asked for: --resample" in done.stderr
    done = call_command(*line, "0.2", "--size", "48")
    assert done.returncode == 0, done.stderr
    said = "128 x 128 pixels, becomes 32 x 32, whose middle is set on black in 48 x 48"
    assert "images are brought to 0.2 micrometres a pixel" in done.stdout and said in done.stdout


def test_ome_zarr_is_written_with_the_new_scale(call_command, fields, tmp_path):
    pytest.importorskip("zarr")
    place = tmp_path / "fields.ome.zarr"
    done = call_command(
        "pack", fields / "mixed/train", place, "--format", "ome-zarr", "--resample", "0.4", "--workers", "1"
    )
    assert done.returncode == 0, done.stderr
    written = open_images(place)
    assert {written.facts(image_id).pixel_size for image_id in written.ids} == {(0.4, 0.4)}
    assert {written.open(image_id).shape for image_id in written.ids} == {(4, 16, 16)}
