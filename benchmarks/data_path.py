"""From image files to batches: this library beside what a fastai user writes, in one run.

    pip install -e ".[benchmarks]"
    python benchmarks/data_path.py --images FOLDER              # real 512 px files: <id>_<red|green|blue|yellow>.png
    python benchmarks/data_path.py --make FEW_FIELDS            # combined from the channels of a few real fields
    python benchmarks/data_path.py --quick --only loader files  # only some rows, fewer images and repetitions
    python benchmarks/data_path.py --fit --cells FOLDER --tiff FOLDER --images FOLDER    # all of it

Without --images and --make the files are simulated, and the figures are of phantoms, which compress differently.
--cells: a labelled set in the Kaggle layout (train.csv with Id, Target and Group; train/<Id>_<color>.png) for the fit.
--tiff: full-size images, one of which is opened at 512 px.

"The user's pipeline" opens four files by Pillow for each item, resizes them by Pillow where their size is another,
stacks them, and makes batches by fastai's own `weighted_dataloaders` with two worker processes; its augmentation is
`aug_transforms()` and `Normalize`. Both draw from the same images with the same weights, 32 a batch, from files in the
page cache, and hand out batches that may be kept: "batches held" keeps all of an epoch, "batches let go" drops each for
the next, so that its memory is used again. Everything runs on the processor. Repetitions alternate after one round to
warm up; given are medians, and the ratio is the median of the ratios within one round (least to most), which a busy
machine disturbs least. Whole epochs are timed, so that each pays for starting its workers or threads.
"""

import argparse
import gc
import itertools
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from fastai.callback.data import WeightedDL  # noqa: F401 (brings DataBlock.weighted_dataloaders)
from fastai.callback.schedule import fit_one_cycle  # noqa: F401 (brings Learner.fit_one_cycle)
from fastai.callback.training import ShortEpochCallback
from fastai.data.block import DataBlock, MultiCategoryBlock, TransformBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import ColReader, IndexSplitter, IntToFloatTensor, Normalize
from fastai.learner import Learner
from fastai.torch_core import TensorImage, set_seed
from fastai.vision.augment import aug_transforms
from fastai.vision.learner import vision_learner
from fasttransform import Pipeline
from PIL import Image
from torchvision.models import resnet18

from protein_atlas.data.decode import read_gray
from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import CHANNELS, open_image
from protein_atlas.data.labels import LOCATIONS, LabelTable, read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import draw_targets, simulate_phantoms
from protein_atlas.data.sampling import rarity_weights
from protein_atlas.data.splits import balanced_split
from protein_atlas.data.store import (
    SHARD_IMAGES,
    ImageStore,
    array_metadata,
    decode_shard,
    encode_shard,
    pixels_checksum,
    seal,
    shard_name,
    size_name,
    store_description,
    table_seal,
)
from protein_atlas.system.files import whole_file
from protein_atlas.system.processes import map_in_processes
from protein_atlas.train.learner import rgby_learner
from protein_atlas.vision.augment import rgby_transforms
from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock
from protein_atlas.vision.losses import MultiLabelFocalLoss
from protein_atlas.vision.metrics import MacroAveragePrecision

BATCH = 32
CPU = torch.device("cpu")
ROWS = ("loader", "augmented", "files", "store", "large", "epochs", "fit")
MANY = 10_000


# --- the user's pipeline ---


def users_open(folder: Path, size: int) -> Callable[[str], TensorImage]:
    """What opens one image: four files by Pillow, resized by Pillow if they have another size."""

    def open_four(image_id):
        planes = []
        for channel in CHANNELS:
            picture = Image.open(folder / f"{image_id}_{channel}.png")
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.BILINEAR)
            planes.append(np.array(picture))
        return TensorImage(np.stack(planes))

    return open_four


def users_loaders(
    folder: Path, size: int, table: LabelTable, valid: Sequence[int], batch_tfms: Sequence = (), bs: int = BATCH,
    device: torch.device = CPU, workers: int = 2,
) -> DataLoaders:  # fmt: skip
    block = DataBlock(
        blocks=(TransformBlock(type_tfms=users_open(folder, size)), MultiCategoryBlock(vocab=list(table.vocab))),
        get_x=ColReader("Id"),
        get_y=ColReader("Target", label_delim=";"),
        splitter=IndexSplitter(valid),
        batch_tfms=list(batch_tfms),
    )
    weights = rarity_weights(table.targets)
    return block.weighted_dataloaders(table.frame(), weights, bs=bs, num_workers=workers, device=device)


