"""What a function does not ask for is refused in the library's own words, whatever function and parameter."""
import importlib
import inspect
import pkgutil
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_pairing import DECISIONS, GROUPS, IDS, SCORES, TARGETS, VOCAB

from protein_atlas.data.groups import hpa_groups, join_groups
from protein_atlas.data.iterative import iterative_parts
from protein_atlas.data.labels import check_targets, decode_targets, encode_labels, with_none
from protein_atlas.data.sampling import duplicate_rare, label_weights, prevalence_logits, rarity_weights, spread_rows
from protein_atlas.data.split_audit import split_audit
from protein_atlas.data.splits import balanced_folds, balanced_split
from protein_atlas.evaluate import (
    bootstrap,
    calibration,
    cell_detection,
    cell_intervals,
    chance,
    confusion,
    cross_fitting,
    ensembles,
    importance,
    interpretation,
    intervals,
    mask_overlap,
    metrics,
    thresholds,
)
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.system.errors import LabelError, ProteinAtlasError, ScoreError

FIXED = Thresholds([0.3, 0.5, 0.7], VOCAB, "by hand")
TWO = {"one": SCORES, "two": 1 - SCORES}
ENSEMBLE, CALIBRATION = ensembles.fit_ensemble(TARGETS, TWO), calibration.fit_calibration(TARGETS, SCORES, VOCAB)
STEPS = cross_fitting.fit_decisions(TARGETS, SCORES, VOCAB)
SPLIT = {"targets": TARGETS, "vocab": VOCAB, "groups": GROUPS}
SCORED = {"targets": TARGETS, "scores": SCORES}
DECIDED = {"targets": TARGETS, "decisions": DECISIONS}
NAMED = {"vocab": VOCAB}
DRAWN = {"groups": GROUPS, "replicates": 2}
PAIRED = {"targets": TARGETS, "first": DECISIONS, "second": 1 - DECISIONS}
MASK = mask_overlap.CellMask(0, 0, np.ones((2, 2), bool))
DETECTED = {"size": (4, 4), "masks": [MASK], "confidences": np.full((1, 3), 0.5)}
TRUE = {"size": (4, 4), "masks": [MASK], "targets": np.array([[1, 0, 1]])}
MATCHED = {"predicted": cell_detection.DetectedCells(**DETECTED), "truth": cell_detection.TrueCells(**TRUE)}
MATCHES = [cell_detection.match_cells(**MATCHED)] * 24
TABLE = interpretation.label_table(TARGETS, SCORES, DECISIONS, FIXED, replicates=2)

