"""How long it takes to find duplicates: clustering simulated hashes, and hashing simulated images.

    python benchmarks/duplicates.py              # 31,072 hashes, the size of the Kaggle training set: about a minute
    python benchmarks/duplicates.py --n 4000     # only shows that it runs

The hashes have the bit statistics of real ones: which bits are set how often, and which together, is taken from 400
simulated fields of cells, and that many new hashes are drawn (a Gaussian copula). 3 % are near copies, each bit of them
flipped with odds of 1 in 50. Printed: images hashed a second; seconds for `duplicate_candidates` and `cluster_pairs` at
n/4, n/2, n and 2n, and for n that are harder, each bit set with odds of 1 in 10; at n/4 also for comparing all pairs.

Measured on two shared cores, arithmetic on one thread (OMP_NUM_THREADS=1): 0.2, 0.3, 0.7 and 2.3 seconds, and 4.7 for
the harder ones; all pairs at n/4 take 3.7 seconds, so a minute at n. From some 100,000 images on buckets are split a
second time: 124,288 take 8 seconds. Fields of 128 pixels: 546 images a second with 1 worker, 806 with 2; of 512 pixels:
72 and 121, nearly all of it spent on opening the files. Peak memory 0.3 GiB.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import norm

from protein_atlas.data.duplicates import cluster_pairs
from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.hashes import ImageHashes, duplicate_candidates, hash_images
from protein_atlas.data.images import CHANNELS
from protein_atlas.data.phantoms import simulate_phantoms


def make_hashes(unpacked: np.ndarray) -> ImageHashes:
    """From bits, bool (N, 4, 64)."""
    return ImageHashes(np.arange(len(unpacked)).astype(str), CHANNELS, np.packbits(unpacked, axis=2))


def add_copies(unpacked: np.ndarray, rng: np.random.Generator, share: float = 0.03, flips: float = 0.02) -> np.ndarray:
    """The last `share` of the rows become near copies of others."""
    n = int(share * len(unpacked))
    copies = unpacked[rng.integers(0, len(unpacked) - n, n)]
    return np.concatenate([unpacked[:-n], copies ^ (rng.random(copies.shape) < flips)])


def like_real(hashes: ImageHashes, n: int, rng: np.random.Generator) -> ImageHashes:
    """n hashes with the bit frequencies and correlations of real ones."""
    bits = np.unpackbits(hashes.bits, axis=2).reshape(len(hashes), -1).astype(np.float64)
    share = bits.mean(axis=0).clip(1e-4, 1 - 1e-4)
    jittered = bits + rng.normal(0, 1e-3, bits.shape)  # a bit that never changes has no correlation otherwise
    values, vectors = np.linalg.eigh(np.corrcoef(jittered.T))
    mixing = vectors * np.sqrt(values.clip(0))
    normal = rng.standard_normal((n, len(share)), dtype=np.float32) @ mixing.T.astype(np.float32)
    unpacked = (normal < norm.ppf(share) * np.linalg.norm(mixing, axis=1)).reshape(n, len(CHANNELS), -1)
    return make_hashes(add_copies(unpacked, rng))


def all_pairs(hashes: ImageHashes, max_distance: int = 8) -> int:
    """How many pairs lie within the distance, by comparing each image with all."""
    found = 0
    words = hashes.bits.view(np.uint64)[:, :, 0]
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    ones = np.unpackbits(numbers, axis=1).sum(axis=1, dtype=np.uint8)
    for row in range(len(words) - 1):
        differ = (words[row] ^ words[row + 1 :]).view(np.uint16).reshape(-1, len(CHANNELS), 4)
        found += int((ones[differ].sum(axis=2).max(axis=1) <= max_distance).sum())
    return found


def seconds(task: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = task()
    return time.perf_counter() - start, result


def clustering(name: str, hashes: ImageHashes) -> None:
    def cluster() -> tuple[int, int]:
        pairs = duplicate_candidates(hashes)
        groups = cluster_pairs(len(hashes), pairs[["first", "second"]].to_numpy())
        return len(pairs), len(hashes) - groups.max() - 1

    took, (n_pairs, merged) = seconds(cluster)
    said = f"{len(hashes):8,d} hashes: {took:6.2f} s, {n_pairs:,} pairs, {merged:,} images joined"
    print(f"{name:12s} {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=31_072, help="hashes")
    n = parser.parse_args().n
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        small = simulate_phantoms(Path(scratch) / "small", 400, size=128)
        large = simulate_phantoms(Path(scratch) / "large", 60, size=512)
        for data, size in ((small, 128), (large, 512)):
            folder = ImageFolder(data / "train")
            for workers in (1, 2):
                took, hashes = seconds(partial(hash_images, folder, workers=workers))
                print(f"{size} px, {workers} workers: {len(folder) / took:.0f} images/s", flush=True)
        real = hash_images(ImageFolder(small / "train"))
    for size in (n // 4, n // 2, n, 2 * n):
        clustering("like real", like_real(real, size, rng))
    clustering("harder", make_hashes(add_copies(rng.random((n, len(CHANNELS), 64)) < 0.1, rng)))
    clustering("all equal", make_hashes(np.zeros((n, len(CHANNELS), 64), dtype=bool)))
    hashes = like_real(real, n // 4, rng)
    took, found = seconds(lambda: all_pairs(hashes))
    print(f"{'all pairs':12s} {n // 4:8,d} hashes: {took:6.2f} s, {found:,} pairs, compared one with all")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