def users_augmentation(mean: Sequence[float], std: Sequence[float]) -> list:
    return [IntToFloatTensor(), *aug_transforms(), Normalize.from_stats(mean, std, cuda=False)]


def our_loaders(
    images: Path | ImageStore, table: LabelTable, valid: Sequence[int], batch_tfms: Sequence = (), bs: int = BATCH,
    device: torch.device = CPU, **options,
) -> DataLoaders:  # fmt: skip
    """options: size for a folder, num_workers of the loaders."""
    size = {"size": options.pop("size")} if "size" in options else {}
    block = protein_datablock(images, table.vocab, splitter=IndexSplitter(valid), batch_tfms=list(batch_tfms), **size)
    return oversampled_dataloaders(block, table, bs=bs, device=device, **options)


def bare(dls: DataLoaders) -> TfmdDL:
    """The training loader without batch transforms: uint8 batches."""
    dls.train.after_batch = Pipeline([])
    return dls.train


# --- measuring ---


def images_per_second(loader: TfmdDL, seconds: float, hold: bool = False) -> float:
    """Whole epochs, until so many seconds are over. hold: every batch of an epoch is kept until the epoch is over."""
    images, held, started = 0, [], time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for batch in loader:
            images += len(batch[0])
            if hold:
                held.append(batch)
        held.clear()
    return images / elapsed


