"""Whether the loader keeps a GPU busy: training steps from a packed store, against batches on the device already.

    pip install -e ".[benchmarks]"
    python benchmarks/gpu.py --make FEW_FIELDS      # files combined from the channels of a few real 512 px fields
    python benchmarks/gpu.py --images FOLDER        # or real 512 px files: <id>_<red|green|blue|yellow>.png

Without either the files are simulated, and compress otherwise than real ones. A step is forward pass in bf16, channels
last, focal loss, backward pass and fused AdamW; no weights are loaded. It is fed in turn from

- ready batches: float batches that lie on the device, which is the limit;
- uint8 batches that lie on the device, through D4, gain and normalisation there: what those cost;
- the store, through this library's loader and the same transforms: what training does;
- channel files, through the user's pipeline of `data_path.py`: Pillow in worker processes, `aug_transforms()` and
  `Normalize` on the device.

The images are few and in the page cache; the store has copies of them under new ids, so that an epoch is as long as a
real one. Without a GPU it runs small on the processor, in fp32, which says only that the script runs.
"""

import argparse
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Self

import torch
from data_path import combined_fields, drawn_labels, enlarged_store, our_loaders, users_augmentation, users_loaders
from fastai.data.core import DataLoaders

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.labels import LOCATIONS
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.store import ImageStore
from protein_atlas.vision.augment import rgby_transforms
from protein_atlas.vision.devices import best_precision
from protein_atlas.vision.losses import MultiLabelFocalLoss
from protein_atlas.vision.models import create_model


class Utilization:
    """The share of time in which the GPU ran a kernel, in percent, as `nvidia-smi` says five times a second."""

    def __enter__(self) -> Self:
        self.seen: list[float] = []
        query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=lambda: self.seen.extend(float(line) for line in self._process.stdout))
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.terminate()
        self._thread.join()
        self._process.wait()


