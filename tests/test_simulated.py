"""The model that the package brings, and the training that makes one, as their users meet them."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE
from test_commands import check_refusal

from protein_atlas.data.images import CHANNELS, Layout, save_image
from protein_atlas.data.labels import LOCATIONS
from protein_atlas.data.phantoms import varied_field

NOTICE = "simulated: this network has learned simulated cells alone. It gives scores and decides for no label"


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    for index in range(3):
        save_image(folder, f"f{index}", varied_field(320, 3, index)[0])
    return folder


def scores_of(path) -> np.ndarray:
    table = pd.read_csv(path, keep_default_na=False)
    assert list(table.columns[3:]) == list(LOCATIONS)
    assert (table[["Predicted", "Indices"]] == "").all(axis=None), "it decided for a label"
    return table.iloc[:, 3:].to_numpy(dtype=float)


def test_predict_says_what_it_is_worth(fields, call_command, tmp_path):
    """Folder, table and store give the same scores, at the images' size, with the notice each time."""
    store, table = tmp_path / "store", tmp_path / "files.csv"
    rows = [[f"f{index}", *(str(fields / f"f{index}_{name}.png") for name in CHANNELS)] for index in range(3)]
    pd.DataFrame(rows, columns=["Id", *CHANNELS]).to_csv(table, index=False)
    assert call_command("pack", fields, store, "--size", 320).returncode == 0
    found = []
    for number, source in enumerate((fields, table, store)):
        out = tmp_path / f"{number}.csv"
        done = call_command("predict", "simulated", source, "--out", out, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(f"protein_atlas: warning: {NOTICE}") and done.stderr.count(NOTICE) == 1
        assert done.stdout.startswith("simulated@320: the model for these images: their stains, and the size of the")
        found.append(scores_of(out))
    assert np.allclose(found[0], found[1], atol=1e-5) and np.allclose(found[0], found[2], atol=1e-5)


def test_channels_by_role(fields, call_command, tmp_path):
    """Fewer stains, by the names that they have; what a name does not tell is said."""
    folder = tmp_path / "two"
    folder.mkdir()
    for index in range(3):
        save_image(folder, f"f{index}", varied_field(320, 3, index)[0][[2, 1]], Layout(("Hoechst", "ch2")))
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    done = call_command("predict", "simulated", fields, "--channels", "blue,green", "--out", one, "--device", "cpu")
    assert done.returncode == 0 and done.stdout.startswith("simulated:blue,green@320: the model for"), done.stderr
    done = call_command("predict", "simulated:Hoechst,green=ch2@320", folder, "--out", two, "--device", "cpu")
    assert done.returncode == 0 and done.stdout.startswith(f"{two}: 3 images, by torch"), done.stderr
    assert np.allclose(scores_of(one), scores_of(two), atol=1e-5)


def test_refusals(fields, call_command, tmp_path):
    out = ("--out", tmp_path / "x.csv")
    check_refusal(
        call_command("predict", "simulated", fields, "--channels", "green,actin", *out),
        "the channel 'actin' tells no stain: type green=actin, or another of red (microtubules), green (the protein)",
    )
    check_refusal(
        call_command("predict", "simulated", fields, "--channels", "green,dapi", *out),
        "no image has the channel dapi: --channels green takes the others, if a model can do without (train --may-",
    )
    sample = tmp_path / "sample.csv"
    pd.DataFrame({"Id": ["f0"], "Predicted": ["0"]}).to_csv(sample, index=False)
    check_refusal(
        call_command("predict", "simulated", fields, "--submission", sample, *out),
        "simulated: gives scores and decides for no label: a submission needs a trained model",
    )
    assert not (tmp_path / "x.csv").exists()


def test_card_verify_and_page(fields, call_command):
    done = call_command("card", "simulated")
    assert done.returncode == 0, done.stderr
    assert f"> **{NOTICE}" in done.stdout and "It has learned " in done.stdout
    assert call_command("verify", "simulated").stdout.startswith("simulated: every file is what was saved")
    from protein_atlas.app.viewer import Viewer

    viewer = Viewer.open("simulated@48", "cpu", images=fields)
    assert NOTICE in viewer.examples.unlike
    assert "Decided: <strong>none of the labels</strong>" in viewer.image_html(viewer.examples, "f0")


TYPED = """
import sys
from pathlib import Path
import protein_atlas.train.pretraining as own
if __name__ == "__main__":
    own.LEAST_BATCHES = 1  # each batch is an epoch
    own.pretrain("small_resnet", sys.argv[1], fields=768, size=32, device="cpu", resume=len(sys.argv) > 2)
"""


@pytest.mark.full
def test_pretraining_that_is_killed_goes_on(tmp_path):
    """Killed after an epoch: no file, no processes; resumed, the same file to the bit."""
    (tmp_path / "typed.py").write_text(TYPED)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, tmp_path / "typed.py", *arguments], cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    killed = start("killed.safetensors")
    kept = tmp_path / "killed.safetensors.unfinished" / "checkpoints"
    until = time.monotonic() + PATIENCE
    while not any(kept.glob("epoch-*")) and time.monotonic() < until:
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed.safetensors").exists() and any(kept.glob("epoch-*"))
    for arguments in (("killed.safetensors", "--resume"), ("whole.safetensors",)):
        done = start(*arguments)
        said = done.communicate(timeout=PATIENCE)[0]
        assert done.returncode == 0, said
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.safetensors", "typed.py", "whole.safetensors"]
