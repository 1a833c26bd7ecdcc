"""Duplicates and groups: nothing within the distance is missed, on hashes that nobody chose and on real images."""
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import psutil
import pytest
import test_properties  # noqa: F401  its Hypothesis profile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_commands import check_refusal
from test_real_data import needs

from protein_atlas.data import hashes as hashing
from protein_atlas.data.duplicates import (
    cluster_pairs,
    duplicate_groups,
    duplicate_report,
    find_duplicates,
    verify_duplicates,
)  # fmt: skip
from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.geometry import resize_image
from protein_atlas.data.groups import hpa_groups, join_groups
from protein_atlas.data.hashes import ImageHashes, duplicate_candidates, hash_images
from protein_atlas.data.images import CHANNELS, Layout
from protein_atlas.data.labels import read_labels
from protein_atlas.features.files import read_features, save_features
from protein_atlas.features.table import Features
from protein_atlas.system.errors import ImageError


def make_hashes(n: int, n_channels: int, bits: float, flips: float, seed: int, prefix: str = "i") -> ImageHashes:
    """n hashes scattered around three, of which each bit is set with the odds `bits`, each flipped with `flips`."""
    rng = np.random.default_rng(seed)
    centres = rng.random((3, n_channels, 64)) < bits
    unpacked = centres[rng.integers(0, 3, n)] ^ (rng.random((n, n_channels, 64)) < flips)
    ids = np.array([f"{prefix}{row}" for row in range(n)], dtype=str)
    return ImageHashes(ids, tuple("rgby"[:n_channels]), np.packbits(unpacked, axis=2))


def all_distances(one: ImageHashes, two: ImageHashes) -> np.ndarray:
    a, b = (np.unpackbits(hashes.bits, axis=2) for hashes in (one, two))
    return (a[:, None] != b[None]).sum(axis=3).max(axis=2)


sets = st.builds(
    make_hashes, st.integers(1, 40), st.integers(1, 4), st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.0, 0.005, 0.05, 0.3]), st.integers(0, 2**32 - 1),
)  # fmt: skip

# Candidates


# What decides whether a bucket is compared pair by pair, split on, or compared as a whole: each way must find the same.
@pytest.mark.parametrize(
    ("in_product", "tiny"), [(18, 32), (1e5, 1), pytest.param(1e5, 4, marks=pytest.mark.full), (3e4, 2)]
)
@given(sets, st.integers(0, 31))
def test_candidates_within_a_set_are_those_of_brute_force(in_product, tiny, hashes, max_distance):
    with patch.multiple(hashing, _IN_PRODUCT=in_product, _TINY=tiny):
        found = duplicate_candidates(hashes, max_distance=max_distance)
    distance = all_distances(hashes, hashes)
    expected = np.argwhere(np.triu(distance <= max_distance, 1))
    rows = found[["first", "second"]].to_numpy()
    np.testing.assert_array_equal(found["distance"], distance[rows[:, 0], rows[:, 1]])
    assert set(map(tuple, rows)) <= set(map(tuple, expected)) and not found.duplicated().any()
    first_of_kind = (distance == 0).argmax(axis=1)
    single = {(i, j) for i, j in expected if first_of_kind[i] == i and first_of_kind[j] == j}
    copies = {(first_of_kind[j], j) for j in range(len(hashes)) if first_of_kind[j] != j}
    assert set(map(tuple, rows)) == single | copies
    np.testing.assert_array_equal(cluster_pairs(len(hashes), rows), cluster_pairs(len(hashes), expected))


@given(sets, sets, st.integers(0, 31), st.booleans())
def test_candidates_between_sets_are_those_of_brute_force(hashes, other, max_distance, overlap):
    if hashes.channels != other.channels:
        with pytest.raises(ImageError, match="channels differ"):
            duplicate_candidates(hashes, other, max_distance)
        return
    if overlap:
        other = ImageHashes(
            np.array([f"o{row}" for row in range(len(hashes) + len(other))]), other.channels,
            np.concatenate([hashes.bits, other.bits]),
        )  # fmt: skip
    found = duplicate_candidates(hashes, other, max_distance)
    distance = all_distances(hashes, other)
    expected = np.argwhere(distance <= max_distance)
    rows = found[["first", "second"]].to_numpy()
    np.testing.assert_array_equal(found["distance"], distance[rows[:, 0], rows[:, 1]])
    assert set(map(tuple, rows)) <= set(map(tuple, expected)) and not found.duplicated().any()
    if len(np.unique(hashes.bits, axis=0)) == len(hashes) and len(np.unique(other.bits, axis=0)) == len(other):
        np.testing.assert_array_equal(rows, expected)
    n, offset = len(hashes) + len(other), (0, len(hashes))
    np.testing.assert_array_equal(cluster_pairs(n, rows + offset), cluster_pairs(n, expected + offset))


