"""Each command that writes, killed 24 times at random moments: what it left is taken up, and the end is the same."""
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE

from protein_atlas.data.sources import open_images

pytestmark = pytest.mark.full
KILLS = 24


def same_images(one: Path, two: Path) -> None:
    """Both hold the same pixels under the same ids."""
    first, second = open_images(one), open_images(two)
    assert list(first.ids) == list(second.ids)
    for image_id in first.ids:
        np.testing.assert_array_equal(first.open(image_id), second.open(image_id))


def same_folder(one: Path, two: Path) -> None:
    """Both hold the same files; those that are not told by a clock are equal."""
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (one, two)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.suffix in (".png", ".csv", ".safetensors"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def same_table(one: Path, two: Path) -> None:
    """Both hold the same rows; scores to what the order of additions leaves."""
    pd.testing.assert_frame_equal(pd.read_csv(one), pd.read_csv(two), atol=1e-5)


def same_length(one: Path, two: Path) -> None:
    """Both are files of much the same length; they name when they were made."""
    assert abs(one.stat().st_size - two.stat().st_size) < 0.05 * one.stat().st_size


# Of each command: its arguments but for the destination, which is the last; and what must be equal in the end.
COMMANDS = {
    "simulate": (("simulate", "--n", 300, "--size", 64), same_folder),
    "pack": (("pack", "{images}", "--workers", 1), same_images),
    "train": (
        (
            "train", "{data}", "--arch", "small_resnet", "--pretrained", "none", "--epochs", 3, "--bs", 16,
            "--workers", 0, "--out",
        ), same_folder,
    ),
    "predict": (("predict", "{run}", "{images}", "--tta", "--bs", 4, "--out"), same_table),
    "export": (("export", "{run}"), same_length),
    "duplicates": (("duplicates", "{images}", "--out"), same_table),
    "report": (("report", "{run}", "--out"), same_length),
}  # fmt: skip
SUFFIX = {"predict": ".csv", "duplicates": ".csv", "export": ".zip", "report": ".html"}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(command, run_command, phantoms, trained, tmp_path, name):
    """SIGKILL to the command alone, at moments spread over its run; the same command goes on, to what one start gives.

    What has come to its end is compared and removed, and the command begins once more, until it was killed so often.
    """
    words, compare = COMMANDS[name]
    places = {"{data}": phantoms, "{images}": phantoms / "train", "{run}": trained[0]}
    arguments = [places.get(word, word) for word in words]
    whole, out = (tmp_path / f"{stem}{SUFFIX.get(name, '')}" for stem in ("whole", "out"))
    started = time.monotonic()
    done = run_command(*arguments, whole)
    assert done.returncode == 0, done.stderr
    seconds, draw, kills, killed = time.monotonic() - started, random.Random(name), 0, False
    while kills < KILLS or killed:
        go_on = ["--resume"] if name == "train" and any(tmp_path.glob("out.unfinished/checkpoints/epoch-*")) else []
        process = subprocess.Popen(
            [command, *map(str, (*arguments, out, *go_on))], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        killed = False
        try:
            said = process.communicate(timeout=PATIENCE if kills == KILLS else draw.uniform(0.3, 1.2) * seconds)[0]
            assert process.returncode == 0, said.decode()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate(timeout=PATIENCE)
            kills, killed = kills + 1, True
        if out.exists() and not any(tmp_path.glob("out.unfinished")):  # else it was killed before it had cleaned up
            compare(whole, out)
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert [path.name for path in tmp_path.iterdir()] == [whole.name], "what killed commands left is not removed"
