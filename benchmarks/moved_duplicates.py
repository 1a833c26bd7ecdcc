"""Copies of fields that were shifted, turned, cropped or dimmed: how many features find that hashes do not.

    python benchmarks/moved_duplicates.py [--fields 240] [--copies 160] [--seed 0]

Fields are simulated, 320 px, and a window of 256 px is cut from each. Of some a second window is planted: shifted by 13
to 51 px both ways; turned or mirrored; a corner of 205 px, turned or not; or shifted, turned and a fifth darker. What
`duplicates --features` calls the same is compared with what was planted; features are those of
`embed small_resnet --symmetries`. Prints two tables in Markdown.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from protein_atlas.data.duplicates import find_duplicates
from protein_atlas.data.images import save_image
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.sources import open_images
from protein_atlas.embed.load import embed
from protein_atlas.features.duplicates import find_moved_duplicates

KINDS = ("shifted", "turned", "cropped", "shifted, turned and dimmed")
_WHOLE, _WINDOW, _CROP = 320, 256, 205


def planted(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two windows of a field (C, 320, 320), the second moved in one of `KINDS`."""
    play = _WHOLE - _WINDOW
    first = np.where(rng.random(2) < 0.5, rng.integers(0, play - 51 + 1, 2), rng.integers(51, play + 1, 2))
    second = first.copy()
    if kind.startswith("shifted"):
        second = np.where(first < play / 2, first + rng.integers(13, 52, 2), first - rng.integers(13, 52, 2))
    one, two = (image[:, y : y + _WINDOW, x : x + _WINDOW] for y, x in (first, second))
    if kind == "cropped":
        y, x = rng.integers(0, _WINDOW - _CROP + 1, 2)
        two = two[:, y : y + _CROP, x : x + _CROP]
    if "dimmed" in kind:
        two = (two * 0.8).astype(np.uint8)
    if kind != "shifted":
        turn = rng.integers(1 if kind == "turned" else 0, 8)
        two = np.rot90(two[:, :, ::-1] if turn >= 4 else two, turn % 4, (1, 2))
    return one, np.ascontiguousarray(two)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=240)
    parser.add_argument("--copies", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.copies > given.fields:
        parser.error(f"{given.copies} copies of {given.fields} fields: at most one a field")
    rng, truth = np.random.default_rng(given.seed), {}
    with TemporaryDirectory() as name:
        whole = open_images(simulate_phantoms(Path(name) / "whole", given.fields, _WHOLE, seed=given.seed) / "train")
        folder = Path(name) / "windows"
        folder.mkdir()
        for row, image_id in enumerate(whole.ids):
            kind = KINDS[row % len(KINDS)]
            one, two = planted(whole.open(image_id), kind, rng)
            save_image(folder, f"f{row:04d}", one)
            if row < given.copies:
                save_image(folder, f"copy{row:04d}", two)
                truth[frozenset((f"f{row:04d}", f"copy{row:04d}"))] = kind
        images, times = open_images(folder), [time.perf_counter()]
        hashed = find_duplicates(images)
        times.append(time.perf_counter())
        features = embed("small_resnet", images, symmetries=True)
        times.append(time.perf_counter())
        moved = find_moved_duplicates(features, images)
        times.append(time.perf_counter())
    found = {
        way: {frozenset(pair) for pair in pairs.loc[pairs["same"], ["first", "second"]].itertuples(index=False)}
        for way, pairs in (("hashes", hashed), ("features", moved))
    }
    print("| the copy was | found by features | found by hashes |\n| --- | ---: | ---: |")
    for kind in KINDS:
        of = {pair for pair, its in truth.items() if its == kind}
        print(f"| {kind} | {len(of & found['features'])} of {len(of)} | {len(of & found['hashes'])} of {len(of)} |")
    false = {way: len(pairs - truth.keys()) for way, pairs in found.items()}
    print(f"| other pairs, taken for the same | {false['features']} | {false['hashes']} |")
    hashing, embedding, looking = np.diff(times)
    print(
        f"\n{len(images.ids)} images, {len(moved)} pairs looked at. Seconds: hashes {hashing:.0f}, features "
        f"{embedding:.0f}, pairs {looking:.0f}"
    )


if __name__ == "__main__":
    main()