@given(sets)
def test_saved_hashes_are_loaded_again(hashes):
    with tempfile.TemporaryDirectory() as folder:
        again = ImageHashes.load(hashes.save(Path(folder) / "hashes.npz"))
        assert [path.name for path in Path(folder).iterdir()] == ["hashes.npz"]
    assert again.channels == hashes.channels
    np.testing.assert_array_equal(again.ids, hashes.ids)
    np.testing.assert_array_equal(again.bits, hashes.bits)


@given(st.binary(max_size=200), st.integers(0, 600))
def test_damaged_hashes_are_refused_with_the_file(content, cut):
    """Cut short and with anything at the end: the same hashes again, or a refusal that names the file."""
    hashes = make_hashes(3, 2, 0.5, 0.1, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = hashes.save(Path(folder) / "hashes.npz")
        path.write_bytes(path.read_bytes()[:cut] + content)
        with pytest.raises(ImageError) as error:
            ImageHashes.load(path)
        assert str(path.resolve()) not in [file.path for file in psutil.Process().open_files()]
    assert str(path) in str(error.value)


# Groups

groupings = st.integers(1, 20).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 12), min_size=n, max_size=n), min_size=1, max_size=3)
)


@given(groupings, st.data())
def test_joined_groups_are_the_finest_that_no_grouping_parts(groupings, data):
    joined = join_groups(*groupings)
    n = len(joined)
    connected = np.any([np.equal.outer(grouping, grouping) for grouping in groupings], axis=0)
    for _ in range(n):
        connected = connected @ connected
    np.testing.assert_array_equal(np.equal.outer(joined, joined), connected)
    assert list(dict.fromkeys(joined.tolist())) == list(range(joined.max() + 1)), "not numbered by first appearance"
    order = data.draw(st.permutations(range(n)))
    again = join_groups(*([grouping[row] for row in order] for grouping in groupings))
    np.testing.assert_array_equal(np.equal.outer(again, again), connected[np.ix_(order, order)])
    np.testing.assert_array_equal(join_groups(joined), joined)


# Real data


def test_hpa_groups_of_all_images():
    ids = read_labels(needs("tables/HPAv18RBGY_wodpl.csv")).ids
    assert len(ids) == 74_606
    antibody, plate, well = (hpa_groups(ids, by) for by in ("antibody", "plate", "well"))
    assert [len(set(groups)) for groups in (antibody, plate, well)] == [12_815, 1_392, 37_074]
    # A well has one antibody: the antibody adds nothing to plate and well.
    assert len(set(zip(antibody, well))) == 37_074
    assert len(set(join_groups(antibody, well))) == 12_815


def test_copies_of_real_fields(tmp_path):
    """Fields at half their size and as JPEG: each is found, but for some that are noise in every channel; and nothing
    else."""
    folder, bright = ImageFolder(needs("fields/train")), []
    for image_id in folder.ids:
        image = folder.open(image_id)
        if image.mean((1, 2)).max() >= 2:  # gray levels, of 255
            bright.append(image_id)
        for channel, plane in zip(CHANNELS, resize_image(image, 256)):
            Image.fromarray(plane).save(tmp_path / f"copy-{image_id}_{channel}.jpg", quality=80)
    pairs = find_duplicates(folder, ImageFolder(tmp_path))
    found = pairs["first"].tolist()
    assert pairs["same"].all() and pairs["second"].tolist() == [f"copy-{image_id}" for image_id in found]
    assert len(bright) > 0.9 * len(folder.ids) and set(bright) <= set(found)
    assert len(find_duplicates(folder)) == 0


# Tiles of which, by eye, both show the same two cells at the same place, blended with different weights in green and
# blue, and with the same red and yellow. Of the 567 tiles with one cell, no two show the same cell at the same place.
BLENDS = {
    ("c1_72_10", "c2_219_01"), ("c1_106_12", "c1_128_22"), ("c1_126_11", "c2_217_01"), ("c1_141_20", "c2_205_02"),
    ("c4_354_11", "c4_388_20"),
}  # fmt: skip
# By eye the same cell, but at another place, 17 to 44 pixels away: what the hashes do not find.
SHIFTED = {("c1_162_11", "c3_299_20"), ("c1_175_02", "c1_184_10"), ("c2_222_00", "c2_227_21")}


def pairs_of(table: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(table["first"], table["second"]))


@pytest.fixture(scope="module")
def cells():
    table = read_labels(needs("cells/train.csv"))
    folder = ImageFolder(needs("cells/train"))
    return folder, table, hash_images(folder, table.ids)


def test_duplicates_among_the_cells(cells):
    folder, table, hashes = cells
    candidates = duplicate_candidates(hashes, max_distance=14)
    distance = np.concatenate([
        (np.unpackbits(hashes.bits[row] ^ hashes.bits[row + 1 :], axis=2).sum(axis=2).max(axis=1))
        for row in range(len(hashes) - 1)
    ])  # fmt: skip
    assert len(candidates) == (distance <= 14).sum() > 500
    verified = verify_duplicates(candidates, folder, hashes)
    assert pairs_of(verified[verified["same"]]) <= BLENDS
    different = ~pd.Series(list(zip(verified["first"], verified["second"]))).isin(BLENDS).to_numpy()
    assert verified["correlation"][different].max() < 0.88
    near = verified[verified["distance"] <= 8]
    assert pairs_of(near[near["same"]]) == {("c1_141_20", "c2_205_02")} and len(near) < 10
    report = duplicate_report(near, table)
    assert report["conflict"].tolist() == [True]
    assert (report["only_first"].item(), report["only_second"].item()) == ("Nucleoplasm", "Plasma membrane")