# Public functions and methods of the room evaluate, and those of data that part and weigh images, with what is right.
CALLS = {
    balanced_split: SPLIT, balanced_folds: SPLIT, iterative_parts: {"targets": TARGETS, "shares": [0.5, 0.5]},
    split_audit: SPLIT | {"parts": {"a": [0, 1], "b": range(2, 24)}},
    label_weights: {"targets": TARGETS}, rarity_weights: {"targets": TARGETS}, prevalence_logits: {"targets": TARGETS},
    duplicate_rare: {"train": np.arange(24), "weights": np.ones(24)}, spread_rows: {"total": 9, "most": 3},
    hpa_groups: {"ids": ["1_1_A1_1"]}, join_groups: {},
    encode_labels: {"label_sets": [["a"], ["b", "c"]]} | NAMED, decode_targets: {"targets": TARGETS} | NAMED,
    check_targets: {"targets": TARGETS}, with_none: {"targets": TARGETS} | NAMED,
    metrics.check_scores: {"scores": SCORES}, metrics.label_mean: {"per_label": np.array([0.1, 0.2])},
    metrics.f1_from_counts: {"hits": np.array([1]), "decided": np.array([1]), "positive": np.array([1])},
    metrics.f1_per_label: DECIDED, metrics.macro_f1: DECIDED, metrics.micro_f1: DECIDED,
    metrics.average_precision_per_label: SCORED, metrics.macro_average_precision: SCORED,
    metrics.roc_auc_per_label: SCORED, metrics.macro_roc_auc: SCORED,
    metrics.label_report: SCORED | DECIDED | NAMED,
    calibration.reliability_table: SCORED | NAMED, calibration.calibration_error: SCORED | NAMED,
    calibration.reliability_figure: SCORED, calibration.finite_logit: {"scores": SCORES},
    calibration.fit_calibration: SCORED | NAMED, CALIBRATION.apply: {"scores": SCORES},
    calibration.Calibration: NAMED | {"method": "platt", "parameters": CALIBRATION.parameters},
    calibration.Calibration.from_dict: {"content": CALIBRATION.to_dict()},
    thresholds.fit_thresholds: SCORED | NAMED, Thresholds: NAMED | {"values": [0.1, 0.2, 0.3], "rule": "f1"},
    FIXED.decide: {"scores": SCORES}, FIXED.margins: {"scores": SCORES}, FIXED.nearness: {"scores": SCORES},
    FIXED.figure: SCORED,
    ensembles.fit_ensemble: {"targets": TARGETS, "scores": TWO}, ENSEMBLE.combine: {"scores": TWO},
    ensembles.Ensemble: {"how": "mean", "weights": {"one": 1.0}},
    cross_fitting.fit_decisions: SCORED | NAMED, STEPS.decide: {"scores": SCORES}, STEPS.scores: {"scores": SCORES},
    cross_fitting.cross_fit: SCORED | NAMED | {"groups": GROUPS, "n_folds": 2, "repeats": 1},
    cross_fitting.compare_rules: SCORED | NAMED | {"rules": ["fixed"]},
    bootstrap.find_units: {"targets": TARGETS, "groups": GROUPS, "stratified": False},
    bootstrap.nonempty_targets: {"targets": TARGETS},
    bootstrap.score_draws: {"metric": "macro F1", "targets": TARGETS, "models": [DECISIONS], "level": 0.9, "seed": 0,
                            "replicates": 2, "units": bootstrap.find_units(TARGETS, None, False)},
    intervals.score_interval: {"targets": TARGETS, "predictions": DECISIONS} | DRAWN,
    intervals.difference_interval: PAIRED | DRAWN,
    intervals.label_intervals: {"targets": TARGETS, "predictions": DECISIONS} | NAMED | DRAWN,
    intervals.label_difference_intervals: PAIRED | NAMED | DRAWN,
    intervals.label_intervals_figure: {"intervals": intervals.label_intervals(TARGETS, DECISIONS, VOCAB, replicates=2)},
    chance.auc_interval: SCORED | {"groups": GROUPS},
    confusion.confusion_table: DECIDED | NAMED, confusion.error_cooccurrence: DECIDED | NAMED,
    confusion.top_confusions: DECIDED | NAMED,
    confusion.confusion_figure: {"instead": confusion.confusion_table(TARGETS, DECISIONS, VOCAB)},
    interpretation.label_table: SCORED | DECIDED | DRAWN | {"thresholds": FIXED},
    interpretation.label_table_figure: {"table": TABLE},
    interpretation.precision_recall_figure: SCORED | DECIDED | NAMED,
    interpretation.score_figure: SCORED | {"thresholds": FIXED}, interpretation.image_losses: SCORED,
    interpretation.MultiLabelInterpretation: SCORED | DECIDED | {"thresholds": FIXED, "groups": GROUPS, "ids": IDS},
    mask_overlap.CellMask: {"top": 0, "left": 0, "pixels": MASK.pixels},
    mask_overlap.cell_mask: {"image": MASK.pixels}, mask_overlap.mask_iou: {"first": [MASK], "second": [MASK]},
    mask_overlap.cells_of_label_image: {"image": np.eye(3, dtype=int)},
    cell_detection.DetectedCells: DETECTED, cell_detection.TrueCells: TRUE, cell_detection.match_cells: MATCHED,
    cell_detection.detection_rankings: {"images": MATCHES}, cell_detection.cell_average_precision: {"images": MATCHES},
    cell_detection.mean_cell_average_precision: {"images": MATCHES},
    cell_intervals.cell_interval: {"images": MATCHES} | DRAWN,
    cell_intervals.cell_difference_interval: {"first": MATCHES, "second": MATCHES} | DRAWN,
    cell_intervals.cell_label_intervals: {"images": MATCHES} | NAMED | DRAWN,
    bootstrap.check_draws: {"level": 0.9, "replicates": 2, "seed": 0},
    importance.channel_importance: {
        "score": lambda images: SCORES[: len(images)], "images": np.zeros((24, 1, 4, 4), np.uint8), "targets": TARGETS,
        "channels": ["red"], "vocab": VOCAB, "ways": ["blank"], "bs": 24, "replicates": 2},
}  # fmt: skip

# What is right although it looks odd: ids are groups and parts of one image each, and any names are ids.
RIGHT = {
    ("groups", "ids"), ("ids", "ids"), ("parts", "ids"), ("groupings", "ids"), ("label_sets", "generator"),
    ("rule", "text"), ("metric", "text"), ("rule", "function"), ("score", "function"), ("open_image", "function"),
    ("models", "empty"), ("labels", "ids"), ("rules", "empty"), ("stratified", "empty"),
    ("groupings", "empty"), ("label_sets", "empty"), ("ids", "empty"), ("per_label", "empty"), ("scores", "empty"),
    ("display", "dict"), ("labels", "empty"), ("groups", "None"), ("labels", "generator"), ("ids", "generator"),
    ("labels", "dict"), ("labels", "dict of ids"), ("label_sets", "ragged"), ("rules", "dict"),
    ("label_sets", "texts"), ("hits", "empty"), ("decided", "empty"), ("positive", "empty"), ("labels", "ragged"),
    ("channels", "dict of ids"), ("display", "dict of ids"),
    ("mask_iou", "first", "empty"), ("mask_iou", "second", "empty"),
    ("check_scores", "targets", "texts"), ("check_scores", "targets", "None"),
}  # fmt: skip


