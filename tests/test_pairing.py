"""Every function that pairs rows or labels pairs them by name, or refuses; and none can be added that is not tried."""
import importlib
import inspect
import pkgutil
import warnings

import numpy as np
import pandas as pd
import pytest
from test_properties import in_order, paired_calls, plain

import protein_atlas
from protein_atlas.app.page import serve
from protein_atlas.data.duplicates import duplicate_groups
from protein_atlas.data.groups import hpa_groups, join_groups
from protein_atlas.data.hashes import ImageHashes
from protein_atlas.data.images import Layout
from protein_atlas.data.intensity import measure_intensity
from protein_atlas.data.iterative import iterative_parts
from protein_atlas.data.label_systems import HPA2021_LABELS, SUBCELL_LABELS, map_scores, map_targets
from protein_atlas.data.labels import (
    LOCATIONS,
    NONE,
    LabelTable,
    check_targets,
    decode_targets,
    encode_labels,
    with_none,
)  # fmt: skip
from protein_atlas.data.pictures import image_sheet, results_figure
from protein_atlas.data.sampling import duplicate_rare, label_weights, prevalence_logits, rarity_weights
from protein_atlas.data.sources import map_images
from protein_atlas.data.split_audit import split_audit
from protein_atlas.data.splits import balanced_folds, balanced_split
from protein_atlas.evaluate.bootstrap import find_units, score_draws
from protein_atlas.evaluate.calibration import finite_logit, fit_calibration, reliability_figure
from protein_atlas.evaluate.cross_fitting import Decisions, cross_fit, fit_decisions
from protein_atlas.evaluate.ensembles import fit_ensemble
from protein_atlas.evaluate.importance import channel_importance
from protein_atlas.evaluate.interpretation import (
    MultiLabelInterpretation,
    image_losses,
    precision_recall_figure,
    score_figure,
)  # fmt: skip
from protein_atlas.evaluate.metrics import (
    average_precision_per_label,
    f1_from_counts,
    f1_per_label,
    label_mean,
    macro_f1,
    roc_auc_per_label,
)  # fmt: skip
from protein_atlas.evaluate.thresholds import Thresholds, fit_thresholds
from protein_atlas.predict.predictions import Predictions
from protein_atlas.predict.submissions import write_submission
from protein_atlas.system.errors import ProteinAtlasError

VOCAB = ("a", "b", "c")
IDS = [f"image {row:02}" for row in range(24)]
RNG = np.random.default_rng(0)
TARGETS = (RNG.random((24, 3)) < [0.5, 0.4, 0.3]).astype(np.uint8)
TARGETS[~TARGETS.any(axis=1), 0] = 1  # each image shows a label
SCORES = np.round(RNG.random((24, 3)), 2)
DECISIONS = (SCORES > 0.5).astype(np.uint8)
GROUPS = np.array([f"well {row % 7}" for row in range(24)])
ARRAYS = (TARGETS, SCORES, DECISIONS, GROUPS)


def named(values: np.ndarray) -> pd.DataFrame | pd.Series:
    """A table of the images, in their order."""
    return pd.Series(values, IDS) if values.ndim == 1 else pd.DataFrame(values, IDS, list(VOCAB))


def moved(values: np.ndarray, seed: int = 1) -> pd.DataFrame | pd.Series:
    """The same with rows and columns in another order."""
    table, rng = named(values), np.random.default_rng(seed)
    table = table.iloc[rng.permutation(len(table))]
    return table if table.ndim == 1 else table.iloc[:, rng.permutation(3)]


