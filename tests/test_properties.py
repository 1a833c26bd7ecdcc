"""Promises that hold for any input: tried on inputs that nobody chose."""
import io
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from sklearn.metrics import f1_score

from protein_atlas.data.color import composite
from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.geometry import resize_image
from protein_atlas.data.groups import hpa_groups
from protein_atlas.data.hashes import hash_images
from protein_atlas.data.images import CHANNELS, HPA_LAYOUT, Layout, open_image, save_image
from protein_atlas.data.labels import (
    LOCATIONS,
    NONE,
    LabelTable,
    check_vocab,
    decode_targets,
    encode_labels,
    format_labels,
    parse_labels,
    read_labels,
    with_none,
)  # fmt: skip
from protein_atlas.data.packing import append_images, pack_images, verify_store
from protein_atlas.data.sampling import duplicate_rare, label_weights, rarity_weights
from protein_atlas.data.sources import Images
from protein_atlas.data.split_audit import split_audit
from protein_atlas.data.splits import HOLDOUT, SplitWarning, balanced_folds, balanced_split
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate import calibration, confusion, cross_fitting, interpretation, intervals, metrics
from protein_atlas.evaluate.calibration import Calibration
from protein_atlas.evaluate.chance import auc_interval
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.evaluate.ensembles import ENSEMBLES, Ensemble, fit_ensemble
from protein_atlas.evaluate.interpretation import MultiLabelInterpretation
from protein_atlas.evaluate.intervals import Interval
from protein_atlas.evaluate.metrics import f1_per_label, macro_f1
from protein_atlas.evaluate.thresholds import RULES, Thresholds, fit_thresholds
from protein_atlas.system.errors import ImageError, LabelError, ProteinAtlasError
from protein_atlas.system.files import id_fault

# No deadline: the first example of a test pays for imports, and the machines differ. Derandomised: a failure in CI is
# a failure of the commit, not of the draw.
settings.register_profile(
    "project", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")

NAMES = tuple("ABCDEFGH")


def matrices(rows: tuple[int, int] = (1, 30), labels: tuple[int, int] = (1, 6)) -> st.SearchStrategy[np.ndarray]:
    """Targets (N, K) of 0 and 1."""
    return st.tuples(st.integers(*rows), st.integers(*labels)).flatmap(
        lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, 1))
    )


def like(targets: np.ndarray, elements: st.SearchStrategy, dtype=np.float64) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(dtype, targets.shape, elements=elements)


probabilities = st.floats(0, 1)
label_sets = st.lists(st.sets(st.integers(0, 27), max_size=5), min_size=1, max_size=12)  # of images, some without one
ids = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
ids = ids.filter(lambda text: id_fault(text) is None)

# Labels


@given(label_sets)
def test_encode_and_decode_are_inverse(sets):
    targets = encode_labels(sets)
    assert targets.dtype == np.uint8 and targets.shape == (len(sets), 28)
    names = decode_targets(targets)
    assert [{LOCATIONS.index(name) for name in row} for row in names] == sets
    np.testing.assert_array_equal(encode_labels(names), targets)


@given(st.sets(st.integers(0, 27)))
def test_format_and_parse_are_inverse(labels):
    target = encode_labels([labels])[0]
    assert set(parse_labels(format_labels(target))) == labels
    assert set(parse_labels("; ".join(LOCATIONS[i] for i in labels))) == labels


@given(label_sets, st.data())
def test_saved_table_is_read_again(sets, data):
    names = data.draw(st.lists(ids, min_size=len(sets), max_size=len(sets), unique=True))
    columns = pd.DataFrame({"Group": data.draw(st.lists(ids, min_size=len(sets), max_size=len(sets)))})
    table = LabelTable(np.array(names), encode_labels(sets), LOCATIONS, columns, allow_none=True)
    with tempfile.TemporaryDirectory() as folder:
        again = read_labels(table.save(Path(folder) / "table.csv"), allow_none=True)
        if not all(sets):
            none = sum(not labels for labels in sets)
            with pytest.raises(LabelError, match=f"{none} of {len(sets)} images have no label"):
                read_labels(Path(folder) / "table.csv")
        assert [path.name for path in Path(folder).iterdir()] == ["table.csv"]
    assert again.ids.tolist() == names
    np.testing.assert_array_equal(again.targets, table.targets)
    pd.testing.assert_frame_equal(again.columns, columns, check_dtype=False)


