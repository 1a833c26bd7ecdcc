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


LABELS = ("left", "right")
FULL = Layout(channels=STAINS, white_level=4095)


def write_levels(folder: Path, top: int, n: int = 8) -> Path:
    """Fields of 32 pixels, 16-bit values up to `top`: `train.csv`, the folder `train`, and a table of its files."""
    (folder / "train").mkdir(parents=True)
    for number in range(n):
        for channel in STAINS:
            plane = np.random.default_rng(number).integers(0, top, (32, 32)).astype(np.uint16)
            Image.fromarray(plane).save(folder / "train" / f"f{number}_{channel}.png")
    rows = [f"f{number},{LABELS[number % 2]}" for number in range(n)]
    (folder / "train.csv").write_text("\n".join(["Id,Target", *rows]) + "\n")
    rows = [",".join([f"f{number}", *(f"train/f{number}_{channel}.png" for channel in STAINS)]) for number in range(n)]
    (folder / "files.csv").write_text("\n".join([",".join(["Id", *STAINS]), *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A learner of bright fields that has learned nothing, its bundle, and dim fields: a tenth as bright."""
    from protein_atlas.evaluate.thresholds import Thresholds
    from protein_atlas.train.learner import rgby_learner
    from protein_atlas.vision.data import protein_datablock
    from protein_atlas.vision.models import small_resnet

    place = tmp_path_factory.mktemp("levels")
    bright, dim = write_levels(place / "bright", 4096), write_levels(place / "dim", 400)
    block = protein_datablock(bright / "train", LABELS, FULL)
    learn = rgby_learner(block.dataloaders(bright / "train.csv", bs=4, num_workers=0), small_resnet, pretrained=False)
    learn.thresholds = Thresholds([0.5, 0.5], LABELS, "fixed")
    learn.save_bundle(place / "bundle")
    with pytest.warns(IntensityWarning, match="--white-level 511 would fit"):
        pack_images(dim, dim / "store", layout=FULL, workers=1)
    return learn, place / "bundle", dim


class Here:
    """In the place of a cluster: this process."""

    cpus, gpus = 1.0, 0.0

    @staticmethod
    def map(function, jobs, desc, unit):
        return map(function, jobs)


def behind_a_url(folder: Path) -> str:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in (folder / "train").iterdir():
        files.pipe_file(f"/dim/{path.name}", path.read_bytes())
    return "memory://dim"


def arrays(folder: Path) -> list[np.ndarray]:
    from protein_atlas.data.folders import ImageFolder

    images = ImageFolder(folder / "train", FULL)
    return [images.open(image_id) for image_id in images.ids]


WAYS = {
    "scores": lambda learn, predictor, bundle, dim: predictor.scores(dim, workers=0),
    "predict, table": lambda learn, predictor, bundle, dim: predictor.predict(dim / "files.csv", workers=0),
    "predict, store": lambda learn, predictor, bundle, dim: predictor.predict(dim / "store", workers=0),
    "predict, URL": lambda learn, predictor, bundle, dim: predictor.predict(behind_a_url(dim), workers=0),
    "predictor of the learner": lambda learn, predictor, bundle, dim: learn.predictor().scores(dim, workers=0),
    "screen": lambda learn, predictor, bundle, dim: screened(bundle, dim),
    "learn.predict, path": lambda learn, predictor, bundle, dim: learn.predict(dim / "train/f0"),
    "learn.predict, array": lambda learn, predictor, bundle, dim: learn.predict(arrays(dim)[0]),
    "test_dl, paths": lambda learn, predictor, bundle, dim: learn.dls.test_dl([dim / "train/f0", dim / "train/f1"]),
    "test_dl, arrays": lambda learn, predictor, bundle, dim: learn.dls.test_dl(arrays(dim)),
}


def screened(bundle: Path, images: Path):
    pytest.importorskip("pyarrow")
    from protein_atlas.predict.screening import screen

    return screen(bundle, images, images.parent / "screened", Here)


@pytest.mark.parametrize("way", WAYS)
def test_images_of_another_brightness_are_said(network, way):
    from protein_atlas.predict.load import load_predictor

    learn, bundle, dim = network
    predictor = load_predictor(bundle, device="cpu")
    with warnings.catch_warnings(record=True) as caught, learn.no_bar(), learn.no_logging():
        warnings.simplefilter("always", IntensityWarning)
        WAYS[way](learn, predictor, bundle, dim)
    said = [str(one.message) for one in caught if issubclass(one.category, IntensityWarning)]
    assert len(said) == 1, said
    assert "of another brightness than those the model was trained on: 99 % of the pixels lie below 0.09" in said[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", IntensityWarning)
        predictor.scores(learn.dls.train_ds.tls[0].tfms.fs[-1].source, ["f0"], workers=0)
        learn.dls.test_dl(["f0", "f1"])


def test_the_page_says_it(network):
    pytest.importorskip("gradio")
    from protein_atlas.app.viewer import Viewer

    _, bundle, dim = network
    viewer, files = Viewer.open(bundle, "cpu"), [str(path) for path in sorted((dim / "train").iterdir())]
    with warnings.catch_warnings():
        warnings.simplefilter("error", IntensityWarning)  # it is the visitor's to know, not the terminal's
        viewed, _ = viewer.look_at_upload(files[:4])
        html, _ = viewer.folder_html(files)
    assert "8 images looked at" in html and html.count("of another brightness") == 1
    assert viewed.unlike.startswith("these images are of another brightness")
    assert viewed.only("f1").unlike == viewed.unlike


def test_loaders_say_levels_that_waste_the_scale(tmp_path):
    from protein_atlas.vision.data import protein_datablock

    images = write_levels(tmp_path / "images", 4096)
    block = protein_datablock(images / "train", LABELS, Layout(channels=STAINS))
    with pytest.warns(IntensityWarning, match="they use 17 of 256 gray levels: --white-level 4095 would fit"):
        block.dataloaders(images / "train.csv", bs=4, num_workers=0)


def test_what_was_found_stands_on_report_and_card(call_command, tmp_path):
    """Of a run on a 12-bit camera's files, read as if they used 16 bits."""
    images = write_levels(tmp_path / "images", 4096, 60)
    done = call_command(
        "train", images, "-o", tmp_path / "run", "--epochs", 1, "--workers", 0, "--channels", ",".join(STAINS),
        "--labels", ",".join(LABELS), "--arch", "small_resnet", "--no-pretrained",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "IntensityWarning" not in done.stderr and "warning" not in done.stderr  # said once, on stdout
    sentence = "16-bit values from 0 to 4095, 99 % of the pixels up to"
    assert done.stdout.count(sentence) == 1
    report = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert f"Gray levels: 32 images looked at: {sentence}" in report
    assert "Most of the gray levels were not used: " in report
    card = (tmp_path / "run/bundle/README.md").read_text(encoding="utf-8")
    assert f"- gray levels: 32 images looked at: {sentence}" in card
    assert "- **Trained on a part of the gray levels**: " in card
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    metrics["intensity"]["white"] = 0
    (tmp_path / "run/metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    done = call_command("report", tmp_path / "run", "-o", tmp_path / "page.html")
    assert done.returncode == 2 and "metrics.json: intensity" in done.stderr and "found 0" in done.stderr, done.stderr
