"""Whether activation maps lie on what they should: on simulated cells, whose painted compartments are known.

    protein_atlas demo                                                    # trains the network that is asked
    python benchmarks/activation_maps.py protein_atlas_demo/run           # some five minutes on two cores
    python benchmarks/activation_maps.py protein_atlas_demo/run --n 2     # only shows that it runs

First: fields that show one label. Of the map's mass, the share on the compartment (pixels with at least a tenth of the
label's brightest light), over the share of the image that the compartment covers: 1 for a map that knows nothing.
Beside it the same for the network with random weights, and for the protein's channel itself, taken as a map: since the
label's light is there, it is high without any network, so that this ratio alone proves little.

Second, and harder: fields that show two labels A and B. Does the map for A favour A's compartment over B's more than
the map for B does? 50 % by chance, and for every map that does not depend on the label asked about. In brackets 95 %
percentile bootstrap intervals over fields. The fields are others than those the network was trained on.
"""

import argparse

import numpy as np
from tqdm import tqdm

from protein_atlas.data.labels import LOCATIONS
from protein_atlas.data.phantoms import simulate_field
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.vision.attribution import (
    MAP_METHODS,
    activation_maps,
    localisation_table,
    mass_share,
    randomise,
    rank_similarity,
)
from protein_atlas.vision.network import load_network

SEED = 1000  # of the fields: the demo's own have seed 0


def painted(labels: list[int], size: int, index: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A field that shows these labels, and for each the pixels with at least a tenth of its brightest light."""
    target = np.zeros(len(LOCATIONS), np.uint8)
    target[labels] = 1
    image, masks = simulate_field(target, size, SEED, index, return_masks=True)
    return image, [masks["light"][label] >= 0.1 * masks["light"][label].max() for label in labels]


def one_label(network, size: int, n: int) -> None:
    labels = np.repeat(np.arange(len(LOCATIONS)), n)
    fields = [painted([label], size, index) for index, label in enumerate(tqdm(labels, "fields", disable=None))]
    images, regions = np.stack([image for image, _ in fields]), np.stack([of[0] for _, of in fields])
    random = randomise(network)
    found = {}
    for method in MAP_METHODS:
        found[method] = activation_maps(network, images, labels, method)
        found[f"{method}, random weights"] = activation_maps(random, images, labels, method)
    found["the channel itself"] = images[:, 1].astype(np.float64)
    tables = {name: localisation_table(maps, regions, labels, LOCATIONS) for name, maps in found.items()}
    print(f"\n| label | area | {' | '.join(found)} |\n| --- | --- |{' --- |' * len(found)}")
    for label in LOCATIONS:
        cells = []
        for table in tables.values():
            row = table.loc[label]
            cells.append(
                f"{row.ratio:.1f} [{row.low:.1f}, {row.high:.1f}]" + (f", {row.empty:.0f} empty" if row.empty else "")
            )
        print(f"| {label} | {row.area:.3f} | {' | '.join(cells)} |")
    print(
        "| median of the labels | | " + " | ".join(f"{table['ratio'].median():.1f}" for table in tables.values()) + " |"
    )
    for method in MAP_METHODS:
        alike = rank_similarity(found[method], found[f"{method}, random weights"])
        print(
            f"{method}: rank correlation of the maps of trained and random weights {np.nanmedian(alike):.2f} (median)"
        )


def two_labels(network, size: int, n: int) -> None:
    rng = np.random.default_rng(SEED)
    pairs, images, regions = [], [], []
    for index in tqdm(range(10**6, 10**6 + n), "pairs", disable=None):
        pair = rng.choice(len(LOCATIONS), 2, replace=False)
        image, (first, second) = painted(pair.tolist(), size, index)
        first, second = first & ~second, second & ~first
        if min(first.sum(), second.sum()) < 20:  # one lies within the other, or there is next to nothing of it
            continue
        pairs.append(pair), images.append(image), regions.append((first, second))
    pairs, images, regions = np.array(pairs), np.stack(images), np.stack(regions).swapaxes(0, 1)
    print(f"\n{len(pairs)} fields that show two labels, with at least 20 pixels of each that are not the other's:")
    for method in MAP_METHODS:
        shares = [
            [mass_share(activation_maps(network, images, asked, method), region) for region in regions]
            for asked in pairs.T
        ]
        (own_first, first_on_second), (second_on_first, own_second) = shares
        right = own_first * own_second > first_on_second * second_on_first
        draws = right[rng.integers(len(right), size=(2000, len(right)))].mean(axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        print(f"{method}: each map favours its own label's compartment in {right.mean():.0%} [{low:.0%}, {high:.0%}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder or bundle, of a network trained on phantoms")
    parser.add_argument("--n", type=int, default=20, help="fields for each label, and a tenth of the pairs")
    options = parser.parse_args()
    with open_bundle(options.run) as bundle:
        network, (size, _) = load_network(bundle), bundle.description.size
        if bundle.description.vocab != LOCATIONS:
            parser.error(f"{options.run}: the network does not have the 28 labels")
    one_label(network, size, options.n)
    two_labels(network, size, 10 * options.n)


if __name__ == "__main__":
    main()