def stepper(arch: str, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A training step of a new network."""
    model = create_model(arch, len(LOCATIONS), pretrained=False).to(device).train()
    loss, opt = MultiLabelFocalLoss().to(device), torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    dtype = torch.bfloat16 if best_precision(device) == "bf16" else None

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(images)
        loss(logits, targets).backward()
        opt.step()
        opt.zero_grad()

    return step


def endless(dls: DataLoaders) -> Iterator[tuple]:
    while True:
        yield from dls.train


def transformed(dls: DataLoaders, batches: Iterable[tuple]) -> Iterator[tuple]:
    for batch in batches:
        yield dls.train.after_batch(batch)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def images_per_second(
    step: Callable[[torch.Tensor, torch.Tensor], None], batches: Iterator[tuple], device: torch.device, seconds: float
) -> float:
    """Steps until so many seconds are over, after a few to warm up; the device is waited for at the end."""
    for batch in islice(batches, 3):
        step(*batch)
    wait(device)
    images, started = 0, time.perf_counter()
    for batch in batches:
        step(*batch)
        images += len(batch[0])
        # The device may be many steps behind; that it is waited for now and then costs less than a thousandth.
        if images % (16 * len(batch[0])) == 0:
            wait(device)
        if time.perf_counter() - started >= seconds:
            break
    wait(device)
    return images / (time.perf_counter() - started)


def measure(
    arch: str, feeds: dict[str, Callable[[], Iterator[tuple]]], device: torch.device, seconds: float, repeats: int
) -> None:
    """Lines of the table for one network; the first feed is the limit. Rounds alternate between the feeds."""
    step = stepper(arch, device)
    speeds, busy, memory = ({name: [] for name in feeds} for _ in range(3))
    for _ in range(repeats):
        for name, feed in feeds.items():
            batches = feed()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                with Utilization() as utilization:
                    speeds[name].append(images_per_second(step, batches, device, seconds))
                # Without the first second, in which the feed warms up.
                busy[name] += utilization.seen[5:]
                memory[name].append(torch.cuda.max_memory_allocated(device) / 1e9)
            else:
                speeds[name].append(images_per_second(step, batches, device, seconds))
            del batches  # ends its threads or workers
    limit = speeds[next(iter(feeds))]
    for name, found in speeds.items():
        share = statistics.median(a / b for a, b in zip(found, limit, strict=True))
        bar = device.type == "cuda" and name.startswith("store")
        cells = [arch, name, f"{statistics.median(found):,.0f}", f"{100 * share:.0f} %", "90 %" if bar else ""]
        cells.append(("yes" if share >= 0.9 else "NO") if bar else "")
        cells.append(f"{statistics.mean(busy[name]):.0f} %" if busy[name] else "")
        cells.append(f"{max(memory[name]):.1f} GB" if memory[name] else "")
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--images", type=Path, help="real files, of the size given by --size")
    given.add_argument("--make", type=Path, metavar="FIELDS", help="a few real fields, whose channels are combined")
    parser.add_argument("--archs", nargs="+", help="default resnet34 resnet50 densenet121; without a GPU resnet18")
    parser.add_argument("--size", type=int, help="default 512; without a GPU 64")
    parser.add_argument("--bs", type=int, help="default 64; without a GPU 8")
    parser.add_argument("--files", type=int, help="images in files; default 512, without a GPU 128")
    parser.add_argument("--many", type=int, help="images in the store; default 10000, without a GPU 192")
    parser.add_argument("--workers", type=int, help="of both loaders; default: a thread a core, two processes")
    parser.add_argument("--seconds", type=float, help="of one timing; default 15, without a GPU 1")
    parser.add_argument("--repeats", type=int, help="default 3, without a GPU 1")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    usual = {
        "archs": ["resnet34", "resnet50", "densenet121"], "size": 512, "bs": 64, "files": 512, "many": 10_000,
        "seconds": 15.0, "repeats": 3,
    }  # fmt: skip
    small = {"archs": ["resnet18"], "size": 64, "bs": 8, "files": 128, "many": 192, "seconds": 1.0, "repeats": 1}
    for name, value in (usual if cuda else small).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    device = torch.device("cuda" if cuda else "cpu")
    size, bs = arguments.size, arguments.bs

    with tempfile.TemporaryDirectory(prefix="gpu_") as temporary:
        temporary = Path(temporary)
        if arguments.images:
            folder, source = arguments.images, "real files"
        elif arguments.make:
            folder = combined_fields(arguments.make, temporary / "files", arguments.files)
            source = "real channels of different fields, combined"
        else:
            folder = simulate_phantoms(temporary / "phantoms", arguments.files, size) / "train"
            source = "PHANTOMS, not real images"
        ids = ImageFolder(folder).ids[: arguments.files]
        pack_images(folder, temporary / "packed", size, ids=ids)
        store = ImageStore(enlarged_store(temporary / "packed", temporary / "many", arguments.many, size))
        table, few, valid = drawn_labels(store.ids), drawn_labels(ids), range(bs)
        threads = {} if arguments.workers is None else {"num_workers": arguments.workers}
        processes = {} if arguments.workers is None else {"workers": arguments.workers}
        ours = our_loaders(store, table, valid, rgby_transforms(store.mean, store.std), bs, device, **threads)
        users = users_loaders(
            folder, size, few, valid, users_augmentation(store.mean, store.std), bs, device, **processes
        )  # fmt: skip
        bare = our_loaders(store, table, valid, (), bs, device, **threads)
        bare.train.after_batch.fs.clear()
        resident = list(islice(bare.train, 8))
        ready = list(transformed(ours, resident))
        feeds = {
            "ready batches on the device": lambda: cycle(ready),
            "uint8 batches on the device, D4, gain, normalised": lambda: transformed(ours, cycle(resident)),
            "store, our loader": lambda: endless(ours),
            "files, the user's pipeline": lambda: endless(users),
        }
        name = torch.cuda.get_device_name(device) if cuda else f"{torch.backends.cpu.get_cpu_capability()} processor"
        print(f"{name}, torch {torch.__version__}, {best_precision(device)}; {ours.train.workers} threads, "
              f"{users.train.fake_l.num_workers} processes; {len(store):,} images of {size} px in the store, {bs} a "
              f"batch; {len(ids)} of them in files: {source}")  # fmt: skip
        if not cuda:
            print("NO GPU here: a small run on the processor, which says nothing of a GPU")
        print("\n| network | fed from | images/s | of ready batches | bar | reached | GPU busy | most GPU memory |")
        print(f"|{' --- |' * 8}", flush=True)
        for arch in arguments.archs:
            measure(arch, feeds, device, arguments.seconds, arguments.repeats)


if __name__ == "__main__":
    main()
