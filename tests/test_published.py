"""Published networks give what their authors' own code gives; each fault that is known of others' loaders breaks it."""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from protein_atlas.data.images import save_image
from protein_atlas.data.label_systems import HPA2021_LABELS, SUBCELL_LABELS, NoCounterpartWarning, map_scores
from protein_atlas.data.labels import LOCATIONS
from protein_atlas.testing import FileServer
from protein_atlas.zoo import subcell
from protein_atlas.zoo.hpa_densenet import load_hpa_densenet
from protein_atlas.zoo.published import find_published, registered
from protein_atlas.zoo.subcell import load_subcell

PARITY = Path(os.environ.get("PROTEIN_ATLAS_DATA", "no such folder")) / "parity"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="needs parity vectors: PROTEIN_ATLAS_DATA")


@pytest.fixture(scope="module")
def seeded():
    """The module that makes weights and images from a seed."""
    spec = importlib.util.spec_from_file_location("seeded_weights", PARITY / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors_of(seeded, vectors):
    """The tensors of a file, by the names that it has for them."""
    keys = vectors["keys"].tolist()
    fill = vectors["aliases"].tolist() if "aliases" in vectors else keys
    shapes = [tuple(json.loads(shape)) for shape in vectors["shapes"].tolist()]
    seed = int(vectors["seed"])
    return {
        key: torch.from_numpy(np.asarray(seeded.seeded_tensor(name, shape, seed)))
        for key, name, shape in zip(keys, fill, shapes, strict=True)
    }


@pytest.fixture(scope="module")
def densenet(seeded, tmp_path_factory):
    vectors = np.load(PARITY / "hpa_densenet_seed7.npz")
    path = tmp_path_factory.mktemp("densenet") / "bestfitting_default_model.pth"
    torch.save({"state_dict": tensors_of(seeded, vectors)}, path)
    images = torch.from_numpy(seeded.seeded_image(2, 4, 256, 7)).float() / 255
    return vectors, path, images


def test_densenet_agrees(densenet):
    vectors, path, images = densenet
    network = load_hpa_densenet(path)
    with torch.inference_mode():
        logits, features = network(images), network.features(images)
    assert np.abs(logits.sigmoid().numpy() - vectors["scores"]).max() < 1e-4
    assert np.abs(features.numpy() - vectors["features"]).max() < 1e-4
    assert np.abs(logits.numpy() - vectors["logits"]).max() < 1e-3


def test_predict_at_a_shell(densenet, call_command, tmp_path, monkeypatch):
    """From four files a field to a table of scores, also of weights that are fetched; a file of other weights is
    refused, and no table is left."""
    _, path, _ = densenet
    folder = tmp_path / "fields"
    folder.mkdir()
    for number, image in enumerate(seeded_fields()):
        save_image(folder, f"f{number}", image)
    line = ("predict", "hpa_densenet", folder, "--device", "cpu", "--out", tmp_path / "scores.csv")
    monkeypatch.setenv("PROTEIN_ATLAS_CACHE", str(tmp_path / "cache"))
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    done = call_command(*line, "--weights", tmp_path / "other.pth")
    assert done.returncode == 2 and "other.pth: weights missing: backbone.features.conv0.weight" in done.stderr
    assert not (tmp_path / "scores.csv").exists()
    done = call_command(*line, "--weights", path)
    assert done.returncode == 0 and "scores as they were published (MIT" in done.stderr, done.stderr
    found = pd.read_csv(tmp_path / "scores.csv", index_col="Id")
    network = load_hpa_densenet(path)
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.stack(seeded_fields())).float() / 255).sigmoid().numpy()
    assert found["Predicted"].isna().all() and np.abs(found[list(LOCATIONS)].to_numpy() - expected).max() < 1e-4
    done = call_command(*line, "--weights", path, "--labels-of", "hpa2021")
    assert done.returncode == 0 and "cannot be had from those of hpa2018: Negative" in done.stderr, done.stderr
    others = pd.read_csv(tmp_path / "scores.csv", index_col="Id")
    assert tuple(others.columns[2:]) == HPA2021_LABELS[:-1]
    with pytest.warns(NoCounterpartWarning, match="1 of the 19 labels of hpa2021"):
        carried = map_scores(found[list(LOCATIONS)], "hpa2018", "hpa2021")
    np.testing.assert_allclose(others[list(HPA2021_LABELS[:-1])], carried.iloc[:, :-1], atol=1e-6)
    known = find_published("hpa_densenet")  # its checksum is that of other numbers
    seeded_here = replace(known, name="seeded", encoder=replace(known.encoder, checksum=None))
    files = {known.encoder.url.removeprefix("https://"): path.read_bytes()}
    with FileServer(files).listening() as server, registered(seeded_here):
        monkeypatch.setenv("PROTEIN_ATLAS_MIRROR", server.url)
        fetched = tmp_path / "fetched.csv"
        done = call_command("predict", "seeded", folder, "--device", "cpu", "--out", fetched)
        assert done.returncode == 0, done.stderr
        pd.testing.assert_frame_equal(pd.read_csv(fetched, index_col="Id"), found)
        done = call_command("models", "fetch", "hpa_densenet")
        assert done.returncode == 2 and "expected d55efd7e92e19f7691df3496cf040022294935fe" in done.stderr, done.stderr


