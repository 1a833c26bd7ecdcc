"""The same training by fastai and by Keras: are the scores the same, and how long does each take?

    python benchmarks/keras_road.py                             # 1,800 phantoms of 128 px, 3 seeds, Keras on TensorFlow
    KERAS_BACKEND=torch python benchmarks/keras_road.py         # Keras on PyTorch
    python benchmarks/keras_road.py --n 300 --epochs 1 --seeds 1    # only shows that it runs

The phantoms, the network (small_resnet), the number of epochs and the learning rate are those of `protein_atlas demo`.
Both roads share the images, the balanced split, the oversampling weights, D4 and gain, the focal loss, the optimiser's
settings and float32. They do not share the first weights, the draws, and the momentum, which fastai changes along the
cycle. Macro F1: mean of the seeds, each image decided by thresholds that were fitted without it (3 times 5 folds);
95 % bootstrap over the validation images, paired for the difference. Seconds are of training, side by side, one
road after the other in one process, reading included.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from fastai.data.transforms import IndexSplitter
from fastai.torch_core import set_seed

from protein_atlas.data.labels import LabelTable, read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.splits import balanced_split
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.evaluate.intervals import difference_interval, score_interval
from protein_atlas.evaluate.metrics import macro_average_precision
from protein_atlas.keras.backend import keras
from protein_atlas.keras.data import CountBatches, oversampled_datasets
from protein_atlas.keras.losses import MultiLabelFocalCrossentropy
from protein_atlas.keras.models import keras_model
from protein_atlas.train.learner import rgby_learner
from protein_atlas.train.settings import DEMO_SETTINGS
from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock
from protein_atlas.vision.models import small_resnet


def by_fastai(store: ImageStore, table: LabelTable, split: tuple, seed: int, epochs: int) -> np.ndarray:
    set_seed(seed)
    block = protein_datablock(store, table.vocab, splitter=IndexSplitter(split[1].tolist()))
    dls = oversampled_dataloaders(block, table, bs=DEMO_SETTINGS.bs)
    head = {"ps": [DEMO_SETTINGS.dropout / 2, DEMO_SETTINGS.dropout]}
    learn = rgby_learner(dls, small_resnet, pretrained=False, metrics=[], precision="fp32", head_kwargs=head)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, DEMO_SETTINGS.lr)
    return learn.valid_scores()[1]


def by_keras(store: ImageStore, table: LabelTable, split: tuple, seed: int, epochs: int) -> np.ndarray:
    keras.utils.set_random_seed(seed)
    train, valid = oversampled_datasets(store, table, split, bs=DEMO_SETTINGS.bs, seed=seed, workers=2)
    model = keras_model(
        "small_resnet", train.table.targets, size=store.shape[-2:], pretrained=False, dropout=DEMO_SETTINGS.dropout
    )
    steps, most = epochs * len(train), DEMO_SETTINGS.lr
    cycle = keras.optimizers.schedules.CosineDecay(
        most / 25, int(0.75 * steps), 1e-5, warmup_target=most, warmup_steps=int(0.25 * steps)
    )
    optimizer = keras.optimizers.AdamW(cycle, weight_decay=0.01, beta_2=0.99, epsilon=1e-5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, MultiLabelFocalCrossentropy())
    model.fit(train, epochs=epochs, callbacks=[CountBatches()], verbose=0)
    return np.asarray(model.predict(valid, verbose=0), np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1800)
    parser.add_argument("--epochs", type=int, default=DEMO_SETTINGS.epochs)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = simulate_phantoms(Path(folder) / "phantoms", n=options.n, size=128)
        table = read_labels(data / "train.csv")
        pack_images(data / "train", Path(folder) / "store")
        store = ImageStore(Path(folder) / "store")
        split = balanced_split(table.targets, 0.2, 0, vocab=table.vocab, strict=False)
        targets = table.targets[split[1]]
        roads, found, seconds = {"fastai": by_fastai, f"Keras on {keras.backend.backend()}": by_keras}, {}, {}
        for seed in range(options.seeds):
            for name, road in roads.items():
                started = time.perf_counter()
                scores = road(store, table, split, seed, options.epochs)
                seconds.setdefault(name, []).append(time.perf_counter() - started)
                found.setdefault(name, []).append(scores)
    decided = {
        name: np.concatenate([cross_fit(targets, scores, table.vocab).decisions for scores in of])
        for name, of in found.items()
    }
    print("| road | macro F1 | mean average precision | training |\n| --- | --- | --- | --- |")
    for name in roads:
        score = score_interval(targets, decided[name])
        precision = np.mean([macro_average_precision(targets, scores) for scores in found[name]])
        print(
            f"| {name} | {score.estimate:.3f} [{score.low:.3f}, {score.high:.3f}] | {precision:.3f} | "
            f"{np.median(seconds[name]):.0f} s |"
        )
    difference = difference_interval(targets, *(decided[name] for name in reversed(roads)))
    print(
        f"\nKeras less fastai: {difference.estimate:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}], "
        f"{options.seeds} seeds each"
    )


if __name__ == "__main__":
    main()
