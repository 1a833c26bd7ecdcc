"""A network that has learned to do without a stain takes images without it; no other does."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from protein_atlas.cli import app
from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.packing import pack_images
from protein_atlas.data.sources import open_images
from protein_atlas.predict.load import load_predictor
from protein_atlas.predict.reading import NoticeWarning
from protein_atlas.system.errors import ImageError, TrainingError
from protein_atlas.train.settings import RunSettings

THREE = ("red", "green", "blue")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images of two labels, and a run on it whose images may lack yellow."""
    folder = tmp_path_factory.mktemp("lacking")
    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        image = rng.integers(0, 60, (4, 32, 32), dtype=np.uint8)
        image[1, :, :16] += np.uint8(150 * (number % 2))
        save_image(_made(folder / "set/train"), f"f{number:02}", image)
        save_image(_made(folder / "three"), f"f{number:02}", image[:3], Layout(THREE))
        rows.append((f"f{number:02}", ("Nucleoplasm", "Cytosol")[number % 2]))
    pd.DataFrame(rows, columns=["Id", "Target"]).to_csv(folder / "set/train.csv", index=False)
    common = ["train", str(folder / "set"), "--arch", "small_resnet", "--size", "32", "--epochs", "1", "--workers", "0"]
    common += ["--labels", "Nucleoplasm,Cytosol", "--pretrained", "none"]
    done = CliRunner().invoke(app, [*common, "--may-lack", "yellow", "--out", str(folder / "may")])
    assert done.exit_code == 0, done.output
    assert "yellow black in a quarter of the images" in done.output
    return folder


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_the_run_keeps_it(made):
    assert json.loads((made / "may/metrics.json").read_text())["may_lack"] == ["yellow"]
    assert load_predictor(made / "may").may_lack == ("yellow",)


def test_black_takes_its_place(made, tmp_path):
    """The same scores as of images whose yellow is black, by a folder and by a store, and it is said."""
    whole = open_images(made / "set/train")
    for image_id in whole.ids:
        image = whole.open(image_id).copy()
        image[3] = 0
        save_image(_made(tmp_path / "black"), image_id, image)
    predictor = load_predictor(made / "may")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = predictor.scores(tmp_path / "black", workers=0)
    pack_images(made / "three", tmp_path / "store", [32], Layout(THREE))
    for source in (tmp_path / "store", open_images(made / "three", Layout(THREE))):
        with pytest.warns(NoticeWarning, match="no yellow in these images: black, as in a quarter of those trained on"):
            found = predictor.scores(source, workers=0)
        assert np.array_equal(found, expected)
    out = tmp_path / "scores.csv"
    line = ["predict", str(made / "may"), str(made / "three"), "--channels", "blue,green,red", "--out", str(out)]
    with pytest.warns(NoticeWarning, match="no yellow in these images"):
        done = CliRunner().invoke(app, [*line, "--workers", "0"])
    assert done.exit_code == 0, done.output
    assert np.allclose(pd.read_csv(out)[["Nucleoplasm", "Cytosol"]], expected, atol=1e-6)


def test_others_are_refused(made):
    three = open_images(made / "three", Layout(THREE))
    needed = "has the channels red, green, blue; the model needs yellow, too: one that can is trained by --may-lack"
    predictor = load_predictor(made / "may")
    (model,) = predictor.models
    with pytest.raises(ImageError, match=needed):
        replace(predictor, models=(replace(model, may_lack=()),)).scores(three, workers=0)
    two = open_images(made / "three", Layout(("green", "blue")))
    needed = "the model needs red, too: it can do without yellow alone"
    with pytest.raises(ImageError, match=needed):
        predictor.scores(two, workers=0)


@pytest.mark.parametrize("names", ["cyan", "red,green,blue,yellow"])
def test_what_cannot_be_lacking(names):
    with pytest.raises(TrainingError, match=r"--may-lack \(may_lack\) must be some, not all, of the stains red, green"):
        RunSettings(may_lack=tuple(names.split(",")))
