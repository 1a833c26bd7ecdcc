"""Images from anywhere: folder, table, packed store, URL, and a source of one's own are taken wherever images are."""
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from protein_atlas.cli import app
from protein_atlas.data.duplicates import find_duplicates
from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.geometry import resize_image
from protein_atlas.data.images import CHANNELS
from protein_atlas.data.labels import read_labels
from protein_atlas.data.packing import append_images, pack_images
from protein_atlas.data.sources import Images, open_images
from protein_atlas.data.store import ImageStore
from protein_atlas.system.errors import ImageError
from protein_atlas.system.storage import open_folder

KINDS = ("folder", "folder above", "table", "store", "folder URL", "table URL", "store URL", "own")


class Crops(Images):
    """The middle of each image of another source: what somebody writes who has crops of cells."""

    def __init__(self, whole: Images, margin: int):
        self.place, self.ids, self.layout = whole.place, list(whole.ids), whole.layout
        self.whole, self.margin = whole, margin

    def open(self, image_id, size=None):
        crop = self.whole.open(image_id)[:, self.margin : -self.margin or None, self.margin : -self.margin or None]
        return crop if size is None else resize_image(crop, size)

    def fingerprint(self, image_id):
        return self.whole.fingerprint(image_id)


@pytest.fixture(scope="module")
def places(phantoms, tmp_path_factory) -> dict[str, object]:
    """The same images, told in each way."""
    work, train = tmp_path_factory.mktemp("sources"), phantoms / "train"
    ids, bucket = ImageFolder(train).ids, open_folder("memory://sources")
    files = {channel: [f"{image_id}_{channel}.png" for image_id in ids] for channel in CHANNELS}
    local = {channel: [str(train / name) for name in names] for channel, names in files.items()}
    pd.DataFrame({"Id": ids} | local).to_csv(work / "images.csv", index=False)
    for name in (name for names in files.values() for name in names):
        bucket.write(f"plate/train/{name}", (train / name).read_bytes())
    bucket.write("plate/train.csv", (phantoms / "train.csv").read_bytes())
    bucket.write("plate/train/images.csv", pd.DataFrame({"Id": ids} | files).to_csv(index=False).encode())
    pack_images(train, work / "store", workers=1)
    pack_images(train, "memory://sources/store", workers=1)
    yield {
        "folder": train, "folder above": phantoms, "table": work / "images.csv", "store": work / "store",
        "folder URL": "memory://sources/plate", "table URL": "memory://sources/plate/train/images.csv",
        "store URL": "memory://sources/store", "own": Crops(open_images(train), 0),
    }  # fmt: skip
    bucket.remove(list(bucket.files()))


@pytest.fixture(scope="module")
def table(phantoms):
    return read_labels(phantoms / "train.csv").present()


@pytest.fixture(scope="module")
def expected(phantoms, table) -> np.ndarray:
    folder = ImageFolder(phantoms / "train")
    return np.stack([folder.open(image_id) for image_id in table.ids[:6]])


@pytest.mark.parametrize("kind", KINDS)
def test_opened_and_packed(places, table, expected, kind, tmp_path):
    images, ids = open_images(places[kind]), table.ids[:6].tolist()
    assert isinstance(images, Images) and set(ids) <= set(images.ids) and ids[0] in images and len(images) == 140
    np.testing.assert_array_equal(images.read(ids), expected)
    np.testing.assert_array_equal(images.open(ids[1]), expected[1])
    assert images.fingerprint(ids[0]) != images.fingerprint(ids[1]) and images.layout.channels == CHANNELS
    with pytest.raises(ImageError, match="'gone'"):
        images.check([*ids, "gone"])
    np.testing.assert_array_equal(images.some(ids).read(ids), expected)
    pack_images(places[kind], tmp_path / "packed", ids=ids[:4], workers=2)
    assert append_images(places[kind], tmp_path / "packed", ids=ids, workers=1).added == 2
    np.testing.assert_array_equal(ImageStore(tmp_path / "packed").read(ids), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_searched_for_duplicates(places, table, kind):
    ids = table.ids[:6].tolist()
    pairs = find_duplicates(places[kind], places["folder"], ids, ids, workers=2)
    assert sorted(pairs.loc[pairs["same"], "first"]) == sorted(ids)
    assert (pairs.loc[pairs["same"], "first"] == pairs.loc[pairs["same"], "second"]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_loaded_for_training(places, table, expected, kind, workers):
    from fastai.data.transforms import IndexSplitter

    from protein_atlas.vision.data import protein_datablock

    block = protein_datablock(places[kind], table.vocab, splitter=IndexSplitter(range(6)))
    dls = block.dataloaders(table, bs=4, num_workers=workers, device="cpu")
    seen = np.concatenate([np.asarray(dls.valid.decode((x, y))[0]) for x, y in dls.valid])
    np.testing.assert_allclose(seen, expected, atol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own"])
def test_predicted_at_a_shell(trained, places, kind, tmp_path):
    run, _ = trained
    out = [tmp_path / "one.csv", tmp_path / "other.csv"]
    for place, path in zip((places[kind], places["folder"]), out):
        done = CliRunner().invoke(app, ["predict", str(run), str(place), "--out", str(path), "--workers", "1"])
        assert done.exit_code == 0, done.exception
    one, other = (pd.read_csv(path, index_col="Id").sort_index() for path in out)
    pd.testing.assert_frame_equal(one, other, atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["store URL", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("table", "folder URL"))]
)
def test_trained_at_a_shell(few_labels, places, kind, tmp_path, without_evidence):
    data, options = (places[kind], ()) if kind == "folder URL" else (few_labels, ("--store", str(places[kind])))
    command = [
        "train", str(data), "--out", str(tmp_path / "run"), *options, "--epochs", "1", "--workers", "0",
        "--find-duplicates",
    ]
    done = CliRunner().invoke(app, [*command, "--arch", "small_resnet"])
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "run" / "duplicates.csv").is_file()


def test_own_source_of_crops_to_predictions(places, table, trained):
    from protein_atlas.predict.load import load_predictor

    crops = Crops(open_images(places["folder"]), 4)
    predictor = load_predictor(trained[0], device="cpu")
    found = predictor.predict(crops, table.ids[:6].tolist(), workers=2)
    shrunk = np.stack([crops.open(image_id, 32) for image_id in found.ids])
    np.testing.assert_allclose(found.scores, predictor.models[0].engine.run(shrunk), atol=1e-5)
