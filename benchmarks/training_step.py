"""What a training step costs, and what makes it cheaper: memory layout, precision, optimizer, torch.compile, threads.

    python benchmarks/training_step.py                         # resnet18, 128 and 256 px: step, fit, parts
    python benchmarks/training_step.py --parts compile threads # others of: step, fit, parts, compile, networks, threads

Every engine takes the same batch of ready, normalised images, so that no loader is measured: forward pass, focal
loss, backward pass, optimizer step. Their repetitions alternate. Given are the median and the least of the milliseconds
an image, and how many times as fast as the first row an engine is: the median of the ratios within one round, which a
busy machine disturbs least. "Of a matrix product": the operations a second of the fastest step, against those of the
fastest of large float32 matrix products in the same run.
bf16 is measured where the device has fast instructions for it; on a GPU batches are larger.
"""

import argparse
import statistics
import threading
import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from protein_atlas.callback.precision import AutoPrecision
from protein_atlas.vision.devices import best_precision
from protein_atlas.vision.losses import MultiLabelFocalLoss
from protein_atlas.vision.metrics import MacroAveragePrecision, MacroF1
from protein_atlas.vision.models import create_model

LABELS = 28
MS = ("ms an image", "least", "times as fast")
NETWORKS = ("resnet18", "resnet34", "densenet121", "squeezenet1_1", "efficientnet_b0", "small_resnet")
PARTS = ("step", "compile", "parts", "fit", "networks", "threads")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(engines: dict[Hashable, Callable], device: torch.device, repeats: int) -> dict[Hashable, list[float]]:
    """Seconds of each engine's calls, one of each in turn; those of the first round are left out."""
    seconds = {name: [] for name in engines}
    for round_ in range(1 + repeats):
        for name, engine in engines.items():
            wait(device)
            started = time.perf_counter()
            engine()
            wait(device)
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def compare(seconds: dict[Hashable, list[float]], scale: float) -> list[list[str]]:
    """Rows: engine, median and least times `scale`, median ratio of the first engine's time to it."""
    first = next(iter(seconds.values()))
    rows = []
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, taken, strict=True))
        rows.append([name, f"{scale * statistics.median(taken):.1f}", f"{scale * min(taken):.1f}", f"{ratio:.2f}"])
    return rows


def network(arch: str, device: torch.device, channels_last: bool = True) -> nn.Module:
    """The library's network; without channels_last as its parts would be without the library."""
    model = create_model(arch, LABELS, pretrained=False)
    if not channels_last:
        model._forward_pre_hooks.clear()
        model = model.to(memory_format=torch.contiguous_format)
    return model.to(device).train()


def batch(size: int, bs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    images = torch.randn(bs, 4, size, size, generator=made)
    return images.to(device), (torch.rand(bs, LABELS, generator=made) < 0.06).float().to(device)


def adam(kind: str, model: nn.Module):
    """fastai's Adam, or torch's with the same numbers."""
    if kind == "fastai":
        return Adam(model.parameters(), lr=1e-3, wd=0.01)
    return torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01, **{kind: True}
    )  # fmt: skip


