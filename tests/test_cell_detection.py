"""Average precision of cells beside pycocotools' and one that is counted otherwise; and damaged submissions."""
import itertools
import sys
from fractions import Fraction

import numpy as np
import pytest

from protein_atlas.evaluate.cell_detection import (
    CellMatches,
    DetectedCells,
    TrueCells,
    cell_average_precision,
    match_cells,
)  # fmt: skip
from protein_atlas.evaluate.mask_overlap import cell_mask, cells_of_label_image
from protein_atlas.predict.cell_submissions import read_cell_submission, write_cell_submission
from protein_atlas.system.errors import ProteinAtlasError

SIZE, LABELS = (24, 30), 3
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def random_cells(rng: np.random.Generator, ties: bool, overlapping: bool) -> tuple[DetectedCells, TrueCells]:
    """Predicted and true cells of an image: rectangles, the predicted ones moved by a pixel or two, or anywhere."""
    field = np.zeros(SIZE, dtype=int)
    for number, (row, column) in enumerate(itertools.product(range(0, 24, 8), range(0, 30, 10)), start=1):
        height, width = rng.integers(4, 9), rng.integers(4, 11)
        field[row : row + height, column : column + width] = number
    true = list(cells_of_label_image(field).values())
    masks = []
    for mask in true:
        for _ in range(rng.integers(0, 3)):  # some are missed, some are found twice
            moved = np.roll(mask.whole(SIZE), rng.integers(-1, 2, 2), (0, 1))
            moved &= (rng.random(SIZE) < 0.95) | (rng.random() < 0.2)
            masks.append(cell_mask(moved))
    if overlapping:
        true = true + [cell_mask(np.roll(mask.whole(SIZE), 1, 1)) for mask in true[::2]]
    confidences = rng.random((len(masks), LABELS))
    if ties:
        confidences = np.round(confidences, 1)
    confidences[rng.random(confidences.shape) < 0.3] = np.nan
    targets = rng.random((len(true), LABELS)) < [0.6, 0.3, 0.02]
    return DetectedCells(SIZE, masks, confidences), TrueCells(SIZE, true, targets)


def cases(n: int, ties: bool, overlapping: bool):
    for seed in range(n):
        rng = np.random.default_rng(seed)
        yield [random_cells(rng, ties, overlapping) for _ in range(rng.integers(1, 5))]


def counted(images: list[tuple[DetectedCells, TrueCells]], label: int, iou: Fraction) -> float:
    """Average precision of a label from sets of pixels and whole numbers: at each threshold the hits are found anew."""

    def pixel_sets(masks) -> list[set]:
        return [set(map(tuple, np.argwhere(mask.whole(SIZE)))) for mask in masks]

    every = [(pixel_sets(predicted.masks), predicted.confidences[:, label],
              [cell for cell, shown in zip(pixel_sets(truth.masks), truth.targets[:, label]) if shown])
             for predicted, truth in images]  # fmt: skip
    truths = sum(len(true) for _, _, true in every)
    if not truths:
        return float("nan")
    points = []
    for threshold in {float(value) for _, confidences, _ in every for value in confidences if value == value}:
        found, marked = set(), 0
        for image, (predicted, confidences, true) in enumerate(every):
            for cell, confidence in zip(predicted, confidences):
                if not confidence >= threshold:  # nan, too
                    continue
                marked += 1
                shares = [Fraction(len(cell & other), len(cell | other)) for other in true]
                if shares and max(shares) >= iou:
                    found.add((image, shares.index(max(shares))))
        points.append((Fraction(len(found), marked), len(found)))
    best = [max((precision for precision, hits in points if hits >= i), default=0) for i in range(1, truths + 1)]
    return float(Fraction(sum(best), truths))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("overlapping", [False, True])
def test_cells_are_scored_as_counted_otherwise(ties, overlapping):
    scored = []
    for images in cases(5, ties, overlapping):
        found = cell_average_precision([match_cells(*image) for image in images])
        wanted = [counted(images, label, Fraction(6, 10)) for label in range(LABELS)]
        np.testing.assert_allclose(found, wanted, rtol=1e-14)
        scored += wanted
    assert np.isnan(scored).any() and np.unique(scored).size > 8


