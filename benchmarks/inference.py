"""From image files to decisions: each engine beside eager fastai, in one run, on networks that were trained.

    pip install -e ".[benchmarks,onnx,openvino]"
    python benchmarks/inference.py --work FOLDER    # simulates, trains, measures; FOLDER keeps images and networks
    python benchmarks/inference.py --work FOLDER --memory FIELDS    # 10,000 images of 512 px: peak memory

Images are phantoms of 256 px with 28 labels, as PNG files in the page cache. A network of each architecture is trained
on some of them, its thresholds are fitted on others, and the rest are predicted. "eager fastai" is what a fastai user
runs: `get_preds` in float32 with the same weights, in torch's own memory order, its loader opening four files an image
by Pillow with two worker processes. Every time includes opening the files and starting the workers. Repetitions
alternate after one round to warm up; given are medians, and the ratio is the median of the ratios within one round
(least to most).

--memory: FIELDS holds a few images of 512 px as <id>_<color>.png; 10,000 names for them are predicted by the command,
and the memory of all its processes together is watched (Linux: pages that several of them share count once, `pss`).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from data_path import alternate, resident, seconds_of, users_loaders
from fastai.callback.schedule import fit_one_cycle  # noqa: F401 (brings Learner.fit_one_cycle)
from fastai.data.transforms import IndexSplitter, IntToFloatTensor, Normalize
from fastai.learner import Learner
from fastai.torch_core import set_seed

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.labels import LabelTable, read_labels
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.splits import balanced_split
from protein_atlas.evaluate.metrics import macro_f1
from protein_atlas.export.onnx import export_bundle
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.predict.load import load_onnx
from protein_atlas.train.learner import rgby_learner
from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock
from protein_atlas.vision.losses import MultiLabelFocalLoss
from protein_atlas.vision.network import load_bundle, load_network

SIZE, BATCH = 256, 32
WAYS = (("torch", "fp32"), ("onnxruntime", "fp32"), ("openvino", "fp32"), ("torch", "bf16"), ("openvino", "bf16"))


def exported_network(work: Path, arch: str, table: LabelTable, images: Path, epochs: int) -> Path:
    """A bundle with ONNX, of a network trained on most of the images; on the rest, its thresholds are fitted and
    engines checked."""
    trained, bundle = (work / f"{arch}_{len(table)}_{epochs}{suffix}" for suffix in (".zip", ""))
    _, valid = balanced_split(table.targets, 0.2, strict=False)
    if not trained.exists():
        set_seed(0, reproducible=True)
        block = protein_datablock(images, table.vocab, splitter=IndexSplitter(valid.tolist()))
        learn = rgby_learner(oversampled_dataloaders(block, table, bs=BATCH), arch, pretrained=False)
        with learn.no_bar():
            learn.fit_one_cycle(epochs, 3e-3)
        learn.fit_thresholds()
        learn.save_bundle(trained)
    if not bundle.exists():
        export_bundle(trained, bundle, images, table.ids[valid].tolist(), table.targets[valid])
    return bundle


def users_get_preds(bundle: Path, images: Path, table: LabelTable, rows: np.ndarray) -> Callable[[], np.ndarray]:
    """The same weights as a fastai user runs them; what predicts the images of `rows`."""
    with open_bundle(bundle) as opened:
        scoring, known = load_network(opened), opened.description
    network = scoring.model.to(memory_format=torch.contiguous_format)
    network._forward_pre_hooks.clear()  # which would put images channels last
    tfms = [IntToFloatTensor(), Normalize.from_stats(known.mean, known.std, cuda=False)]
    dls = users_loaders(images, SIZE, table, rows, tfms, BATCH)
    learn = Learner(dls, network, loss_func=MultiLabelFocalLoss())

    def predict() -> np.ndarray:
        with learn.no_bar(), learn.no_logging():
            return learn.get_preds(ds_idx=1)[0].numpy()

    return predict


def measure(work: Path, arch: str, table: LabelTable, images: Path, epochs: int, repeats: int) -> None:
    rest, test = balanced_split(table.targets, 0.4, seed=1, strict=False)
    bundle = exported_network(work, arch, table.take(rest), images, epochs)
    ids, targets = table.ids[test].tolist(), table.targets[test]
    predictors = {
        f"{engine} {precision}": load_bundle(bundle, "cpu", precision)
        if engine == "torch"
        else load_onnx(bundle, engine, precision)
        for engine, precision in WAYS
    }
    ways = {"eager fastai": users_get_preds(bundle, images, table, test)}
    ways |= {name: partial(predictor.scores, images, ids, BATCH) for name, predictor in predictors.items()}
    bare = {
        name: replace(p, models=(replace(p.models[0], exact=None),))
        for name, p in predictors.items()
        if p.models[0].exact
    }
    ways |= {f"{name}, no margin": partial(predictor.scores, images, ids, BATCH) for name, predictor in bare.items()}
    scores = {}

    def timed(name: str) -> float:
        return seconds_of(lambda: scores.update({name: ways[name]()}))

    taken = alternate({name: partial(timed, name) for name in ways}, repeats)
    thresholds = predictors["torch fp32"].thresholds
    decisions = {name: thresholds.decide(found) for name, found in scores.items()}

    reference = "eager fastai"
    f1 = macro_f1(targets, decisions[reference])
    for name, predictor in predictors.items():
        print(f"{name}: {predictor.describe()}")
    print(
        f"\n## {arch}, {len(ids)} images of {SIZE} px, macro F1 {f1:.4f} (eager fastai; thresholds from other images)\n"
    )
    print(
        "| | images/s | times eager fastai | largest difference of a score | decisions that differ | agree | macro F1 |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, seconds in taken.items():
        ratios = [theirs / ours for theirs, ours in zip(taken[reference], seconds, strict=True)]
        differ = int((decisions[name] != decisions[reference]).sum())
        print(
            f"| {name} | {len(ids) / statistics.median(seconds):.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) | {np.abs(scores[name] - scores[reference]).max():.1e} | {differ} "
            "of "
            f"{decisions[name].size} | {1 - differ / decisions[name].size:.3%} | "
            f"{macro_f1(targets, decisions[name]) - f1:+.4f} |"
        )


def measure_memory(work: Path, fields: Path, bundle: Path, count: int, workers: int) -> None:
    """The command on many names for a few files."""
    found = ImageFolder(fields)
    many = work / f"many_{count}"
    if not many.exists():
        many.mkdir()
        for number in range(count):
            for path in found.paths(found.ids[number % len(found)]):
                channel = path.name.rpartition("_")[2]
                (many / f"im{number:06}_{channel}").symlink_to(path.resolve())
    out = work / "many.csv"
    for engine, some in (("onnxruntime", count), ("torch", count // 5)):
        (work / "ids.txt").write_text("".join(f"im{number:06}\n" for number in range(some)))
        command = [Path(sys.executable).with_name("protein_atlas"), "predict", bundle, many, "--out", out]
        command += ["--ids", work / "ids.txt", "--engine", engine, "--workers", str(workers)]
        started, peak = time.perf_counter(), 0.0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, resident(psutil.Process(process.pid), once=True))
            time.sleep(0.5)  # it takes a while to add up all pages
        if process.returncode:
            raise SystemExit(f"predict ended with {process.returncode}")
        print(
            f"{some:,} images of 512 px, {engine}, {workers} workers: peak {peak:,.0f} MB, "
            f"{time.perf_counter() - started:.0f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--archs", nargs="+", default=["resnet18", "squeezenet1_0"])
    parser.add_argument("--n", type=int, default=1500, help="phantoms, of which 40 %% are predicted")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(psutil.cpu_count())
    data = arguments.work / f"phantoms_{arguments.n}"
    if not data.exists():
        simulate_phantoms(data, arguments.n, SIZE, min_count=arguments.n // 80)
    table, images = read_labels(data / "train.csv"), data / "train"
    if arguments.memory:
        rest, _ = balanced_split(table.targets, 0.4, seed=1, strict=False)
        bundle = exported_network(arguments.work, arguments.archs[0], table.take(rest), images, arguments.epochs)
        measure_memory(arguments.work, arguments.memory, bundle, arguments.count, workers=2)
        return
    for arch in arguments.archs:
        measure(arguments.work, arch, table, images, arguments.epochs, arguments.repeats)


if __name__ == "__main__":
    main()
