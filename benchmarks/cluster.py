"""Screening and packing on Ray with one processor and two, beside one process; memory while screening 50,000 images.

    pip install -e ".[benchmarks,onnx,distributed]"
    python benchmarks/cluster.py --work FOLDER       # FOLDER keeps the phantoms

Rates: phantoms of 512 px as PNG files in the page cache, ResNet-18 at 256 px in ONNX Runtime. Ray is started on this
machine with so many processors, and a job has one. A rate is that of the steady work: images after the first file was
written, until the last was. Runs with one and two processors alternate; given are medians, and the median of the ratios
within one round (least to most). "no Ray" is what the machine gives: one or two processes that read and score their
share of the images, from when both are ready.

Memory: small phantoms (32 px), screened with two processors; of all processes together, pages that several share
counted once (Linux: `pss`), at a tenth of the images and at all of them.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from data_path import resident
from torchvision.models import resnet18
from tqdm.auto import tqdm

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.labels import read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.export.onnx import export_bundle
from protein_atlas.predict.load import load_onnx
from protein_atlas.predict.screening import screen
from protein_atlas.system.ray import RayCluster
from protein_atlas.train.learner import rgby_learner
from protein_atlas.vision.data import protein_datablock
from protein_atlas.vision.models import small_resnet

PART = 25  # images a job, where rates are taken


def model_of(folder: Path, arch: object, size: int) -> Path:
    """A network with random weights, exported: what it says does not matter here."""
    if not (folder / "model.zip").exists():
        table = read_labels(folder / "train.csv").take(range(32))
        dls = protein_datablock(folder / "train", table.vocab, size=size).dataloaders(table, bs=8, num_workers=0)
        learn = rgby_learner(dls, arch, pretrained=False)
        with TemporaryDirectory() as bundle:
            learn.save_bundle(Path(bundle) / "bundle", Thresholds(np.full(len(table.vocab), 0.5), table.vocab, "fixed"))
            export_bundle(Path(bundle) / "bundle", folder / "model.zip")
    return folder / "model.zip"


def phantoms(folder: Path, n: int, size: int) -> Path:
    return folder if folder.exists() else simulate_phantoms(folder, n, size)


def steady_rate(files: list[Path], first: int, images: int) -> float:
    """Images a second after the first file was there. first: images in it."""
    times = sorted(file.stat().st_mtime for file in files)
    return (images - first) / (times[-1] - times[0])


def on_ray(work: str, cpus: int, source: Path, n: int, part: int) -> dict:
    """In a process of its own: the rate, and the whole time with the start of Ray."""
    import ray

    started = time.perf_counter()
    ray.init(num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with TemporaryDirectory() as place:
        out = Path(place) / "out"
        if work == "screen":
            ids = ImageFolder(source / "train").ids[:n]
            screen(source / "model.zip", source / "train", out, RayCluster(), ids, part, engine="onnxruntime")
            files = list(out.glob("predictions/*"))
        else:
            pack_images(source / "train", out, 256, ids=ImageFolder(source / "train").ids[:n], cluster=RayCluster())
            files, part = list((out / "256/c").glob("*/0/0/0")), 64
        seconds = time.perf_counter() - started
        return {"rate": steady_rate(files, part, n), "seconds": seconds}


def score_share(source: Path, share: slice, ready: Barrier) -> None:
    predictor, images = load_onnx(source / "model.zip"), ImageFolder(source / "train")
    predictor.scores(images, images.ids[:32], workers=0)
    ready.wait()
    predictor.scores(images, images.ids[share], workers=0)


def without_ray(source: Path, processes: int, n: int) -> float:
    """Images a second of so many processes, each with its share."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1)
    shares = [slice(first, n, processes) for first in range(processes)]
    running = [context.Process(target=score_share, args=(source, share, ready)) for share in shares]
    for process in running:
        process.start()
    ready.wait()
    started = time.perf_counter()
    for process in running:
        process.join()
        if process.exitcode:
            raise SystemExit("a process that scores images failed")
    return n / (time.perf_counter() - started)


def in_a_process(*arguments: object) -> tuple[dict, float]:
    """What `on_ray` gives, and the most memory of all its processes in MB."""
    command = [sys.executable, __file__, "--on-ray", *map(str, arguments)]
    process, most = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), 0.0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        most = max(most, resident(watched, once=True))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(process.stdout.read().splitlines()[-1]), most


def stages(source: Path, n: int = 100) -> dict[str, float]:
    """Milliseconds an image of one processor: reading four files, and scoring; and the bytes of an image's files."""
    images, predictor = ImageFolder(source / "train"), load_onnx(source / "model.zip")
    ids, engine = images.ids[:n], predictor.models[0].engine
    started = time.perf_counter()
    opened = np.stack([images.open(image_id, predictor.size[0]) for image_id in ids])
    read = time.perf_counter() - started
    engine.run(opened[:32])
    started = time.perf_counter()
    for first in range(0, n, 25):
        engine.run(opened[first : first + 25])
    scored = time.perf_counter() - started
    size = sum(path.stat().st_size for image_id in ids for path in images.paths(image_id))
    return {"read": 1000 * read / n, "score": 1000 * scored / n, "bytes": size / n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--fields", type=int, default=2400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", type=int, default=50_000)
    parser.add_argument("--on-ray", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on_ray:
        work, cpus, source, n, part = options.on_ray
        print(json.dumps(on_ray(work, int(cpus), Path(source), int(n), int(part))))
        return

    fields = phantoms(options.work / "fields", options.fields, 512)
    model_of(fields, resnet18, 256)
    found = stages(fields)
    print(
        f"one processor: {found['read']:.1f} ms to read an image, {found['score']:.1f} ms to score it; "
        f"{found['bytes'] / 1e6:.2f} MB of files"
    )
    print("\n| work | images/s, 1 processor | 2 processors | ratio |\n| --- | --- | --- | --- |")
    for work in ("screen", "no Ray", "pack"):
        rates = [[], []]
        for _ in tqdm(range(options.repeats), desc=work, disable=None):
            for place, cpus in enumerate((1, 2)):
                n = options.fields if work == "pack" else options.fields // 4
                rate = (
                    without_ray(fields, cpus, n)
                    if work == "no Ray"
                    else in_a_process(work, cpus, fields, n, PART)[0]["rate"]
                )
                rates[place].append(rate)
        ratios = [two / one for one, two in zip(*rates, strict=True)]
        one, two = map(statistics.median, rates)
        print(
            f"| {work} | {one:.1f} | {two:.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |",
            flush=True,
        )

    small = phantoms(options.work / "small", options.small, 32)
    model_of(small, small_resnet, 32)
    for n in (options.small // 10, options.small):
        ran, most = in_a_process("screen", 2, small, n, 2000 if n > 20_000 else 500)
        print(
            f"{n:,} images of 32 px: {ran['rate']:,.0f} images/s, {most:,.0f} MB at most, "
            f"{ran['seconds']:.0f} s in all",
            flush=True,
        )


if __name__ == "__main__":
    main()
