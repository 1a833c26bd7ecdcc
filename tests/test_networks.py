"""Networks are proven before they are trusted: whole bodies, a gradient for every parameter, any size of image."""
import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save

from protein_atlas.data.images import CHANNELS, HPA_LAYOUT
from protein_atlas.predict.description import HeadSettings, ModelDescription
from protein_atlas.system.errors import NetworkError
from protein_atlas.vision.families import torchvision_names
from protein_atlas.vision.models import create_model
from protein_atlas.vision.network import ScoringNetwork, load_bundle, write_bundle

timm = pytest.importorskip("timm")
REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "networks.md"

# name, side in pixels, parameters before the head for four channels
SAMPLE = [
    ("shufflenet_v2_x0_5", 32, 341_792 + 24 * 9),
    ("mnasnet0_5", 32, 937_512 + 16 * 9),
    ("mobilenet_v2", 32, 2_223_872 + 32 * 9),
    ("googlenet", 64, 5_599_904 + 64 * 49),
    ("swin_t", 32, 27_519_354 + 96 * 16),
    ("test_vit", 48, None),
    ("test_convnext", 32, None),
    ("test_mambaout", 32, None),
    ("test_efficientnet", 32, None),
    ("mobilenetv3_small_050", 32, None),
    ("mobilenetv4_conv_small_050", 32, None),
    ("swin_s3_tiny_224", 64, None),
]


def learn_once(model: torch.nn.Module, side: int) -> None:
    logits = model.train()(torch.rand(2, len(CHANNELS), side, side))
    assert logits.shape == (2, 5) and torch.isfinite(logits).all()
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("name", "side", "body"), SAMPLE, ids=lambda value: value if isinstance(value, str) else "")
def test_sample_of_networks(name, side, body):
    """Built at the images' size, for four channels: each parameter gets a gradient, none of the body is missing."""
    torch.manual_seed(0)
    model = create_model(name, 5, pretrained=False, size=(side, side))
    learn_once(model, side)
    assert body is None or sum(parameter.numel() for parameter in model[0].parameters()) == body


def bundle_of(model: torch.nn.Module, library: str, name: str, side: int, path: Path, **arch_kwargs) -> Path:
    network = ScoringNetwork(model.eval(), HPA_LAYOUT.white, [0.1] * 4, [0.2] * 4).eval()
    description = ModelDescription(
        library, name, "copy:red", HeadSettings(), tuple("abcde"), HPA_LAYOUT, (side, side), (0.1,) * 4, (0.2,) * 4,
        "fixed", (0.5,) * 5, {}, {}, arch_kwargs=arch_kwargs,
    )  # fmt: skip
    return write_bundle(path, network, description)


@pytest.mark.parametrize(
    ("library", "name", "side", "arch_kwargs"),
    [
        ("timm", "test_vit", 96, {"drop_path_rate": 0.1}),
        pytest.param("torchvision", "vit_b_32", 96, {}, marks=pytest.mark.full),  # of 88 million weights
        ("timm", "test_mambaout", 64, {}),
    ],
)
def test_bundles_at_the_images_size(library, name, side, arch_kwargs, tmp_path):
    """The description says the size: what it rebuilds has the positions of that size, and gives the same scores."""
    model = create_model(name, 5, pretrained=False, size=(side, side), arch_kwargs=arch_kwargs)
    path = bundle_of(model, library, name, side, tmp_path / "bundle", **arch_kwargs)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, side, side), np.uint8)
    predictor = load_bundle(path, "cpu")
    network = ScoringNetwork(model, HPA_LAYOUT.white, [0.1] * 4, [0.2] * 4).eval()
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    assert predictor.size == (side, side)
    np.testing.assert_allclose(predictor.models[0].engine.run(images), expected, atol=1e-5)