@given(st.one_of(st.text(max_size=30), st.text("0123456789 ;|²①٣", max_size=12)))
@example("①")  # a digit for str.isdigit, but no number for int
@example("9" * 5000)  # more digits than int reads
def test_parse_labels_refuses_or_reads(text):
    try:
        labels = parse_labels(text)
    except ProteinAtlasError:
        return
    assert all(0 <= label < 28 for label in labels) and labels == tuple(sorted(set(labels)))


@given(st.lists(st.one_of(st.text(max_size=6), st.text("ab12 ;|", max_size=4)), max_size=5))
@example(["1 2", "a", "b"])
def test_check_vocab_refuses_or_accepts(names):
    """A name that is accepted means that label alone when it is read back."""
    try:
        vocab = check_vocab(names)
    except LabelError:
        return
    for place, name in enumerate(vocab):
        assert parse_labels(name, vocab) == (place,)


@given(st.one_of(
    st.binary(max_size=80),
    st.text(max_size=80).map(str.encode),
    st.text('Id,Target"\n\r 012;|\x00é', max_size=60).map(lambda text: f"Id,Target\n{text}".encode()),
))  # fmt: skip
def test_read_labels_refuses_or_reads_any_file(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(content)
        try:
            table = read_labels(path)
        except ProteinAtlasError as error:
            assert str(path) in str(error)
            return
    assert table.targets.shape == (len(table), 28)
    assert len(set(table.ids.tolist())) == len(table) and table.targets.any(axis=1).all()


# Splits


def grouped(rows: tuple[int, int] = (4, 40), labels: tuple[int, int] = (1, 5)):
    """Targets (N, K) and the group of each row; None for no groups."""
    return matrices(rows, labels).flatmap(lambda targets: st.tuples(
        st.just(targets),
        st.one_of(st.none(), st.lists(st.integers(0, 9), min_size=len(targets), max_size=len(targets))),
    ))  # fmt: skip


def units_of(targets, groups):
    """The number of units of each label, counted one by one."""
    groups = range(len(targets)) if groups is None else groups
    return [len({group for group, row in zip(groups, targets) if row[k]}) for k in range(targets.shape[1])]


def names_a_label(error: LabelError, names) -> bool:
    return any(f"{name}: " in str(error) for name in names)


def can_be_split(targets, groups) -> bool:
    """Whether any laying of the units into two sides has every label on both: by trying all of them."""
    _, unit = np.unique(groups, return_inverse=True)
    n = unit.max() + 1
    held = np.stack([np.bincount(unit, weights=column, minlength=n) > 0 for column in targets.T], axis=1)
    sides = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    both = ((sides @ held) > 0) & ((~sides @ held) > 0)
    return bool((both | ~held.any(axis=0)).all(axis=1).any())


@given(grouped(), st.floats(0.1, 0.5), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_balanced_split(case, valid_share, seed, min_valid):
    targets, groups = case
    names = NAMES[: targets.shape[1]]
    state = np.random.get_state()[1].copy()
    units = len(targets) if groups is None else len(set(groups))
    try:
        train, valid = balanced_split(targets, valid_share, seed, groups, names, min_valid)
    except LabelError as error:
        assert units < 2 or names_a_label(error, (*names, NONE)), error
        if groups is not None and units >= 2 and min_valid == 1:
            kinds = with_none(targets, names)[0]
            assert not can_be_split(kinds, groups), f"a split exists, but was refused: {error}"
        return
    finally:
        np.testing.assert_array_equal(np.random.get_state()[1], state, "the global random state was changed")
    assert sorted([*train, *valid]) == list(range(len(targets))), "a row was lost or doubled"
    if groups is not None:
        assert not {groups[row] for row in train} & {groups[row] for row in valid}, "a group was parted"
    kinds = with_none(targets, names)[0]  # images without a label are one more
    occurring = kinds.any(axis=0)
    assert kinds[train].any(axis=0)[occurring].all(), "a label has no training image"
    assert (kinds[valid].sum(axis=0)[occurring] >= min_valid).all(), "a label has too few validation images"
    again = balanced_split(targets, valid_share, seed, groups, names, min_valid)
    np.testing.assert_array_equal(again[0], train)
    np.testing.assert_array_equal(again[1], valid)


@pytest.mark.filterwarnings("ignore::protein_atlas.data.splits.SplitWarning")
@given(grouped(), st.integers(2, 4), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2]), st.booleans())
def test_balanced_folds(case, n_folds, seed, holdout_share, strict):
    targets, groups = case
    names = NAMES[: targets.shape[1]]
    units = len(targets) if groups is None else len(set(groups))
    try:
        folds = balanced_folds(targets, n_folds, seed, groups, names, holdout_share, strict=strict)
    except LabelError as error:
        assert units < n_folds or (strict and names_a_label(error, (*names, NONE))), error
        return
    assert folds.shape == (len(targets),) and set(folds) <= set(range(HOLDOUT if holdout_share else 0, n_folds))
    if groups is not None:
        assert len(set(zip(groups, folds))) == len(set(groups)), "a group was parted"
    if strict:
        kinds = with_none(targets, names)[0]
        for k, n in enumerate(units_of(kinds, groups)):
            inside = set(folds[kinds[:, k] > 0])
            assert n != 1 and len(inside - {HOLDOUT}) == min(n, n_folds), f"label {k}, {n} units"
            assert not holdout_share or n <= n_folds or HOLDOUT in inside, f"label {k}, {n} units, not held out"
    again = balanced_folds(targets, n_folds, seed, groups, names, holdout_share, strict=strict)
    np.testing.assert_array_equal(again, folds)


