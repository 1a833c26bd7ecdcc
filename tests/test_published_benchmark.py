"""`benchmarks/published.py` on miniatures of the public sets, made of phantoms, with seeded weights of small size."""

import sys

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image

from protein_atlas.data.label_systems import SUBCELL_LABELS, map_scores
from protein_atlas.data.labels import LOCATIONS
from protein_atlas.data.phantoms import simulate_phantoms, varied_field
from protein_atlas.evaluate.metrics import macro_average_precision, macro_f1
from protein_atlas.predict.other_labels import with_labels_of
from protein_atlas.zoo.body import load_network
from protein_atlas.zoo.hpa_densenet import HPADenseNet
from protein_atlas.zoo.miniature import miniature
from protein_atlas.zoo.scoring import load_published

SMALL = "miniature"
SIDE = 64


@pytest.fixture(scope="module")
def published():
    """The benchmark as a module."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import published as module
    finally:
        sys.path.pop(0)
    return module


@pytest.fixture(scope="module")
def densenet(published, tmp_path_factory):
    """The winner of 2018 with weights of a seed, for fields of 64 pixels."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("densenet") / "densenet.pth"
    torch.save({"state_dict": HPADenseNet().eval().state_dict()}, path)
    return published.of_side(load_published("hpa_densenet", path, device="cpu"), SIDE), path


@pytest.fixture(scope="module")
def subcell(tmp_path_factory):
    """A miniature of SubCell, registered under the name `SMALL`, and its files."""
    folder = tmp_path_factory.mktemp("subcell")
    with miniature(folder, heads=1) as model:
        assert (model.name, model.size) == (SMALL, SIDE)
        encoder, head = folder / "encoder.pth", folder / "head_seed_0.pth"
        yield load_network(model, encoder, [head]), encoder, head