def resum(folder: Path) -> None:
    names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_older_bundles_with_unused_weights(tmp_path):
    """A body once kept the norm of its former head: such a bundle is read, and gives the same scores."""
    model = create_model("test_convnext", 5, pretrained=False, size=(32, 32))
    assert model.left_out == ("0.model.head.norm.weight", "0.model.head.norm.bias")
    folder = bundle_of(model, "timm", "test_convnext", 32, tmp_path / "bundle")
    images = np.zeros((1, 4, 32, 32), np.uint8)
    expected = load_bundle(folder, "cpu").models[0].engine.run(images)
    tensors = load_file(folder / "model.safetensors") | {name: torch.ones(64) for name in model.left_out}
    (folder / "model.safetensors").write_bytes(save(tensors))
    resum(folder)
    np.testing.assert_array_equal(load_bundle(folder, "cpu").models[0].engine.run(images), expected)


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout", "shufflenet_v2_x0_5"])
def test_export_to_onnx(name, tmp_path):
    """Tokens, planes last, and a body cut anew: ONNX Runtime gives the same logits."""
    torch.manual_seed(0)
    model, images = create_model(name, 5, pretrained=False, size=(64, 64)).eval(), torch.rand(2, 4, 64, 64)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images,), path, dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(found, model(images).detach().numpy(), atol=1e-4)


def test_checkpoint_of_another_size(tmp_path):
    """Position embeddings are interpolated; every other weight of the body is the file's; the head may be missing."""
    source = timm.create_model("test_vit", img_size=64)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items() if not name.startswith("head.")}
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "w.pth")
    body = create_model("test_vit", 5, weights=tmp_path / "w.pth", size=(96, 96))[0].model
    assert body.pos_embed.shape == (1, 37, 64) and source.pos_embed.shape == (1, 17, 64)
    assert torch.equal(body.pos_embed[:, 0], source.pos_embed[:, 0])  # of the class token
    assert torch.equal(body.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    del state["module.blocks.0.attn.qkv.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(NetworkError, match=r"missing: blocks.0.attn.qkv.weight; only the head's may be .*head\."):
        create_model("test_vit", 5, weights=tmp_path / "w.pth", size=(96, 96))


def test_checkpoint_of_torchvision_at_another_size(tmp_path):
    source = torchvision.models.vit_b_32(weights=None, image_size=64)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    body = create_model("vit_b_32", 5, weights=tmp_path / "w.pth", size=(96, 96))[0]
    assert body.encoder.pos_embedding.shape == (1, 10, 768)
    assert torch.equal(body.encoder.ln.weight, source.encoder.ln.weight)


def test_refused_by_name():
    with pytest.raises(NetworkError, match="maxvit_t cannot .* 64"):
        create_model("maxvit_t", 5, pretrained=False, size=(64, 64))
    with pytest.raises(NetworkError, match=r"resnet18 cannot be built with \{'lrr': 0.1\}"):
        create_model("resnet18", 5, pretrained=False, lrr=0.1)
    with pytest.raises(NetworkError, match="<lambda> cannot be built: division by zero"):
        create_model(lambda: 1 / 0, 5, pretrained=False)


def rows_of_the_page() -> dict[str, list[str]]:
    rows = re.findall(r"^\| (\w+) \| (?:torchvision|timm) \|.*$", PAGE.read_text(encoding="utf-8"), re.M)
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {name: next(line for line in lines if line.startswith(f"| {name} |")).split(" | ") for name in rows}


def test_the_page_says_of_each_network_that_it_works_or_why_not():
    rows = rows_of_the_page()
    assert {"shufflenet_v2_x1_0", "mobilenet_v2", "maxvit_t", "inception_v3", "googlenet"} <= set(rows)
    for name, row in rows.items():
        assert row[2] == "works" or row[2].startswith("refused: "), name
        assert row[2] == "works" or name not in torchvision_names(), name


@pytest.mark.full
def test_the_page_is_true(monkeypatch):
    """The whole table anew: each outcome, and each number of parameters, is the page's."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    networks = __import__("networks")
    found = {row.name: row.line().split(" | ") for row in networks.table(networks.all_names(), print)}
    sys.modules.pop("networks")
    assert found == rows_of_the_page()
