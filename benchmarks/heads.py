"""Heads on features: how long they take to learn, and which scores best on images of groups that it has not seen.

    python benchmarks/heads.py                                     # time, on 100,000 images made up: some ten minutes
    python benchmarks/heads.py --images 2000 --features 64         # only shows that it runs
    python benchmarks/heads.py FEATURES LABELS --group Block       # scores; FEATURES as `protein_atlas embed` writes

Time: features of so many images are drawn around 40 directions, labels from a linear rule with noise, their shares
falling from 40 % to 0.2 %. Each head chooses its setting and learns, from four fifths of the groups (of ten images);
the others it scores. Threads are as many as OMP_NUM_THREADS says; processor seconds do not depend on what else runs.

Scores: each image is scored by a head that has not seen its group, in five folds. LABELS: a table of ids, labels and
groups. Accuracy and macro F1 are of the label with the highest score, and stand where each image shows one label.
Both print a table in Markdown.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from protein_atlas.data.labels import read_labels
from protein_atlas.embed.torch_heads import TorchHead
from protein_atlas.evaluate.metrics import macro_average_precision, macro_f1
from protein_atlas.features.files import read_features
from protein_atlas.features.heads import FeatureHead, Head, out_of_fold_scores

HEADS: dict[str, Callable[[], Head]] = {
    "logistic": FeatureHead,
    "mlp": lambda: FeatureHead("mlp"),
    "neighbours": lambda: FeatureHead("neighbours"),
    "chain": lambda: FeatureHead("chain"),
    "powerset": lambda: FeatureHead("powerset"),
    "torch linear": TorchHead,
    "torch mlp": lambda: TorchHead("mlp"),
}
QUICK = ("logistic", "torch linear", "torch mlp")


def drawn(images: int, features: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float32 (N, F), targets (N, K) and groups (N,)."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((40, features)).astype(np.float32)
    values = rng.standard_normal((images, 40), np.float32) @ directions
    values += 1.5 * rng.standard_normal((images, features), np.float32)
    logits = values @ rng.standard_normal((features, labels)).astype(np.float32) / features**0.5
    logits = logits / logits.std(axis=0) * 2 + rng.logistic(size=logits.shape)
    shares = np.geomspace(0.4, 0.002, labels)
    limits = [np.quantile(logits[:, label], 1 - share) for label, share in enumerate(shares)]
    return values, (logits > limits).astype(np.uint8), np.arange(images) // 10


def measure_time(options: argparse.Namespace) -> None:
    features, targets, groups = drawn(options.images, options.features, options.labels)
    seen = groups % 5 > 0
    print(f"{seen.sum()} images to learn from, {features.shape[1]} features, {targets.shape[1]} labels\n")
    print("| head | chosen | choose and learn, s | of a processor, s | score the others, s | macro AP of the others |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name in options.heads or QUICK:
        start, busy = time.perf_counter(), time.process_time()
        head = HEADS[name]().fit(features[seen], targets[seen], groups[seen])
        learned, busy = time.perf_counter(), time.process_time() - busy
        scores = head.scores(features[~seen])
        ended = time.perf_counter()
        chosen = ", ".join(f"{option} {value}" for option, value in head.chosen.items())
        precision = macro_average_precision(targets[~seen], scores)
        times = f"{learned - start:.0f} | {busy:.0f} | {ended - learned:.1f}"
        print(f"| {name} | {chosen} | {times} | {precision:.3f} |", flush=True)


def measure_scores(options: argparse.Namespace) -> None:
    labels = read_labels(options.labels_file, options.vocab) if options.vocab else read_labels(options.labels_file)
    known = read_features(options.features_file).of(labels.ids)
    groups = known.column(options.group) if options.group in known.columns else labels.columns[options.group].to_numpy()
    single = bool((labels.targets.sum(axis=1) == 1).all())
    columns = ["macro AP", *(["accuracy", "macro F1"] * single), "s"]
    print(f"| head | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name in options.heads or HEADS:
        start = time.perf_counter()
        scores, _ = out_of_fold_scores(HEADS[name], known.features, labels.targets, groups)
        line = f"| {name} | {macro_average_precision(labels.targets, scores):.4f} |"
        if single:
            highest = np.eye(scores.shape[1], dtype=np.uint8)[scores.argmax(axis=1)]
            right = (highest & labels.targets).any(axis=1).mean()
            line += f" {right:.4f} | {macro_f1(labels.targets, highest):.4f} |"
        print(f"{line} {time.perf_counter() - start:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features_file", nargs="?", help="features, as `protein_atlas embed` writes them")
    parser.add_argument("labels_file", nargs="?", help="a table of their ids and labels")
    parser.add_argument("--group", default="Group", help="column of the groups, of features or labels")
    parser.add_argument("--vocab", nargs="+", help="the labels' names; default: the 28 of the Human Protein Atlas")
    parser.add_argument("--images", type=int, default=125_000, help="made up, a fifth of them to be scored")
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--labels", type=int, default=28)
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), help=f"default: {', '.join(QUICK)}; all for scores")
    options = parser.parse_args()
    if options.features_file and not options.labels_file:
        parser.error("the labels of the features' images are missing")
    (measure_scores if options.features_file else measure_time)(options)


if __name__ == "__main__":
    main()