class Odd:
    """What nothing asks for."""


def odd_things():
    return {
        "None": None, "text": "abc", "bytes": b"ab", "set": {0, 1}, "dict": {"a": 1, "b": 2}, "ids": list(IDS),
        "dict of ids": {"t": list(IDS)}, "generator": (row for row in [[0, 1, 0]] * 24), "object": Odd(),
        "function": len, "ragged": [[1], [1, 2]], "empty": [], "texts": np.full((24, 3), "a"),
        "table of texts": pd.DataFrame(np.full((24, 3), "a"), columns=list(VOCAB)),
    }  # fmt: skip


@pytest.mark.parametrize("of", CALLS, ids=lambda of: of.__qualname__)
def test_odd_things_are_refused(of):
    """In words of the library's own; or they are right, and listed as that."""
    right = CALLS[of]
    of_all = inspect.signature(of).parameters.values()
    if of is not join_groups:
        of(**right)
    for parameter in of_all:
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for kind, thing in odd_things().items():
            call = partial(of, thing) if parameter.kind is parameter.VAR_POSITIONAL else partial(
                of, **right | {parameter.name: thing})  # fmt: skip
            names = {(parameter.name, kind), (of.__name__, parameter.name, kind)}
            if parameter.default is None and thing is None or names & RIGHT:
                try:
                    call()
                except ProteinAtlasError:
                    continue
                except TypeError:
                    assert thing is len  # the caller's own function, which takes other arguments
            else:
                with pytest.raises(ProteinAtlasError):
                    call()
                    pytest.fail(f"{parameter.name} takes {kind}")
    plt.close("all")


def test_every_function_is_tried():
    """A new one belongs into `CALLS`."""
    tried = {of.__qualname__ for of in CALLS}
    modules = [f"evaluate.{found.name}" for found in pkgutil.iter_modules(
        importlib.import_module("protein_atlas.evaluate").__path__)]  # fmt: skip
    # Words, and the results of functions, which are not made by hand.
    results = {"importance_sentence", "describe_chance", "Interval", "Difference", "Units", "Decisions", "CrossFit",
               "ChannelImportance", "SplitAudit", "SplitWarning", "ThresholdWarning"}  # fmt: skip
    # What functions of the room hand each other.
    inner = {"Ranking", "ratio", "draw_scores", "interval_of_draws", "label_ends", "DetectionRanking", "CellMatches"}
    for name in (*modules, "data.splits", "data.split_audit", "data.sampling", "data.iterative"):
        module = importlib.import_module(f"protein_atlas.{name}")
        for public in module.__all__:
            if callable(getattr(module, public)) and public not in results | inner:
                assert public in tried, f"{name}.{public}"


def test_what_is_said():
    """What was found, what is expected, and what to type."""
    for call, error, said in (
        (lambda: split_audit(TARGETS, {"t": IDS}, VOCAB), LabelError,
         r"part 't' must be row indices, whole numbers, found <U8, such as .*'image 00'.*get_indexer\(names\)"),
        (lambda: split_audit(TARGETS, {"t": TARGETS[:, 0] == 1}, VOCAB), LabelError, r"np.flatnonzero\(mask\)"),
        (lambda: duplicate_rare(np.arange(2), {"x": 2}), LabelError, "weights must be an array, found dict"),
        (lambda: intervals.score_interval(TARGETS, DECISIONS, groups={"x": 1}), ScoreError,
         r"one for each image, found a mapping; pd.Series\(groups\) is paired by its names"),
        (lambda: intervals.score_interval(TARGETS, DECISIONS, seed=None), ScoreError, "seed must be a whole number"),
        (lambda: intervals.score_interval(TARGETS, DECISIONS, stratified="no"), ScoreError,
         "stratified must be one of True, False, found 'no'"),
        (lambda: balanced_split(TARGETS, "0.2"), LabelError, "valid_share must be a number, found '0.2'"),
        (lambda: balanced_folds(TARGETS, 5.0), LabelError, "n_folds must be a whole number, found 5.0"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            call()


def test_generators_are_read_once():
    """What is a list in other clothes is right."""
    wells = ["p", "q", "r", "s"] * 6
    expected = split_audit(TARGETS, [0, 1] * 12, VOCAB, wells).table()
    found = split_audit(TARGETS, [0, 1] * 12, iter(VOCAB), iter(wells)).table()
    pd.testing.assert_frame_equal(found, expected)
    assert str(intervals.score_interval(TARGETS, DECISIONS, groups=iter(wells))) == str(
        intervals.score_interval(TARGETS, DECISIONS, groups=wells))  # fmt: skip
    pd.testing.assert_frame_equal(metrics.label_report(TARGETS, SCORES, DECISIONS, iter(VOCAB)),
                                  metrics.label_report(TARGETS, SCORES, DECISIONS, VOCAB))  # fmt: skip