def drawn(figure) -> list:
    """The numbers in a figure."""
    lines = [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    shapes = [patch.get_path().vertices.tolist() for axes in figure.axes for patch in axes.patches]
    return [lines, shapes]


def more_calls(targets, scores, decisions, groups) -> dict:
    """What `paired_calls` does not have."""
    fixed = Thresholds([0.3, 0.5, 0.7], VOCAB, "by hand")
    units = find_units(TARGETS, None, False)
    ensemble = fit_ensemble(TARGETS, {"one": SCORES, "two": 1 - SCORES}, "mean")
    calibration = fit_calibration(TARGETS, SCORES, VOCAB)
    return {
        "roc_auc_per_label": lambda: roc_auc_per_label(targets, scores),
        "find_units": lambda: find_units(targets, groups, True).of_image,
        "score_draws": lambda: score_draws("macro AP", targets, [scores], units, 0.95, 5, 0)[0][1],
        "reliability_figure": lambda: drawn(reliability_figure(targets, {"one": scores})),
        "precision_recall_figure": lambda: drawn(precision_recall_figure(targets, scores, decisions, VOCAB)),
        "score_figure": lambda: drawn(score_figure(targets, scores, fixed)),
        "thresholds_figure": lambda: drawn(fixed.figure(targets, scores)),
        "image_losses": lambda: image_losses(targets, scores),
        "balanced_split": lambda: np.asarray(balanced_split(targets, 0.3, groups=groups, vocab=VOCAB)[0]),
        "join_groups": lambda: join_groups(named(GROUPS) if isinstance(groups, pd.Series) else GROUPS, groups),
        "parts of each image": lambda: split_audit(targets, groups, VOCAB).table(),
        "fit_decisions, several": lambda: fit_decisions(
            targets, {"one": scores, "two": decisions}, VOCAB, "f1").thresholds,
        "duplicate_rare": lambda: np.asarray(duplicate_rare(
            named(np.arange(24)) if isinstance(scores, pd.DataFrame) else np.arange(24), 1 + 3 * scores["a"]
            if isinstance(scores, pd.DataFrame) else 1 + 3 * scores[:, 0])),
        "decide": lambda: Decisions(None, calibration, fixed).decide(scores),
        "ensemble of tables": lambda: ensemble.combine({"one": scores, "two": 1 - scores}),
    }  # fmt: skip


def test_moved_tables_give_what_arrays_give():
    expected, tables = more_calls(*ARRAYS), (named(TARGETS), *(moved(of, seed) for seed, of in enumerate(ARRAYS[1:])))
    for name, call in more_calls(*tables).items():
        wanted = expected[name]()
        assert plain(in_order(call(), wanted, IDS, VOCAB)) == plain(wanted), name


def made_of(targets, scores, decisions, groups) -> dict:
    """Every public function and method that gives something for each image or label: what of, and what it gives."""
    fixed = Thresholds([0.3, 0.5, 0.7], VOCAB, "by hand")
    two = {"one": scores, "two": 1 - scores}
    tables = isinstance(scores, pd.DataFrame)
    ids = targets.index if tables else IDS
    image = scores.loc[IDS[3]] if tables else scores[3]
    sets = pd.Series(decode_targets(TARGETS, VOCAB), IDS) if tables else decode_targets(TARGETS, VOCAB)
    sets = sets.loc[list(ids)] if tables else sets
    counts = [pd.Series(of, VOCAB) if tables else np.array(of) for of in ([1, 2, 3], [2, 4, 6], [3, 3, 0])]
    pairs = pd.DataFrame({"first": [IDS[0]], "second": [IDS[4]], "same": [True]})
    hpa = [f"{row % 5}_1_A1_{row}" for row in range(24)]
    train, _ = balanced_split(targets, 0.3)
    fit = cross_fit(targets, two, VOCAB, calibration="platt", groups=groups, n_folds=2, repeats=2, allow_none=True)
    return {
        "f1_per_label": (targets, f1_per_label(targets, decisions)),
        "f1_from_counts": (counts[0], f1_from_counts(*counts)),
        "label_mean": (scores, label_mean(scores)),
        "average_precision_per_label": (targets, average_precision_per_label(targets, scores)),
        "roc_auc_per_label": (targets, roc_auc_per_label(targets, scores)),
        "image_losses": (targets, image_losses(targets, scores)),
        "finite_logit": (scores, finite_logit(scores)),
        "Calibration.apply": (scores, fit_calibration(targets, scores, VOCAB).apply(scores)),
        "Calibration.apply, isotonic": (scores, fit_calibration(targets, scores, VOCAB, "isotonic").apply(scores)),
        "Ensemble.combine": (scores, fit_ensemble(targets, two).combine(two)),
        "Ensemble.combine, logit": (scores, fit_ensemble(targets, two, "logit mean").combine(two)),
        "Ensemble.combine, rank": (scores, fit_ensemble(targets, two, "rank mean").combine(two)),
        "Ensemble.combine, fitted on arrays": (
            scores, fit_ensemble(TARGETS, {"one": SCORES, "two": 1 - SCORES}).combine(two)),
        "Thresholds.decide": (scores, fixed.decide(scores)),
        "Thresholds.margins": (scores, fixed.margins(scores)),
        "Thresholds.nearness": (scores, fixed.nearness(scores)),
        "Thresholds.nearness, one image": (image, fixed.nearness(image)),
        "Decisions.scores": (scores, fit.fitted.scores(two)),
        "Decisions.decide": (scores, fit.fitted.decide(two)),
        "Decisions.decide, one model": (scores, fit_decisions(targets, scores, VOCAB).decide(scores)),
        "CrossFit.targets": (targets, fit.targets),
        "CrossFit.decisions": (targets, fit.decisions[1]),
        "CrossFit.scores": (targets, fit.scores[1]),
        "CrossFit.folds": (targets, fit.folds[1]),
        "CrossFit.groups": (targets, fit.groups),
        "encode_labels": (sets, encode_labels(sets, VOCAB)),
        "decode_targets": (targets, decode_targets(targets, VOCAB)),
        "with_none": (targets, with_none(0 * targets, VOCAB)[0].drop(columns=NONE) if tables else 0 * targets),
        "hpa_groups": (groups, hpa_groups(pd.Series(hpa, IDS).loc[groups.index] if tables else hpa)),
        "join_groups": (groups, join_groups(groups, groups)),
        "duplicate_groups": (targets, duplicate_groups(ids, pairs)),
        "balanced_split": (targets.iloc[train] if tables else targets[train], train),
        "balanced_folds": (targets, balanced_folds(targets, 3, groups=groups, vocab=VOCAB)),
        "iterative_parts": (targets, iterative_parts(targets, [0.5, 0.5])),
        "label_weights": (targets, label_weights(targets, 0.5)),
        "rarity_weights": (targets, rarity_weights(targets, 0.5)),
        "prevalence_logits": (targets, prevalence_logits(targets)),
        "duplicate_rare": (train, np.unique(duplicate_rare(train, 2 * rarity_weights(
            targets.iloc[train] if tables else targets[train]))) if not tables else duplicate_rare(
                train, 2 * rarity_weights(targets.iloc[train])).groupby(level=0).first().loc[train.index]),
    }  # fmt: skip


def test_what_takes_tables_gives_tables():
    """With the index and the columns of what was given, so that it is paired with it again; of arrays arrays."""
    tables = (moved(TARGETS), moved(SCORES, 2), moved(DECISIONS, 3), moved(GROUPS, 4))
    expected = made_of(*ARRAYS)
    for name, (given, made) in made_of(*tables).items():
        assert isinstance(made, pd.DataFrame | pd.Series), name
        names = [list(axis) for axis in given.axes]
        assert [list(axis) for axis in made.axes] in (names, names[:1], names[1:], [names[0], list(VOCAB)]), name
        of, wanted = expected[name]
        assert isinstance(wanted, np.ndarray | list) and isinstance(of, np.ndarray | list), name
        if name in ("iterative_parts", "balanced_split", "duplicate_rare", "join_groups", "duplicate_groups"):
            continue  # positions, or drawn or numbered by the order of rows
        found = in_order(made, wanted, IDS, VOCAB)
        if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f":
            np.testing.assert_allclose(found, wanted, err_msg=name)
        else:
            assert plain(found) == plain(wanted), name


def test_results_are_paired_again():
    """What the room gives for tables, it takes beside them."""
    targets, scores = moved(TARGETS), moved(SCORES, 2)
    fixed, two = Thresholds([0.3, 0.5, 0.7], VOCAB, "by hand"), {"one": scores, "two": moved(SCORES, 3)}
    assert macro_f1(targets, fixed.decide(scores)) == macro_f1(TARGETS, fixed.decide(SCORES))
    combined = fit_ensemble(targets, two).combine(two)
    found = macro_f1(targets, fixed.decide(fit_calibration(targets, combined, VOCAB).apply(combined)))
    assert found == macro_f1(TARGETS, fixed.decide(fit_calibration(TARGETS, SCORES, VOCAB).apply(SCORES)))
    groups = hpa_groups(pd.Index([f"{row // 2}_1_A1_{row}" for row in range(24)]))
    groups.index = IDS
    folds = balanced_folds(targets, groups=groups, strict=False)
    audit = split_audit(targets, folds, VOCAB, groups)
    assert not audit.leaked and audit.parts["images"].sum() == 24
    train, valid = balanced_split(targets, 0.4)
    assert split_audit(targets, {"train": train, "valid": valid}, VOCAB).parts["images"].sum() == 24
    assert list(targets.iloc[train].index) == list(targets.loc[train.index].index) == list(train.index)
    fit = cross_fit(targets, two, VOCAB, n_folds=2, allow_none=True)
    assert macro_f1(targets, fit.decisions[0]) == pytest.approx(fit.nested[0])
    assert str(fit) and fit.interval(replicates=5).estimate == pytest.approx(fit.score)
    assert split_audit(targets, fit.folds[0], VOCAB).parts["images"].sum() == 24
    shown = MultiLabelInterpretation.of_cross_fit(fit)
    assert list(shown.ids) == list(targets.index) and set(shown.top_losses()["Id"]) == set(IDS)
    assert label_mean(f1_per_label(targets, fit.decisions[1])) == pytest.approx(fit.nested[1])


def test_a_rank_mean_of_arrays_knows_no_names():
    two = {"one": SCORES, "two": 1 - SCORES}
    tables = {name: moved(of) for name, of in two.items()}
    with pytest.raises(ProteinAtlasError, match="fitted on arrays, so nobody knows which label a column is"):
        fit_ensemble(TARGETS, two, "rank mean").combine(tables)
    with pytest.raises(ProteinAtlasError, match="scores of 2 labels, an ensemble of 3"):
        fit_ensemble(TARGETS, two, "rank mean").combine({name: of[:, :2] for name, of in two.items()})


def test_named_rows_beside_unnamed_ones_are_refused():
    for name, call in more_calls(TARGETS, moved(SCORES), moved(DECISIONS), moved(GROUPS)).items():
        if name in ("decide", "ensemble of tables", "join_groups", "duplicate_rare"):  # not beside the array of targets
            continue
        with pytest.raises(ProteinAtlasError, match="have names|and those of"):
            call()


def by_id(folder, targets, decisions) -> dict:
    """Things whose rows are named by ids that are given apart."""
    return {
        "LabelTable": lambda: LabelTable(IDS, targets, VOCAB).targets,
        "Predictions": lambda: Predictions(IDS, SCORES, decisions, VOCAB).decisions,
        "check_targets": lambda: np.sort(check_targets(targets, VOCAB), axis=None),
        "decode_targets": lambda: sorted(decode_targets(targets, VOCAB)),
    }


def test_rows_are_found_by_ids(tmp_path):
    expected = by_id(tmp_path, TARGETS, DECISIONS)
    for name, call in by_id(tmp_path, moved(TARGETS), moved(DECISIONS)).items():
        assert plain(call()) == plain(expected[name]()), name
    for name, call in by_id(tmp_path, moved(TARGETS).iloc[1:], moved(DECISIONS).rename(columns={"a": "A"})).items():
        if name in ("LabelTable", "Predictions"):
            with pytest.raises(ProteinAtlasError, match="are not those of"):
                call()
    wells = pd.DataFrame({"Well": GROUPS}, IDS).iloc[::-1]
    table = LabelTable(IDS, TARGETS, VOCAB, wells)
    assert table.columns["Well"].tolist() == GROUPS.tolist()
    assert table.take([5, 2]).columns["Well"].tolist() == ["well 5", "well 2"]
    assert table.take([5, 2]).columns.index.tolist() == [0, 1]  # to be paired with the rows of the table
    with pytest.raises(ProteinAtlasError, match="columns: the rows are not those of ids"):
        LabelTable(IDS, TARGETS, VOCAB, wells.iloc[:3])


def test_a_submission_finds_its_rows(tmp_path):
    sample = tmp_path / "sample.csv"
    pd.DataFrame({"Id": IDS, "Predicted": ""}).to_csv(sample, index=False)
    decisions = np.eye(28, dtype=np.uint8)[np.arange(24)]
    table = pd.DataFrame(decisions, IDS, list(LOCATIONS)).iloc[::-1, ::-1]
    one, two = (write_submission(tmp_path / f"{n}.csv", sample, IDS, of) for n, of in enumerate((decisions, table)))
    assert one.read_text() == two.read_text()


def test_values_of_labels_are_found_by_name():
    turned = {"c": 0.7, "a": 0.3, "b": 0.5}
    for values in (turned, pd.Series(turned)):
        assert Thresholds(values, VOCAB, "by hand", {"b": 2, "a": 1, "c": 3}).positives == (1, 2, 3)
        assert Thresholds(values, VOCAB, "by hand").values.tolist() == [0.3, 0.5, 0.7]
        wanted = fit_thresholds(TARGETS, SCORES, VOCAB, "ratio", [0.3, 0.5, 0.7]).values
        assert fit_thresholds(TARGETS, SCORES, VOCAB, "ratio", values).values.tolist() == wanted.tolist()
    for wrong in ({"a": 0.1, "b": 0.2}, {**turned, "d": 0.1}, pd.Series([0.1, 0.2, 0.3], ["a", "a", "b"])):
        for call in (
            lambda wrong=wrong: Thresholds(wrong, VOCAB, "by hand"),
            lambda wrong=wrong: Thresholds([0.5] * 3, VOCAB, "by hand", wrong),
            lambda wrong=wrong: fit_thresholds(TARGETS, SCORES, VOCAB, "ratio", wrong),
        ):
            with pytest.raises(ProteinAtlasError, match="without 'c'|with 'd'|twice: 'a'"):
                call()


def test_what_is_taken_by_position_has_no_names():
    """Nothing says in which order these stand, so names are refused."""
    pixels = np.zeros((3, 4, 8, 8), np.uint8)
    for call in (
        lambda: image_sheet(pixels, pd.Series([["x"]] * 3, [2, 0, 1])),
        lambda: results_figure(pixels, pd.Series([["x"]] * 3, [2, 0, 1]), [["x"]] * 3),
        lambda: channel_importance(lambda images: SCORES[: len(images)], np.zeros((24, 1, 8, 8), np.uint8),
                                   moved(TARGETS), ["red"], VOCAB),
    ):  # fmt: skip
        with pytest.raises(ProteinAtlasError, match="have names"):
            call()

    def answered(table: bool) -> pd.DataFrame:
        def score(images):
            return pd.DataFrame(SCORES[:, ::-1], columns=["c", "b", "a"]) if table else SCORES

        options = {"ways": ["blank"], "bs": 24, "replicates": 5}
        return channel_importance(score, np.zeros((24, 1, 8, 8), np.uint8), TARGETS, ["red"], VOCAB, **options).table

    pd.testing.assert_frame_equal(answered(True), answered(False))


def test_torch_takes_weights_by_position():
    torch = pytest.importorskip("torch")
    from protein_atlas.vision.attribution import localisation_table
    from protein_atlas.vision.augment import NormalizeChannels
    from protein_atlas.vision.losses import MultiLabelFocalLoss

    weights = pd.Series({"c": 3.0, "a": 1.0, "b": 2.0})
    for call in (
        lambda: MultiLabelFocalLoss(class_weights=weights), lambda: MultiLabelFocalLoss(class_weights=dict(weights)),
        lambda: MultiLabelFocalLoss(thresh=weights / 10), lambda: NormalizeChannels(weights, weights),
        lambda: localisation_table(
            np.ones((3, 2, 2)), np.ones((3, 2, 2), bool), pd.Series([0, 1, 2], [2, 0, 1]), VOCAB),
    ):  # fmt: skip
        with pytest.raises(ProteinAtlasError, match="have names|have none"):
            call()
    loss = MultiLabelFocalLoss(class_weights=weights[list(VOCAB)].to_numpy())
    assert loss.class_weights.tolist() == [1, 2, 3] and torch.is_tensor(loss.class_weights)


def test_other_labels_of_a_step_are_refused():
    """What was fitted for labels in one order is not used for another."""
    fixed = Thresholds([0.5] * 3, VOCAB, "fixed")
    with pytest.raises(ProteinAtlasError, match="another order"):
        Decisions(None, fit_calibration(TARGETS, SCORES, VOCAB[::-1]), fixed)
    with pytest.raises(ProteinAtlasError, match="another order"):
        fit_decisions(TARGETS, SCORES, VOCAB[::-1], lambda targets, scores, vocab: fixed)


@pytest.mark.parametrize("text", ["ab", "image 01"])
def test_one_text_is_no_list(text):
    pairs = pd.DataFrame({"first": [], "second": [], "same": np.array([], bool)})
    for call in (
        lambda: duplicate_groups(text, pairs), lambda: LabelTable(text, TARGETS[:2], VOCAB),
        lambda: LabelTable(IDS, TARGETS, text), lambda: Layout(suffixes=text), lambda: Layout(channels=text),
        lambda: ImageHashes(np.array(["x"]), text, np.zeros((1, 2, 8), np.uint8)),
        lambda: Predictions(text, SCORES[:2], DECISIONS[:2], VOCAB), lambda: Predictions(IDS, SCORES, DECISIONS, text),
        lambda: measure_intensity(None, text), lambda: list(map_images(len, None, text)),
        lambda: serve(None, names=text),
        lambda: balanced_split(named(TARGETS), vocab=text), lambda: fit_thresholds(named(TARGETS), moved(SCORES), text),
    ):  # fmt: skip
        with pytest.raises(ProteinAtlasError, match="found the single text"):
            call()


# Names of parameters that stand row by row, or label by label.
ROWWISE = {
    "targets", "scores", "decisions", "predictions", "groups", "first", "second", "weights", "train", "groupings",
    "truths", "decided", "captions", "positives", "parts", "labels", "maps", "regions",
}  # fmt: skip
# Tried here or beside their definition under another name, or no pairing: results, files, folders, pixels.
ELSEWHERE = {
    "average_precision_per_label", "Thresholds", "duplicate_rare", "score_draws", "macro_f1", "cross_fit",
    "label_difference_intervals", "difference_interval", "auc_interval", "label_intervals", "CrossFit", "SplitAudit",
    "Ensemble", "Comparison", "compare_runs", "RunFolder", "Predictions", "fit_decisions", "results_figure",
    "image_sheet", "channel_importance", "write_submission", "check_scores", "fit_thresholds", "fit_ensemble",
    "MultiLabelInterpretation", "cell_difference_interval", "mask_iou", "CellScores", "cell_agreement",
}  # fmt: skip


def test_every_function_that_pairs_is_tried():
    """A new function that takes two things row by row belongs into the tables of this file, or of test_properties."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = {*paired_calls(VOCAB, *ARRAYS), *more_calls(*ARRAYS), *by_id(None, *ARRAYS[:2]), *ELSEWHERE}
    for room in ("data", "cells", "evaluate", "predict", "report"):
        for found in pkgutil.iter_modules(importlib.import_module(f"protein_atlas.{room}").__path__):
            module = importlib.import_module(f"{protein_atlas.__name__}.{room}.{found.name}")
            for name in getattr(module, "__all__", ()):
                of = getattr(module, name)
                error = isinstance(of, type) and issubclass(of, BaseException)
                if callable(of) and of.__module__ == module.__name__ and not error:
                    both = ROWWISE & set(inspect.signature(of).parameters)
                    assert len(both) < 2 or name in tried, f"{module.__name__}.{name} pairs {', '.join(sorted(both))}"


# What an image or label is told by, among the parameters; and what is made of it must be in `made_of`.
GIVEN = {"targets", "target", "scores", "decisions", "per_label", "ids", "label_sets", "train", "groupings", "hits"}
# Checks, which make arrays of tables; and the draws of the bootstrap.
ARRAYS_ALWAYS = {"check_targets", "check_scores", "nonempty_targets", "score_draws"}
# What has the labels of another system: see `test_labels_of_other_systems`.
OF_OTHERS = {"map_scores", "map_targets"}
# Modules whose arrays are images.
PIXELS = {"filled", "folders", "images", "ome_zarr", "phantoms", "shards", "sources", "store"}


def public_calls(*rooms: str):
    """Each public function of rooms, and each public method of their public classes: its name and itself."""
    for room in rooms:
        for found in pkgutil.iter_modules(importlib.import_module(f"protein_atlas.{room}").__path__):
            module = importlib.import_module(f"protein_atlas.{room}.{found.name}")
            for name in getattr(module, "__all__", ()):
                of = getattr(module, name)
                if not callable(of) or of.__module__ != module.__name__:
                    continue
                if not isinstance(of, type):
                    yield name, of
                    continue
                for method, body in vars(of).items():
                    if inspect.isfunction(body) and not method.startswith("_"):
                        yield f"{name}.{method}", body


def test_everything_made_of_tables_is_tried():
    """A new function that gives an array for images or labels belongs into `made_of`."""
    tried = {name.partition(",")[0] for name in made_of(*ARRAYS)}
    for name, of in public_calls("data", "evaluate"):
        if of.__module__.rpartition(".")[2] in PIXELS:
            continue
        signature = inspect.signature(of)
        if GIVEN & set(signature.parameters) and ("ndarray" in str(signature.return_annotation)
                                                  or "list[tuple[str" in str(signature.return_annotation)):
            assert name in tried | ARRAYS_ALWAYS | OF_OTHERS, f"{name} gives {signature.return_annotation}"


@pytest.mark.filterwarnings("ignore::protein_atlas.data.label_systems.NoCounterpartWarning")
def test_labels_of_other_systems():
    """Scores and targets that are carried to other labels keep their rows; columns are found by their names."""
    targets = np.random.default_rng(1).integers(0, 2, (24, len(HPA2021_LABELS)))
    for of, values in ((map_scores, targets / 2), (map_targets, targets)):
        expected = of(values, "hpa2021", "subcell")
        table = pd.DataFrame(values, IDS, list(HPA2021_LABELS)).sample(frac=1, random_state=2).iloc[:, ::-1]
        found = of(table, "hpa2021", "subcell")
        assert list(found.index) == list(table.index) and tuple(found.columns) == SUBCELL_LABELS
        np.testing.assert_array_equal(found.loc[IDS], expected)
        with pytest.raises(ProteinAtlasError, match="the columns are not those of the vocabulary"):
            of(table.rename(columns={"Cytosol": "cytosol"}), "hpa2021", "subcell")