@pytest.mark.filterwarnings("ignore::protein_atlas.data.splits.SplitWarning")
@given(grouped(), st.integers(0, 99), st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_rows(case, seed, random):
    """With groups each group keeps its side; without, the same sets of labels stand on each side, as often."""
    targets, groups = case
    if groups is not None and len(set(groups)) < 2:
        return
    order = list(range(len(targets)))
    random.shuffle(order)
    shuffled = None if groups is None else [groups[row] for row in order]
    _, valid = balanced_split(targets, seed=seed, groups=groups, strict=False)
    _, again = balanced_split(targets[order], seed=seed, groups=shuffled, strict=False)
    if groups is None:
        assert sorted(map(bytes, targets[valid])) == sorted(map(bytes, targets[order][again]))
    else:
        assert sorted(order[row] for row in again) == valid.tolist()


@given(grouped(rows=(6, 40)), st.integers(0, 99))
def test_split_audit_counts(case, seed):
    """Images add up, and leaks are found exactly where groups stand in two parts."""
    targets, groups = case
    parts = np.random.default_rng(seed).integers(0, 3, len(targets))
    audit = split_audit(targets, parts, NAMES[: targets.shape[1]], groups)
    assert audit.parts["images"].sum() == len(targets)
    totals = audit.labels.groupby("label", sort=False)["images"].sum().to_numpy()
    np.testing.assert_array_equal(totals, with_none(targets, NAMES[: targets.shape[1]])[0].sum(axis=0))
    parted = set() if groups is None else {g for g in groups if len({p for p, h in zip(parts, groups) if h == g}) > 1}
    assert set(audit.leaked) == {str(group) for group in parted}


# Sampling


@given(matrices(), probabilities, probabilities, st.floats(1, 50))
def test_rarity_weights_keep_their_bounds(targets, threshold, power, cap):
    weights = rarity_weights(targets, threshold, power, cap)
    assert weights.shape == (len(targets),)
    assert (weights >= 1).all() and (weights <= cap).all()
    # A label that is rarer never weighs less.
    counts, of_labels = targets.sum(axis=0), label_weights(targets, threshold, power, cap)
    occurring = np.flatnonzero(counts)
    ordered = of_labels[occurring[np.argsort(counts[occurring], kind="stable")]]
    assert (np.diff(ordered) <= 1e-12).all()
    copies = duplicate_rare(np.arange(len(targets)), weights)
    assert set(copies) == set(range(len(targets))) and (np.diff(copies) >= 0).all()


# Metrics


@given(matrices().flatmap(lambda t: st.tuples(st.just(t), like(t, st.integers(0, 1), np.uint8))))
def test_macro_f1_is_that_of_scikit_learn(case):
    targets, decisions = case
    reference = f1_score(targets, decisions, average=None, zero_division=0) if targets.shape[1] > 1 else np.array(
        [f1_score(targets[:, 0], decisions[:, 0], zero_division=0)]
    )  # fmt: skip
    occurs = targets.any(axis=0)
    np.testing.assert_allclose(f1_per_label(targets, decisions), np.where(occurs, reference, np.nan))
    np.testing.assert_allclose(macro_f1(targets, decisions, absent="zero"), reference.mean())
    np.testing.assert_allclose(macro_f1(targets, decisions), reference[occurs].mean() if occurs.any() else np.nan)


# Thresholds


@given(matrices().flatmap(lambda t: st.tuples(
    like(t, probabilities), arrays.arrays(np.float64, t.shape[1], elements=probabilities)
)))  # fmt: skip
def test_decide_leaves_no_image_empty(case):
    scores, values = case
    thresholds = Thresholds(values, NAMES[: len(values)], "fixed")
    decisions, allowed = thresholds.decide(scores), replace(thresholds, allow_none=True).decide(scores)
    assert decisions.dtype == np.uint8 and decisions.any(axis=1).all()
    np.testing.assert_array_equal(allowed, scores >= values)
    filled = ~allowed.any(axis=1)
    np.testing.assert_array_equal(decisions[~filled], allowed[~filled])
    assert (decisions[filled].sum(axis=1) == 1).all()


@pytest.mark.parametrize("rule", RULES)
@given(matrices((4, 30)).flatmap(lambda t: st.tuples(st.just(t), like(t, probabilities))))
def test_fitted_thresholds_are_probabilities(rule, case):
    targets, scores = case
    names = NAMES[: targets.shape[1]]
    if targets.sum(axis=0).max() < 3:
        return  # thresholds of a fold would be fitted without a positive
    if not targets.any(axis=1).all():
        with pytest.raises(LabelError, match="images have no label"):
            fit_thresholds(targets, scores, names, rule)
    fitted = fit_thresholds(targets, scores, names, rule, allow_none=True)
    assert ((fitted.values >= 0) & (fitted.values <= 1)).all()
    with tempfile.TemporaryDirectory() as folder:
        again = Thresholds.load(fitted.save(Path(folder) / "thresholds.json"))
    np.testing.assert_array_equal(again.values, fitted.values)
    assert (again.vocab, again.rule, again.allow_none) == (fitted.vocab, fitted.rule, True)
    # Cross-fitting: what is decided for one fold does not depend on that fold's own truth.
    found = cross_fit(targets, scores, names, rule, n_folds=2, repeats=1, allow_none=True)
    inside = found.folds[0] == 0
    outside = fit_thresholds(targets[~inside], scores[~inside], names, rule, allow_none=True)
    np.testing.assert_array_equal(found.decisions[0, inside], outside.decide(scores[inside]))
    assert found.score == macro_f1(targets, found.decisions[0])


@pytest.mark.parametrize("rule", RULES)
@given(matrices((6, 30)))
def test_a_perfect_model_scores_one(rule, targets):
    """Also where images show none of the labels, if that is allowed."""
    if targets.sum(axis=0).max() < 3:
        return  # thresholds of a fold would be fitted without a positive
    found = cross_fit(targets, targets, NAMES[: targets.shape[1]], rule, n_folds=2, repeats=1, allow_none=True)
    np.testing.assert_array_equal(found.decisions[0], targets)
    assert found.score == found.optimistic == found.interval(replicates=5).estimate == 1


# Images


def images(low: int = 1, high: int = 24) -> st.SearchStrategy[np.ndarray]:
    return st.tuples(st.just(4), st.integers(low, high), st.integers(low, high)).flatmap(
        lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, 255))
    )


