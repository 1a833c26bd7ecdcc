"""Cells cut out of fields: the processor time to stream their crops over that to read the fields, and the memory.

python benchmarks/cells.py --fields 100 --size 2048 --cells 30
"""
import argparse
import multiprocessing
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from tifffile import imwrite

from protein_atlas.cells.source import open_cells
from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import save_image
from protein_atlas.data.phantoms import simulate_field


def fields(folder: Path, n: int, size: int, cells: int) -> None:
    """Write n fields of noisy light, and masks of round cells that nearly touch, links to a few drawn ones."""
    rng, target = np.random.default_rng(0), np.zeros(28, np.uint8)
    target[[2, 25]] = 1
    across = int(np.ceil(cells**0.5))
    pitch, (rows, columns) = size // across, np.indices((size, size))
    mask = np.zeros((size, size), np.uint16)
    for number in range(cells):
        y, x = ((place + 0.5) * pitch for place in divmod(number, across))
        mask[(rows - y) ** 2 + (columns - x) ** 2 < (0.48 * pitch) ** 2] = number + 1
    (folder / "fields").mkdir()
    (folder / "masks").mkdir()
    for number in range(n):
        if number < 4:
            image = simulate_field(target, size, 0, number)
            save_image(folder / "fields", f"f{number}", np.roll(image, rng.integers(size), axis=2))
            imwrite(folder / "masks" / f"f{number}_cp_masks.tif", mask, compression="zlib")
            continue
        for kind, name in (*(("fields", f"{color}.png") for color in ("red", "green", "blue", "yellow")),
                           ("masks", "cp_masks.tif")):  # fmt: skip
            (folder / kind / f"f{number}_{name}").hardlink_to(folder / kind / f"f{number % 4}_{name}")


def peak() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("fields", 40), ("size", 2048), ("cells", 30), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        drawing = multiprocessing.get_context("spawn").Process(  # whose memory is not that of what is measured
            target=fields, args=(folder, options.fields, options.size, options.cells)
        )
        drawing.start()
        drawing.join()
        source = ImageFolder(folder / "fields")
        begun = time.process_time()
        cells = open_cells(source, folder / "masks", workers=1)
        print(f"{len(cells)} cells measured in {(time.process_time() - begun) / options.fields:.3f} s a field")
        ways = {
            "fields": lambda: source.each(source.ids, [None]), "crops": lambda: cells.each(cells.ids, [None]),
            "crops at 128 px": lambda: cells.each(cells.ids, [128]),
        }  # fmt: skip
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                begun = time.process_time()
                for number, _found in enumerate(way()):
                    if name == "crops" and number == len(cells) // 10:
                        early = peak()
                taken[name].append((time.process_time() - begun) / options.fields)
        least = {name: min(times) for name, times in taken.items()}
        for name, seconds in least.items():
            print(f"{name}: {seconds:.3f} s a field, {seconds / least['fields']:.2f} of reading the fields")
        print(f"memory: {early:.0f} MiB after a tenth of the crops, {peak():.0f} MiB at the end")


if __name__ == "__main__":
    main()
