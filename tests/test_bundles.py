"""Bundles that are damaged, swapped, or made by somebody who means harm: refused by name, by the command; fuzzed."""
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from protein_atlas.data.images import HPA_LAYOUT
from protein_atlas.predict.bundle import BUNDLE_FILES, Bundle, open_bundle, seal_bundle, zip_bundle
from protein_atlas.predict.card import model_card
from protein_atlas.predict.description import HeadSettings, ModelDescription, parse_description
from protein_atlas.system.errors import BundleError
from protein_atlas.vision.network import _load_weights, load_bundle

NAMES = ("model.json", "model.safetensors", "reference.safetensors", "README.md", "SHA256SUMS")


def reseal(folder: Path, **fields: object) -> None:
    """Change the description, and make card and checksums fit: nothing can be seen from outside."""
    content = json.loads((folder / "model.json").read_text(encoding="utf-8")) | fields
    seal_bundle(folder, parse_description((folder / "model.json").read_bytes()))
    (folder / "model.json").write_text(json.dumps(content), encoding="utf-8")
    resum(folder)


def resum(folder: Path) -> None:
    (folder / "reference.safetensors").unlink(missing_ok=True)  # it is of what was there before, which would be said
    sealed = (name for name in BUNDLE_FILES if name != "SHA256SUMS")
    files = [name for name in sealed if (folder / name).is_file()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def edit_json(**fields: object) -> Callable[[Path], None]:
    return lambda folder: reseal(folder, **fields)


def put(name: str, content: bytes, fitting: bool = True) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)
        if fitting:
            resum(folder)

    return spoil


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def header(content: dict, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


class Harmful:
    """What a pickle can do: write a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


FOLDERS = {
    "weights cut off": (cut("model.safetensors"), "model.safetensors is not the file that was saved"),
    "description cut off": (cut("model.json"), "model.json is not the file that was saved"),
    "card edited": (put("README.md", b"the best of all", fitting=False), "README.md is not the file that was saved"),
    "checksums cut off": (cut("SHA256SUMS"), "SHA256SUMS"),
    "checksums empty": (put("SHA256SUMS", b"", fitting=False), "SHA256SUMS has no checksum of model.json"),
    "checksums binary": (
        put("SHA256SUMS", bytes(range(256)), fitting=False), "SHA256SUMS has no checksum of model.json",
    ),
    "no weights": (remove("model.safetensors"), "no file model.safetensors"),
    "no description": (remove("model.json"), "no file model.json"),
    "no checksums": (remove("SHA256SUMS"), "no file SHA256SUMS"),
    "a file slipped in": (put("model.onnx", b"x", fitting=False), "SHA256SUMS has no checksum of model.onnx"),
    "checksum of a path": (put("SHA256SUMS", b"0  ../../etc/passwd\n", fitting=False), "SHA256SUMS"),
    "later version": (edit_json(version=10), "a bundle of version 10, this library reads 2, 3, 4, 5, 6, 7, 8 and 9"),
    "version as text": (edit_json(version="2"), "version '2'"),
    "another format": (edit_json(format="keras"), "format: Input should be 'protein_atlas bundle', found 'keras'"),
    "unknown network": (edit_json(arch="resnet0"), "no network is called 'resnet0'"),
    "network as a path": (edit_json(arch="../../x"), "arch: String should match pattern"),
    "network of another library": (
        edit_json(library="timm"), "small_resnet is a network of protein_atlas here, not of timm",
    ),
    "another network's name": (edit_json(library="torchvision", arch="resnet34"), "not those of resnet34"),
    "another head": (edit_json(head={"lin_ftrs": [64]}), "has the shape"),
    "code in the head": (edit_json(head={"init": "os.system"}), "head.init: Unexpected keyword argument"),
    "unknown stem rule": (edit_json(stem_rule="purple"), "stem_rule: String should match pattern"),
    "a label less": (
        lambda folder: reseal(folder, vocab=json.loads((folder / "model.json").read_bytes())["vocab"][:-1]),
        "27 labels need as many thresholds",
    ),
    "a label twice": (lambda folder: reseal(folder, vocab=["Cytosol"] * 28), "labels twice: Cytosol"),
    "threshold over 1": (edit_json(threshold_values=[1.5] * 28), "threshold_values.0"),
    "threshold not a number": (edit_json(threshold_values=[None] * 28), "threshold_values.0"),
    "a channel less": (edit_json(mean=[0.1] * 3), "3 values of mean for 4 channels"),
    "deviation zero": (edit_json(std=[0.0] * 4), "std above 0"),
    "size zero": (edit_json(size=[0, 32]), "size.0"),
    "size enormous": (edit_json(size=[10**9, 10**9]), "size.0"),
    "size as text": (edit_json(size=["32", "32"]), "size.0: Input should be a valid integer, found '32'"),
    "white level zero": (
        edit_json(layout={"channels": ["a", "b", "c", "d"], "white_level": 0}), "white_level must be 1 to 65535",
    ),
    "network of nobody": (
        edit_json(library="elsewhere"), "small_resnet is a network of protein_atlas here, not of elsewhere",
    ),
    "network of somebody's own": (
        edit_json(library="registered", arch="theirs"),
        "it is a network of whoever saved it: register_network('theirs', ...) first",
    ),
    "an argument that would read a file": (
        edit_json(library="timm", arch="resnet10t", arch_kwargs={"checkpoint_path": "x.pth"}),
        "arch_kwargs of resnet10t may not have 'checkpoint_path'",
    ),
    "an argument that the network has not": (
        edit_json(arch_kwargs={"wings": 2}), "small_resnet cannot be built with {'wings': 2}",
    ),
    "an argument that is no number or name": (
        edit_json(arch_kwargs={"norm_layer": {"a": 1}}), "arch_kwargs.norm_layer",
    ),
    "surplus field": (edit_json(run="print(1)"), "run: Unexpected keyword argument"),
    "description a list": (put("model.json", b"[]"), "model.json: not the description of a model"),
    "description nested deeply": (put("model.json", b"[" * 10**6), "recursion limit"),
    "description not UTF-8": (put("model.json", b"\xff\xfe{}"), "model.json: not the description of a model"),
    "description enormous": (put("model.json", b" " * (17 * 2**20)), "model.json has 17825792 bytes, more than"),
    "weights empty": (put("model.safetensors", b""), "model.safetensors: not a file of weights"),
    "weights a pickle": (put("model.safetensors", pickle.dumps({"a": 1})), "model.safetensors: not a file of weights"),
    "weights of a header that is too long": (
        put("model.safetensors", struct.pack("<Q", 2**60)), "not a file of weights",
    ),
    "weights that point out of the file": (
        put("model.safetensors", header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}})),
        "not a file of weights",
    ),
    "weights of a shape that is too large": (
        put(
            "model.safetensors",
            header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
        ),
        "not a file of weights",
    ),
    "weights of another network": (put("model.safetensors", save({"a": torch.zeros(1)})), "model.safetensors: weights"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_refused_folder(call_command, trained, phantoms, tmp_path, kind):
    spoil, message = FOLDERS[kind]
    bundle = tmp_path / "bundle"
    shutil.copytree(trained[0] / "bundle", bundle)
    spoil(bundle)
    done = call_command("predict", bundle, phantoms / "train", "-o", tmp_path / "out.csv")
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    assert message in done.stderr, done.stderr
    assert str(bundle) in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def archive(members: list[tuple[str | zipfile.ZipInfo, bytes]], **options: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **options) as file:
        for name, data in members:
            file.writestr(name, data)
    return content.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.fixture(scope="module")
def members(trained) -> list[tuple[str, bytes]]:
    return [(name, (trained[0] / "bundle" / name).read_bytes()) for name in NAMES]


ZIPS = {
    "path upwards": (lambda m: archive([*m, ("../../evil.py", b"x")]), "'../../evil.py', which is no file of a bundle"),
    "absolute path": (lambda m: archive([*m, ("/tmp/evil.py", b"x")]), "'/tmp/evil.py'"),
    "path of Windows": (lambda m: archive([*m, ("..\\evil.py", b"x")]), "evil.py"),
    "a pickle beside": (lambda m: archive([*m, ("weights.pkl", b"\x80\x04.")]), "'weights.pkl'"),
    "in a folder": (lambda m: archive([(f"bundle/{name}", data) for name, data in m]), "in no folder"),
    "a link": (lambda m: archive([(link("model.json"), b"/etc/passwd"), *m[1:]]), "model.json"),
    "a file twice": (lambda m: archive([*m, m[0]]), "'model.json', twice"),
    "compressed": (lambda m: archive(m, compression=zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    "a bomb": (
        lambda m: archive([("model.safetensors", bytes(10**8))], compression=zipfile.ZIP_DEFLATED),
        "is compressed or encrypted",
    ),
    "cut off": (lambda m: archive(m)[:5000], "neither a folder nor a zip file"),
    "a file less": (lambda m: archive(m[1:]), "no file model.json"),
    "empty": (lambda m: archive([]), "no file SHA256SUMS"),
    "no bytes": (lambda m: b"", "neither a folder nor a zip file"),
    "text": (lambda m: b"a model, I promise", "neither a folder nor a zip file"),
    "weights swapped": (
        lambda m: archive([m[0], (m[1][0], save({"a": torch.zeros(1)})), *m[2:]]),
        "model.safetensors is not the file that was saved",
    ),
    "an export of fastai": (
        lambda m: archive([("export/data.pkl", b"x"), ("export/version", b"3")]),
        "runs the code in it, so it is not loaded",
    ),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_refused_zip(call_command, members, phantoms, tmp_path, kind):
    make, message = ZIPS[kind]
    path = tmp_path / "model.zip"
    path.write_bytes(make(members))
    done = call_command("predict", path, phantoms / "train", "-o", tmp_path / "out.csv")
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    assert message in done.stderr and str(path) in done.stderr, done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.zip"]


@pytest.mark.parametrize("name", ["export.pkl", "model.pth", "model.zip"])
def test_a_pickle_is_not_run(call_command, phantoms, tmp_path, name):
    sprung = tmp_path / "sprung"
    path = tmp_path / name
    if name == "model.pth":
        torch.save({"model": Harmful(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful(sprung)))
    done = call_command("predict", path, phantoms / "train", "-o", tmp_path / "out.csv")
    assert done.returncode == 2 and "runs the code in it, so it is not loaded" in done.stderr, done.stderr
    assert not sprung.exists()


def test_zip_of_a_run_is_the_same_model(trained, phantoms, tmp_path):
    packed = zip_bundle(trained[0] / "bundle", tmp_path / "model.zip")
    ids = [path.name.removesuffix("_red.png") for path in sorted((phantoms / "train").glob("*_red.png"))[:5]]
    found = [load_bundle(path, "cpu").scores(phantoms / "train", ids) for path in (trained[0], packed)]
    np.testing.assert_array_equal(*found)


# Fuzz: 300 inputs each, 10,000 in .ci/full


FUZZ = settings(
    max_examples=int(os.environ.get("PROTEIN_ATLAS_FUZZ", 300)), derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with a few stretches of bytes replaced, cut out, or put in."""
    place = st.integers(0, len(content))
    return st.lists(st.tuples(place, st.integers(0, 40), st.binary(max_size=20)), min_size=1, max_size=4).map(
        lambda edits: _edited(content, edits)
    )


def _edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for start, length, new in edits:
        content = content[:start] + new + content[start + length :]
    return content


KNOWN = ModelDescription(
    "protein_atlas", "small_resnet", "copy:red", HeadSettings(ps=0.1), ("a", "b"), HPA_LAYOUT, (32, 32), (0.1,) * 4,
    (0.2,) * 4, "fixed", (0.5, 0.5), {"macro_f1": 0.5},
)
WEIGHTS = save({"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)})


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A sealed bundle of few bytes."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return seal_bundle(folder, KNOWN)


def test_fuzz_zip(small, tmp_path):
    """What was opened is what was packed: the checksums leave no other way."""
    content = zip_bundle(small, tmp_path / "small.zip").read_bytes()
    path, opened = tmp_path / "fuzzed.zip", []

    @FUZZ
    @given(mutated(content))
    def fuzz(mutant: bytes) -> None:
        path.write_bytes(mutant)
        try:
            with open_bundle(path) as bundle:
                assert bundle.description == KNOWN and bundle.weights.read_bytes() == WEIGHTS
                opened.append(mutant)
        except BundleError as error:
            assert str(path) in str(error)

    fuzz()
    assert len(opened) < 9_000, "hardly any input was changed"


def test_fuzz_description():
    """Beyond the checksums: whatever parses is a description that keeps its own rules."""

    @FUZZ
    @given(mutated(KNOWN.json()))
    def fuzz(mutant: bytes) -> None:
        try:
            found = parse_description(mutant)
        except BundleError as error:
            assert str(error).startswith("model.json: ")
        else:
            assert len(found.thresholds.values) == len(found.vocab) and len(found.mean) == len(found.layout.channels)
            assert model_card(found).startswith("---\n")

    fuzz()


def test_fuzz_weights(tmp_path):
    network, path = torch.nn.Linear(3, 2), tmp_path / "model.safetensors"
    network.left_out = ()
    bundle = Bundle(tmp_path, tmp_path, KNOWN, "", "")

    @FUZZ
    @given(mutated(WEIGHTS))
    def fuzz(mutant: bytes) -> None:
        path.write_bytes(mutant)
        try:
            _load_weights([network], bundle)
        except BundleError as error:
            assert "model.safetensors" in str(error)

    fuzz()


def test_arguments_of_a_network_stand_in_the_description_only_where_there_are_some():
    """A model without them has the `model.json` that it always had."""
    assert list(json.loads(KNOWN.json()))[-2:] == ["resizing", "scaling"]
    given = replace(
        KNOWN, arch_kwargs={"img_size": (32, 64), "drop_path_rate": 0.1, "global_pool": "avg", "dynamic_img_size": True}
    )
    assert parse_description(given.json()) == given


def test_descriptions_that_contradict_themselves():
    with pytest.raises(BundleError, match="std above 0"):
        replace(KNOWN, std=(0.1, 0.1, 0.1, float("nan")))