@given(images(), st.sampled_from([0.0, 0.3, 50.0]))
def test_composite(image, saturate):
    picture = composite(image, CHANNELS, saturate)
    assert picture.dtype == np.uint8 and picture.shape == (*image.shape[1:], 3)
    if not saturate:  # red and yellow give red, green and yellow give green, blue alone blue
        red, green, blue, yellow = image.astype(int)
        expected = np.stack([red + yellow, green + yellow, blue], axis=-1).clip(0, 255)
        np.testing.assert_array_equal(picture, expected)


@given(images(), st.integers(1, 30), st.integers(1, 30))
def test_resize(image, height, width):
    resized = resize_image(image, (height, width))
    assert resized.dtype == np.uint8 and resized.shape == (4, height, width)
    assert (resized.min(axis=(1, 2)) >= image.min(axis=(1, 2))).all(), "darker than the darkest pixel"
    assert (resized.max(axis=(1, 2)) <= image.max(axis=(1, 2))).all(), "brighter than the brightest pixel"


@given(images())
def test_saved_image_is_opened_again(image):
    with tempfile.TemporaryDirectory() as folder:
        np.testing.assert_array_equal(open_image(save_image(folder, "x", image)), image)


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(buffer, form)
    return buffer.getvalue()


WHOLE_FILES = {"png": encoded("PNG"), "jpg": encoded("JPEG"), "tif": encoded("TIFF")}


