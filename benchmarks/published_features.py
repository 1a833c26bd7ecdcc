"""SubCell's features of single cells by this library, side by side with the loop that its authors publish.

    python benchmarks/published_features.py [--cells 16] [--rounds 2] [--batches 1 4]

Weights are drawn from a seed, of full size; images are phantoms of 448 px with four stains, as PNG files in the page
cache. "The authors' loop" is `process.py` and `vit_model.py` of https://github.com/CellProfiling/SubCellPortable: one
cell at a time, its four files opened by Pillow, queries and keys multiplied and the attention of all layers kept
(output_attentions=True), within torch.no_grad. Here it is written out on the same weights, without the library
transformers. The other ways are `Embedder.embed`, with all that it does: opening files, checks, batches of so many.
Loading the weights is in neither time. Rounds alternate after one to warm up; given are the least and the most seconds
a cell, and the ratio to the loop of the same round, which is to be at least 1.5; and the same of processor time, which
other work on the machine disturbs less. Features are the same to 1e-4.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from data_path import alternate
from PIL import Image
from torch import nn
from torch.nn import functional

from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.sources import open_images
from protein_atlas.embed.load import EmbedSettings, load_embedder
from protein_atlas.zoo.published import find_published
from protein_atlas.zoo.subcell import SubCell, as_published, scale_jointly

MODEL = "subcell:rybg"
BAR = 1.5


def drawn_network() -> SubCell:
    """SubCell of four stains with weights drawn from a seed."""
    torch.manual_seed(0)
    network = SubCell(4).eval()
    for tensor in (network.cls_token, network.positions):
        nn.init.normal_(tensor, std=0.02)
    return network


def eager_layer(layer: nn.TransformerEncoderLayer, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer, attention written out: tokens (1, T, width), and the shares (1, heads, T, T) by which it attends."""
    attention, normed = layer.self_attn, layer.norm1(tokens)
    width, heads = normed.shape[-1], attention.num_heads
    query, key, value = (
        functional.linear(normed, weight, bias).unflatten(-1, (heads, width // heads)).transpose(1, 2)
        for weight, bias in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    )
    shares = (query @ key.mT / (width // heads) ** 0.5).softmax(-1)
    tokens = tokens + attention.out_proj((shares @ value).transpose(1, 2).flatten(2))
    return tokens + layer.linear2(functional.gelu(layer.linear1(layer.norm2(tokens)))), shares


@torch.no_grad()
def authors_loop(network: SubCell, folder: Path, ids: Sequence[str]) -> np.ndarray:
    """The features of cells (N, 1536), one at a time, as the authors' program computes them."""
    rows = []
    for image_id in ids:
        planes = [np.array(Image.open(folder / f"{image_id}_{stain}.png")) for stain in find_published(MODEL).channels]
        patches = network.patches(scale_jointly(torch.from_numpy(np.stack(planes)[None]).float()))
        tokens = torch.cat([network.cls_token, patches.flatten(2).mT], 1) + network.positions
        kept = []
        for layer in network.encoder.layers:
            tokens, shares = eager_layer(layer, tokens)
            kept.append(shares)
        rows.append(network.pool(network.encoder.norm(tokens)).numpy())
    return np.concatenate(rows)


def write_cells(folder: Path, count: int) -> list[str]:
    """Phantoms of one cell each: smooth spots and noise. Returns their ids."""
    rng, side = np.random.default_rng(0), find_published(MODEL).size
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    for number in range(count):
        spots = [np.exp(-(rows**2 + columns**2) / (2 * width**2)) for width in rng.uniform(0.05, 0.3, 4)]
        cell = 200 * np.stack(spots) + rng.uniform(0, 40, (4, side, side))
        save_image(folder, f"c{number}", cell.astype(np.uint8))
    return [f"c{number}" for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    asked = parser.parse_args()
    network, found, busy = drawn_network(), {}, defaultdict(list)
    with TemporaryDirectory() as name, TemporaryDirectory() as weights:
        folder, encoder = Path(name), Path(weights) / "encoder.pth"
        torch.save(as_published(network), encoder)
        ids, scale = write_cells(folder, asked.cells), find_published(MODEL).pixel_size
        source = open_images(folder, Layout(pixel_size=scale, resample=scale))
        embedder, images = load_embedder(MODEL, source, ids, EmbedSettings(encoder, device="cpu"))

        def seconds(way: str, compute) -> float:
            start, start_busy = time.perf_counter(), time.process_time()
            found[way] = compute()
            busy[way].append((time.process_time() - start_busy) / asked.cells)
            return (time.perf_counter() - start) / asked.cells

        ways = {"the authors' loop": lambda: authors_loop(network, folder, ids)} | {
            f"embed, batches of {bs}": lambda bs=bs: embedder.embed(images, ids, bs=bs, workers=0).features
            for bs in asked.batches
        }  # fmt: skip
        taken = alternate(
            {way: lambda way=way, compute=compute: seconds(way, compute) for way, compute in ways.items()}, asked.rounds
        )
    first, *others = taken
    print(f"{asked.cells} cells of 448 px, {torch.get_num_threads()} threads, torch {torch.__version__}")
    least = {way: min(times) for way, times in busy.items()}
    print(f"{first}: {min(taken[first]):.2f} to {max(taken[first]):.2f} s a cell, {least[first]:.2f} of processor time")
    for way in others:
        ratios = [slow / fast for slow, fast in zip(taken[first], taken[way], strict=True)]
        apart = np.abs(found[way] - found[first]).max()
        passed = min(ratios) >= BAR and apart < 1e-4
        print(
            f"{way}: {min(taken[way]):.2f} to {max(taken[way]):.2f} s a cell, {min(ratios):.2f} to {max(ratios):.2f} "
            f"times as fast; {least[way]:.2f} of processor time, {least[first] / least[way]:.2f} times less; "
            f"features differ by {apart:.1e}: {'passed' if passed else 'below the bar'}"
        )


if __name__ == "__main__":
    main()