def test_cells_that_share_their_stains(cells):
    folder, table, _ = cells
    stains = ImageFolder(folder.folder, Layout(("red", "yellow")))
    pairs = find_duplicates(stains, ids=table.ids, max_distance=4)
    assert pairs_of(pairs[pairs["same"]]) == BLENDS
    groups = duplicate_groups(table.ids, pairs)
    assert len(set(groups)) == len(table) - len(BLENDS)


def test_shifted_cells_are_not_found(cells):
    """What the documentation says is not found is not: if this fails, it is time to change the documentation."""
    _, table, hashes = cells
    candidates = duplicate_candidates(hashes, max_distance=14)
    assert not SHIFTED & set(zip(hashes.ids[candidates["first"]], hashes.ids[candidates["second"]]))
    assert (table.columns["Mix"].isin(["1_0", "0_1"])[np.isin(table.ids, [i for pair in SHIFTED for i in pair])]).all()


# Turned, shifted and cropped: by features


def write_field(folder: Path, image_id: str, field: np.ndarray):
    folder.mkdir(exist_ok=True)
    for channel, plane in zip(CHANNELS, field):
        Image.fromarray(np.ascontiguousarray(plane)).save(folder / f"{image_id}_{channel}.png")


@pytest.fixture(scope="module")
def moved_copies(tmp_path_factory):
    """Six fields, of which one is a shifted and turned copy, and one a crop; four other images; features of both, which
    say that all images are alike: the pixels alone decide."""
    root, rng = tmp_path_factory.mktemp("moved"), np.random.default_rng(0)
    wide = rng.normal(size=(5, 4, 100, 100)).cumsum(axis=2).cumsum(axis=3)
    wide = np.clip(128 + 40 * wide / wide.std(axis=(2, 3), keepdims=True), 0, 255).astype(np.uint8)
    for number in range(4):
        write_field(root / "one", f"field{number}", wide[number, :, :80, :80])
    write_field(root / "one", "moved", np.rot90(wide[0, :, 14:94, 9:89], 1, (1, 2)))
    write_field(root / "one", "crop", wide[1, :, 8:72, 12:76][:, :, ::-1])
    write_field(root / "two", "other", wide[4, :, :80, :80])
    write_field(root / "two", "known", np.rot90(wide[2, :, 5:85, :80], 2, (1, 2)))
    for name in ("one", "two"):
        ids = ImageFolder(root / name).ids[::-1]
        about = {"symmetries": True, "identity": "made up"}
        save_features(Features(ids, 1 + 0.1 * rng.random((len(ids), 8)), about), root / f"{name}.npz")
    return root


def test_moved_copies_are_found_by_features(call_command, moved_copies, tmp_path):
    one, two, out = moved_copies / "one", moved_copies / "two", tmp_path / "found.csv"
    call_command("duplicates", one, "--out", out, "--workers", 1)
    assert len(pd.read_csv(out)) == 0  # hashes know none of them
    table = tmp_path / "labels.csv"
    ids = ImageFolder(one).ids
    pd.DataFrame({"Id": ids, "Target": ["1" if name == "crop" else "0" for name in ids]}).to_csv(table, index=False)
    features = ("--features", moved_copies / "one.npz", "--out", out, "--workers", 1)
    done = call_command("duplicates", one, "--table", table, *features)
    found = pd.read_csv(out)
    assert "2 pairs show the same field, 2 of them moved, by their features, 1 with other labels" in done.stdout
    assert dict(zip(zip(found["first"], found["second"]), found["how"])) == {
        ("crop", "field1"): "mirrored, -8 down, -4 right", ("field0", "moved"): "turned 270, 14 down, 9 right",
    }
    assert found["conflict"].tolist() == [True, False] and out.with_suffix(".png").is_file()
    call_command("duplicates", one, "--against", two, *features, "--against-features", moved_copies / "two.npz")
    found = pd.read_csv(out)[["first", "second", "how"]].to_numpy().tolist()
    assert found == [["field2", "known", "turned 180, 5 down"]]


def test_every_image_needs_features(call_command, moved_copies, tmp_path):
    few = save_features(read_features(moved_copies / "one.npz").take([0, 1, 2]), tmp_path / "few.npz")
    said = call_command("duplicates", moved_copies / "one", "--features", few, "--out", tmp_path / "x.csv")
    check_refusal(said, "has no features; there are those of 3 images")
    said = call_command("duplicates", moved_copies / "one", "--against-features", few, "--out", tmp_path / "x.csv")
    check_refusal(said, "--features and --against-features")