@given(st.sampled_from(["png", "jpg", "tif"]), st.binary(max_size=200))
def test_open_image_refuses_any_bytes_that_are_no_image(suffix, content):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"x_{channel}.{suffix}" for channel in CHANNELS]
        for path in paths:
            path.write_bytes(content)
        with pytest.raises(ImageError) as error:
            open_image(paths, HPA_LAYOUT)
    assert str(paths[0]) in str(error.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's word on a damaged TIFF that it reads nonetheless
@given(st.sampled_from(["png", "jpg", "tif"]), st.data())
def test_open_image_refuses_or_reads_damaged_files(suffix, data):
    """A real file, cut short and with bytes changed: either a whole image or an `ImageError`."""
    content = bytearray(WHOLE_FILES[suffix])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"x_{channel}.{suffix}" for channel in CHANNELS]
        for path in paths:
            path.write_bytes(content)
        try:
            image = open_image(paths, HPA_LAYOUT)
        except ImageError as error:
            assert str(paths[0]) in str(error)
            return
    assert image.dtype == np.uint8 and image.ndim == 3 and len(image) == 4


# Stores


class Numbered(Images):
    """Images of 1 x 2 pixels, each with its number; some cannot be read, for any reason."""

    def __init__(self, ids: list[str], reasons: dict[str, str]):
        self.place, self.ids, self.layout, self.reasons = "numbered", ids, Layout(("red", "green")), reasons

    def open(self, image_id, size=None):
        if image_id in self.reasons:
            raise ImageError(self.reasons[image_id])
        return np.full((2, 1, 2), self.ids.index(image_id), np.uint8)

    def fingerprint(self, image_id):
        return image_id


# What pandas takes for a missing value, a number or a date, and what a table has to quote.
ODD_IDS = (
    "NA", "None", "null", "nan", "1.0", "1", "007", "1e5", "True", "2018-10-01", "Id", "#", "-", "a,b", '"', '"a"', "'",
    "a ", " a", "ä", "细胞", "🔬", "=1+1", "\\", "\\N", "\u00a0a", "\ufeffa", "e\u0301", "\u00e9",
)  # fmt: skip


any_ids = st.one_of(st.sampled_from(ODD_IDS), st.text(min_size=1, max_size=12))


@settings(max_examples=25)
@given(st.lists(any_ids, min_size=2, max_size=6, unique=True), st.dictionaries(st.integers(1, 5), st.text(max_size=12)))
@example(list(ODD_IDS), {3: ""})
@example(["a", "b", "c"], {1: "cut\roff"})
@example(["a", "b", "c"], {2: "\ud800"})
def test_ids_that_are_packed_are_read_again(names, unreadable):
    """Each id that is accepted comes back as it was, and its own image; one that cannot be, is named."""
    reasons = {names[place]: why for place, why in unreadable.items() if place < len(names)}
    source, readable = Numbered(names, reasons), [name for name in names if name not in reasons]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        if faults := [fault for fault in map(id_fault, names) if fault]:
            with pytest.raises(ImageError) as refused:
                pack_images(source, store, workers=1)
            assert faults[0] in str(refused.value) and not list(Path(folder).iterdir())
            return
        pack_images(source, store, ids=names[:1], workers=1)
        if len(readable) > 1:  # of images none of which can be read, nothing is packed
            append_images(source, store, on_error="list", workers=1)
            assert list(ImageStore(store).errors) == [name for name in names if name in reasons]
        opened = ImageStore(store)
        assert opened.ids == readable and all(opened.errors.values())
        assert verify_store(store, workers=1) == len(readable)
        for image_id in readable:
            assert (opened.open(image_id) == names.index(image_id)).all()

