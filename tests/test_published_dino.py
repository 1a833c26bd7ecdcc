"""DINO4Cells and Cell-DINO give what timm and their authors' own code give; each fault that a loader could have breaks
it."""

import pkgutil
import re
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_published import PARITY, seeded, tensors_of  # noqa: F401  seeded is a fixture
from torch.nn import functional

from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.sources import open_images
from protein_atlas.embed.load import embed
from protein_atlas.system.errors import NetworkError
from protein_atlas.vision.weights import check_tensors
from protein_atlas.zoo import dino
from protein_atlas.zoo.body import load_network
from protein_atlas.zoo.published import PUBLISHED, find_published
from protein_atlas.zoo.scoring import load_published

timm = pytest.importorskip("timm")
with_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="needs parity vectors: PROTEIN_ATLAS_DATA")
MINI = {"layers": 8, "width": 64, "attention_heads": 4, "side": 64}

# What the authors' own code gives (DINO4Cells_code 8015506, dinov2 of December 2025) with weights made from their names
# and the seed 9: the first four features of each of two images, of which the last model sees three channels.
AUTHORS = {
    ("dino4cells:field", 4, 64): [[-0.91959, 0.15451, 0.10548, 0.28014], [0.36615, -0.40876, 0.26808, -0.86199]],
    ("dino4cells:field", 4, 128): [[-0.96793, 0.28608, 0.49078, 0.20535], [-0.17403, -0.21436, -0.71718, 0.29649]],
    ("cell_dino:cell", 4, 64): [[-0.97677, 0.33305, 0.28604, -0.44046], [-1.77539, -0.09298, 1.30725, 1.95874]],
    ("cell_dino:cell", 4, 128): [[-1.22805, 0.11199, 0.44168, 0.74325], [-1.73121, 0.16931, 0.58067, 1.11604]],
    ("cell_dino:channels", 3, 64): [[0.84296, 0.8781, -0.30803, -0.04078], [-1.35945, 1.21287, 0.15981, 0.34095]],
    ("cell_dino:channels", 3, 128): [[0.98856, 1.03117, -0.54774, -0.37527], [0.31373, 1.02167, -0.35396, 0.15209]],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What was said of licences is noted in a folder of the test."""
    monkeypatch.setenv("PROTEIN_ATLAS_CACHE", str(tmp_path / "cache"))


def drawn(name, **sizes):
    """A network of this name with random weights."""
    torch.manual_seed(0)
    model = replace(find_published(name), sizes=MINI | sizes)
    return pkgutil.resolve_name(model.kind).make(model, model.channels or ("any",), 0).eval()


def load(name, path, sizes):
    """A network of its file, as a miniature of these sizes."""
    return load_network(replace(find_published(name), sizes=sizes), path)


def as_published(name, tensors, chunks=4):
    """A network's tensors by the names that its authors have for them, and what else their file holds."""
    if name.startswith("dino4cells"):
        return {f"module.backbone.{key}": tensor for key, tensor in tensors.items()}
    layers = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    mask = torch.zeros(1, tensors["cls_token"].shape[-1])
    return {
        re.sub(r"^blocks\.(\d+)", lambda match: f"blocks.{int(match[1]) * chunks // layers}.{match[1]}", key): tensor
        for key, tensor in tensors.items()
    } | {"mask_token": mask}


def write(name, tensors, path):
    """A file as its authors publish it."""
    args = Namespace(arch="vit_base", lr=0.0005)
    training = {"student": {}, "optimizer": {"lr": np.float64(0.1)}, "epoch": 100, "args": args}
    torch.save({"teacher": tensors, **training} if name.startswith("dino4cells") else tensors, path)
    return path


@with_parity
@pytest.mark.parametrize("name, channels, side", AUTHORS)
def test_agrees_with_the_authors(seeded, tmp_path, name, channels, side):  # noqa: F811
    """At the side that it has positions for, and at twice that."""
    tensors = {
        key: torch.from_numpy(seeded.seeded_tensor(key, tuple(tensor.shape), 9))
        for key, tensor in as_published(name, drawn(name).transformer.state_dict()).items()
    }
    network = load(name, write(name, tensors, tmp_path / "w.pth"), MINI)
    images = torch.from_numpy(seeded.seeded_image(2, channels, side, 9))
    with torch.inference_mode():
        found = network(images.float() / 255)
    assert np.abs(found[:, :4].numpy() - AUTHORS[name, channels, side]).max() < 1e-4


def test_whole_dino4cells_is_timms(tmp_path):
    """Of full size: 12 layers of 768 numbers, 224 pixels."""
    torch.manual_seed(0)
    whole = timm.create_model("vit_base_patch16_224", in_chans=4, num_classes=0).eval()
    path = write("dino4cells:cell", as_published("dino4cells:cell", whole.state_dict()), tmp_path / "w.pth")
    network = load("dino4cells:cell", path, {})
    images = torch.randint(0, 256, (1, 4, 224, 224)).float()
    mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), correction=0, keepdim=True)
    with torch.inference_mode():
        expected, found = whole((images - mean) / deviation), network(images / 255)
    assert found.shape == (1, 768) and (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("version, arch, channels", [
    ("field", "vit_large_patch16_224", 4), ("cell", "vit_large_patch16_224", 4),
    ("channels", "vit_large_patch16_224", 1), ("field_highres", "vit_large_patch14_dinov2", 4),
])  # fmt: skip
def test_whole_cell_dino_has_timms_tensors(monkeypatch, version, arch, channels):
    """Of full size, every name and shape, without the memory for 300 million numbers."""
    with torch.device("meta"):
        whole = timm.create_model(arch, in_chans=channels, num_classes=0, init_values=1.0)
        name, expected = f"cell_dino:{version}", whole.state_dict()
        monkeypatch.setattr(dino, "read_weights", lambda *_: as_published(name, expected))
        monkeypatch.setattr(dino, "load_all", lambda network, tensors, place: check_tensors(network, tensors, place))
        assert dino.load_cell_dino(find_published(name), "w.pth").transformer.state_dict().keys() == expected.keys()


REFUSED = {
    "another prefix": (lambda good: {key.replace("backbone", "encoder"): tensor for key, tensor in good.items()},
                       "weights surplus: module.encoder.cls_token"),
    "a block missing": (lambda good: {key: tensor for key, tensor in good.items() if ".blocks.5." not in key},
                        "weights missing: blocks.5."),
    "a surplus tensor": (lambda good: {**good, "module.backbone.fc_norm.weight": torch.zeros(64)},
                         "weights surplus: fc_norm.weight"),
    "a surplus head": (lambda good: {**good, "module.head.mlp.6.weight": torch.zeros(1)},
                       "weights surplus: module.head.mlp.6.weight"),
    "three channels": (lambda good: {**good, "module.backbone.patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)},
                       "patch_embed.proj.weight has the shape (64, 3, 16, 16)"),
    "no numbers": (lambda good: {**good, "module.backbone.norm.bias": torch.full((64,), torch.nan)},
                   "norm.bias has values that are no numbers"),
    "no tensor": (lambda good: {**good, "module.backbone.norm.bias": 1}, "norm.bias is a int, not a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_other_files_are_refused_for_dino4cells(tmp_path, fault):
    name = "dino4cells:field"
    change, said = REFUSED[fault]
    good = as_published(name, drawn(name).transformer.state_dict())
    with pytest.raises(NetworkError, match=f"w.pth: {re.escape(said)}"):
        load(name, write(name, change(good), tmp_path / "w.pth"), MINI)


@pytest.mark.parametrize("name, chunks, said", [
    ("cell_dino:cell", 2, "blocks.0.2.norm1.weight: layer 2 lies in chunk 1"),
    ("cell_dino:cell", 8, "blocks.1.1.norm1.weight: layer 1 lies in chunk 0"),
    ("cell_dino:channels", 4, "patch_embed.proj.weight has the shape (64, 4, 16, 16)"),
])  # fmt: skip
def test_other_chunks_and_channels_are_refused_for_cell_dino(tmp_path, name, chunks, said):
    tensors = as_published("cell_dino:cell", drawn("cell_dino:cell").transformer.state_dict(), chunks)
    with pytest.raises(NetworkError, match=re.escape(said)):
        load(name, write(name, tensors, tmp_path / "w.pth"), MINI)


def test_files_of_other_models_are_refused_by_their_names(tmp_path):
    """Those of fields and of cells have the same tensors."""
    for name, of in (("dino4cells:cell", "dino4cells:field"), ("cell_dino:field", "cell_dino:cell")):
        tensors = as_published(of, drawn(of).transformer.state_dict())
        path = write(of, tensors, tmp_path / find_published(of).encoder.name.replace("*", "d3ab8938"))
        load(of, path, MINI)
        with pytest.raises(NetworkError, match=f"the file of another model than {name}"):
            load(name, path, MINI)


def timms_positions(self, rows, columns):
    return timm.layers.resample_abs_pos_embed(self.transformer.pos_embed, [rows, columns])


def scale_by_constants(images):
    mean, deviation = (0.1450534, 0.11360057, 0.1231717, 0.14919987), (0.18122554, 0.14004277, 0.18840286, 0.17790672)
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def standardise_all(images):
    return functional.layer_norm(images, images.shape[1:])


FAULTS = {
    "positions by timm's rules": (dino.DINO, "_positions_at", timms_positions),
    "one mean and deviation for all channels": (dino, "standardise_each", standardise_all),
    "fixed means and deviations": (dino, "standardise_each", scale_by_constants),
    "the protein last": None,
}


@with_parity
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(seeded, monkeypatch, fault):  # noqa: F811
    """Each changes features by more than they may differ."""
    network, images = drawn("dino4cells:field"), torch.from_numpy(seeded.seeded_image(2, 4, 128, 9)).float() / 255
    with torch.inference_mode():
        expected = network(images)
        if FAULTS[fault]:
            monkeypatch.setattr(*FAULTS[fault])
        found = network(images[:, [0, 3, 2, 1]] if FAULTS[fault] is None else images)
    assert (found - expected).abs().max() > 5e-4


@with_parity
def test_features_of_subcell(seeded, tmp_path):  # noqa: F811
    """From files, with the encoder's weights alone: what its authors' code gives."""
    vectors = np.load(PARITY / "subcell_bg_224_seed8.npz")
    tensors = {key: tensor for key, tensor in tensors_of(seeded, vectors).items() if not key.startswith("classifier")}
    torch.save(tensors, tmp_path / "encoder.pth")
    (tmp_path / "cells").mkdir()
    order = Layout(("green", "blue"), pixel_size=0.0800885, resample=0.0800885)
    for name, image in zip("ab", seeded.seeded_image(2, 2, 224, 8), strict=True):
        save_image(tmp_path / "cells", name, image[::-1], Layout(("green", "blue")))
    source = open_images(tmp_path / "cells", order)
    found = embed(
        "subcell:bg", source, ["b", "a"], weights=tmp_path / "encoder.pth", device="cpu", size=224, workers=0
    ).features
    assert found.shape == (2, 1536) and np.abs(found[::-1] - vectors["embedding"]).max() < 1e-4


def test_without_file_or_scores(call_command, tmp_path):
    """Models whose file is given on request say where to ask; those without scores are refused where these are asked
    for."""
    for model in PUBLISHED:
        if model.encoder.url is None:
            with pytest.raises(NetworkError, match=f"{model.name}: .*bring your own: .* ask at https://ai.meta.com/"):
                embed(model.name, one_field(tmp_path), device="cpu", accept_licence=True)
        if not model.labels:
            with pytest.raises(NetworkError, match=f"{model.name}: gives features, no scores"):
                load_published(model.name, tmp_path / "w.pth")
    out = tmp_path / "scores.csv"
    done = call_command("predict", "cell_dino:channels", one_field(tmp_path), "--out", out)
    assert done.returncode == 2 and "gives features, no scores" in done.stderr and not out.exists()
    done = call_command("models", "show", "cell_dino:channels")
    assert done.returncode == 0 and "any, one by one" in done.stdout and "bring your own" in done.stdout
    listed = call_command("models").stdout
    said = "a field, 224 px, scale not said; red, green, blue, yellow; 768 features, no scores; none seen"
    assert f"dino4cells:field: {said}" in listed


def one_field(folder):
    """A folder with one field of 64 pixels."""
    fields = folder / "fields"
    if not fields.is_dir():
        fields.mkdir()
        save_image(fields, "a", np.zeros((4, 64, 64), np.uint8))
    return fields
