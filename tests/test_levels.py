"""Black and white of each channel: in training, packing and prediction the same, and in what is written of them."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile
from typer.testing import CliRunner

from protein_atlas.cli import app
from protein_atlas.data.images import Layout
from protein_atlas.data.intensity import IntensityWarning
from protein_atlas.data.packing import pack_images
from protein_atlas.data.sources import open_images
from protein_atlas.predict.load import load_predictor
from protein_atlas.predict.reading import NoticeWarning
from protein_atlas.train.settings import RunSettings

STAINS, WHITES = ("dna", "actin", "tubulin"), (4095, 4095, 1000)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(folder, image_id, planes):
    about = {"axes": "CYX", "Channel": {"Name": list(STAINS)}}
    tifffile.imwrite(folder / f"{image_id}.ome.tif", planes, metadata=about)


def labelled(folder, kind):
    """A folder of 24 images of 12 bits whose third stain ends at 1000, or of the same in floating point, 0 to 1."""
    (folder / "train").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        planes = rng.integers(0, np.array(WHITES)[:, None, None] // 2, (3, 32, 32)).astype(np.uint16)
        planes[1, :, :16] += np.uint16(1500 * (number % 2))
        planes[:, 0, 0], planes[:, 0, 1] = WHITES, 0
        as_kind = planes if kind == np.uint16 else planes / np.array(WHITES)[:, None, None]
        write(folder / "train", f"f{number:02}", as_kind.astype(kind))
        rows.append((f"f{number:02}", ("Nucleoplasm", "Cytosol")[number % 2]))
    pd.DataFrame(rows, columns=["Id", "Target"]).to_csv(folder / "train.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    return labelled(tmp_path_factory.mktemp("twelve"), np.uint16)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return labelled(tmp_path_factory.mktemp("real"), np.float32)


def train(folder, out, *options):
    common = ["--arch", "small_resnet", "--size", 32, "--epochs", 1, "--workers", 0, "--pretrained", "none"]
    common += ["--labels", "Nucleoplasm,Cytosol", "--channels", ",".join(STAINS), "--out", out]
    return invoke("train", folder, *common, *options)


def test_levels_of_each_channel(twelve, tmp_path):
    """They stand in the run, and whoever predicts with its model, on files, in another order, or by a store, has them.
    """
    done = train(twelve, tmp_path / "run", "--white-level", "4095,4095,1000")
    assert done.exit_code == 0, done.output
    predictor = load_predictor(tmp_path / "run")
    assert predictor.layout.white_level == WHITES
    assert RunSettings.read(next((tmp_path / "run").glob("*.toml"))).white_level == "4095,4095,1000"
    files = open_images(twelve / "train", predictor.layout)
    assert files.open("f01").reshape(3, -1).max(axis=1).tolist() == [255, 255, 255]
    out, swapped = tmp_path / "a.csv", tmp_path / "b.csv"
    assert (done := invoke("predict", tmp_path / "run", twelve / "train", "--out", out)).exit_code == 0, done.output
    line = ["predict", tmp_path / "run", twelve / "train", "--channels", "tubulin,dna,actin", "--out", swapped]
    assert (done := invoke(*line)).exit_code == 0, done.output
    line = ["pack", twelve, tmp_path / "store", "--channels", ",".join(STAINS), "--white-level", "4095,4095,1000"]
    assert (done := invoke(*line)).exit_code == 0, done.output
    assert open_images(tmp_path / "store").layout.white_level == WHITES
    packed = predictor.scores(tmp_path / "store", workers=0)
    assert np.allclose(pd.read_csv(out)[["Nucleoplasm", "Cytosol"]], packed, atol=1e-6)
    assert swapped.read_bytes() == out.read_bytes()


def test_16_bits_of_several_levels(twelve, tmp_path):
    """Each channel is stretched to the widest."""
    line = ["pack", twelve, tmp_path / "store", "--channels", ",".join(STAINS), "--white-level", "4095,4095,1000"]
    assert (done := invoke(*line, "--bits", 16)).exit_code == 0, done.output
    store = open_images(tmp_path / "store")
    assert (store.layout.white, store.dtype) == (4095, np.uint16)
    raw = tifffile.imread(twelve / "train/f03.ome.tif").astype(np.int64)
    expected = np.stack([raw[0], raw[1], (raw[2] * 8190 + 1000) // 2000])
    assert np.array_equal(store.open("f03"), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_percentiles_of_each_image(twelve, tmp_path, bits):
    """The same pixels by files and by a store; an image of twice the light is the same."""
    layout = Layout(STAINS, black_level="1%", white_level="99%", bits=bits)
    line = ["pack", twelve, tmp_path / "store", "--channels", ",".join(STAINS), "--white-level", "99%"]
    assert (done := invoke(*line, "--black-level", "1%", "--bits", bits)).exit_code == 0, done.output
    files, store = open_images(twelve / "train", layout), open_images(tmp_path / "store")
    assert store.layout.white == (255 if bits == 8 else 65535)
    assert np.array_equal(files.open("f05"), store.open("f05"))
    (tmp_path / "bright").mkdir()
    write(tmp_path / "bright", "f05", 2 * tifffile.imread(twelve / "train/f05.ome.tif"))
    assert np.array_equal(open_images(tmp_path / "bright", layout).open("f05"), files.open("f05"))


def test_percentiles_in_training_and_prediction(twelve, tmp_path, without_evidence):
    assert (done := train(twelve, tmp_path / "run", "--white-level", "99.9%")).exit_code == 0, done.output
    predictor = load_predictor(tmp_path / "run")
    assert predictor.layout.white_level == "99.9%"
    files, trained = (open_images(twelve / "train", Layout(STAINS, white_level="99.9%")) for _ in range(2))
    assert np.array_equal(predictor.scores(files, workers=0), predictor.scores(trained, workers=0))
    (tmp_path / "bright").mkdir()
    for image_id in files.ids:  # half the light or twice, the model sees the same
        write(tmp_path / "bright", image_id, 2 * tifffile.imread(twelve / f"train/{image_id}.ome.tif"))
    bright = open_images(tmp_path / "bright", predictor.layout)
    assert np.array_equal(predictor.scores(bright, workers=0), predictor.scores(files, workers=0))


def test_percentiles_of_the_set(twelve, tmp_path, without_evidence):
    """They become numbers, with which the run can be made again; what is brighter becomes white."""
    assert (done := train(twelve, tmp_path / "run", "--white-level", "set:99%")).exit_code == 0, done.output
    settings = RunSettings.read(next((tmp_path / "run").glob("*.toml")))
    layout = load_predictor(tmp_path / "run").layout
    assert settings.clip and settings.layout.white_level == layout.white_level and layout.clip
    assert len(layout.white_level) == 3 and layout.white_level[2] < 600 < 1500 < layout.white_level[0] < 4095
    config = next((tmp_path / "run").glob("*.toml"))
    done = invoke("train", twelve, "--config", config, "--out", tmp_path / "again")
    assert done.exit_code == 0, done.output
    scores = [pd.read_csv(tmp_path / name / "valid_scores.csv") for name in ("run", "again")]
    assert scores[0].equals(scores[1])


def test_above_white(twelve, tmp_path):
    line = ["pack", twelve, "--channels", ",".join(STAINS), "--white-level", "4095,4095,900"]
    done = invoke(*line, tmp_path / "store")
    said = "value 1000, but 16-bit values go from 0 to white_level = 900; --clip"
    assert done.exit_code and said in str(done.exception)
    assert (done := invoke(*line, "--clip", tmp_path / "store")).exit_code == 0, done.output
    assert open_images(tmp_path / "store").layout.clip


@pytest.mark.parametrize("command", ["train", "pack"])
def test_wrong_counts(twelve, tmp_path, command):
    if command == "train":
        done = train(twelve, tmp_path / "out", "--white-level", "4095,1000")
    else:
        done = invoke("pack", twelve, tmp_path / "out", "--channels", ",".join(STAINS), "--white-level", "4095,1000")
    said = "white_level: 2 levels for 3 channels: one for all, or one each for dna, actin, tubulin"
    assert done.exit_code and said in str(done.exception)


def test_floating_point(real, twelve, tmp_path, without_evidence):
    """Without levels it is refused; 0 to 1 is what 12 bits are by levels of each channel."""
    line = ["pack", real, tmp_path / "store", "--channels", ",".join(STAINS)]
    done = invoke(*line)
    said = "32-bit floating point from 0.0 to 1.0: say which are black and white"
    assert done.exit_code and said in str(done.exception)
    assert (done := invoke(*line, "--white-level", "1")).exit_code == 0, done.output
    whole = open_images(twelve / "train", Layout(STAINS, white_level=WHITES))
    found, expected = open_images(tmp_path / "store").open("f07"), whole.open("f07")
    assert np.abs(found.astype(int) - expected).max() <= 1 and np.mean(found == expected) > 0.99
    line = ["pack", real, tmp_path / "found", "--channels", ",".join(STAINS), "--white-level", "auto"]
    assert (done := invoke(*line)).exit_code == 0, done.output
    assert np.array_equal(open_images(tmp_path / "found").open("f07"), found)
    assert (done := train(real, tmp_path / "run", "--white-level", "auto")).exit_code == 0, done.output
    layout = load_predictor(tmp_path / "run").layout
    assert (layout.black_level, layout.white_level, layout.clip) == (0, 1.0, True)
    out = tmp_path / "scores.csv"
    assert (done := invoke("predict", tmp_path / "run", real / "train", "--out", out)).exit_code == 0, done.output


def test_what_lies_outside_is_said(real, twelve, tmp_path, without_evidence):
    """Light that becomes all white, and values far below black, in packing, training and prediction."""
    white = ["pack", twelve, tmp_path / "burnt", "--channels", ",".join(STAINS), "--white-level", "1000", "--clip"]
    with pytest.warns(IntensityWarning, match="24 images looked at: dna has .* of its pixels above white 1000"):
        assert (done := invoke(*white)).exit_code == 0, done.output
    nothing = ["pack", twelve, tmp_path / "white", "--channels", ",".join(STAINS), "--white-level", "0.1%"]
    with pytest.warns(IntensityWarning, match="99.9% of its pixels above white 0.1%, which become white, 100% in "):
        assert (done := invoke(*nothing)).exit_code == 0, done.output
    low = tmp_path / "low"
    low.mkdir()
    for number in range(4):
        write(low, f"f{number}", tifffile.imread(real / f"train/f{number:02}.ome.tif") - np.float32(0.5))
    said = "has .* of its pixels far below black 0.* set:0%"
    with pytest.warns(IntensityWarning, match=said):
        pack_images(low, tmp_path / "dark", layout=Layout(STAINS, white_level=1.0), workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", IntensityWarning)
        pack_images(low, tmp_path / "right", layout=Layout(STAINS, black_level=-0.5, white_level=0.5), workers=1)
    done = train(twelve, tmp_path / "run", "--white-level", "1000", "--clip")
    assert done.exit_code == 0 and "warning: 24 images looked at: dna has" in done.output, done.output
    with pytest.warns(IntensityWarning, match="of its pixels above white 1000"):
        load_predictor(tmp_path / "run").scores(twelve / "train", workers=0)


def test_a_store_keeps_its_levels(twelve, tmp_path, without_evidence):
    """They cannot be typed over, stand in the run, and are compared with those of a model."""
    store, channels = tmp_path / "store", ("--channels", ",".join(STAINS))
    done = invoke("pack", twelve, store, *channels, "--white-level", "4095,4095,1000", "--size", "32")
    assert done.exit_code == 0, done.output
    for option, value in (("--white-level", "4095"), ("--select", "z=max"), ("--pattern", "{id}_{channel}")):
        done = train(twelve, tmp_path / "run", "--store", store, option, value)
        said = f"store: {option} {value} is asked for, but its images were packed with"
        assert done.exit_code and said in str(done.exception)
    assert (done := train(twelve, tmp_path / "run", "--store", store)).exit_code == 0, done.output
    config = next((tmp_path / "run").glob("*.toml"))
    assert RunSettings.read(config).white_level == "4095,4095,1000"
    done = invoke("train", twelve, "--config", config, "--out", tmp_path / "again")
    assert done.exit_code == 0, done.output
    done = invoke("pack", twelve, tmp_path / "other", *channels, "--white-level", "8190", "--size", "32")
    assert done.exit_code == 0, done.output
    with pytest.warns(NoticeWarning, match="was packed with other levels than the model was trained with: all"):
        load_predictor(tmp_path / "run").scores(tmp_path / "other", workers=0)


def test_append_takes_no_options_of_files(twelve, tmp_path):
    line = ["pack", twelve, tmp_path / "store", "--append", "--white-level", "4095", "--size", "32", "--clip"]
    done = invoke(*line)
    said = "--append reads files as the store's were read: give it without --size, --white-level, --clip"
    assert done.exit_code and said in str(done.exception)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number(tmp_path, value):
    planes = np.ones((3, 8, 8), np.float64)
    planes[1, 2, 3] = value
    write(tmp_path, "a", planes)
    images = open_images(tmp_path, Layout(STAINS, white_level=1))
    with pytest.raises(Exception, match=r"a\.ome\.tif: 64-bit floating point, of which 1 values are nan or infinite"):
        images.open("a")


def test_float_ome_zarr(real, tmp_path):
    """An OME-Zarr in floating point, of 16, 32 and 64 bits, is the image that a file in floating point is."""
    zarr = pytest.importorskip("zarr")
    planes = tifffile.imread(real / "train/f02.ome.tif").astype(np.float16)
    opened = []
    for kind in (np.float16, np.float32, np.float64):
        group = zarr.open_group(tmp_path / f"{np.dtype(kind)}.ome.zarr", mode="w", zarr_format=2)
        group.create_array("0", shape=planes.shape, dtype=kind, chunks=planes.shape)[...] = planes
        axes = [{"name": axis} for axis in "cyx"]
        scale = {"coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}], "path": "0"}
        group.attrs.update({
            "multiscales": [{"version": "0.4", "axes": axes, "datasets": [scale]}],
            "omero": {"channels": [{"label": name} for name in STAINS]},
        })  # fmt: skip
        images = open_images(tmp_path / f"{np.dtype(kind)}.ome.zarr", Layout(STAINS, white_level=1))
        opened.append(images.open(images.ids[0]))
    expected = np.floor(np.clip(planes.astype(np.float64), 0, 1) * 255 + 0.5)
    assert all(np.array_equal(image, expected) for image in opened)


def test_onnx_has_them(twelve, tmp_path):
    """An exported network, of 16 bits and levels of each channel, gives the scores of the run."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    line = ["pack", twelve, tmp_path / "store", "--channels", ",".join(STAINS), "--white-level", "4095,4095,1000"]
    assert (done := invoke(*line, "--bits", 16)).exit_code == 0, done.output
    done = train(twelve, tmp_path / "run", "--store", tmp_path / "store")
    assert done.exit_code == 0, done.output
    assert (done := invoke("export", tmp_path / "run", tmp_path / "onnx")).exit_code == 0, done.output
    description = json.loads((tmp_path / "onnx/model.json").read_text())
    assert description["layout"]["white_level"] == list(WHITES) and description["layout"]["bits"] == 16
    found = []
    for model, engine in (("run", "torch"), ("onnx", "onnxruntime")):
        out = tmp_path / f"{engine}.csv"
        done = invoke("predict", tmp_path / model, twelve / "train", "--engine", engine, "--out", out)
        assert done.exit_code == 0, done.output
        found.append(pd.read_csv(out)[["Nucleoplasm", "Cytosol"]])
    assert np.allclose(*found, atol=1e-5)