def rgba(path, image):
    """Four channels as one PNG of four samples a pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(image.transpose(1, 2, 0))))


@pytest.mark.filterwarnings("ignore::protein_atlas.evaluate.thresholds.ThresholdWarning")
@pytest.mark.filterwarnings("ignore::protein_atlas.predict.reading.NoticeWarning")
def test_kaggle(published, densenet, tmp_path):
    folder = simulate_phantoms(tmp_path / "kaggle", 24, SIDE, tempering=1.0)
    found = published.kaggle_set(folder)
    row = published.score_set(found, "hpa_densenet", densenet[0], "hpa2018", 8, 50)
    scores = densenet[0].scores(folder / "train", list(found.groups), workers=0)
    shown = found.targets.any(axis=0)
    assert (row.images, row.groups, row.labels) == (24, 24, shown.sum())
    assert row.plain == f"{macro_f1(found.targets[:, shown], scores[:, shown] >= 0.5):.3f}"
    assert row.precision.startswith(f"{macro_average_precision(found.targets[:, shown], scores[:, shown]):.3f} [")
    assert "macro F1 0.565" in row.reported and row.reported.endswith("trained on these images")


def field_folder(folder, n=18):
    """A miniature of Cell-DINO's fields: the last has no label, the last but one is a TIFF."""
    rows = []
    for number in range(n):
        image = varied_field(SIDE, 0, number)[0]
        stem = f"{number // 3}_1_A1_{number}" if number % 2 else f"0000-{number}"
        if number == n - 2:
            (folder / "512_whole_images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / "512_whole_images" / f"{stem}.tiff")
        else:
            rgba(folder / "512_whole_images" / f"{stem}.png", image)
        shown = (np.arange(28) % 4 == number % 4) & (number < n - 1)
        labels = {label.lower(): bool(one) for label, one in zip(LOCATIONS, shown, strict=True)}
        rows.append({"file": f"somewhere/{stem}.png", "cell_type": "U-2 OS", "ID": stem} | labels)
    pd.DataFrame(rows).to_csv(folder / "whole_images_512_test.csv", index=False)
    return folder


@pytest.mark.filterwarnings("ignore::protein_atlas.evaluate.thresholds.ThresholdWarning")
def test_fields(published, densenet, tmp_path):
    found = published.field_set(field_folder(tmp_path))
    assert found.said.startswith("fields: 1 of 18 have none of the 28 labels") and len(found.targets) == 17
    assert list(found.groups[:6]) == ["0000-0", "0", "0000-2", "1", "0000-4", "1"]
    for row in (0, 1, 16):
        np.testing.assert_array_equal(found.read(row, (SIDE, SIDE)), varied_field(SIDE, 0, row)[0])
    row = published.score_set(found, "hpa_densenet", densenet[0], "hpa2018", 8, 50)
    assert (row.images, row.groups) == (17, len(set(found.groups)))
    assert row.reported == "none that we could read; trained on these images"
    table = pd.read_csv(tmp_path / "whole_images_512_test.csv").drop(columns="rods & rings")
    table.to_csv(tmp_path / "whole_images_512_test.csv", index=False)
    with pytest.raises(SystemExit, match="no column 'rods & rings'"):
        published.field_set(tmp_path)


def cell_folder(folder, n=24):
    """A miniature of SubCell's cells of 16 bits: half of each crop is another cell's; one shows none of the labels."""
    rng, rows = np.random.default_rng(0), []
    for number in range(n):
        image = varied_field(80, 1, number)[0].astype(np.uint16) * 257
        mask = np.zeros((80, 80), np.uint8)
        mask[:, :40] = 255
        stem = f"7_B2_1_{number}"
        rgba(folder / "7" / f"{stem}_cell_image.png", image[[2, 3, 0, 1]])  # nucleus, reticulum, microtubules, protein
        (folder / "7" / f"{stem}_cell_mask.png").write_bytes(imagecodecs.png_encode(mask))
        drawn = rng.choice(["Nucleoplasm", "Cytosol", "Vesicles", "Endosomes"], 1 + number % 2, replace=False)
        labels = {0: "Rods & Rings", 1: np.nan}.get(number, ",".join(drawn))
        rows.append({"cell_id": float(number), "if_plate_id": 7, "position": "B2", "sample": 1,
                     "antibody": f"HPA{number // 3:06}", "locations": labels})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv")
    (folder / "test_antibodies.txt").write_text("\n".join(f"HPA{number:06}" for number in range(7)) + "\nHPA999999")
    return folder


@pytest.mark.filterwarnings("ignore::protein_atlas.evaluate.thresholds.ThresholdWarning")
def test_cells(published, subcell, tmp_path):
    network, encoder, head = subcell
    folder = cell_folder(tmp_path)
    found = published.cell_set(folder, folder / "test_antibodies.txt")
    assert found.said.startswith("cells: 1 of 21 have none of the 31 labels") and len(found.targets) == 20
    assert found.targets[0, SUBCELL_LABELS.index("Negative")] == 1 and found.groups[0] == "HPA000000"
    cell = found.read(4, (SIDE, SIDE))
    whole = varied_field(80, 1, 5)[0].astype(np.uint16) * 257
    whole[:, :, 43:] = 0  # the mask is grown by 3 pixels
    cut = whole[:, 8:72, 8:72]
    np.testing.assert_array_equal(cell, np.rint(255 * (cut / cut.max())))
    predictor = load_published(SMALL, encoder, [head], "cpu")
    row = published.score_set(found, SMALL, predictor, "subcell", 8, 50)
    assert (row.images, row.groups, row.labels) == (20, 7, 5)
    with torch.no_grad():
        images = np.stack([found.read(one, (SIDE, SIDE))[[0, 3, 2, 1]] for one in range(20)]).astype(np.float32)
        scores = network(torch.from_numpy(images)).numpy()
    shown = found.targets.any(axis=0)
    assert row.precision.startswith(f"{macro_average_precision(found.targets[:, shown], scores[:, shown]):.3f} [")
    assert published.scores_of(found, published.of_side(predictor, 80), 8).shape == (20, 31)
    with pytest.raises(SystemExit, match="hpa_densenet takes a field, each image of cells is a cell"):
        published.score_set(found, "hpa_densenet", predictor, "hpa2018", 8, 50)
    (folder / "none.txt").write_text("HPA123456")
    with pytest.raises(SystemExit, match="no cell of the antibodies in"):
        published.cell_set(folder, folder / "none.txt")


@pytest.mark.filterwarnings("ignore::protein_atlas.evaluate.thresholds.ThresholdWarning")
def test_cells_in_the_labels_of_another_system(published, subcell, tmp_path):
    """Vesicles and endosomes are one label of 2021."""
    network, encoder, head = subcell
    folder = cell_folder(tmp_path)
    found = published.cell_set(folder, folder / "test_antibodies.txt")
    own = load_published(SMALL, encoder, [head], "cpu")
    predictor = with_labels_of(own, "hpa2021")
    targets, vocab = published.targets_for(found, predictor, "hpa2021")
    assert vocab == ["Nucleoplasm", "Cytosol", "Vesicles and punctate cytosolic patterns", "Negative"]
    both = found.targets[:, [SUBCELL_LABELS.index(label) for label in ("Vesicles", "Endosomes")]].any(axis=1)
    np.testing.assert_array_equal(targets[:, 2], both)
    carried = map_scores(published.scores_of(found, own, 8), "subcell", "hpa2021")
    np.testing.assert_allclose(published.scores_of(found, predictor, 8), carried, atol=1e-6)
    assert published.score_set(found, SMALL, predictor, "hpa2021", 8, 50).labels == 4


def test_nearest_neighbours_by_hand(published):
    """One number a cell: task one is told by the training cells alone, task two also by the other groups' cells."""
    meta = pd.DataFrame({
        "train_test_split": ["Train", "Train", "Task_one", "Task_two", "Task_two", "Task_two", "Task_two"],
        "Label": ["a", "b", "a", "a", "c", "c", "c"], "Plate": ["", "", "", "p", "p", "q", "q"],
        "Task_one": [False, False, True, False, False, False, False],
        "Task_two": [False, False, False, True, True, True, True],
    })  # fmt: skip
    features = np.array([[0.0], [10], [6], [1], [20], [21], [11]])
    first, second = published.chammi_tasks(meta, features, ("Task_two", "Plate"), "x.csv", "l2")
    assert (first.name, list(first.truth), list(first.found)) == ("Task_one", ["a"], ["b"])
    # plate p: 1 is next to 0, 20 to 21, of plate q; plate q: 21 is next to 20, 11 to 10
    assert list(second.truth) == ["a", "c", "c", "c"] and list(second.found) == ["a", "c", "c", "b"]
    with pytest.raises(SystemExit, match="7 cells, 6 rows of features"):
        next(published.chammi_tasks(meta, features[:6], None, "x.csv", "l2"))


def chammi_folder(folder):
    """A miniature of CHAMMI: HPA with images, Allen and CP with features alone."""
    rng = np.random.default_rng(0)
    kinds = {"Allen": 2, "HPA": 3, "CP": 4}
    for name, tasks in kinds.items():
        n = 6 * (tasks + 1)
        split = np.repeat(["Train", *("Task_one", "Task_two", "Task_three", "Task_four")[:tasks]], 6)
        meta = pd.DataFrame({
            "train_test_split": split, "Label": list("abc") * (n // 3), "cell_type": list("xy") * (n // 2),
            "Plate": list("pq") * (n // 2), "channel_width": 48,
        })  # fmt: skip
        for task in sorted(set(split) - {"Train"}):
            meta[task] = split == task
        meta["file_path"] = [f"{name}/crops/{row}.png" for row in range(n)]
        (folder / name / "crops").mkdir(parents=True)
        if name == "HPA":
            for row, path in enumerate(meta["file_path"]):
                image = varied_field(48, 2, row)[0]
                (folder / path).write_bytes(imagecodecs.png_encode(np.concatenate(list(image), axis=1)))
        meta.to_csv(folder / name / "enriched_meta.csv", index=False)
        np.save(folder / f"{name}.npy", rng.normal(size=(n, 4)) + 9 * (meta["Label"] == "b").to_numpy()[:, None])
    return folder


def test_chammi_from_features(published, tmp_path, monkeypatch, capsys):
    folder = chammi_folder(tmp_path)
    line = ["published.py", "chammi", str(folder), "--features", f"{folder}/{{set}}.npy", "--replicates", "20"]
    monkeypatch.setattr(sys, "argv", line)
    published.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 9 and lines[0].startswith("| model | set | images | groups | labels | macro F1 at 0.5 |")
    assert "| CHAMMI HPA Task_three | 6 | 6 | 3 |" in lines[6]
    assert "ResNet18 0.21, ConvNeXt 0.25, DINOv2 0.26 (github.com/broadinstitute/MorphEm)" in lines[6]


def test_chammi_by_a_network(published, densenet, subcell, tmp_path):
    folder = chammi_folder(tmp_path)
    path = folder / "HPA" / "enriched_meta.csv"
    meta = pd.read_csv(path)
    images = published.chammi_images(meta, folder, path)
    np.testing.assert_array_equal(images.read(5, (48, 48)), varied_field(48, 2, 5)[0])
    network, encoder, _ = subcell
    features = published.network_features(images, SMALL, encoder, "cpu", 8)
    with torch.no_grad():
        cell = torch.from_numpy(images.read(3, (SIDE, SIDE))[None, [0, 3, 2, 1]]).float()
        np.testing.assert_allclose(features[3], network.features(cell)[0].numpy(), atol=1e-4)
    rows = list(published.chammi_rows(folder, "subcell:rybg", lambda *_: features, ["HPA"], "cosine", 20))
    assert [row.name for row in rows] == ["CHAMMI HPA Task_one", "CHAMMI HPA Task_two", "CHAMMI HPA Task_three"]
    assert published.network_features(images, "hpa_densenet", densenet[1], "cpu", 8, SIDE).shape == (24, 1024)


@pytest.mark.parametrize("line, said", [
    (["cells", "x", "subcell:rybg", "--weights", "y"], "cells needs --split FILE"),
    (["kaggle", "x"], "MODEL and --weights FILE"),
    (["fields", "x", "hpa_densenet", "--weights", "y", "--features", "z"], "--features is of chammi"),
])  # fmt: skip
def test_the_command_line(published, monkeypatch, capsys, line, said):
    monkeypatch.setattr(sys, "argv", ["published.py", *line])
    with pytest.raises(SystemExit):
        published.main()
    assert said in capsys.readouterr().err
