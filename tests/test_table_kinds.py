"""Valid tables as other programs write them: read as what they say, or refused by row where a cell says two things."""
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import HPA_LAYOUT, Layout
from protein_atlas.data.labels import decode_targets, read_labels
from protein_atlas.data.sources import open_images
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.predict.engines import Engine
from protein_atlas.predict.predictor import Predictor
from protein_atlas.predict.reading import ScoringModel
from protein_atlas.system.errors import ImageError, LabelError

SETS = [("Nucleoplasm", "Cytokinetic bridge"), ("Cytosol",), ("Nucleoplasm", "Nuclear membrane", "Nucleoli")]
NUMBERS = [[0, 16], [25], [0, 1, 2]]
IDS = ["zelle ü", "a%20b", "007"]
EXPECTED = [frozenset(labels) for labels in SETS]


def joined(between: str) -> list[str]:
    return [between.join(map(str, numbers)) for numbers in NUMBERS]


CELLS = {
    "lists": NUMBERS, "names in lists": [list(labels) for labels in SETS], "tuples": [tuple(of) for of in NUMBERS],
    "arrays": [np.array(of) for of in NUMBERS], "arrays of names": [np.array(of) for of in SETS],
    "NumPy's numbers": [[np.int64(of) for of in numbers] for numbers in NUMBERS],
    "NumPy's texts": [[np.str_(of) for of in labels] for labels in SETS],
    "texts of numbers": [[str(of) for of in numbers] for numbers in NUMBERS],
    **{repr(between): joined(between) for between in (" ", ", ", ",", ";", "; ", "|", " | ")},
    "names and commas": [", ".join(labels) for labels in SETS], "names": [";".join(labels) for labels in SETS],
}  # fmt: skip
WRITERS = {
    "plain": {"index": False}, "with the index": {}, "semicolons": {"index": False, "sep": ";"},
    "tabs": {"index": False, "sep": "\t"}, "all in quotes": {"index": False, "quoting": 1},
    "a byte order mark": {"index": False, "encoding": "utf-8-sig"},
    "Excel's Unicode text": {"index": False, "sep": "\t", "encoding": "utf-16", "lineterminator": "\r\n"},
    "Excel in German": {"index": False, "sep": ";", "decimal": ",", "lineterminator": "\r\n"},
}  # fmt: skip


def read(table) -> list[frozenset]:
    found = read_labels(table)
    assert found.ids.tolist() == IDS
    return [frozenset(labels) for labels in decode_targets(found.targets)]


@pytest.mark.parametrize("cells", CELLS)
def test_any_way_to_write_labels(tmp_path, cells):
    frame = pd.DataFrame({"Id": IDS, "Target": CELLS[cells]})
    assert read(frame) == read(frame.set_index("Id")) == EXPECTED
    for name, options in WRITERS.items():
        frame.to_csv(tmp_path / "table.csv", **options)
        assert read(tmp_path / "table.csv") == EXPECTED, name
    frame.set_index("Id").to_csv(tmp_path / "table.csv")
    assert read(tmp_path / "table.csv") == EXPECTED
    if "NumPy" not in cells:
        frame.to_parquet(tmp_path / "table.parquet")
        assert read(tmp_path / "table.parquet") == read(pd.read_parquet(tmp_path / "table.parquet")) == EXPECTED


def test_what_spreadsheets_leave(tmp_path):
    """A line that names the separator, and rows and columns of nothing."""
    path = tmp_path / "table.csv"
    lines = [f"{image_id};{text}" for image_id, text in zip(IDS, joined(" "), strict=True)]
    for before, after, right in (("sep=;\r\n", "", ""), ("", "\r\n\r\n", ""), ("", ";\r\n;\r\n", ""), ("", "", ";;")):
        text = before + "\r\n".join(line + right for line in ["Id;Target", *lines]) + "\r\n" + after
        path.write_bytes(text.encode())
        assert read(path) == EXPECTED, text


def test_categories_and_missing_cells(tmp_path):
    frame = pd.DataFrame({"Id": IDS, "Target": joined(" ")}).astype("category")
    assert read(frame) == EXPECTED
    numbers = pd.DataFrame({"Id": ["a", "b"], "Target": [16.0, None]})
    numbers.to_csv(tmp_path / "table.csv", index=False)
    for table in (numbers, tmp_path / "table.csv"):
        assert read_labels(table, allow_none=True).targets.nonzero()[1].tolist() == [16]


