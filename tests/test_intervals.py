"""Intervals, calibration and confusions: what holds for any input, and that they run on real predictions."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from protein_atlas.data.labels import LOCATIONS, with_none
from protein_atlas.evaluate.bootstrap import Ranking
from protein_atlas.evaluate.calibration import (
    CALIBRATION_METHODS,
    Calibration,
    calibration_error,
    fit_calibration,
    reliability_figure,
    reliability_table,
)  # fmt: skip
from protein_atlas.evaluate.confusion import confusion_figure, confusion_table, error_cooccurrence, top_confusions
from protein_atlas.evaluate.intervals import (
    LABEL_METRICS,
    METRICS,
    difference_interval,
    label_intervals,
    label_intervals_figure,
    score_interval,
)  # fmt: skip
from protein_atlas.evaluate.metrics import macro_average_precision, macro_f1, macro_roc_auc, micro_f1
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.system.errors import ScoreError

# As in test_properties.py: no deadline, and the same examples on every machine.
settings.register_profile(
    "project", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")

NAMES = tuple("ABCDEFGH")
SCORES_OF = {
    "macro F1": macro_f1, "micro F1": micro_f1, "macro AP": macro_average_precision, "macro ROC AUC": macro_roc_auc,
}  # fmt: skip
metrics = st.sampled_from(METRICS)
# Few different scores, so that ties are common; both ends, and one that is near an end.
coarse = st.sampled_from([0.0, 1e-9, 0.2, 0.4, 0.5, 0.9, 1.0])


@st.composite
def scored(draw, rows: tuple[int, int] = (1, 24), models: int = 1):
    """Targets (N, K), of each model scores and decisions (N, K), and groups (N,) or None."""
    shape = draw(st.integers(*rows)), draw(st.integers(1, 5))
    bits = arrays.arrays(np.uint8, shape, elements=st.integers(0, 1))
    groups = draw(st.one_of(st.none(), st.lists(st.integers(0, 6), min_size=shape[0], max_size=shape[0])))
    predicted = [(draw(arrays.arrays(np.float64, shape, elements=coarse)), draw(bits)) for _ in range(models)]
    return draw(bits), predicted, groups


def predictions_for(metric: str, pair):
    return pair[metric.endswith("F1")]


# Intervals


@given(scored(), metrics, st.booleans(), st.sampled_from(["leave out", "zero"]))
def test_interval_of_any_predictions(case, metric, stratified, absent):
    targets, (pair,), groups = case
    predicted = predictions_for(metric, pair)
    options = {"groups": groups, "stratified": stratified, "absent": absent, "replicates": 30}
    state = np.random.get_state()[1].copy()
    defined = targets.any(axis=0) & ((metric != "macro ROC AUC") | ~targets.all(axis=0))
    try:
        found = score_interval(targets, predicted, metric, **options)
    except ScoreError as error:
        assert not defined.any() or "every draw" in str(error)
        return
    np.testing.assert_array_equal(np.random.get_state()[1], state, "the global random state was changed")
    rule = () if metric == "micro F1" else (absent,)
    np.testing.assert_allclose(found.estimate, SCORES_OF[metric](targets, predicted, *rule))
    assert 0 <= found.low <= found.high <= 1
    assert found.labels == (targets.shape[1] if metric == "micro F1" or absent == "zero" else defined.sum())
    assert found.units == (len(targets) if groups is None else len(set(groups)))
    assert str(found) in found.describe() or f"{found.low:.3f} to {found.high:.3f}" in found.describe()


@given(scored(), metrics, st.booleans())
def test_truth_as_prediction_scores_one(case, metric, stratified):
    targets, _, groups = case
    if (targets.any(axis=0) & ~targets.all(axis=0)).any():
        try:
            found = score_interval(targets, targets, metric, groups=groups, stratified=stratified, replicates=20)
        except ScoreError as error:
            assert "every draw" in str(error)
            return
        np.testing.assert_allclose([found.estimate, found.low, found.high], 1)


@given(scored((2, 24)), metrics, st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(case, metric, random):
    targets, (pair,), groups = case
    predicted, order = predictions_for(metric, pair), list(range(len(targets)))
    random.shuffle(order)
    moved = None if groups is None else [groups[row] for row in order]
    try:
        found = score_interval(targets, predicted, metric, groups=groups, replicates=5)
    except ScoreError:
        return
    try:
        again = score_interval(targets[order], predicted[order], metric, groups=moved, replicates=5)
    except ScoreError as error:
        assert "every draw" in str(error)
        return
    np.testing.assert_allclose(again.estimate, found.estimate)
    assert (again.labels, again.units, again.resampled) == (found.labels, found.units, found.resampled)


@given(scored(models=2), metrics)
def test_difference_of_two_models(case, metric):
    targets, pairs, groups = case
    first, second = (predictions_for(metric, pair) for pair in pairs)
    options = {"groups": groups, "replicates": 30}
    try:
        found = difference_interval(targets, first, second, metric, **options)
    except ScoreError:
        return
    turned = difference_interval(targets, second, first, metric, **options)
    one, two = (score_interval(targets, of, metric, **options) for of in (first, second))
    np.testing.assert_allclose(found.estimate, one.estimate - two.estimate, atol=1e-12)
    np.testing.assert_allclose([found.low, found.high], [-turned.high, -turned.low], atol=1e-12)
    assert found.above_zero + turned.above_zero <= 1 + 1e-12
    # Repeats: two models as two cross-fits of one score their mean.
    both = score_interval(targets, np.stack([first, second]), metric, **options)
    np.testing.assert_allclose(both.estimate, (one.estimate + two.estimate) / 2)
    assert both.repeats == 2


@given(st.integers(2, 30).flatmap(lambda n: st.tuples(
    arrays.arrays(np.uint8, n, elements=st.integers(0, 1)),
    arrays.arrays(np.float64, n, elements=coarse),
    arrays.arrays(np.int64, (n, 3), elements=st.integers(0, 4)),
)))  # fmt: skip
def test_weighted_rankings_are_those_of_scikit_learn(case):
    truth, scores, weights = case
    if not truth.any():
        return
    ranking = Ranking.of(truth, scores)
    precisions, areas = ranking.average_precision(weights.astype(float)), ranking.roc_auc(weights.astype(float))
    for precision, area, weight in zip(precisions, areas, weights.T):
        positive, negative = weight[truth == 1].sum(), weight[truth == 0].sum()
        if positive:
            np.testing.assert_allclose(precision, average_precision_score(truth, scores, sample_weight=weight))
        else:
            assert np.isnan(precision)
        if positive and negative:
            np.testing.assert_allclose(area, roc_auc_score(truth, scores, sample_weight=weight))
        else:
            assert np.isnan(area)


@given(scored(), st.sampled_from(LABEL_METRICS))
def test_label_intervals(case, metric):
    targets, (pair,), groups = case
    names = NAMES[: targets.shape[1]]
    table = label_intervals(targets, predictions_for(metric, pair), names, metric, groups, replicates=30)
    assert tuple(table.index) == names and table["positives"].tolist() == targets.sum(axis=0).tolist()
    defined = targets.any(axis=0) & ((metric != "ROC AUC") | ~targets.all(axis=0))
    np.testing.assert_array_equal(table["estimate"].notna(), defined)
    known = table.dropna(subset="low")
    assert ((known["low"] >= 0) & (known["low"] <= known["high"]) & (known["high"] <= 1)).all()
    assert len(label_intervals_figure(table, metric).axes[0].get_yticklabels()) == len(names)


# Calibration


@given(scored(), st.integers(1, 12))
def test_reliability_counts_every_score_once(case, bins):
    targets, ((scores, _),), _ = case
    names = NAMES[: targets.shape[1]]
    table = reliability_table(targets, scores, bins=bins)
    assert table["n"].sum() == targets.size and 1 <= len(table) <= bins and (table["n"] > 0).all()
    np.testing.assert_allclose((table["n"] * table["observed"]).sum(), targets.sum())
    np.testing.assert_allclose((table["n"] * table["mean_score"]).sum(), scores.sum())
    assert table["mean_score"].is_monotonic_increasing
    assert ((table["low"] <= table["observed"] + 1e-12) & (table["observed"] <= table["high"] + 1e-12)).all()
    assert ((table["low"] >= 0) & (table["high"] <= 1)).all()
    by_label = reliability_table(targets, scores, names, bins, by_label=True)
    assert by_label.groupby("label")["n"].sum().tolist() == [len(targets)] * len(names)
    errors = calibration_error(targets, scores, names, bins)
    assert ((errors[["ece", "brier"]] >= 0) & (errors[["ece", "brier"]] <= 1)).all(axis=None)
    assert np.isfinite(errors["log_loss"]).all()


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
@given(scored())
def test_calibrations_rise_within_0_and_1(method, case):
    targets, ((scores, _),), _ = case
    names = NAMES[: targets.shape[1]]
    try:
        fitted = fit_calibration(targets, scores, names, method)
    except ScoreError:
        assert not targets.any()
        return
    ramp = np.repeat(np.linspace(0, 1, 21)[:, None], len(names), axis=1)
    applied = fitted.apply(ramp)
    assert ((applied >= 0) & (applied <= 1)).all() and (np.diff(applied, axis=0) >= 0).all()
    if method == "platt":
        assert (np.diff(applied, axis=0) > 0).all()
        if targets.any(axis=0).all():  # on the images it was fitted to, at least as good as no calibration
            before, after = (calibration_error(targets, of, names)["log_loss"] for of in (scores, fitted.apply(scores)))
            assert after["all labels"] <= before["all labels"] + 1e-5
    again = Calibration.from_dict(json.loads(json.dumps(fitted.to_dict())))
    np.testing.assert_array_equal(again.apply(scores), fitted.apply(scores))


# Confusions


@given(scored())
def test_confusions(case):
    targets, ((_, decisions),), _ = case
    names = NAMES[: targets.shape[1]]
    table = confusion_table(targets, decisions, names)
    shown, rows = with_none(targets, names)  # images without a label are one more kind
    decided = np.c_[decisions, ~decisions.any(axis=1)][:, : len(rows)]
    missed = (shown == 1) & (decided == 0)
    np.testing.assert_array_equal(table["misses"], missed.sum(axis=0))
    shares = table.drop(columns="misses")
    np.testing.assert_array_equal(shares.isna().all(axis=1), table["misses"] == 0)
    known = shares.dropna().to_numpy()
    assert ((known >= 0) & (known <= 1)).all()
    assert (np.diag(shares[list(rows)].fillna(0)) == 0).all(), "a label was said instead of itself"
    assert (known.sum(axis=1) >= 1 - 1e-12).all(), "a miss has neither a false label nor none"
    # The slow way round: image by image.
    for i, name in enumerate(rows):
        for j, other in enumerate(rows):
            times = sum(m[i] and d[j] and not t[j] for m, d, t in zip(missed, decided, shown))
            assert times == (round(table.loc[name, other] * table.loc[name, "misses"]) if missed[:, i].any() else 0)
    pairs = error_cooccurrence(targets, decisions, names)
    assert (pairs["observed"] <= pairs["images"]).all() and (pairs["expected"] <= pairs["images"] + 1e-9).all()
    assert (pairs["label"] != pairs["with_label"]).all()
    top = top_confusions(targets, decisions, names, n=3)
    assert len(top) <= 3 and (top["times"] > top["expected"]).all() and (top["times"] <= top["misses"]).all()
    for row in top.itertuples():
        assert row.times == round(table.loc[row.missed, row.said] * row.misses)


# Real predictions of real models on real validation images, as in test_real_data.py

MODELS = ("vgg16_224", "resnet_256", "resnet34_256")


@pytest.fixture(scope="module")
def predictions() -> dict[str, np.ndarray]:
    data = Path(os.environ.get("PROTEIN_ATLAS_DATA", REPOSITORY.parent / "shared" / "data"))
    path = data / "predictions" / "kaggle_valid.npz"
    if not path.exists():
        pytest.skip(f"no real data: {path} does not exist (PROTEIN_ATLAS_DATA names its folder)")
    with np.load(path) as file:  # the ids are pickled, and not read
        return {name: file[name] for name in ("targets", *MODELS)}


@pytest.mark.parametrize("metric", METRICS)
def test_a_thousand_draws_of_real_predictions(predictions, metric):
    targets = predictions["targets"]
    scores = [predictions[name].astype(np.float64) for name in MODELS[:2]]
    models = scores
    if metric.endswith("F1"):
        models = [Thresholds(np.full(28, 0.5), LOCATIONS, "fixed").decide(of) for of in scores]
    found = [score_interval(targets, of, metric) for of in models]
    for interval, of in zip(found, models):
        assert interval.low < interval.estimate < interval.high < interval.low + 0.1
        assert (interval.replicates, interval.labels) == (1000, 28)
        np.testing.assert_allclose(interval.estimate, SCORES_OF[metric](targets, of))
    # The first network is better than the second; only ROC AUC, high for both, does not tell.
    difference = difference_interval(targets, *models, metric)
    assert difference.estimate > 0 and (difference.low > 0) == (metric != "macro ROC AUC")
    assert difference.high - difference.low < sum(interval.high - interval.low for interval in found)


def test_real_labels_calibration_and_confusions(predictions):
    targets, scores = predictions["targets"], predictions["vgg16_224"].astype(np.float64)
    table = label_intervals(targets, scores, LOCATIONS, "AP")
    wide = table["high"] - table["low"]
    assert wide["Nucleoplasm"] < 0.05 < wide["Lysosomes"]
    half = np.arange(len(targets)) % 2 == 0
    fitted = fit_calibration(targets[half], scores[half], LOCATIONS)
    before, after = (
        calibration_error(targets[~half], of, LOCATIONS).loc["all labels"]
        for of in (scores[~half], fitted.apply(scores[~half]))
    )
    assert after["ece"] < 0.01 < 0.1 < before["ece"] and after["brier"] < 0.6 * before["brier"]
    assert len(reliability_figure(targets, {name: predictions[name] for name in MODELS}).axes) == 2
    decisions = Thresholds(np.full(28, 0.5), LOCATIONS, "fixed").decide(scores)
    assert len(confusion_figure(confusion_table(targets, decisions, LOCATIONS)).axes) == 2
    top = top_confusions(targets, decisions, LOCATIONS)
    assert len(top) == 10 and ("Nuclear speckles", "Nucleoplasm") in set(zip(top["missed"], top["said"]))
