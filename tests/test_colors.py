"""The colours that one asks for, from the layout to every picture: through stores, loaders, and bundles."""
import json

import numpy as np
import pytest

from protein_atlas.data.color import composite
from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.packing import append_images, pack_images
from protein_atlas.data.sources import open_images
from protein_atlas.data.store import ImageStore
from protein_atlas.data.store_format import STORE_VERSION, seal

STAINS, COLORS = ("dapi", "gfp"), ("cyan", "#ff0000")


def write(folder, ids, layout):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for image_id in ids:
        save_image(folder, image_id, rng.integers(0, 256, (2, 32, 32), np.uint8), layout)
    return folder


def test_a_store_keeps_them_and_whoever_opens_it_may_say_others(tmp_path):
    layout = Layout(STAINS, colors=COLORS)
    images = write(tmp_path / "images", ["a", "b"], layout)
    pack_images(images, tmp_path / "store", [32, 16], layout, workers=1)
    write(images, ["c"], layout)
    append_images(images, tmp_path / "store", workers=1)
    store = open_images(tmp_path / "store", size=32)
    assert (store.layout.colors, store.at(16).layout.colors, len(store)) == (COLORS, COLORS, 3)
    other = open_images(tmp_path / "store", Layout(STAINS, colors=("red", "gray")), size=32)
    assert (other.layout.colors, other.at(16).layout.colors) == (("red", "gray"),) * 2
    assert open_images(tmp_path / "store", Layout(STAINS), size=32).layout.colors == COLORS


def test_a_store_of_before_is_read_and_appended_to(tmp_path):
    images = write(tmp_path / "images", ["a"], Layout(STAINS))
    pack_images(images, tmp_path / "store", layout=Layout(STAINS), workers=1)
    path = tmp_path / "store/zarr.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    about = content["attributes"]["protein_atlas"]
    del about["made"][0]["layout"]["colors"], about["seal"]
    about["version"] = 3
    about["seal"] = seal(about)
    path.write_text(json.dumps(content), encoding="utf-8")
    assert ImageStore(tmp_path / "store").layout == Layout(STAINS)
    write(images, ["b"], Layout(STAINS))
    append_images(images, tmp_path / "store", workers=1)
    assert json.loads(path.read_text(encoding="utf-8"))["attributes"]["protein_atlas"]["version"] == STORE_VERSION


def test_pack_takes_them(invoke, call_command, tmp_path):
    images = write(tmp_path / "images", ["a"], Layout(STAINS))
    invoke("pack", images, tmp_path / "store", "--channels", "dapi,gfp", "--colors", "cyan,#ff0000", "--workers", 1)
    assert ImageStore(tmp_path / "store").layout.colors == COLORS
    done = call_command("pack", images, tmp_path / "other", "--channels", "dapi,gfp", "--colors", "cyan,pink")
    assert (done.returncode, "channel gfp: there is no color 'pink'; expected red, green" in done.stderr) == (2, True)
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    """A learner of images that are drawn in colours of one's own."""
    import pandas as pd

    from protein_atlas.train.learner import rgby_learner
    from protein_atlas.vision.data import protein_datablock
    from protein_atlas.vision.models import small_resnet

    folder = tmp_path_factory.mktemp("colors")
    ids = [f"im{number}" for number in range(40)]
    images = write(folder / "images", ids, Layout(STAINS))
    table = pd.DataFrame({"Id": ids, "Target": ["a", "b"] * 20})
    block = protein_datablock(images, ("a", "b"), Layout(STAINS, colors=COLORS))
    return rgby_learner(block.dataloaders(table, bs=4, num_workers=0), small_resnet, pretrained=False)


def test_batches_and_interpretations_are_drawn_in_them(learn):
    batch = learn.dls.one_batch()[0]
    assert batch.colors == COLORS
    item = learn.dls.valid_ds[0][0]
    expected = composite(item.gray_levels(), STAINS, 0.3, colors=COLORS)
    assert np.array_equal(item.composite(), expected) and np.array_equal(item.show().images[0].get_array(), expected)
    shown = learn.interpret().top_losses_figure(1).axes[0]
    assert shown.images[0].get_array().shape[1] > 2 * 32 and [text.get_text() for text in shown.texts] == ["gfp"]
    assert np.array_equal(composite(item.gray_levels(), STAINS, 0.3, True), item.composite(safe_colors=True))


def test_a_bundle_keeps_them_and_its_page_draws_in_them(learn, tmp_path):
    from protein_atlas.app.viewer import Viewer
    from protein_atlas.vision.network import load_bundle

    learn.fit_thresholds()
    learn.save_bundle(tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").layout.colors == COLORS
    viewer = Viewer.open(tmp_path / "bundle")
    image = np.zeros((2, 32, 32), np.uint8)
    image[0] = 255
    assert viewer._composite(image)[0, 0].tolist() == [0, 255, 255]
    assert viewer._composite(image, safe_colors=True)[0, 0].tolist() == [0, 153, 255]  # who asks for them needs them