def seconds_of(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def alternate(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each measure returns, one of each in turn, after one of each to warm up."""
    taken = {name: [] for name in measures}
    for round_ in range(1 + repeats):
        for name, measure in measures.items():
            value = measure()
            if round_:
                taken[name].append(value)
    return taken


@dataclass
class Settings:
    """folder: the 512 px files. temporary: where stores are made. seconds: of one timing."""

    folder: Path
    temporary: Path
    count: int | None
    quick: bool
    fit: bool
    cells: Path | None
    tiff: Path | None
    seconds: float
    repeats: int

    def table(self) -> LabelTable:
        """The images, with label sets like the challenge's: only how often each image is drawn depends on them."""
        return drawn_labels(ImageFolder(self.folder).ids[: self.count])

    def store(self, codec: str) -> Path:
        """The images packed at 256 and 512 px; made at the first call."""
        path = self.temporary / codec
        if not path.exists():
            pack_images(self.folder, path, [256, 512], codec=codec, ids=self.table().ids.tolist())
        return path


def drawn_labels(ids: Sequence[str]) -> LabelTable:
    return LabelTable(np.array(ids, dtype=object), draw_targets(len(ids), tempering=0), LOCATIONS)


def row(what: str, theirs: str, ours: str, value: str, bar: str = "", reached: bool | None = None) -> None:
    """One line of the table."""
    word = "" if reached is None else "yes" if reached else "NO"
    print(f"| {what} | {theirs} | {ours} | {value} | {bar} | {word} |", flush=True)


def ratio_row(
    what: str, theirs: Sequence[float], ours: Sequence[float], bar: float | None, unit: str, digits: int = 0,
    slower: bool = False,
) -> None:  # fmt: skip
    """A line for two series: speeds, whose ratio should be `bar` or more, or costs (`slower`), `bar` or less."""
    ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
    ratio = statistics.median(ratios)
    shown = [f"{statistics.median(figures):,.{digits}f} {unit}" for figures in (theirs, ours)]
    reached = None if bar is None else ratio <= bar if slower else ratio >= bar
    asked = "" if bar is None else f"{'at most ' if slower else ''}{bar:g}x"
    row(what, *shown, f"{ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})", asked, reached)


# --- rows ---


def measure_loader(settings: Settings) -> None:
    """The loader alone: uint8 batches."""
    table, valid = settings.table(), range(BATCH)
    check_same_pixels(settings, table)
    for size in (256, 512):
        users = bare(users_loaders(settings.folder, size, table, valid))
        measures = {"user's": partial(images_per_second, users, settings.seconds)}
        stores = {f"{codec} store": ImageStore(settings.store(codec), size) for codec in ("zstd", "raw")}
        stores["store in memory"] = ImageStore(settings.store("zstd"), size, in_memory=True)
        for kind, store in stores.items():
            ours = bare(our_loaders(store, table, valid))
            measures[f"{kind}, batches let go"] = partial(images_per_second, ours, settings.seconds)
            measures[f"{kind}, batches held"] = partial(images_per_second, ours, settings.seconds, True)
        bytes_each = len(CHANNELS) * size**2
        sources = {"one batch buffer": BATCH, "an array of all the images": len(table)}
        for kind, images in sources.items():
            measures[kind] = partial(copies_per_second, bytes_each, images // BATCH)
        bars = {
            256: {"zstd store, batches let go": 30, "zstd store, batches held": 30, "raw store, batches let go": 100},
            512: {"zstd store, batches let go": 9, "zstd store, batches held": 6},
        }[size]
        taken = alternate(measures, settings.repeats)
        users, gib = taken.pop("user's"), bytes_each / 2**30
        copies = {kind: [gib * speed for speed in taken.pop(kind)] for kind in sources}
        for name, speeds in taken.items():
            ratio_row(f"loader, {size} px: {name}", users, speeds, bars.get(name), "images/s")
        for tier, (kind, speeds) in itertools.product(("raw store", "store in memory"), copies.items()):
            ours = [gib * speed for speed in taken[f"{tier}, batches let go"]]
            what = f"loader, {size} px: {tier}, batches let go, against batches copied from {kind} by one thread"
            ratio_row(what, speeds, ours, 0.6 if size == 256 else None, "GiB/s", 1)


def check_same_pixels(settings: Settings, table: LabelTable) -> None:
    """Both pipelines must open the same pixels."""
    store, users = ImageStore(settings.store("zstd"), 512), users_open(settings.folder, 512)
    for image_id in table.ids[:: max(1, len(table) // 10)]:
        assert (store.open(image_id) == users(image_id).numpy()).all(), f"{image_id}: store and files differ"


def copies_per_second(bytes_each: int, batches: int) -> float:
    """How many images NumPy copies a second to a buffer of one batch, from an array of so many batches, by turns.

    bytes_each: of an image. A single batch stays in the processor's cache if that is large; all images do not.
    """
    source = np.ones((batches, BATCH * bytes_each), np.uint8)
    target = np.zeros(BATCH * bytes_each, np.uint8)
    copies, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < 0.5:
        np.copyto(target, source[copies // BATCH % batches])
        copies += BATCH
    return copies / elapsed


def measure_augmented(settings: Settings) -> None:
    """Batches augmented and normalised on the processor."""
    table, valid = settings.table(), range(BATCH)
    store = ImageStore(settings.store("zstd"), 256)
    users = users_loaders(settings.folder, 256, table, valid, users_augmentation(store.mean, store.std))
    measures = {"user's": partial(images_per_second, users.train, settings.seconds)}
    # About as far as `aug_transforms()` goes; its warp has no counterpart.
    kinds = {"rgby_transforms()": {}, "rgby_transforms(rotate=10, zoom=0.1)": {"rotate": 10.0, "zoom": 0.1}}
    for name, options in kinds.items():
        ours = our_loaders(store, table, valid, rgby_transforms(store.mean, store.std, **options))
        measures[f"zstd store, {name}"] = partial(images_per_second, ours.train, settings.seconds)
    taken = alternate(measures, settings.repeats)
    users = taken.pop("user's")
    for name, speeds in taken.items():
        ratio_row(f"augmented, 256 px: {name}", users, speeds, 10, "images/s")


def measure_files(settings: Settings) -> None:
    """Straight from the files, without a store."""
    table, valid = settings.table(), range(BATCH)
    users = bare(users_loaders(settings.folder, 256, table, valid))
    ours = bare(our_loaders(settings.folder, table, valid, size=256, num_workers=2))
    measures = {"user's": users, "ours": ours}
    measures = {name: partial(images_per_second, loader, settings.seconds) for name, loader in measures.items()}
    taken = alternate(measures, settings.repeats)
    ratio_row("files, 256 px, 2 workers each", *taken.values(), 3, "images/s")
    if settings.tiff is None:
        return
    images = ImageFolder(settings.tiff)
    paths = images.paths(images.ids[0])

    def by_pillow() -> np.ndarray:
        return np.stack([np.array(Image.open(path).resize((512, 512), Image.BILINEAR)) for path in paths])

    with Image.open(paths[0]) as first:
        what = f"one {first.format} image of {first.width} px opened at 512 px, one thread"
    openers = {"Pillow": by_pillow, "ours": partial(open_image, paths, size=512)}
    taken = alternate({name: lambda opener=opener: 1 / seconds_of(opener) for name, opener in openers.items()}, 10)
    ratio_row(what, *taken.values(), None, "images/s", 1)


def read_by_pillow(paths: Sequence[Path]) -> int:
    return sum(np.array(Image.open(path)).nbytes for path in paths)


def read_by_library(paths: Sequence[Path]) -> int:
    return sum(read_gray(path).nbytes for path in paths)


def read_all(function: Callable, jobs: Sequence, workers: int) -> None:
    for _ in map_in_processes(function, jobs, workers, "read", "image"):
        pass


def measure_store(settings: Settings) -> None:
    """The store's size, and the time to build it."""
    folder, workers = ImageFolder(settings.folder), os.cpu_count() or 1
    ids = settings.table().ids.tolist()
    jobs, new = [folder.paths(image_id) for image_id in ids], settings.temporary / "building"
    reports = []

    def build() -> None:
        reports.append(pack_images(settings.folder, new, ids=ids, workers=workers))

    def build_and_remove() -> float:
        taken = seconds_of(build)
        shutil.rmtree(new)
        return taken

    measures = {
        "Pillow": lambda: seconds_of(partial(read_all, read_by_pillow, jobs, workers)),
        "this library": lambda: seconds_of(partial(read_all, read_by_library, jobs, workers)),
        "build": build_and_remove,
    }
    taken = alternate(measures, min(3, settings.repeats))
    sizes = reports[0].source_bytes / 2**20, reports[0].store_bytes / 2**20
    ratio_row("store (zstd) against the files: bytes", *([size] for size in sizes), 1.05, "MiB", 1, slower=True)
    for reader in ("Pillow", "this library"):
        what = f"store built and verified, against all files read once by {reader}, {workers} processes each"
        ratio_row(what, taken[reader], taken["build"], 1.5, "s", 1, slower=True)


def enlarged_store(source: Path, target: Path, images: int, size: int = 512) -> Path:
    """A store of many images, from copies of the full shards of a small one; its ids are new, its pixels repeat."""
    description, side = store_description(source), size_name((size, size))
    small = ImageStore(source, size)
    table = pd.read_csv(source / "images.csv", dtype=str, keep_default_na=False)
    files = [source / shard_name(side, shard) for shard in range(len(table) // SHARD_IMAGES)]
    if not files:
        raise SystemExit(f"{source}: {len(table)} images, but it takes at least {SHARD_IMAGES} to fill a shard")
    if shutil.disk_usage(target.parent).free < 1.2 * images * files[0].stat().st_size / SHARD_IMAGES:
        raise SystemExit(f"{target.parent}: not enough room on the disk for a store of {images} images")
    rows = np.arange(images) % (len(files) * SHARD_IMAGES)
    for shard in range(-(-images // SHARD_IMAGES)):
        file = target / shard_name(side, shard)
        file.parent.mkdir(parents=True)
        chosen = files[shard % len(files)]
        left = images - shard * SHARD_IMAGES
        if left >= SHARD_IMAGES:
            shutil.copyfile(chosen, file)
        else:
            chunks = decode_shard(chosen.read_bytes())
            file.write_bytes(encode_shard([*chunks[:left], *[None] * (SHARD_IMAGES - left)]))
    new = table.iloc[rows].assign(Id=[f"image-{number:05d}" for number in range(images)])
    new[["Id", "error", "bytes", f"crc32_{side}"]].to_csv(target / "images.csv", index=False)
    description |= {
        "images": images, "sizes": [[size, size]], "statistics": {side: description["statistics"][side]},
        "table": table_seal((target / "images.csv").read_bytes()),
    }  # fmt: skip
    description["seal"] = seal(description)
    array = array_metadata(images, small.shape, small.dtype, small.codec)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"protein_atlas": description}}
    for path, content in ((target / side / "zarr.json", array), (target / "zarr.json", group)):
        with whole_file(path) as part:
            part.write_text(json.dumps(content), encoding="utf-8")
    large = ImageStore(target)
    for image_id in large.ids[:: max(1, images // 50)]:
        found, noted = pixels_checksum(large.open(image_id)), large.fingerprint(image_id)
        assert noted == found, f"{image_id}: checksum {found}, expected {noted}"
    return target


# torch alone takes hundreds of MB, with CUDA's libraries more: what is there before anything is opened is told apart.


def watch(function: Callable, *arguments: object) -> tuple[list, list[float], list[float]]:
    """Run a function, whose first argument is what it sends messages through, in a new process, and watch its memory.

    Returns the messages, and of the process and its children together, in MB: the most resident memory that was seen
    before each message, and that at each message.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=function, args=(there, *arguments))
    process.start()
    there.close()
    watched, sent, peaks, now, peak = psutil.Process(process.pid), [], [], [], 0.0
    while True:
        memory = resident(watched)
        peak = max(peak, memory)
        if here.poll(0.05):
            try:
                sent.append(here.recv())
            except EOFError:
                break
            peaks.append(peak)
            now.append(memory)
            peak = 0.0
    process.join()
    if process.exitcode:
        raise SystemExit(f"the process that was watched ended with {process.exitcode}")
    return sent, peaks, now


def resident(process: psutil.Process, once: bool = False) -> float:
    """The memory of a process and its children, in MB. once: pages that they share count once (Linux; slower to add
    up)."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss if once else one.memory_info().rss
    except psutil.NoSuchProcess:  # a worker ended in between; the next look will find the others
        pass
    return total / 1e6


def iterate_many(messages, store: Path, table: Path, bare_batches: bool, batches: int) -> None:
    """In a process of its own, whose imports are done: the start to the first batch, then many batches."""
    messages.send("ready")
    started = time.perf_counter()
    images = ImageStore(store)
    tfms = [] if bare_batches else rgby_transforms(images.mean, images.std)
    dls = oversampled_dataloaders(protein_datablock(images, batch_tfms=tfms), table, bs=BATCH, device=CPU)
    if bare_batches:
        bare(dls)
    loaded = iter(dls.train)
    next(loaded)
    messages.send(time.perf_counter() - started)
    started, seen = time.perf_counter(), 0
    for images, _ in itertools.islice(loaded, batches):
        seen += len(images)
    messages.send(seen / (time.perf_counter() - started))


def measure_large(settings: Settings) -> None:
    """Ten thousand images of 512 px: memory, and the time to the first batch."""
    store = enlarged_store(settings.store("zstd"), settings.temporary / "many", MANY)
    table = drawn_labels(ImageStore(store).ids).save(settings.temporary / "many.csv")
    for what, bare_batches in (("uint8 batches", True), ("rgby_transforms() on the processor", False)):
        batches, repeats = (20, 1) if settings.quick else (MANY, 3)
        runs = [watch(iterate_many, store, table, bare_batches, batches) for _ in range(repeats)]
        starts, speeds = ([sent[number] for sent, _, _ in runs] for number in (1, 2))
        most = max(max(peaks) for _, peaks, _ in runs)
        imports = statistics.median(now[0] for _, _, now in runs)
        what, start = f"{MANY:,} images of 512 px, {what}", statistics.median(starts)
        row(f"{what}: start to the first batch", "", "", f"{start:.2f} s", "at most 2 s", start <= 2)
        speed = f"{statistics.median(speeds):,.0f} images/s"
        what = f"{what}: most memory, all processes; {imports:,.0f} MB of imports and {most - imports:,.0f} MB"
        row(what, "", speed, f"{most:,.0f} MB", "at most 1000 MB", most <= 1000)
    shutil.rmtree(store)


def iterate_epochs(messages, images: Path, kind: str, count: int | None, epochs: int) -> None:
    """In a process of its own: epochs at 256 px, from a store by threads or from files by two workers."""
    if kind == "files":
        table = drawn_labels(ImageFolder(images).ids[:count])
        dls = our_loaders(images, table, range(BATCH), rgby_transforms([0.1] * 4, [0.1] * 4), size=256, num_workers=2)
    else:
        store = ImageStore(images, 256)
        table = drawn_labels(store.ids)
        dls = our_loaders(store, table, range(BATCH), rgby_transforms(store.mean, store.std))
    for _ in range(epochs):
        for _ in dls.train:
            pass
        messages.send(psutil.Process().memory_info().rss / 1e6)


def measure_epochs(settings: Settings) -> None:
    """Resident memory over 20 epochs, with --quick 8."""
    epochs = 8 if settings.quick else 20
    for kind, images in (("store, threads", settings.store("zstd")), ("files, 2 workers", settings.folder)):
        own, peaks, _ = watch(iterate_epochs, images, kind.split(",")[0], settings.count, epochs)
        kinds = {"the process itself after an epoch": own, "most during an epoch, all processes": peaks}
        for what, memory in kinds.items():
            # Medians of three epochs: what a single look finds depends on the moment.
            third, last = statistics.median(memory[2:5]), statistics.median(memory[-3:])
            found = f"{last:,.0f} MB after {third:,.0f} MB"
            row(f"{epochs} epochs, {kind}, {what}: growth after the 3rd", "", found, f"{last - third:+,.0f} MB")


# --- a whole fit ---


def users_learner(folder: Path, size: int, table: LabelTable, valid: Sequence[int], mean, std) -> Learner:
    dls = users_loaders(folder, size, table, valid, users_augmentation(mean, std))
    return vision_learner(
        dls, resnet18, normalize=False, n_out=len(table.vocab), pretrained=False,
        n_in=len(CHANNELS), loss_func=MultiLabelFocalLoss(), metrics=[MacroAveragePrecision()],
    )  # fmt: skip


def our_learner(store: Path, table: LabelTable, valid: Sequence[int]) -> Learner:
    images = ImageStore(store)
    dls = our_loaders(images, table, valid, rgby_transforms(images.mean, images.std))
    return rgby_learner(dls, "resnet18", pretrained=False, metrics=[MacroAveragePrecision()])


def measure_fit(settings: Settings) -> None:
    """A whole `fit` of resnet18: the same images, labels, split, epochs, loss and seeds."""
    labelled = (settings.folder / "train.csv").is_file()
    table = read_labels(settings.folder / "train.csv").present() if labelled else settings.table()
    count, epochs, seeds = (96, 1, 1) if settings.quick else (400, 2, 3)
    kind = "files of 512 px" if labelled else "files of 512 px, labels drawn (the scores mean nothing)"
    for size in (128, 256):
        compare_fits(settings, kind, settings.folder, some_images(table, count), None, size, epochs, seeds)
    if settings.cells is not None:
        whole = read_labels(settings.cells / "train.csv").present()
        table = some_images(whole, count if settings.quick else 800)
        groups, epochs = table.columns["Group"].to_numpy(), 1 if settings.quick else 4
        compare_fits(settings, "cells, files of 128 px", settings.cells / "train", table, groups, 128, epochs, seeds)


def some_images(table: LabelTable, count: int) -> LabelTable:
    return table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:count]))


def compare_fits(
    settings: Settings, kind: str, folder: Path, table: LabelTable, groups: np.ndarray | None, size: int, epochs: int,
    seeds: int,
) -> None:  # fmt: skip
    _, valid = balanced_split(table.targets, 0.25, 0, groups, table.vocab, strict=False)
    store = settings.temporary / f"fit_{folder.parent.name}_{size}"
    pack_images(folder, store, size, ids=table.ids.tolist())
    packed = ImageStore(store)
    makers = {
        "plain": partial(users_learner, folder, size, table, valid, packed.mean, packed.std),
        "ours": partial(our_learner, store, table, valid),
    }
    seconds, results = {name: [] for name in makers}, {name: [] for name in makers}
    for make in makers.values():  # a few batches to warm up
        with fit_quietly(make()) as learn:
            learn.fit(1, 1e-3, cbs=[ShortEpochCallback(pct=0.1, short_valid=True)])
    for seed in range(seeds):
        for name, make in makers.items():
            set_seed(seed)
            learn = make()
            with fit_quietly(learn):
                seconds[name].append(seconds_of(partial(learn.fit_one_cycle, epochs, 1e-3)))
            results[name].append(learn.recorder.values[-1][1:])
            how = learn.auto_precision.describe() if name == "ours" else ""
            del learn
            gc.collect()
    images = f"{len(table) - len(valid)} + {len(valid)} images"
    what = f"fit of resnet18, {kind}, at {size} px, {images}, {epochs} epochs; {how}"
    ratios = [a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True)]
    ratio, times = statistics.median(ratios), [f"{statistics.median(taken):.1f} s" for taken in seconds.values()]
    row(what, *times, f"{ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})", "2.8x", ratio >= 2.8)
    # Ours must be no worse: a lower loss, and a higher precision.
    for number, (score, sign) in enumerate({"validation loss": 1, "macro average precision": -1}.items()):
        values = {name: np.array([result[number] for result in results[name]]) for name in makers}
        shown = [" ".join(f"{value:.4f}" for value in found) for found in values.values()]
        gap = values["ours"].mean() - values["plain"].mean()
        if seeds == 1:
            row(f"the same: {score}, one seed", *shown, f"{gap:+.4f}")
            continue
        error = np.sqrt(sum(found.var(ddof=1) for found in values.values()) / seeds)
        what = f"the same: {score}, {seeds} seeds, difference of the means and its standard error"
        row(what, *shown, f"{gap:+.4f}, {error:.4f}", "no worse by 2 errors", bool(sign * gap <= 2 * error))


def fit_quietly(learn: Learner):
    """Without bars and lines for each epoch."""
    learn.logger = lambda _: None
    return learn.no_bar()


# --- the images ---


def combined_fields(source: Path, target: Path, count: int) -> Path:
    """Many images from few: each channel is that of another of the fields, drawn with a seed; files are copied.

    Where the fields have labels (`train.csv` beside their folder), an image has those of the field whose green it
    shows.
    """
    images = ImageFolder(source)
    combinations = list(itertools.product(images.ids, repeat=len(CHANNELS)))
    if len(combinations) < count:
        raise SystemExit(f"{source}: {len(images)} fields give {len(combinations)} combinations, not {count}")
    target.mkdir()
    chosen = random.Random(0).sample(combinations, count)
    if (source.parent / "train.csv").is_file():
        known = pd.read_csv(source.parent / "train.csv", dtype=str).set_index("Id")["Target"]
        green = CHANNELS.index("green")
        ids = [f"field-{number:04d}" for number in range(count)]
        table = pd.DataFrame({"Id": ids, "Target": [known[fields[green]] for fields in chosen]})
        table.to_csv(target / "train.csv", index=False)
    for number, fields in enumerate(chosen):
        for place, (field, channel) in enumerate(zip(fields, CHANNELS, strict=True)):
            path = images.paths(field)[place]
            shutil.copyfile(path, target / f"field-{number:04d}_{channel}{path.suffix}")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--images", type=Path, help="real 512 px files")
    given.add_argument("--make", type=Path, metavar="FIELDS", help="a few real 512 px fields, to be combined")
    parser.add_argument("--images-count", type=int, help="images used; default 960, with --quick 192")
    parser.add_argument("--cells", type=Path)
    parser.add_argument("--tiff", type=Path)
    parser.add_argument("--fit", action="store_true", help="measure the whole fit too, which takes many minutes")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROWS", help=", ".join(ROWS))
    arguments = parser.parse_args()
    count = arguments.images_count or (192 if arguments.quick else 960)
    rows = arguments.only or [name for name in ROWS if name != "fit" or arguments.fit]

    with tempfile.TemporaryDirectory(prefix="data_path_") as temporary:
        temporary = Path(temporary)
        if arguments.images:
            folder, source = arguments.images, "real files"
        elif arguments.make:
            folder = combined_fields(arguments.make, temporary / "files", count)
            source = "real channels of different fields, combined"
        else:
            folder = simulate_phantoms(temporary / "phantoms", count, 512) / "train"
            source = "PHANTOMS, not real images"
        settings = Settings(
            folder, temporary, count, arguments.quick, arguments.fit, arguments.cells, arguments.tiff,
            0.5 if arguments.quick else 3.0, 3 if arguments.quick else 5,
        )  # fmt: skip
        used = len(settings.table())
        print(f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__} with "
              f"{torch.get_num_threads()} threads; {used} images of 512 px: {source}; {settings.repeats} "
              f"repetitions of {settings.seconds} s or an epoch")  # fmt: skip
        if "large" in rows:
            print(f"{MANY:,} images: shards of the {used} packed ones, copied under new ids; times begin after the "
                  f"imports; memory is resident, the sum over all processes")  # fmt: skip
        print(f"\n| what | user's | ours | ratio | bar | reached |\n|{' --- |' * 6}", flush=True)
        for name in rows:
            globals()[f"measure_{name}"](settings)


if __name__ == "__main__":
    main()
