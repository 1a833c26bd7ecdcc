"""Which networks work here: every one of torchvision for classification, and the smallest of every family of timm.

    python benchmarks/networks.py                       # writes docs/networks.md; about half an hour on two cores
    python benchmarks/networks.py resnet18 vit_b_16     # these alone, printed

Each is built as `rgby_learner` builds it, for four channels, with random weights, at 64 pixels; if it cannot take
these, at 128, then at its own size. Then the forward and backward pass of one training step is run with numbers (from
300 million parameters on without, on the meta device): it works if the logits are finite and every parameter has a
gradient. Of timm a family is a module with networks; the smallest is that of the fewest parameters, timm's own for its
tests left out.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision

from protein_atlas.data.images import CHANNELS
from protein_atlas.system.errors import NetworkError
from protein_atlas.vision.bodies import trace
from protein_atlas.vision.families import TORCHVISION, torchvision_function, torchvision_names
from protein_atlas.vision.models import create_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
SIZES = (64, 128, None)  # None: the network's own
WITHOUT_NUMBERS = 300_000_000
TEXT = """# Networks

Which networks work with `rgby_learner(dls, name)` and `--arch name`, and which are refused, by name, with the reason:
every network of torchvision for classification, and of timm the smallest of every family. Written by
`benchmarks/networks.py` with torchvision {torchvision} and timm {timm}; for a network that is not here,
`python benchmarks/networks.py name` says it.

Each was built with random weights for four channels, and given one forward and one backward pass of a training step.
*Works* means: every parameter of the body and the head got a gradient, but for those that the library itself holds
still, and the logits are numbers. *Body* is the number of parameters before the head, *network* that of the whole
network as its library makes it, for three channels. *Size* is the side of the images in pixels: 64, or, where a network
cannot take these, 128 or its own.

"""


@dataclass(frozen=True)
class Row:
    """What was found of a network. outcome: "works", or why it is refused. body, total: parameters; size: pixels."""

    name: str
    family: str
    outcome: str
    body: int = 0
    total: int = 0
    size: int = 0

    def line(self) -> str:
        """The row as Markdown."""
        body = f"{self.body:,}" if self.body else ""
        outcome = self.outcome.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
        return f"| {self.name} | {self.family} | {outcome} | {body} | {self.total:,} | {self.size or ''} |"


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def make_plain(name: str) -> torch.nn.Module:
    """The network as its library makes it, on the meta device; with numbers where its plan is computed with tensors."""
    make = torchvision_function(name) if TORCHVISION.has(name) else partial(timm.create_model, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return make()
        except NotImplementedError:
            return make()


def smallest_of_timm() -> list[str]:
    """Of each module of timm that has networks, the one with the fewest parameters; torchvision's names are its own."""
    found = []
    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if not name.startswith("test_")]
        names = [name for name in names if name not in torchvision_names()]
        found += sorted(names, key=lambda name: count(make_plain(name)))[:1]
    return found


def all_names() -> list[str]:
    """The networks of the page."""
    return [*torchvision_names(), *smallest_of_timm()]


def train_once(model: torch.nn.Module, size: int) -> str:
    """ "works", or what a step of training lacks."""
    model.train()
    shape = (2, len(CHANNELS), size, size)
    if count(model) > WITHOUT_NUMBERS:
        missing = list(trace(model, shape).unused)
    else:
        logits = model(torch.rand(shape))
        if not torch.isfinite(logits).all():
            return "logits that are no numbers"
        logits.square().sum().backward()
        missing = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    return f"no gradient for {', '.join(missing)}" if missing else "works"


def prove(name: str) -> Row:
    """Build a network and train it once, at the first of the sizes that it can take."""
    family, total = ("torchvision" if TORCHVISION.has(name) else "timm"), count(make_plain(name))
    reasons = []
    for size in SIZES:
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = create_model(name, 28, pretrained=False, size=None if size is None else (size, size))
        except NetworkError as error:
            reasons.append(str(error))
            if " cannot take images of " not in str(error) and "cannot be built with" not in str(error):
                break  # for no size
            continue
        side = size or own_side(name)
        return Row(name, family, train_once(model, side), count(model[0]), total, side)
    return Row(name, family, f"refused: {reasons[-1]}", total=total)


def own_side(name: str) -> int:
    """The side that a network's library makes it for."""
    if TORCHVISION.has(name):
        return 224
    return timm.get_pretrained_cfg(name).input_size[-1]


def write_page(rows: list[Row], path: Path = PAGE) -> None:
    """Write the table."""
    works = sum(row.outcome == "works" for row in rows)
    head = (
        f"{works} of {len(rows)} work.\n\n| network | library | | body | network | size |\n"
        "| --- | --- | --- | ---: | ---: | ---: |\n"
    )
    text = TEXT.format(torchvision=torchvision.__version__.split("+")[0], timm=timm.__version__)
    path.write_text(text + head + "".join(f"{row.line()}\n" for row in rows), encoding="utf-8")


def table(names: list[str], say: Callable[[str], None]) -> list[Row]:
    """A row for each name, said as it is found."""
    rows = []
    for name in names:
        started = time.perf_counter()
        rows.append(prove(name))
        say(f"{rows[-1].line()} {time.perf_counter() - started:.1f} s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    if names:
        table(names, print)
    else:
        write_page(table(all_names(), print))


if __name__ == "__main__":
    main()
