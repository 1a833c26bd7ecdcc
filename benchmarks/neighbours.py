"""How long the nearest of a thousand images among a million take, and how many of them an index finds.

    OMP_NUM_THREADS=2 python benchmarks/neighbours.py      # 1,000,000 x 768: some 15 minutes on two cores
    python benchmarks/neighbours.py --n 20000 --width 64   # only shows that it runs

The features are drawn: clouds of different sizes, as many as there are antibodies in the Human Protein Atlas, spread
along 32 directions, and a little noise in all; so an image has near ones and no clear border. They are kept as float16,
and read from a file that is mapped into memory with --mapped.
Printed: seconds of exact neighbours (k=10, itself left out), seconds to build `NeighbourIndex`, and for several
`probes` seconds of the thousand queries and recall, the share of the exact ten that were found; peak memory throughout.

Measured on two cores that others used at the same time, so that seconds of processors say more than those of the clock:
exact 33 s of processors (88 s by the clock), peak 1.8 GiB; index of 4,000 lists built in 337 s of processors (640 s by
the clock), peak 2.7 GiB; recall 0.912, 0.948, 0.972, 0.988 and 0.997 with 8, 16, 32, 64 and 128 probes, in 1.7, 1.7,
2.5, 4.0 and 6.9 s of processors. Since then the exact distances of what the index found take less than half of what
they did; the million was not run again.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from protein_atlas.features.neighbours import NeighbourIndex, nearest


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def make_features(n: int, width: int, seed: int, clouds: int = 12_813, inner: int = 32) -> np.ndarray:
    """float16 (n, width)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clouds, inner), dtype=np.float32)
    mixing = rng.standard_normal((inner, width), dtype=np.float32) / np.sqrt(inner)
    share = rng.pareto(1.5, clouds) + 0.2
    features = np.empty((n, width), np.float16)
    for first in range(0, n, 10_000):
        rows = min(10_000, n - first)
        of = rng.choice(clouds, rows, p=share / share.sum())
        place = centres[of] + 0.5 * rng.standard_normal((rows, inner), dtype=np.float32)
        noise = 0.1 * rng.standard_normal((rows, width), dtype=np.float32)
        features[first : first + rows] = place @ mixing + noise
    return features


def measure(features: np.ndarray, n_queries: int, probes: list[int]) -> None:
    asked = np.random.default_rng(1).permutation(len(features))[:n_queries]
    queries = np.ascontiguousarray(features[asked])
    start, cpu = time.perf_counter(), time.process_time()
    _, wanted = nearest(queries, features, 10, exclude=asked)
    print(
        f"exact: {time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of processors, peak {peak()}",
        flush=True,
    )
    start, cpu = time.perf_counter(), time.process_time()
    index = NeighbourIndex(features)
    print(
        f"index of {index.lists} lists: built in {time.perf_counter() - start:.1f} s, "
        f"{time.process_time() - cpu:.1f} s of processors, peak {peak()}", flush=True,
    )  # fmt: skip
    for number in probes:
        index.index.nprobe = number
        index.nearest(queries[:10], 10, asked[:10])
        start, cpu = time.perf_counter(), time.process_time()
        _, rows = index.nearest(queries, 10, asked)
        took, spent = time.perf_counter() - start, time.process_time() - cpu
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, wanted, strict=True)])
        print(f"{number:4d} probes: {took:.2f} s, {spent:.2f} s of processors, recall {recall:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--probes", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--mapped", action="store_true", help="read the features from a file")
    options = parser.parse_args()
    start = time.perf_counter()
    features = make_features(options.n, options.width, 0)
    print(f"{options.n:,d} x {options.width} drawn in {time.perf_counter() - start:.0f} s, peak {peak()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.mapped:
            np.save(Path(folder) / "features.npy", features)
            features = np.load(Path(folder) / "features.npy", mmap_mode="r")
        measure(features, options.queries, options.probes)


if __name__ == "__main__":
    main()
