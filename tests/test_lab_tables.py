"""Tables as laboratories have them: other columns, separators and programs; CellProfiler's table of images."""
import json

import numpy as np
import pandas as pd
import pytest
from test_commands import check_refusal

from protein_atlas.data.labels import LOCATIONS, format_labels, read_labels
from protein_atlas.data.sources import open_images
from protein_atlas.system.errors import LabelError
from protein_atlas.train.settings import RunSettings
from protein_atlas.train.sides import read_data

TRAIN = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--workers", 0)
FILES = {"Cy5": "red", "GFP": "green", "DAPI": "blue", "Cy3": "yellow"}
STAINS = "red=Cy5,green=GFP,blue=dapi,yellow=Cy3"  # one in other letters


@pytest.fixture
def of_folder(few_labels, tmp_path):
    """Write a label table for the images of `few_labels`; the folder to train on."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(few_labels / "train")

    def write(content: bytes):
        (tmp_path / "data" / "train.csv").write_bytes(content)
        return tmp_path / "data"

    return write


@pytest.fixture
def profiled(few_labels, tmp_path):
    """CellProfiler's table of the images of `few_labels`, with a column of labels; what it says, and as a file."""
    table = read_labels(few_labels / "train.csv")
    numbers = range(1, len(table) + 1)
    frame = pd.DataFrame({
        "ImageNumber": numbers, "Metadata_Plate": "P1", "Metadata_Well": [f"A{n:03}" for n in numbers],
        "image name": table.ids, "Location": ["|".join(format_labels(target).split()) for target in table.targets],
        **{f"FileName_{name}": [f"{image_id}_{channel}.png" for image_id in table.ids]
           for name, channel in FILES.items()},
        **{f"PathName_{name}": str(few_labels / "train") for name in FILES}, **{f"Frame_{name}": 0 for name in FILES},
    })  # fmt: skip
    frame.to_csv(tmp_path / "Image.csv", index=False)
    return frame, tmp_path / "Image.csv"


def as_bytes(frame: pd.DataFrame, before: str = "", encoding: str = "utf-8", **options) -> bytes:
    return (before + frame.to_csv(index=False, lineterminator="\r\n", **options)).encode(encoding)


def test_any_program_s_table_is_trained_on(few_labels, of_folder):
    """The same ids and targets, whatever the file looks like."""
    known = read_labels(few_labels / "train.csv")
    numbers = [format_labels(target) for target in known.targets]
    names = [";".join(np.array(LOCATIONS)[target == 1]) for target in known.targets]
    columns = pd.DataFrame(known.targets.astype(bool), columns=known.vocab)
    plain = pd.DataFrame({"Id": known.ids, "Target": numbers})
    marked = {mark: plain.assign(Target=[text.replace(" ", mark) for text in numbers]) for mark in ";|"}
    answers = columns.map({True: "Yes", False: "no"}.get)
    tables = {
        "tabs": as_bytes(plain, sep="\t"), "a mark": as_bytes(plain, encoding="utf-8-sig"),
        "semicolons": as_bytes(plain, sep=";"), "said": as_bytes(plain, "sep=;\r\n", sep=";"),
        "Excel": as_bytes(marked[";"], "sep=;\r\n", "utf-8-sig", sep=";"), "bars": as_bytes(marked["|"]),
        "names": as_bytes(plain.assign(Target=names)), "Unicode": as_bytes(plain, encoding="utf-16", sep="\t"),
        "commas": as_bytes(plain.assign(Target=[text.replace(";", ", ") for text in names])),
        "2021": as_bytes(plain.assign(Target=[text.replace(";", "|") for text in names]).rename(
            columns={"Id": "ID", "Target": "Label"})),
        "truths": as_bytes(plain[["Id"]].join(columns)), "answers": as_bytes(plain[["Id"]].join(answers), sep=";"),
        "shares": as_bytes(plain[["Id"]].join(columns.astype(float)), sep=";", decimal=","),
    }  # fmt: skip
    for name, content in tables.items():
        table, images = read_data(of_folder(content), RunSettings(classes="all"))
        assert table.ids.tolist() == known.ids.tolist() and np.array_equal(table.targets, known.targets), name
        assert len(images) == len(table)


