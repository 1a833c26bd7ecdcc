"""Training on ids with a learner of the library; a bundle afterwards is body and label head, as ever."""
import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from protein_atlas.callback.metric_learning import ArcFaceCallback  # noqa: E402
from protein_atlas.data.images import save_image  # noqa: E402
from protein_atlas.train.learner import rgby_learner  # noqa: E402
from protein_atlas.vision.data import protein_datablock  # noqa: E402
from protein_atlas.vision.network import load_bundle  # noqa: E402

VOCAB = ("Nucleoli", "Cytosol")


def test_a_learner_trained_on_ids_is_saved_as_ever(tmp_path):
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "images").mkdir()
    for row in range(48):
        image = rng.integers(0, 200, (4, 32, 32)).astype(np.uint8)
        save_image(tmp_path / "images", f"im{row:02}", image)
        rows.append((f"im{row:02}", VOCAB[row // 4 % 2], f"A{row // 4}"))
    table = pd.DataFrame(rows, columns=["Id", "Target", "antibody"])
    block = protein_datablock(tmp_path / "images", VOCAB, ids="antibody")
    learn = rgby_learner(block.dataloaders(table, bs=8, num_workers=0, device="cpu"), "small_resnet", pretrained=False)
    arc = ArcFaceCallback(width=8)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, cbs=arc)
        learn.fit_one_cycle(1, cbs=arc)
        learn.fit_thresholds()
        assert len(arc.losses) == 3 * len(learn.dls.train) and np.isfinite(arc.losses).all()
        scores = learn.valid_scores()[1]
    assert set(arc.id_names).isdisjoint(learn.dls.valid_ds.items.antibody)
    learn.dls.show_batch(max_n=2)
    with learn.no_bar():
        learn.show_results(max_n=2)
    predictor = load_bundle(learn.save_bundle(tmp_path / "bundle"), "cpu")
    images = np.stack([learn.dls.valid_ds.tls[0][row].gray_levels() for row in range(len(scores))])
    np.testing.assert_allclose(predictor.image_scores(images), scores, atol=1e-4)
    names = {name for name, _ in learn.model.named_parameters()}
    assert sum(map(len, learn.opt.param_lists)) == len(names) and not any("centres" in name for name in names)