# Tables are paired by their names


@st.composite
def moved_tables(draw):
    """Targets, scores and decisions (N, K) as arrays, and as tables whose rows and columns stand in other orders."""
    targets = draw(matrices(rows=(4, 16), labels=(2, 5)))
    targets[0], targets[1] = 1, 0  # every label has a positive and a negative image
    scores = draw(like(targets, st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])))
    decisions = draw(like(targets, st.integers(0, 1), np.uint8))
    groups = np.array(draw(st.lists(st.sampled_from("pqrs"), min_size=len(targets), max_size=len(targets))))
    rows, vocab = [f"image {row}" for row in range(len(targets))], NAMES[: targets.shape[1]]

    def moved(values):
        table = pd.DataFrame(values, index=rows, columns=list(vocab))
        return table.iloc[draw(st.permutations(range(len(rows)))), draw(st.permutations(range(len(vocab))))]

    in_order = pd.DataFrame(targets, index=rows, columns=list(vocab))
    apart = pd.Series(groups, index=rows).iloc[draw(st.permutations(range(len(rows))))]
    return vocab, rows, (targets, scores, decisions, groups), (in_order, moved(scores), moved(decisions), apart)


def plain(value):
    """What two results are compared by."""
    if isinstance(value, (Calibration, Thresholds)):
        return plain(value.to_dict() if isinstance(value, Calibration) else value.values)
    if isinstance(value, (Ensemble, Interval)):
        return plain(value.weights if isinstance(value, Ensemble) else str(value))
    if isinstance(value, pd.DataFrame):
        return value.to_csv()
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def in_order(found, wanted, *orders):
    """What was made of tables as it is made of arrays: its rows and columns in these orders, without their names."""
    if isinstance(found, pd.DataFrame | pd.Series) and not isinstance(wanted, pd.DataFrame | pd.Series):
        for axis, names in enumerate(found.axes):
            of = next((order for order in orders if set(names) == set(order)), names)
            found = found.reindex(list(of), axis=axis)
        return found.tolist() if isinstance(wanted, list) else found.to_numpy()
    return found


def paired_calls(vocab, targets, scores, decisions, groups) -> dict[str, object]:
    """Every public function of the room evaluate that pairs rows, and those of data that do."""
    two, few = {"one": scores, "other": scores}, {"replicates": 10}
    fitted = Thresholds([0.5] * len(vocab), vocab, "fixed")
    return {
        "f1_per_label": lambda: f1_per_label(targets, decisions),
        "macro_f1": lambda: macro_f1(targets, decisions),
        "micro_f1": lambda: metrics.micro_f1(targets, decisions),
        "average_precision": lambda: metrics.average_precision_per_label(targets, scores),
        "macro_average_precision": lambda: metrics.macro_average_precision(targets, scores),
        "macro_roc_auc": lambda: metrics.macro_roc_auc(targets, scores),
        "check_scores": lambda: np.sort(metrics.check_scores(scores, targets), axis=None),  # an array always
        "label_report": lambda: metrics.label_report(targets, scores, decisions, vocab),
        "reliability_table": lambda: calibration.reliability_table(targets, scores, vocab, by_label=True),
        "calibration_error": lambda: calibration.calibration_error(targets, scores, vocab),
        "fit_calibration": lambda: calibration.fit_calibration(targets, scores, vocab),
        "isotonic": lambda: calibration.fit_calibration(targets, scores, vocab, "isotonic"),
        "confusion_table": lambda: confusion.confusion_table(targets, decisions, vocab),
        "error_cooccurrence": lambda: confusion.error_cooccurrence(targets, decisions, vocab),
        "top_confusions": lambda: confusion.top_confusions(targets, decisions, vocab),
        **{rule: lambda rule=rule: fit_thresholds(targets, scores, vocab, rule, allow_none=True) for rule in RULES},
        **{how: lambda how=how: fit_ensemble(targets, two, how) for how in ENSEMBLES},
        "combine": lambda: fit_ensemble(targets, two).combine(two),
        "margins": lambda: fitted.margins(scores),
        "cross_fit": lambda: cross_fit(targets, two, vocab, n_folds=2, repeats=1, allow_none=True).nested,
        "compare_rules": lambda: cross_fitting.compare_rules(
            targets, scores, vocab, ["fixed"], n_folds=2, repeats=1, allow_none=True),
        "fit_decisions": lambda: cross_fitting.fit_decisions(targets, scores, vocab, allow_none=True).thresholds,
        "score_interval": lambda: intervals.score_interval(targets, scores, "macro AP", groups, **few),
        "repeats": lambda: intervals.score_interval(targets, [decisions, decisions], "macro F1", groups, **few),
        "difference": lambda: intervals.difference_interval(targets, scores, scores, "macro ROC AUC", groups, **few),
        "label_intervals": lambda: intervals.label_intervals(targets, decisions, vocab, "F1", groups, **few),
        "label_differences": lambda: intervals.label_difference_intervals(
            targets, scores, scores, vocab, "AP", groups, **few),
        "auc_interval": lambda: auc_interval(targets, scores, groups),
        "label_table": lambda: interpretation.label_table(targets, scores, decisions, fitted, groups, 10),
        "split_audit": lambda: split_audit(targets, {"a": [0, 1], "b": range(2, len(targets))}, vocab, groups).table(),
        "balanced_folds": lambda: balanced_folds(targets, 2, groups=groups, vocab=vocab, strict=False),
    }  # fmt: skip


