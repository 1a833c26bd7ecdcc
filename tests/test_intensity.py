"""What files use of their range of values is measured before work, said, and kept."""
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import HPA_LAYOUT, Layout, save_image
from protein_atlas.data.intensity import Intensity, IntensityWarning, intensity_warning, measure_intensity
from protein_atlas.data.labels import read_labels
from protein_atlas.data.packing import append_images, pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.store import ImageStore, store_description
from protein_atlas.data.store_format import STORE_VERSION, seal
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.predict.engines import Engine
from protein_atlas.predict.predictor import Predictor, ensemble
from protein_atlas.predict.reading import ScoringModel

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
        (("--size", "20by30"), "found '20by30'"), (("--white-level", "high"), "--white-level must be 0 to 65535"),
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
    """A learner of bright fields that has learned nothing, its bundle, and other fields: a tenth as bright, and without
    light in one stain."""
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
    dark = write_levels(place / "dark", 4096)
    for path in (dark / "train").glob("*_actin.png"):
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(path)
    with pytest.warns(IntensityWarning, match="dark/train: actin is black in 8 of 8 images. Look at the files"):
        pack_images(dark, dark / "store", layout=FULL, workers=1)
    return learn, place / "bundle", {"dim": dim, "dark": dark}


SAYS = {
    "dim": r"dapi: 99\.9 % of the pixels lie below 0\.09\d of full brightness, there below 0\.99\d .*actin: 99\.9 % ",
    "dark": r"actin is black in (\d) of \1 images, there in 0 of \d\. .* Look at the files of actin; pack --white",
}


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
        files.pipe_file(f"/{folder.name}/{path.name}", path.read_bytes())
    return f"memory://{folder.name}"


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

    return screen(bundle, images, images / "screened", Here)


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize("way", WAYS)
def test_images_of_another_brightness_are_said(network, way, kind):
    from protein_atlas.predict.load import load_predictor

    learn, bundle, others = network
    images = others[kind]
    predictor = load_predictor(bundle, device="cpu")
    with warnings.catch_warnings(record=True) as caught, learn.no_bar(), learn.no_logging():
        warnings.simplefilter("always", IntensityWarning)
        WAYS[way](learn, predictor, bundle, images)
    said = [str(one.message) for one in caught if issubclass(one.category, IntensityWarning)]
    assert len(said) == 1, said
    assert re.search(f"these images are unlike those the model was trained on: {SAYS[kind]}", said[0]), said[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", IntensityWarning)
        predictor.scores(learn.dls.train_ds.tls[0].tfms.fs[-1].source, ["f0"], workers=0)
        learn.dls.test_dl(["f0", "f1"])


def test_the_page_says_it(network):
    pytest.importorskip("gradio")
    from protein_atlas.app.viewer import Viewer

    _, bundle, others = network
    dim = others["dim"]
    viewer, files = Viewer.open(bundle, "cpu"), [str(path) for path in sorted((dim / "train").iterdir())]
    with warnings.catch_warnings():
        warnings.simplefilter("error", IntensityWarning)  # it is the visitor's to know, not the terminal's
        viewed, _ = viewer.look_at_upload(files[:4])
        html, _ = viewer.folder_html(files)
    assert "8 images looked at" in html and html.count("unlike those the model was trained on") == 1
    assert viewed.unlike.startswith("these images are unlike those the model")
    assert viewed.only("f1").unlike == viewed.unlike


def test_loaders_say_levels_that_waste_the_scale(tmp_path):
    from protein_atlas.vision.data import protein_datablock

    images = write_levels(tmp_path / "images", 4096)
    block = protein_datablock(images / "train", LABELS, Layout(channels=STAINS))
    with pytest.warns(IntensityWarning, match="they use 17 of 256 gray levels: --white-level 4095 would fit"):
        block.dataloaders(images / "train.csv", bs=4, num_workers=0)


def test_what_was_found_stands_on_report_and_card(call_command, tmp_path, without_evidence):
    """Of a run on a 12-bit camera's files, read as if they used 16 bits."""
    images = write_levels(tmp_path / "images", 4096, 60)
    done = call_command(
        "train", images, "-o", tmp_path / "run", "--epochs", 1, "--workers", 0, "--channels", ",".join(STAINS),
        "--labels", ",".join(LABELS), "--arch", "small_resnet", "--pretrained", "none",
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


# Channel by channel


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[Path, Path]:
    """Two sets of simulated cells, of other seeds and sizes."""
    place = tmp_path_factory.mktemp("simulated")
    first = simulate_phantoms(place / "first", 40, size=64, seed=1)
    return first / "train", simulate_phantoms(place / "second", 40, size=96, seed=2) / "train"


def predictor_of(*trained: Path):
    """An ensemble of networks that know nothing, each trained on such images."""
    thresholds = Thresholds([0.5, 0.5], LABELS, "fixed")

    def scores(images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 2), np.float32)

    def of(folder: Path):
        measured = measure_intensity(ImageFolder(folder), size=64)
        engine = Engine(scores, "none", "fp32", "cpu", "none", source=folder.name)
        return Predictor((ScoringModel(engine, (64, 64), intensity=measured),), LABELS, HPA_LAYOUT, thresholds)

    return ensemble([of(folder) for folder in trained])


def changed(source: Path, folder: Path, change) -> Path:
    """The images, each channel file as `change(channel, pixels by channel)` has it."""
    images = ImageFolder(source)
    folder.mkdir(exist_ok=True)
    for image_id in images.ids:
        of = dict(zip(images.layout.channels, images.open(image_id), strict=True))
        save_image(folder, image_id, np.stack([change(channel, of) for channel in of]).astype(np.uint8))
    return folder


SWAP = {"red": "blue", "blue": "red"}
DAMAGE = {
    "green black": (lambda c, of: of[c] * (c != "green"), "green is black in 32 of 32 images, there in 0 of 32. "),
    "green of one level": (lambda c, of: of[c] * 0 + 90 if c == "green" else of[c], "green is of one level in 32 of "),
    "green at a tenth": (lambda c, of: of[c] // 10 if c == "green" else of[c], "green: 99.9 % of the pixels lie"),
    "blue inverted": (lambda c, of: 255 - of[c] if c == "blue" else of[c], "blue: half of the pixels lie above 0.99"),
    "inverted": (lambda c, of: 255 - of[c], "of red, green, blue, yellow: if their background is white, invert them"),
    "at half": (lambda c, of: of[c] // 2, "8-bit files have no levels to choose: look how they were written."),
    "at a quarter": (lambda c, of: of[c] // 4, "8-bit files have no levels to choose: look how they were written."),
    "four times over": (lambda c, of: of[c].clip(0, 63) * 4.05, "of the pixels are at full brightness, there 0."),
    "two stains exchanged": (lambda c, of: of[SWAP.get(c, c)], "the files of red and blue bear each other's names."),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_happened_to_the_images_is_said(simulated, tmp_path, kind):
    first, second = simulated
    change, says = DAMAGE[kind]
    with pytest.warns(IntensityWarning, match="these images are unlike those the model was trained on: ") as caught:
        predictor_of(first).scores(changed(second, tmp_path, change), workers=0)
    (said,) = [str(one.message) for one in caught]
    assert says in said, said


def test_other_seeds_sizes_and_labels_are_silent(simulated):
    first, second = simulated
    with warnings.catch_warnings():
        warnings.simplefilter("error", IntensityWarning)
        for known, images in ((first, second), (second, first)):
            predictor_of(known).scores(images, workers=0)
        table = read_labels(second.parent / "train.csv")
        for label in np.flatnonzero(table.counts() >= 4):
            shown = table.ids[table.targets[:, label] == 1].tolist()
            predictor_of(first).scores(second, shown, workers=0)


def test_each_network_of_an_ensemble_is_asked(simulated, tmp_path):
    first, second = simulated
    dim = changed(first, tmp_path / "dim", lambda c, of: of[c] // 4)
    both = predictor_of(first, dim)
    assert both.unlike(both.select(second)).startswith("For model 2 (dim): these images are unlike those")
    assert both.unlike(both.select(dim)).startswith("For model 1 (train): these images are unlike those")
    assert predictor_of(first, second).unlike(both.select(second)) is None


def test_older_descriptions_are_compared_by_what_they_have(simulated, tmp_path):
    first, second = simulated
    known, now = (measure_intensity(ImageFolder(folder), size=64) for folder in simulated)
    content = known.as_json()
    del content["channels"]
    older = Intensity.from_json(content)
    assert older is not None and not older.channels and intensity_warning(older, now) is None
    inverted = measure_intensity(ImageFolder(changed(second, tmp_path / "a", lambda c, of: 255 - of[c])), size=64)
    tenth = measure_intensity(ImageFolder(changed(second, tmp_path / "b", lambda c, of: of[c] // 10)), size=64)
    assert intensity_warning(older, inverted) is None  # all channels together hide it: black is somewhere
    assert "99 % of the pixels lie below 0.0" in intensity_warning(older, tenth)
    assert "as if inverted" in intensity_warning(known, inverted)


def test_a_store_of_version_2_is_read_and_appended_to(tmp_path):
    images = write(tmp_path / "images", 32768)
    pack_images(images, tmp_path / "store", layout=SIGNED, workers=1)
    path = tmp_path / "store/zarr.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    about = content["attributes"]["protein_atlas"]
    del about["made"][0]["intensity"]["channels"], about["seal"]
    about["version"] = 2
    about["seal"] = seal(about)
    path.write_text(json.dumps(content), encoding="utf-8")
    assert len(ImageStore(tmp_path / "store")) == 6
    write(images, 32768, range(6, 8))
    append_images(images, tmp_path / "store", workers=1)
    known = store_description(tmp_path / "store")
    assert known["version"] == STORE_VERSION and len(ImageStore(tmp_path / "store")) == 8
    older, newer = (Intensity.from_json(made["intensity"]) for made in known["made"])
    assert older.channels == () and [channel.name for channel in newer.channels] == list(STAINS)


def test_loaders_name_a_stain_without_light(network):
    from protein_atlas.vision.data import protein_datablock

    dark = network[2]["dark"]
    block = protein_datablock(dark / "train", LABELS, FULL)
    with pytest.warns(IntensityWarning, match="^actin is black in [0-9] of [0-9] images. Look at the files of actin"):
        block.dataloaders(dark / "train.csv", bs=4, num_workers=0)


def test_what_has_no_light_stands_on_report_and_card(call_command, tmp_path, without_evidence):
    images = write_levels(tmp_path / "images", 4096, 60)
    for path in (images / "train").glob("*_actin.png"):
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(path)
    done = call_command(
        "train", images, "-o", tmp_path / "run", "--epochs", 1, "--workers", 0, "--channels", ",".join(STAINS),
        "--labels", ",".join(LABELS), "--arch", "small_resnet", "--pretrained", "none", "--white-level", 4095,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    sentence = "actin is black in 32 of 32 images. Look at the files of actin"
    assert done.stdout.count(f"warning: {sentence}") == 1
    reached = "99.9 % of the pixels, as shares of full brightness: dapi up to 1.00, actin up to 0.00"
    report = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert f"Channels without light: {sentence}" in report and reached in report
    card = (tmp_path / "run/bundle/README.md").read_text(encoding="utf-8")
    assert f"- **Trained on channels without light**: {sentence}" in card and f"- each channel: {reached}" in card
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert Intensity.from_json(metrics["intensity"]).channels[1].blank == 32