def of_coco(images: list[tuple[DetectedCells, TrueCells]], label: int, recalls: np.ndarray) -> float:
    """COCO's average precision of a label at IoU 0.6, read at these recalls."""
    pycocotools = pytest.importorskip("pycocotools", reason="needs the extra 'cells'")
    assert pycocotools
    from pycocotools import mask as coco_masks
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def row(image, mask, **more):
        encoded = coco_masks.encode(np.asfortranarray(mask.whole(SIZE), dtype=np.uint8))
        area = float(coco_masks.area(encoded))
        return {"image_id": image, "category_id": 1, "segmentation": encoded, "area": area, "iscrowd": 0, **more}

    true, predicted = [], []
    for image, (detected, truth) in enumerate(images, start=1):
        true += [row(image, mask) for mask, shown in zip(truth.masks, truth.targets[:, label]) if shown]
        predicted += [row(image, mask, score=float(confidence)) for mask, confidence
                      in zip(detected.masks, detected.confidences[:, label]) if confidence == confidence]  # fmt: skip
    sets = []
    for rows in (true, predicted):
        made = COCO()
        made.dataset = {
            "images": [{"id": image, "height": 24, "width": 30} for image in range(1, len(images) + 1)],
            "categories": [{"id": 1}],
            "annotations": [{**of, "id": number} for number, of in enumerate(rows, start=1)],
        }  # fmt: skip
        made.createIndex()
        sets.append(made)
    evaluation = COCOeval(*sets, "segm")
    evaluation.params.iouThrs, evaluation.params.recThrs = np.array([0.6]), recalls
    evaluation.params.maxDets, evaluation.params.areaRng = [1000], [[0, 1e10]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return float(evaluation.eval["precision"].mean())


def test_cells_are_scored_as_pycocotools_does():
    """At the recalls 1/T, 2/T, ..., 1 COCO's mean is the area; at its own 101 recalls it is not."""
    apart = []
    for images in cases(8, ties=False, overlapping=False):
        found = cell_average_precision([match_cells(*image) for image in images])
        for label in range(LABELS):
            truths = sum(int(truth.targets[:, label].sum()) for _, truth in images)
            if truths:
                exact = of_coco(images, label, np.arange(1, truths + 1) / truths)
                assert found[label] == pytest.approx(exact, abs=1e-12)
                apart.append(abs(found[label] - of_coco(images, label, np.linspace(0, 1, 101))))
    assert 0.001 < max(apart) < 0.05


def test_no_order_of_equal_confidences_scores_lower():
    """And none of the rows changes the score: every order of four masks, three of them equally certain."""
    for hits in itertools.product([False, True], repeat=4):
        confidences, hits = np.array([[0.5], [0.5], [0.5], [0.4]]), np.array(hits)[:, None]
        (tied,) = cell_average_precision([CellMatches(confidences, hits, np.array([4]))])
        orders = []
        for order in map(list, itertools.permutations(range(4))):
            turned = [CellMatches(confidences[[row]], hits[[row]], np.array([1])) for row in order]
            assert cell_average_precision(turned)[0] == tied
            apart = confidences + np.argsort(order)[:, None] / 1000
            orders.append(cell_average_precision([CellMatches(apart, hits, np.array([4]))])[0])
        assert tied == pytest.approx(min(orders), abs=1e-15)


def submission(path) -> list[str]:
    pytest.importorskip("pycocotools", reason="needs the extra 'cells'")
    rng = np.random.default_rng(3)
    cells = {}
    for image in ("one", "two"):
        detected, _ = random_cells(rng, False, False)
        confidences = np.full((len(detected.masks), 19), np.nan)
        confidences[:, :LABELS] = detected.confidences
        confidences[:, 18] = 0.5
        cells[image] = DetectedCells(SIZE, detected.masks, confidences)
    write_cell_submission(path, cells)
    back = read_cell_submission(path)
    assert list(back) == list(cells)
    for image, wanted in cells.items():
        # Cells with the same mask and other labels are one; these have label 18 each, so none are.
        assert len(back[image].masks) == len(wanted.masks) and back[image].size == SIZE
        for mask, other in zip(back[image].masks, wanted.masks):
            assert (mask.whole(SIZE) == other.whole(SIZE)).all()
        np.testing.assert_array_equal(back[image].confidences, wanted.confidences)
    return path.read_text().splitlines()


def test_a_cell_submission_comes_back(tmp_path):
    lines = submission(tmp_path / "cells.csv")
    assert lines[0] == "ID,ImageWidth,ImageHeight,PredictionString" and lines[1].startswith("one,30,24,")


def test_damaged_cell_submissions_are_refused_or_read(tmp_path):
    """Characters of the strings changed, left out and doubled: an error that names the row, or cells."""
    lines = submission(tmp_path / "cells.csv")
    rng, refused = np.random.default_rng(0), 0
    for _ in range(50):
        text, place = lines[2], int(rng.integers(10, len(lines[2])))
        new = chr(rng.integers(33, 127)).replace(",", "").replace('"', "")
        damaged = text[:place] + rng.choice([new, "", 2 * text[place], " "]) + text[place + 1 :]
        (tmp_path / "damaged.csv").write_text("\n".join([*lines[:2], damaged]) + "\n")
        try:
            read_cell_submission(tmp_path / "damaged.csv")
        except ProteinAtlasError as error:
            assert "damaged.csv: row 2" in str(error)
            refused += 1
    assert refused > 30


def test_cell_submissions_say_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    image = DetectedCells(SIZE, [cell_mask(np.ones(SIZE, bool))], np.ones((1, 19)))
    with pytest.raises(ProteinAtlasError, match=r"pip install 'protein_atlas\[cells\]'"):
        write_cell_submission(tmp_path / "cells.csv", {"a": image})
    (tmp_path / "given.csv").write_text("ID,ImageWidth,ImageHeight,PredictionString\na,4,3,0 1 x\n")
    with pytest.raises(ProteinAtlasError, match=r"row 1, ID 'a': triple 1: .*pip install 'protein_atlas\[cells\]'"):
        read_cell_submission(tmp_path / "given.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["given.csv"]
