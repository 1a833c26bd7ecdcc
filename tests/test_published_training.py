"""A published network as a start for training, from a shell: a miniature of SubCell with the names of its files."""

import json
import tomllib

import numpy as np
import pandas as pd
import pytest
from conftest import labels_alone

from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.sources import open_images
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.vision.network import load_network
from protein_atlas.zoo.miniature import miniature
from protein_atlas.zoo.subcell import load_subcell

SHORT = ("--epochs", 1, "--workers", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that is registered while these tests run, and the folder of its files."""
    folder = tmp_path_factory.mktemp("miniature")
    with miniature(folder) as model:
        yield model, folder


@pytest.fixture(scope="module")
def run(small, few_labels, tmp_path_factory):
    """A run of two epochs, the first of the new layers alone, the second with the last block: pooling and its norm."""
    from typer.testing import CliRunner

    from protein_atlas.cli import app

    out = tmp_path_factory.mktemp("run") / "run"
    line = ("train", few_labels, "--arch", "miniature", "--weights", small[1] / "encoder.pth", "--out", out, *SHORT)
    line += ("--last-blocks", 1)
    with labels_alone():
        done = CliRunner().invoke(app, list(map(str, line)))
    assert done.exit_code == 0, done.exception or done.output
    return out, done.output


def test_trains_at_its_size_and_says_so(run):
    out, said = run
    assert "miniature on cpu" in said and "epoch 2/2" in said and "twice as large" not in said, said
    assert "starts from its published weights (MIT) of encoder.pth: red, green, blue, yellow" in said
    assert "images are resized to 64 x 64 pixels, as miniature has learned from (--size says another)" in said
    assert "how many these have is not known: they are taken as they are" in said
    settings = tomllib.loads((out / "run.toml").read_text())
    assert (settings["arch"], settings["size"]) == ("miniature", 64)
    assert json.loads((out / "metrics.json").read_text())["epochs"] == 2


def test_only_what_was_asked_for_is_trained(run, small):
    with open_bundle(run[0]) as bundle:
        trained = load_network(bundle).model[0].network.state_dict()
    published = load_subcell("miniature", small[1] / "encoder.pth").state_dict()
    rows = [0, 3, 2, 1]
    assert np.array_equal(trained.pop("patches.weight"), published.pop("patches.weight")[:, rows])
    changed = {name for name in published if not np.array_equal(trained[name], published[name])}
    norms = {name for name in published if ".norm1." in name or ".norm2." in name}  # which fastai trains all along
    assert changed - norms == {name for name in published if name.startswith(("pool.", "encoder.norm."))}


def test_more_blocks_than_there_are(small, few_labels, tmp_path, call_command):
    line = ("train", few_labels, "--arch", "miniature", "--weights", small[1] / "encoder.pth", "--out", tmp_path / "r")
    done = call_command(*line, *SHORT, "--last-blocks", 9)
    said = "--last-blocks (last_blocks) must be 1 to 4, those of miniature, found 9"
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "r").exists()


def test_its_bundle_is_like_any(run, few_labels, tmp_path, call_command):
    out, _ = run
    with open_bundle(out) as bundle:
        assert (bundle.description.library, bundle.description.arch) == ("published", "miniature")
        network = load_network(bundle)
    body, (mean, std) = network.model[0], bundle.description.statistics[0]
    assert np.allclose(body.mean.flatten(), mean) and np.allclose(body.std.flatten(), std)
    ids = sorted({path.name.rsplit("_", 1)[0] for path in (few_labels / "train").iterdir()})[:3]
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n")
    line = ("predict", out, few_labels / "train", "--ids", tmp_path / "ids.txt", "--out", tmp_path / "scores.csv")
    done = call_command(*line, "--device", "cpu", "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "scores.csv")["Id"].tolist() == ids
    done = call_command("export", out, tmp_path / "bundle", "--images", few_labels / "train", "--n", 8)
    assert done.returncode == 0 and "whose scores are PyTorch's" in done.stdout, done.stderr
    assert "onnxruntime fp32" in done.stdout and "decisions equal 100.000%" in done.stdout, done.stdout
    assert call_command("card", tmp_path / "bundle").returncode == 0


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Four cells of 64 pixels, of four stains."""
    folder, rng = tmp_path_factory.mktemp("cells"), np.random.default_rng(0)
    for number in range(4):
        save_image(folder, f"c{number}", rng.integers(0, 256, (4, 64, 64), dtype=np.uint8))
    return folder


def weights_of(small):
    model, folder = small
    return [part for file in model.files for part in ("--weights", folder / file.name)]


def test_as_it_was_published_in_every_engine(small, cells, tmp_path, call_command):
    """predict, and export with ONNX Runtime and OpenVINO compared, each by one command; the scores are the same."""
    files, scale = weights_of(small), ("--pixel-size", small[0].pixel_size)
    done = call_command("predict", "miniature", cells, *files, *scale, "--out", tmp_path / "torch.csv")
    assert done.returncode == 0 and "decides for no label" in done.stderr, done.stderr
    done = call_command("export", "miniature", tmp_path / "bundle", *files, "--images", cells, *scale)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime fp32" in done.stdout and "openvino fp32" in done.stdout, done.stdout
    expected = pd.read_csv(tmp_path / "torch.csv", index_col="Id").drop(columns=["Predicted", "Indices"])
    for engine in ("onnxruntime", "openvino"):
        out = tmp_path / f"{engine}.csv"
        done = call_command("predict", tmp_path / "bundle", cells, *scale, "--engine", engine, "--out", out)
        assert done.returncode == 0, done.stderr
        found = pd.read_csv(out, index_col="Id")[list(expected.columns)]
        pd.testing.assert_frame_equal(found, expected, atol=1e-4, rtol=0)
    done = call_command("card", "miniature", *files)
    assert done.returncode == 0 and "decides for no label" in done.stdout, done.stdout


def test_on_the_page(small, cells):
    """What a visitor drops is scored, and mapped, as by any model."""
    pytest.importorskip("gradio")
    from protein_atlas.app.viewer import Viewer
    from protein_atlas.zoo.scoring import published_bundle

    model, folder = small
    encoder, *heads = (folder / file.name for file in model.files)
    files = Layout(model.channels, pixel_size=model.pixel_size, resample=model.pixel_size)
    with published_bundle("miniature", encoder, heads) as bundle:
        viewer = Viewer.open(bundle, "cpu", files=files)
    viewed, _ = viewer.look_at_upload([str(path) for path in sorted(cells.iterdir())])
    expected = viewer.predictor.scores(open_images(cells, files), workers=0)
    assert viewed.scores.shape == (4, len(model.labels)) and np.allclose(viewed.scores, expected, atol=1e-5)
    assert "Map of the evidence for Nucleoli over" in viewer.map_html(viewed, "c0", "Nucleoli")