def test_a_value_that_is_no_truth_is_named():
    frame = pd.DataFrame({"Id": ["a", "b"], "x": ["yes", "no"], "y": ["no", "maybe"]})
    says = r"row 2 \(id 'b'\): column 'y' must be 0 or 1, true or false, yes or no; found 'maybe'"
    with pytest.raises(LabelError, match=says):
        read_labels(frame, ("x", "y"))


def test_columns_by_name_at_a_shell(call_command, few_labels, of_folder, tmp_path):
    table = pd.read_csv(few_labels / "train.csv", dtype=str)
    table = table.rename(columns={"Id": "image", "Target": "shows"}).assign(Id="P1", Target="?")
    data = of_folder(as_bytes(table))
    run = tmp_path / "run"
    check_refusal(call_command("train", data, "--out", run, *TRAIN), "row 2: id 'P1' occurs twice")
    columns = ("--id-column", "image", "--label-column", "shows")
    check_refusal(
        call_command("train", data, "--out", run, *TRAIN, *columns[:3], "Shows"), "column 'Shows' is missing",
        "if 'shows' is meant", "--label-column shows",
    )  # fmt: skip
    found = ("duplicates", data, "--table", data / "train.csv", "--out", tmp_path / "pairs.csv", "--workers", 1)
    check_refusal(call_command(*found), "row 2: id 'P1' occurs twice")
    done = call_command(*found, *columns)
    assert done.returncode == 0, done.stderr


def test_one_table_of_files_and_labels(call_command, few_labels, profiled, tmp_path, without_evidence):
    """Trained on, and predicted: the images have the same names, and the columns are settings of the run."""
    frame, path = profiled
    ids = [f"P1_{well}" for well in frame["Metadata_Well"]]
    run, seen = tmp_path / "run", ("--channels", STAINS, "--label-column", "Location")
    done = call_command("train", path, "--out", run, *seen, *TRAIN)
    assert done.returncode == 0, done.stderr
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    assert settings["label_column"] == "Location" and settings["id_column"] is None
    assert RunSettings.read(run / "run.toml").label_column == "Location"
    assert pd.read_csv(run / "split.csv", dtype=str)["Id"].tolist() == ids
    out = tmp_path / "predictions.csv"
    done = call_command("predict", run, path, "--channels", STAINS, "--out", out, "--workers", 0)
    assert done.returncode == 0 and pd.read_csv(out)["Id"].tolist() == ids, done.stderr

    # Named otherwise, by a column of the table: the images are called so, too.
    settings = RunSettings(channels=tuple(STAINS.split(",")), id_column="image name", label_column="Location")
    table, images = read_data(path, settings)
    assert table.ids.tolist() == images.ids == frame["image name"].tolist()
    assert np.array_equal(images.open(table.ids[3]), open_images(few_labels).open(table.ids[3]))
    # A label table alone, and a source beside it.
    table, _ = read_data(few_labels / "train.csv", RunSettings(store=str(few_labels)))
    assert table.ids.tolist() == frame["image name"].tolist()


def test_what_cellprofiler_s_table_lacks(call_command, profiled, tmp_path):
    frame, path = profiled
    pack = ("pack", path, tmp_path / "store", "--workers", 1)
    check_refusal(
        call_command(*pack), f"{path}: no plane 'red'; it has 4, 0: Cy5, 1: GFP, 2: DAPI, 3: Cy3",
        "--channels 'red=?,green=GFP,blue=DAPI,yellow=?'",
    )  # fmt: skip
    frame.assign(PathName_GFP=r"D:\plates\one").to_csv(path, index=False)
    check_refusal(
        call_command(*pack, "--channels", STAINS),
        f"{path}: no image can be read", r"row 140, column 'FileName_GFP' and 'PathName_GFP': D:\plates\one",
        "no such file; it is a path of Windows",
    )  # fmt: skip
    frame.assign(Frame_DAPI=1).to_csv(path, index=False)
    check_refusal(call_command(*pack, "--channels", STAINS), f"{path}: row 1, column 'Frame_DAPI': '1', a plane of a")
    frame.drop(columns=["Metadata_Plate", "Metadata_Well"]).to_csv(path, index=False)
    done = call_command(*pack, "--channels", STAINS)
    assert done.returncode == 0, done.stderr
    assert open_images(tmp_path / "store").ids[:3] == ["1", "2", "3"]