def stepper(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor, optimizer: str = "fastai", precision: str = "fp32",
    flush: bool = False,
) -> Callable[[], None]:  # fmt: skip
    opt, loss = adam(optimizer, model), MultiLabelFocalLoss().to(images.device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def step() -> None:
        torch.set_flush_denormal(flush)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(images)
        loss(logits, targets).backward()
        opt.step()
        opt.zero_grad()
        torch.set_flush_denormal(False)

    return step


def step_flops(model: nn.Module, images: torch.Tensor) -> float:
    """Multiplications and additions of one forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    model.zero_grad()
    return counter.get_total_flops()


def matmul_flops(device: torch.device, n: int = 2048) -> float:
    """Operations a second of a float32 matrix product, the best of ten."""
    a, b = torch.randn(2, n, n, device=device)
    return 2 * n**3 / min(alternate({"": lambda: a @ b}, device, 10)[""])


def measure_step(arch: str, size: int, bs: int, device: torch.device, repeats: int) -> None:
    images, targets = batch(size, bs, device)
    best = best_precision(device)

    def engine(channels_last: bool = True, **options) -> Callable:
        return stepper(network(arch, device, channels_last), images, targets, **options)

    engines = {
        "plain: NCHW, fp32, fastai's Adam": engine(False),
        "channels last": engine(),
        "channels last, torch's Adam (foreach)": engine(optimizer="foreach"),
        "channels last, torch's Adam (fused)": engine(optimizer="fused"),
    }
    if device.type == "cpu":
        engines["channels last, denormals flushed"] = engine(flush=True)
    if best != "fp32":
        engines |= {
            f"NCHW, {best}": engine(False, precision=best),
            f"channels last, {best}": engine(precision=best),
            f"channels last, {best}, torch's Adam (fused)": engine(precision=best, optimizer="fused"),
        }
    peak, flops = matmul_flops(device), step_flops(network(arch, device), images)
    seconds = alternate(engines, device, repeats)
    rows = [row + [f"{flops / min(seconds[row[0]]) / peak:.0%}"] for row in compare(seconds, 1e3 / bs)]
    show(f"One step of {arch}, {size} px, {bs} images a batch: {flops / bs / 1e9:.2f} GFLOP an image, matrix product "
         f"{peak / 1e9:.0f} GFLOP/s", ["engine", *MS, "of a matrix product"], rows)  # fmt: skip
    if best == "fp32":
        print(f"\nbf16 is left out: {device} has no fast instructions for it")


def measure_compile(arch: str, size: int, bs: int, device: torch.device, repeats: int) -> None:
    images, targets = batch(size, bs, device)
    best = best_precision(device)
    eager = stepper(network(arch, device), images, targets, precision=best)
    compiled = stepper(torch.compile(network(arch, device)), images, targets, precision=best)
    first = {}
    for name, engine in (("eager", eager), ("torch.compile", compiled)):
        started = time.perf_counter()
        engine()
        wait(device)
        first[name] = time.perf_counter() - started
    seconds = alternate({"eager": eager, "torch.compile": compiled}, device, repeats)
    gain = statistics.median(a - b for a, b in zip(seconds["eager"], seconds["torch.compile"], strict=True))
    extra = first["torch.compile"] - first["eager"]
    paid = ["", f"after {extra / gain:.0f} batches of {bs}" if gain > 0 else "never"]
    rows = [row + [f"{first[row[0]]:.1f}", word] for row, word in zip(compare(seconds, 1e3 / bs), paid, strict=True)]
    show(f"torch.compile: {arch}, {size} px, channels last, {best}", ["", *MS, "first step, s", "pays"], rows)


def measure_parts(arch: str, size: int, bs: int, device: torch.device, repeats: int) -> None:
    """Where the time of a batch goes that is not the network's."""
    images, targets = batch(size, bs, device)
    loss = MultiLabelFocalLoss().to(device)
    engines: dict[str, Callable] = {}
    for kind in ("fastai", "foreach", "fused"):
        model = network(arch, device)
        loss(model(images), targets).backward()
        engines[f"optimizer step, {kind}"] = adam(kind, model).step
    logits = torch.randn(bs, LABELS, device=device, requires_grad=True)
    engines["focal loss, forward and backward"] = lambda: loss(logits, targets).backward()
    engines["gradients filled with zeros (fastai), not dropped"] = lambda: [p.grad.zero_() for p in model.parameters()]
    engines["batch made channels last"] = lambda: images.contiguous(memory_format=torch.channels_last)
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, LABELS)).to(device)
    few = [(x, y) for x, y in zip(torch.rand(40, 4, 2, 2), torch.zeros(40, LABELS), strict=True)]
    learn = learner(tiny, few, few[:2], 2, device)
    engines["fastai's loop with a network of one layer, 20 batches"] = lambda: learn.fit(1)
    seconds = alternate(engines, device, 5 * repeats)
    rows = [[name, f"{1e3 * statistics.median(taken):.2f}"] for name, taken in seconds.items()]
    show(f"Beside the network ({arch}), {bs} images of {size} px", ["part", "ms"], rows)


def learner(
    model: nn.Module, train: list, valid: list, bs: int, device: torch.device, metrics: bool = True, **options
) -> Learner:
    dls = DataLoaders(DataLoader(train, bs=bs, device=device), DataLoader(valid, bs=bs, device=device), device=device)
    chosen = [MacroF1(), MacroAveragePrecision()] if metrics else []
    learn = Learner(dls, model, loss_func=MultiLabelFocalLoss(), metrics=chosen, **options)
    learn.remove_cbs(learn.cbs.filter(lambda callback: callback.name == "progress"))
    learn.logger = lambda _: None
    return learn


