"""Features of images at a shell: what is interrupted goes on, every image is accounted for."""
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import protein_atlas.embed.load as embed_load  # noqa: E402
from protein_atlas.data.phantoms import simulate_phantoms  # noqa: E402
from protein_atlas.features.files import read_features  # noqa: E402


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of sixty phantoms."""
    return simulate_phantoms(tmp_path_factory.mktemp("features") / "phantoms", 60, 64, seed=0, workers=1) / "train"


def test_features_that_were_interrupted_go_on(call_command, images, tmp_path, monkeypatch):
    """The same command computes the rest alone, and writes the file of a run that nothing disturbed."""
    asked = "embed", "small_resnet", images, "--size", 64, "--bs", 8, "--workers", 0
    assert call_command(*asked, "--out", tmp_path / "whole.npz").returncode == 0
    whole, batches, engine_of = read_features(tmp_path / "whole.npz"), [], embed_load.torch_engine

    def torch_engine(*arguments):
        engine = engine_of(*arguments)

        def run(images):
            batches.append(len(images))
            if len(batches) == 4:
                raise KeyboardInterrupt
            return engine.run(images)

        return replace(engine, run=run)

    monkeypatch.setattr(embed_load, "torch_engine", torch_engine)
    stopped = call_command(*asked, "--out", tmp_path / "cut.npz")
    assert stopped.returncode and not (tmp_path / "cut.npz").exists(), stopped.stdout + stopped.stderr
    again = call_command(*asked, "--out", tmp_path / "cut.npz")
    kept = re.search(r"\((\d+) of them by an earlier start\)", again.stdout)
    assert again.returncode == 0 and kept, again.stdout + again.stderr
    assert int(kept[1]) >= 16 and sum(batches[4:]) <= 60 - int(kept[1]) + 8  # one batch is run to see what comes out
    found = read_features(tmp_path / "cut.npz")
    assert (found.ids, found.about) == (whole.ids, whole.about)
    np.testing.assert_allclose(found.features, whole.features, atol=1e-5)


def test_every_image_has_features_or_an_error(call_command, images, tmp_path):
    """An image that cannot be read ends the command by its name, or has a row that says why it is empty."""
    (tmp_path / "images").mkdir()
    for path in sorted(images.iterdir())[:24]:
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
    asked = "embed", "small_resnet", tmp_path / "images", "--size", 64, "--workers", 0, "--out"
    assert call_command(*asked, tmp_path / "whole.npz").returncode == 0
    whole = read_features(tmp_path / "whole.npz")
    broken = sorted((tmp_path / "images").glob("*_blue.png"))[2]
    broken.write_bytes(b"no image")
    asked = *asked, tmp_path / "f.npz", "--like", tmp_path / "whole.npz"
    refused = call_command(*asked)
    assert refused.returncode and broken.name in refused.stderr and not (tmp_path / "f.npz").exists()
    skipped = call_command(*asked, "--on-error", "skip")
    assert "1 images could not be read" in skipped.stdout, skipped.stdout + skipped.stderr
    found = read_features(tmp_path / "f.npz")
    assert (found.ids, list(found.errors)) == (whole.ids, [2]) and broken.name in found.errors[2]
    assert np.isnan(found.features[2]).all()
    np.testing.assert_allclose(found.readable().features, np.delete(whole.features, 2, axis=0), atol=1e-5)