@settings(max_examples=4)
@given(moved_tables())
def test_moved_tables_give_the_figures_of_arrays(case):
    vocab, rows, arrays_, tables = case
    expected, found = paired_calls(vocab, *arrays_), paired_calls(vocab, *tables)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitWarning)
        for name, call in expected.items():
            try:
                wanted = call()
            except ProteinAtlasError as error:  # too few images for folds: then the tables are refused as well
                with pytest.raises(type(error)):
                    found[name]()
            else:
                assert plain(in_order(found[name](), wanted, rows, vocab)) == plain(wanted), name
    targets, scores, decisions, groups = arrays_
    fixed = Thresholds([0.5] * len(vocab), vocab, "fixed")
    made = MultiLabelInterpretation(*tables[:3], fixed, ids=rows, groups=tables[3])
    for of, array in (("targets", targets), ("scores", scores), ("decisions", decisions[None]), ("groups", groups)):
        np.testing.assert_array_equal(getattr(made, of), array, err_msg=of)


@settings(max_examples=4)
@given(moved_tables())
def test_a_table_beside_an_array_is_refused(case):
    """Names on one side only: nobody knows which rows belong together."""
    vocab, _, (targets, scores, decisions, groups), tables = case
    for name, call in paired_calls(vocab, targets, tables[1], tables[2], tables[3]).items():
        if name in ("combine", "margins"):  # scores alone
            continue
        if name in ("split_audit", "balanced_folds") or tables[0].shape[0] > 1:
            with pytest.raises(ProteinAtlasError, match="have names|and those of"):
                call()


@given(st.sampled_from(["sample 05", "ab", "A"]))
def test_one_text_is_no_list_of_names(text):
    eye, folder = np.eye(2), Path(tempfile.mkdtemp())
    save_image(folder, "sample 05", np.zeros((4, 2, 2), np.uint8))
    for call in (
        lambda: check_vocab(text), lambda: decode_targets(eye, text), lambda: encode_labels([[0]], text),
        lambda: encode_labels([text]), lambda: encode_labels(text), lambda: hpa_groups(text),
        lambda: fit_thresholds(eye, eye, text), lambda: Thresholds([0.5], text, "f1"),
        lambda: balanced_folds(eye, 2, vocab=text),
        lambda: metrics.label_report(eye, eye, eye, text), lambda: confusion.confusion_table(eye, eye, text),
        lambda: calibration.fit_calibration(eye, eye, text), lambda: cross_fit(eye, eye, text),
        lambda: intervals.label_intervals(eye, eye, text), lambda: split_audit(eye, [0, 1], text),
        lambda: MultiLabelInterpretation(eye, eye, eye, Thresholds([0.5, 0.5], NAMES[:2], "f1"), ids=text),
        lambda: composite(np.zeros((1, 4, 4), np.uint8), text), lambda: ImageFolder(folder).check(text),
        lambda: ImageFolder(folder).read(text),
        lambda: hash_images(ImageFolder(folder), text),
    ):  # fmt: skip
        with pytest.raises(ProteinAtlasError, match="found the single text"):
            call()
