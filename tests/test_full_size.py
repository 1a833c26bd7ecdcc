"""Networks in their full size, for four channels of 224 pixels: built, trained for a batch, saved, loaded again."""

import numpy as np
import pytest

from protein_atlas.data.labels import read_labels
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.train.learner import rgby_learner
from protein_atlas.vision.data import protein_datablock
from protein_atlas.vision.network import load_bundle

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return simulate_phantoms(tmp_path_factory.mktemp("full") / "phantoms", n=16, size=224, min_count=0)


@pytest.mark.parametrize("arch", ["vit_small_patch16_224", "convnext_tiny", "efficientnet_b0", "seresnext50_32x4d"])
def test_network_in_full_size(phantoms, tmp_path, arch):
    table = read_labels(phantoms / "train.csv")
    dls = protein_datablock(phantoms / "train", table.vocab).dataloaders(table, bs=4, num_workers=0, device="cpu")
    learn = rgby_learner(dls, arch, pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-4)
    learn.fit_thresholds()
    bundle, ids = learn.save_bundle(tmp_path / "bundle"), table.ids[:3].tolist()
    scores = load_bundle(bundle, "cpu").scores(phantoms / "train", ids)
    assert scores.shape == (3, 28) and np.isfinite(scores).all()
    np.testing.assert_allclose(learn.predictor().scores(phantoms / "train", ids), scores, atol=1e-4)
