"""What a model's own images look like to it: kept with the run and in the bundle, and said of images unlike them."""
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protein_atlas.commands.features import head
from protein_atlas.data.images import save_image
from protein_atlas.data.sources import open_images
from protein_atlas.embed.load import embed
from protein_atlas.features.files import read_features
from protein_atlas.predict.bundle import open_bundle, seal_bundle
from protein_atlas.predict.load import load_predictor
from protein_atlas.predict.predictor import ensemble
from protein_atlas.predict.reading import UnlikeWarning
from protein_atlas.predict.screening import screen
from protein_atlas.report.run_writer import Artifact
from protein_atlas.system.errors import BundleError, ImageError

SAID = "images are farther from the nearest training images"


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained[0]


@pytest.fixture(scope="module")
def inverted(phantoms, tmp_path_factory) -> Path:
    """Twelve of the images, with black for white."""
    folder, images = tmp_path_factory.mktemp("inverted"), open_images(phantoms / "train")
    for image_id in images.ids[:12]:
        save_image(folder, image_id, 255 - images.open(image_id, None))
    return folder


@pytest.fixture
def bundle(run, tmp_path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(run / "bundle", tmp_path / "bundle"))


def without_reference(bundle: Path) -> None:
    """Make of it what was written before there were references."""
    (bundle / "reference.safetensors").unlink()
    sums = (bundle / "SHA256SUMS").read_text().splitlines(keepends=True)
    (bundle / "SHA256SUMS").write_text("".join(line for line in sums if "reference" not in line))


def unlike_said(call: Callable[[], object]) -> list[str]:
    """What is said of unlike images meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught if issubclass(one.category, UnlikeWarning)]


def test_a_run_keeps_what_its_network_sees(run, phantoms):
    kept, split = read_features(run / Artifact.FEATURES), pd.read_csv(run / Artifact.SPLIT, dtype=str)
    split = split.set_index("Id").loc[list(kept.ids)]
    assert len(kept) == 140 and kept.features.dtype == np.float16
    assert (kept.column("side") == split["side"]).all() and (kept.column("Target") == split["Target"]).all()
    made = embed(run, phantoms / "train", list(kept.ids), like=kept, half=True, workers=0)
    assert made.about["identity"] == kept.about["identity"] and made.about.keys() == kept.about.keys()
    np.testing.assert_allclose(made.features.astype(np.float32), kept.features.astype(np.float32), atol=2e-3)
    with open_bundle(run) as opened:
        assert len(opened.reference.rows) == (kept.column("side") == "train").sum() == 114
        assert opened.reference.about == {"identity": kept.about["identity"]}  # no path of this machine
        assert "unlike the 114 training images that this model knows" in (opened.folder / "README.md").read_text()


def test_unlike_images_are_said(run, phantoms, inverted, bundle):
    predictor = load_predictor(run, device="cpu")
    assert unlike_said(lambda: predictor.predict(phantoms / "train", workers=0)) == []
    (said,) = unlike_said(lambda: predictor.predict(inverted, workers=0))
    assert said.startswith(f"{inverted}: 8 of 8 {SAID}")
    assert SAID in predictor.caveats(predictor.select(inverted))  # on the page
    assert len(unlike_said(lambda: embed(run, inverted, workers=0))) == 1
    without_reference(bundle)
    both = ensemble([load_predictor(bundle, device="cpu"), predictor])
    (said,) = unlike_said(lambda: both.scores(inverted, workers=0))
    assert f"For model 2 ({run / 'bundle'}): 8 of 8 {SAID}" in said


def test_unlike_images_of_a_screening_are_said_once(run, inverted, tmp_path, monkeypatch):
    monkeypatch.setattr("protein_atlas.predict.screening.screen_parts", lambda *_, **__: None)
    assert len(unlike_said(lambda: screen([run, run], inverted, tmp_path / "out"))) == 1


def test_a_bundle_without_a_reference_is_read(bundle, inverted):
    without_reference(bundle)
    with open_bundle(bundle) as opened:
        assert opened.reference is None
    assert unlike_said(lambda: load_predictor(bundle, device="cpu").scores(inverted, workers=0)) == []


def test_a_damaged_reference_is_named(bundle):
    path = bundle / "reference.safetensors"
    content = path.read_bytes()
    for spoil, said in (
        (lambda: path.write_bytes(content[:-1]), "reference.safetensors is not the file that was saved"),
        (path.unlink, "no file reference.safetensors in it, though SHA256SUMS names one"),
    ):
        path.write_bytes(content)
        spoil()
        with pytest.raises(BundleError, match=said):
            load_predictor(bundle)


def test_a_reference_of_another_network_is_refused(bundle):
    with open_bundle(bundle) as opened:
        known = opened.description
    seal_bundle(bundle, replace(known, mean=tuple(value / 2 for value in known.mean)))  # which fits the checksums
    with pytest.raises(BundleError, match="reference.safetensors is of another network"):
        load_predictor(bundle)


def test_an_engine_of_scores_alone_says_what_it_cannot(run, inverted):
    predictor = load_predictor(run, device="cpu")
    (model,) = predictor.models
    deaf = replace(predictor, models=(replace(model, engine=replace(model.engine, features=None)),))
    assert unlike_said(lambda: deaf.scores(inverted, workers=0)) == []
    assert "cannot tell images unlike those trained on" in deaf.describe()
    assert "unlike" not in predictor.describe()


def test_a_head_knows_its_images(run, few_labels, inverted, tmp_path, monkeypatch):
    for shown in ("embed.head_run.write_alike", "embed.head_run.write_report", "report.run_writer.RunWriter._figure"):
        monkeypatch.setattr(f"protein_atlas.{shown}", lambda *_, **__: None)  # others look at it
    kept = read_features(run / Artifact.FEATURES)
    head(run / Artifact.FEATURES, str(few_labels / "train.csv"), tmp_path / "head", estimator="torch:linear")
    again = read_features(tmp_path / "head" / Artifact.FEATURES)
    np.testing.assert_array_equal(again.of(kept.ids).features, kept.features)
    made = embed(tmp_path / "head", few_labels / "train", list(again.ids[:4]), workers=0)
    assert made.about["identity"] == again.about["identity"] != kept.about["identity"]
    predictor = load_predictor(tmp_path / "head", device="cpu")
    assert unlike_said(lambda: predictor.scores(few_labels / "train", workers=0)) == []
    assert len(unlike_said(lambda: predictor.scores(inverted, workers=0))) == 1


def test_a_prediction_with_a_reference_goes_on(run, phantoms, tmp_path):
    folder, out = Path(shutil.copytree(phantoms / "train", tmp_path / "train")), tmp_path / "out.csv"
    ids = open_images(folder).ids[:24]
    damaged = folder / f"{ids[20]}_red.png"
    content = damaged.read_bytes()
    damaged.write_bytes(b"no picture")
    predictor = load_predictor(run, device="cpu")
    with pytest.raises(ImageError, match=damaged.name) as raised:
        predictor.predict(folder, ids, out, bs=8, workers=0)
    assert "16 of 24 rows are kept" in " ".join(raised.value.__notes__)
    damaged.write_bytes(content)
    done = predictor.predict(folder, ids, out, bs=8, workers=0)
    assert done.resumed == 16 and len(pd.read_csv(out)) == 24