def seeded_fields():
    """Two fields of the size that the network takes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (4, 1024, 1024), dtype=np.uint8) for _ in range(2)]


def densenet_fault(name, network):
    if name == "channels in the order R, Y, B, G":
        return lambda images: network(images[:, [0, 3, 2, 1]])
    if name == "values of 0 to 255":
        return lambda images: network(255 * images)
    if name == "without its means":
        network.mean.zero_()
    return network


@pytest.mark.parametrize("fault", ["channels in the order R, Y, B, G", "values of 0 to 255", "without its means"])
def test_densenet_faults(densenet, fault):
    vectors, path, images = densenet
    with torch.no_grad():
        found = densenet_fault(fault, load_hpa_densenet(path))(images).sigmoid().numpy()
    assert np.abs(found - vectors["scores"]).max() > 1e-3


def cells(seeded, folder, name):
    """A model from files as they are published, its images, and what its authors' code gives."""
    vectors = np.load(PARITY / f"{name}.npz")
    parts = {"encoder": {}, "classifier0": {}, "classifier1": {}}
    for key, tensor in tensors_of(seeded, vectors).items():
        of, _, rest = key.partition(".")
        is_head = of in ("classifier0", "classifier1")
        parts[of if is_head else "encoder"][rest if is_head else key] = tensor
    for part, tensors in parts.items():
        torch.save(tensors, folder / f"{part}.pth")
    images = seeded.seeded_image(2, int(vectors["channels"]), int(vectors["side"]), int(vectors["seed"]))
    heads = [folder / "classifier0.pth", folder / "classifier1.pth"]
    network = load_subcell("subcell:" + name.split("_")[1], folder / "encoder.pth", heads)
    return vectors, network, torch.from_numpy(images)


@pytest.fixture(scope="module")
def small(seeded, tmp_path_factory):
    """Cells of two stains and 224 pixels, for which positions are interpolated."""
    return cells(seeded, tmp_path_factory.mktemp("small"), "subcell_bg_224_seed8")


def check_subcell(vectors, network, images):
    with torch.inference_mode():
        scores, features = network(images), network.features(images)
    assert scores.shape == (2, len(SUBCELL_LABELS))
    assert np.abs(scores.numpy() - vectors["probabilities"]).max() < 1e-4
    assert np.abs(features.numpy() - vectors["embedding"]).max() < 1e-4


def test_subcell_agrees(seeded, tmp_path):
    check_subcell(*cells(seeded, tmp_path, "subcell_rybg_448_seed7"))


def test_subcell_of_another_size_agrees(small):
    check_subcell(*small)


def sigmoid_gate(self, tokens):
    gates = torch.tanh(self.attention_v(tokens)) * torch.sigmoid(self.attention_u(tokens))
    return torch.einsum("nth,ntw->nhw", self.attention(gates).softmax(dim=1), tokens).flatten(1)


def without_cls(self, tokens, forward=subcell.GatedPooling.forward):
    return forward(self, tokens[:, 1:])


def scale_each(images):
    least, most = (values[..., None, None] for values in torch.aminmax(images.flatten(2), dim=2))
    return (images - least) / (most - least + 1e-6)


FAULTS = {
    "minimum and maximum of each channel": (subcell, "scale_jointly", scale_each),
    "a sigmoid gate in place of GELU": (subcell.GatedPooling, "forward", sigmoid_gate),
    "CLS left out of the pooler": (subcell.GatedPooling, "forward", without_cls),
}


@pytest.mark.parametrize("fault", [*FAULTS, "protein first", "a random pooler"])
def test_subcell_faults(small, monkeypatch, fault):
    """What is wrong in copies of its loader: each is seen in the features, by more than they may differ."""
    vectors, network, images = small
    if fault in FAULTS:
        monkeypatch.setattr(*FAULTS[fault])
    if fault == "a random pooler":
        torch.manual_seed(0)
        monkeypatch.setitem(network._modules, "pool", subcell.GatedPooling(768, 512))
    with torch.inference_mode():
        features = network.features(images.flip(1) if fault == "protein first" else images)
    assert np.abs(features.numpy() - vectors["embedding"]).max() > 5e-4


def test_a_softmax_on_top_is_a_fault(small):
    """With it the surest of 31 labels scores at most 0.083."""
    vectors, network, images = small
    with torch.inference_mode():
        scores = functional.softmax(network(images), 1)
    assert scores.max() < 0.083 and np.abs(scores.numpy() - vectors["probabilities"]).max() > 1e-2