@pytest.mark.parametrize(("cell", "says"), [
    ("16,0", "two labels"), ("[16, 0", "unknown label"), ("16;Cytosol", "unknown label"), ("[28]", "out of range"),
    ("[16, 16]", "given twice"), ("['Cytosol', 'Golgi']", "unknown label 'Golgi'"), ("1.5", "whole number"),
])  # fmt: skip
def test_a_cell_of_two_meanings_or_none_is_named(tmp_path, cell, says):
    (tmp_path / "table.csv").write_text(f'Id,Target\na,1\nb,"{cell}"\n')
    with pytest.raises(LabelError, match=rf"table\.csv: row 2 \(id 'b'\): .*{says}"):
        read_labels(tmp_path / "table.csv")


@pytest.mark.parametrize("suffix", [".PNG", ".TIF", ".ome.tif", "_raw.png", ".Ome.Tiff"])
def test_suffixes_and_odd_ids(tmp_path, suffix):
    layout = Layout(("red", "green"), (suffix,))
    for number, image_id in enumerate(IDS):
        for channel in layout.channels:
            kind = "PNG" if suffix.lower().endswith("png") else "TIFF"
            picture = Image.fromarray(np.full((4, 5), number, np.uint8))
            picture.save(tmp_path / f"{image_id}_{channel}{suffix}", format=kind)
    images = ImageFolder(tmp_path, layout)
    assert sorted(images.ids) == sorted(IDS)
    assert [images.open(image_id).max() for image_id in IDS] == [0, 1, 2]
    files = {channel: [f"{image_id}_{channel}{suffix}" for image_id in IDS] for channel in layout.channels}
    table = pd.DataFrame({"Id": IDS, **files})
    for index, name in ((False, "files.csv"), (False, "files.parquet"), (True, "files.parquet")):
        write = table.set_index("Id") if index else table
        write.to_csv(tmp_path / name, index=index) if name.endswith("csv") else write.to_parquet(tmp_path / name)
        opened = open_images(tmp_path / name, layout)
        assert [opened.open(image_id).max() for image_id in IDS] == [0, 1, 2], name
    if suffix == "_raw.png":
        with pytest.raises(ImageError, match="no image files"):
            ImageFolder(tmp_path)


def test_suffix_at_a_shell(call_command, tmp_path, monkeypatch):
    for number in range(3):
        for channel in ("red", "green", "blue", "yellow"):
            noise = np.random.default_rng(number).integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(noise).save(tmp_path / f"{number}_{channel}_raw.png")
    refused = call_command("pack", tmp_path, tmp_path / "store")
    assert refused.returncode == 2 and "found '0_blue_raw.png'; other endings are said by --suffix" in refused.stderr
    done = call_command("pack", tmp_path, tmp_path / "store", "--suffix", "_raw.png,.ome.tif", "--workers", 1)
    assert done.returncode == 0 and "3 images" in done.stdout, done.stderr
    done = call_command(
        "duplicates", tmp_path, "--suffix", "_raw.png", "--out", tmp_path / "found.csv", "--workers", 1
    )  # fmt: skip
    assert done.returncode == 0 and "0 pairs" in done.stdout, done.stderr
    refused = call_command("pack", tmp_path, tmp_path / "other", "--suffix", "tif")
    assert refused.returncode == 2 and "suffixes must be endings of file names such as .ome.tif" in refused.stderr
    refused = call_command("train", tmp_path, "--suffix", "tif")
    assert refused.returncode == 2 and "--suffix (suffixes) must be endings such as .ome.tif" in refused.stderr

    # A model of files named otherwise.
    engine = Engine(lambda images: images.mean((2, 3))[:, :2] / 255, "torch", "fp32", "cpu", "means")
    fixed = Thresholds([0.5] * 2, ("a", "b"), "fixed")
    model = Predictor((ScoringModel(engine, (8, 8)),), ("a", "b"), HPA_LAYOUT, fixed)
    monkeypatch.setattr("protein_atlas.predict.load.load_predictor", lambda *_: model)
    out = tmp_path / "out.csv"
    assert "no image files" in call_command("predict", tmp_path, tmp_path, "--out", out).stderr
    done = call_command("predict", tmp_path, tmp_path, "--suffix", "_raw.png", "--out", out, "--workers", 0)
    assert done.returncode == 0 and pd.read_csv(out)["Id"].tolist() == [0, 1, 2], done.stderr
