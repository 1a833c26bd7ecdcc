"""Segmentation without weights on phantoms, whose masks are known: how many nuclei and cells are found, how many true.

python benchmarks/segmentation.py --fields 100 --sizes 128 256 512
"""
import argparse
import time
from collections.abc import Sequence

import numpy as np

from protein_atlas.cells.segmentation import PlainSegmentation
from protein_atlas.data.images import CHANNELS
from protein_atlas.data.phantoms import draw_targets, simulate_field
from protein_atlas.evaluate.mask_overlap import cells_of_label_image, mask_iou

OVERLAP = 0.6  # as the single-cell challenge of 2021 has it


def counts(truth: np.ndarray, found: np.ndarray, whole: bool) -> np.ndarray:
    """Of a field, int64 (3,): true masks, found ones, and pairs of them that overlap.

    whole: true masks at the field's border, and found ones that overlap with these, are left out.
    """
    true, made = list(cells_of_label_image(truth).values()), list(cells_of_label_image(found).values())
    pairs = mask_iou(true, made) > OVERLAP  # over a half: no mask is of two pairs
    if whole:
        height, width = truth.shape
        inside = np.array(
            [m.top > 0 and m.left > 0 and m.bottom < height and m.right < width for m in true], dtype=bool
        )
        cut = np.array([m.top == 0 or m.left == 0 or m.bottom == height or m.right == width for m in made], dtype=bool)
        taken = pairs[~inside].any(axis=0) | cut & ~pairs[inside].any(axis=0)
        pairs = pairs[inside][:, ~taken]
    return np.array([pairs.shape[0], pairs.shape[1], int(pairs.sum())])


def with_interval(per_field: np.ndarray, of: int, rng: np.random.Generator) -> str:
    """The share of pairs in column `of` over all fields, with its 95 % interval by field, as a text."""
    drawn = per_field[rng.integers(len(per_field), size=(2000, len(per_field)))].sum(axis=1)
    low, high = np.percentile(drawn[:, 2] / drawn[:, of], [2.5, 97.5])
    return f"{per_field[:, 2].sum() / per_field[:, of].sum():.3f} ({low:.3f} to {high:.3f})"


def measure(size: int, fields: int, seed: int, cell: Sequence[int]) -> None:
    """Print a row for nuclei and cells, all and those that are whole."""
    segment, rng = PlainSegmentation(CHANNELS.index("blue"), tuple(cell)), np.random.default_rng(0)
    rows: dict[tuple[str, bool], list] = {(name, whole): [] for name in ("nuclei", "cells") for whole in (False, True)}
    took = 0.0
    for index, target in enumerate(draw_targets(fields, seed)):
        image, truth = simulate_field(target, size, seed, index, return_masks=True)
        begun = time.process_time()
        found = segment(image)
        took += time.process_time() - begun
        for (name, whole), row in rows.items():
            row.append(counts(truth[name], getattr(found, name), whole))
    stains = ", ".join(CHANNELS[place] for place in cell)
    for (name, whole), row in rows.items():
        per_field = np.array(row)
        kind = f"whole {name}" if whole else name
        of = f" ({stains})" if name == "cells" else ""
        print(
            f"| {size} | {kind}{of} | {per_field[:, 0].sum():,} | {with_interval(per_field, 0, rng)} | "
            f"{with_interval(per_field, 1, rng)} |", flush=True,
        )  # fmt: skip
    print(f"{took / fields:.2f} s of processor time a field of {size} px", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2)  # the defaults were chosen on seed 1
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--cell", nargs="+", default=["yellow", "red"])
    options = parser.parse_args()
    print("| px | what | true ones | found | of what is found, true |\n| ---: | --- | ---: | ---: | ---: |")
    for size in options.sizes:
        measure(size, options.fields, options.seed, [CHANNELS.index(name) for name in options.cell])


if __name__ == "__main__":
    main()