def measure_fit(arch: str, size: int, bs: int, device: torch.device, repeats: int, batches: int = 2) -> None:
    """One epoch of a fastai `Learner`, validation included, a quarter as many images."""
    images, targets = batch(size, bs * batches, torch.device("cpu"))
    items = list(zip(images, targets, strict=True))
    valid = items[: max(2, len(items) // 4)]
    fused = partial(OptimWrapper, opt=partial(torch.optim.AdamW, fused=True, eps=1e-5))
    learners = {
        "plain fastai: NCHW, fp32": learner(network(arch, device, False), items, valid, bs, device),
        "as the library trains": learner(network(arch, device), items, valid, bs, device, cbs=[AutoPrecision()]),
        "the same without metrics": learner(
            network(arch, device), items, valid, bs, device, metrics=False, cbs=[AutoPrecision()]
        ),
        "the same, torch's Adam (fused)": learner(
            network(arch, device), items, valid, bs, device, cbs=[AutoPrecision()], opt_func=fused
        ),
    }
    print(f"\nThe library's choice here: {learners['as the library trains'].auto_precision.describe()}")
    engines = {name: partial(learn.fit, 1, 1e-3) for name, learn in learners.items()}
    rows = compare(alternate(engines, device, repeats), 1e3 / len(items))
    show(f"A whole fit of {arch}, {size} px, {len(items)} images to train on, {len(valid)} to validate, in memory",
         ["engine", *MS], rows)  # fmt: skip


def measure_networks(archs: Sequence[str], size: int, bs: int, device: torch.device, repeats: int) -> None:
    images, targets = batch(size, bs, device)
    rows = []
    for arch in archs:
        engines = {"NCHW": stepper(network(arch, device, False), images, targets)}
        for precision in dict.fromkeys(("fp32", best_precision(device))):
            engines[precision] = stepper(network(arch, device), images, targets, precision=precision)
        nchw, *last = compare(alternate(engines, device, repeats), 1e3 / bs)
        rows += [[arch, nchw[1], *row] for row in last]
    show(f"Channels last, {size} px, {bs} images a batch", ["network", "NCHW, fp32", "precision", *MS], rows)


@contextmanager
def busy_threads(n: int, packed: bytes) -> Iterator[list[int]]:
    """n threads that never rest: each inflates `packed`, which lets other threads run. Yields what each has done."""
    done, stop = [0] * n, threading.Event()

    def load(number: int) -> None:
        while not stop.is_set():
            zlib.decompress(packed)
            done[number] += 1

    running = [threading.Thread(target=load, args=(number,)) for number in range(n)]
    for thread in running:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in running:
            thread.join()


def measure_threads(arch: str, size: int, bs: int, device: torch.device, repeats: int) -> None:
    """The step by one and by all threads, beside loader threads."""
    images, targets = batch(size, bs, device)
    step = stepper(network(arch, device), images, targets)
    packed = zlib.compress(np.random.default_rng(0).integers(0, 8, (4, size, size), dtype=np.uint8).tobytes())
    usual, loaded = torch.get_num_threads(), {}

    def engine(threads: int, loaders: int) -> None:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        with busy_threads(loaders, packed) as done:
            step()
            loaded.setdefault((threads, loaders), []).append(sum(done) / (time.perf_counter() - started))

    settings = [(threads, loaders) for threads in sorted({1, usual}) for loaders in (0, 1, 2)]
    seconds = alternate({setting: partial(engine, *setting) for setting in settings}, device, repeats)
    torch.set_num_threads(usual)
    rows = [
        [*map(str, setting), *row[1:3], f"{statistics.median(loaded[setting]):.0f}"]
        for setting, row in zip(settings, compare(seconds, 1e3 / bs), strict=True)
    ]
    columns = ["torch threads", "busy loader threads", *MS[:2], "images inflated a second"]
    show(f"Threads: {arch}, {size} px", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--bs", type=int, help="images a batch; default 32, on a GPU 128")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["step", "fit", "parts"])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = f"{torch.backends.cpu.get_cpu_capability()} processor, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    bs = arguments.bs or (128 if device.type == "cuda" else 32)
    print(f"{name}, torch {torch.__version__}; best precision here: {best_precision(device)}")
    if device.type != "cuda":
        print("no GPU here: all figures are of the processor")
    for size in arguments.sizes:
        common = (size, bs, device, arguments.repeats)
        for part, measure in (("step", measure_step), ("fit", measure_fit), ("parts", measure_parts),
                              ("compile", measure_compile), ("threads", measure_threads)):  # fmt: skip
            if part in arguments.parts:
                measure(arguments.arch, *common)
        if "networks" in arguments.parts:
            measure_networks(arguments.networks, *common)


if __name__ == "__main__":
    main()
