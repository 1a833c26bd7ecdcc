"""Keras on TensorFlow, in processes of its own, and on torch; Keras in the fastai learner; bundles in TensorFlow."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE, REPOSITORY

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.phantoms import simulate_phantoms

HERE = Path(__file__).parent
FIELDS = Path(os.environ.get("PROTEIN_ATLAS_DATA", REPOSITORY.parent / "shared" / "data")) / "fields" / "train"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment},
        timeout=PATIENCE,
    )


def on_backend(backend: str, *arguments: Path) -> dict:
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, HERE / "keras_on_backend.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def small_phantoms(tmp_path_factory) -> Path:
    return simulate_phantoms(tmp_path_factory.mktemp("keras") / "phantoms", n=120, size=64, min_count=2)


@pytest.fixture(scope="module")
def images(small_phantoms) -> Path:
    """Real fields where there are some, else phantoms."""
    return FIELDS if FIELDS.is_dir() else small_phantoms / "train"


@pytest.fixture(scope="module")
def keras_bundle(invoke, few_labels, tmp_path_factory) -> Path:
    """A network of Keras, trained at a shell by the fastai learner for one epoch."""
    needs("keras")
    out = tmp_path_factory.mktemp("keras_bundle") / "run"
    invoke(
        "train", few_labels, "--out", out, "--arch", "keras:small_resnet", "--epochs", 1, "--workers", 0,
        "--precision", "fp32",
    )
    return out / "bundle"


@pytest.fixture(scope="module")
def saved_model(keras_bundle, run_command, images, tmp_path_factory) -> Path:
    needs("onnx2tf")
    out = tmp_path_factory.mktemp("tensorflow") / "served"
    done = run_command("export", keras_bundle, out, "--format", "saved_model", "--images", images)
    assert done.returncode == 0, done.stderr
    assert "a SavedModel, whose scores are PyTorch's" in done.stdout and "tensorflow fp32" in done.stdout
    return out


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install 'protein_atlas[tensorflow]'")


def check(found: dict) -> None:
    for name, result in found["surgery"].items():
        assert result["equal"], f"{name}: a weight behind the stem is another"
        assert result["difference"] < 1e-4, (name, result)
    assert found["focal"] < 1e-6
    road = found["road"]
    assert road["losses"][-1] < road["losses"][0]
    assert road["metric"] == pytest.approx(road["macro_f1"], abs=1e-6)
    assert road["reloaded"] < 1e-6 and road["predictor"] < 1e-4


@pytest.mark.full  # the tutorial walks this road on torch
def test_on_torch(small_phantoms):
    needs("keras")
    check(on_backend("torch", small_phantoms))


@pytest.mark.full
def test_on_tensorflow_alone(small_phantoms, saved_model, keras_bundle, images):
    """Keras's road, and a bundle that PyTorch has trained, in a process that never imports torch."""
    needs("tensorflow")
    found = on_backend("tensorflow", small_phantoms, saved_model, images)
    assert found["backend"] == "tensorflow" and not found["torch"]
    check(found)
    from protein_atlas.vision.network import load_bundle

    expected = load_bundle(keras_bundle, "cpu").predict(images, ImageFolder(images).ids)
    np.testing.assert_allclose(found["saved_model"]["scores"], expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found["saved_model"]["decisions"], expected.decisions)


def test_same_network_as_torch():
    """small_resnet of both libraries, with the same weights, gives the same features."""
    needs("keras")
    import torch

    from protein_atlas.keras.backend import keras
    from protein_atlas.keras.models import small_keras_resnet, trained_layers
    from protein_atlas.vision.models import create_model, small_resnet

    torch.manual_seed(0)
    body = create_model(small_resnet, 3, pretrained=False)[0].eval()
    batch_norms = [module for module in body.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in batch_norms:
        torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    network = small_keras_resnet(input_shape=(64, 64, 4))
    convolutions = [
        [module.weight.detach().permute(2, 3, 1, 0).numpy()]
        for module in body.modules() if isinstance(module, torch.nn.Conv2d)
    ]  # fmt: skip
    norms = [[t.detach().numpy() for t in (m.weight, m.bias, m.running_mean, m.running_var)] for m in batch_norms]
    layers = trained_layers(network)
    for kind, values in ((keras.layers.Conv2D, convolutions), (keras.layers.BatchNormalization, norms)):
        layers_of = [layer for layer in layers if isinstance(layer, kind)]
        assert len(layers_of) == len(values) == 10
        for layer, weights in zip(layers_of, values):
            assert [w.shape for w in layer.get_weights()] == [w.shape for w in weights], layer.name
            layer.set_weights(weights)
    x = np.random.default_rng(0).normal(size=(2, 4, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = body(torch.from_numpy(x)).numpy()
    found = network.predict(x.transpose(0, 2, 3, 1), verbose=0).transpose(0, 3, 1, 2)
    assert 0 < np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), np.abs(found - expected).max()


def test_without_the_extra():
    done = run_python("import sys; sys.modules['keras'] = None\nimport protein_atlas.keras.models")
    assert done.returncode and "pip install 'protein_atlas[keras]'" in done.stderr.splitlines()[-1]


def test_another_backend():
    """On TensorFlow, Keras's loss is the formula's, without torch; a fastai learner needs the other backend, and says
    so."""
    needs("tensorflow")
    code = """
import sys
from keras_on_backend import focal, keras
assert keras.backend.backend() == "tensorflow" and focal(2.0, [1, 2, 0.5, 3, 1]) < 1e-6
assert "torch" not in sys.modules
from protein_atlas.keras.body import KerasBody
KerasBody("small_resnet", pretrained=False)
"""
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    done = run_python(code, KERAS_BACKEND="tensorflow", PYTHONPATH=path)
    said = done.stderr.splitlines()[-1]
    assert done.returncode and "Keras runs on tensorflow" in said and "KERAS_BACKEND=torch" in said, done.stderr


def test_keras_network_is_a_bundle(keras_bundle, few_labels):
    from protein_atlas.vision.network import load_bundle

    assert json.loads((keras_bundle / "model.json").read_text(encoding="utf-8"))["library"] == "keras"
    found = load_bundle(keras_bundle).predict(few_labels / "train")
    written = pd.read_csv(keras_bundle.parent / "valid_scores.csv")
    rows = [found.ids.index(image_id) for image_id in written["Id"]]
    np.testing.assert_allclose(found.scores[rows], written[list(found.vocab)], atol=1e-5)


@pytest.mark.full
def test_litert(run_command, trained, phantoms, tmp_path):
    """A network of PyTorch's own, exported, and equal to PyTorch."""
    needs("onnx2tf")
    done = run_command(
        "export", trained[0], tmp_path / "small.zip", "--format", "litert", "--images", phantoms / "train", "--n", 20
    )
    assert done.returncode == 0, done.stderr
    assert (
        "a bundle with model.tflite" in done.stdout
        and "litert fp32" in done.stdout
        and ": passed (20 images)" in done.stdout
    )
    from protein_atlas.predict.load import load_litert
    from protein_atlas.vision.network import load_bundle

    found, expected = (
        load(path).predict(phantoms / "train")
        for load, path in ((load_litert, tmp_path / "small.zip"), (load_bundle, trained[0] / "bundle"))
    )
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.decisions, expected.decisions)


def test_unknown_format(call_command, trained, tmp_path):
    done = call_command("export", trained[0], tmp_path / "out", "--format", "caffe")
    assert done.returncode == 2 and "--format must be one of onnx, litert, saved_model, found 'caffe'" in done.stderr
