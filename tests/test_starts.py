"""What a training starts from: chosen by the command, said, noted in all that a run writes, and refused where it is not
there."""
import json
import shutil

import pytest
from test_commands import check_refusal

from protein_atlas.data.sources import open_images
from protein_atlas.vision.own_weights import own_weights_path

FAST = ("--arch", "small_resnet", "--epochs", 1, "--bs", 16, "--workers", 0)
OURS = "weights that have learned phantoms (simulated cells)"


@pytest.fixture(scope="module")
def from_phantoms(invoke, few_labels, tmp_path_factory):
    run = tmp_path_factory.mktemp("starts") / "run"
    return run, invoke("train", few_labels, *FAST, "--frozen-epochs", 0, "--out", run)


def test_phantoms_are_the_default_where_there_are_some(from_phantoms):
    run, said = from_phantoms
    assert f"starts from {OURS}: red, green, blue, yellow\n" in said
    toml = (run / "run.toml").read_text(encoding="utf-8")
    assert '\npretrained = "phantoms"\n' in toml and '\nstem_rule = "mean"\n' in toml
    assert json.loads((run / "settings.json").read_text(encoding="utf-8"))["pretrained"] == "phantoms"
    assert f"small_resnet, from {OURS}, " in (run / "report.html").read_text(encoding="utf-8")
    described = json.loads((run / "bundle" / "model.json").read_text(encoding="utf-8"))
    assert (described["stem_rule"], described["trained"]["start"]) == ("mean", f"{OURS}: red, green, blue, yellow")
    assert f"- start: {OURS}" in (run / "bundle" / "README.md").read_text(encoding="utf-8")


def test_small_images_are_enlarged_from_phantoms(from_phantoms, invoke, few_labels, tmp_path, without_evidence):
    """What a run says, keeps, and predicts with; a store, which has its size, is taken as it is."""
    run, said = from_phantoms
    side = next(iter(open_images(few_labels).each([open_images(few_labels).ids[0]], [None])))[0].shape[-1]
    assert f"images of {side} x {side} pixels are enlarged to {2 * side} x {2 * side}: " in said
    assert f"pack --size {2 * side})" in said
    assert json.loads((run / "settings.json").read_text(encoding="utf-8"))["size"] == 2 * side
    assert json.loads((run / "bundle" / "model.json").read_text(encoding="utf-8"))["size"] == [2 * side, 2 * side]
    invoke("predict", run, few_labels, "--out", tmp_path / "predictions.csv", "--workers", 0)
    invoke("pack", few_labels, tmp_path / "store")
    said = invoke("train", few_labels, "--store", tmp_path / "store", *FAST, "--out", tmp_path / "packed")
    assert "are enlarged to" not in said and f"twice as large (--size {2 * side}; a store: packed so)" in said


def test_stains_that_phantoms_lack_start_from_random_weights(invoke, few_labels, tmp_path, without_evidence):
    for name in ("gfp", "rfp"):
        for file in sorted((few_labels / "train").glob("*_green.png")):
            (tmp_path / "data" / "train").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "data" / "train" / file.name.replace("green", name))
    shutil.copy(few_labels / "train.csv", tmp_path / "data")
    said = invoke("train", tmp_path / "data", "--channels", "gfp,rfp", *FAST, "--out", tmp_path / "run")
    assert "random weights: rfp is none of the stains of phantoms (all the same: --pretrained phantoms)\n" in said
    assert "starts from random weights\n" in said and "are enlarged to" not in said


def test_a_file_of_ours_is_a_start(from_phantoms, call_command, few_labels, tmp_path, without_evidence):
    """The package's own weights as a file give the same network as by name."""
    file = shutil.copy(own_weights_path("small_resnet"), tmp_path / "mine.safetensors")
    arguments = (*FAST, "--frozen-epochs", 0, "--weights", file)
    done = call_command("train", few_labels, *arguments, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert f"starts from {OURS} of mine.safetensors: red, green, blue, yellow\n" in done.stdout
    scores = [(run / "valid_scores.csv").read_bytes() for run in (tmp_path / "run", from_phantoms[0])]
    assert scores[0] == scores[1]


def test_what_is_not_there_is_refused(call_command, few_labels, tmp_path):
    train = ("train", few_labels, "--out", tmp_path / "run")
    done = call_command(*train, "--arch", "resnet18", "--pretrained", "phantoms")
    check_refusal(done, "resnet18 has no weights that have learned phantoms: small_resnet has")
    done = call_command(*train, *FAST, "--pretrained", "yes")
    check_refusal(done, "--pretrained (pretrained) must be none, imagenet, phantoms or published, found 'yes'")
    done = call_command(*train, *FAST, "--pretrained", "imagenet")
    check_refusal(done, "small_resnet has no ImageNet weights")
    content = own_weights_path("small_resnet").read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(content[:-4] + bytes(4))
    done = call_command(*train, *FAST, "--weights", tmp_path / "bad.safetensors")
    check_refusal(done, "bad.safetensors: damaged")
    done = call_command(*train, "--arch", "resnet18", "--weights", own_weights_path("small_resnet"))
    check_refusal(done, "small_resnet.safetensors: these are weights of small_resnet, not of resnet18")
    assert not (tmp_path / "run").exists()
