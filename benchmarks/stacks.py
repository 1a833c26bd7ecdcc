"""Opening one file of four channels beside four files of one channel each, in one run: a ratio of processor times.

python benchmarks/stacks.py [--side 512] [--fields 6] [--rounds 15]
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile

from protein_atlas.data.images import HPA_LAYOUT, open_image
from protein_atlas.data.phantoms import simulate_field
from protein_atlas.data.stacks import open_stack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--fields", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15, help="of which the median counts")
    asked = parser.parse_args()
    target = np.zeros(28, np.uint8)
    target[0] = 1
    fields = [simulate_field(target, size=asked.side, seed=1, index=index) for index in range(asked.fields)]
    said = {"axes": "CYX", "Channel": {"Name": list(HPA_LAYOUT.channels)}}
    print("| compression | one OME-TIFF, ms | four TIFFs, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for compression in (None, "zlib", "lzw"):
        with TemporaryDirectory() as folder:
            stacks, single = [], []
            for number, field in enumerate(fields):
                stacks.append(Path(folder) / f"{number}.ome.tif")
                tifffile.imwrite(stacks[-1], field, compression=compression, metadata=said)
                single.append([Path(folder) / f"{number}_{channel}.tif" for channel in HPA_LAYOUT.channels])
                for path, plane in zip(single[-1], field, strict=True):
                    tifffile.imwrite(path, plane, compression=compression)
            for one, four, field in zip(stacks, single, fields, strict=True):
                assert np.array_equal(open_stack(one), field) and np.array_equal(open_image(four), field)
            times = []
            for _ in range(asked.rounds):
                started = time.process_time()
                for path in stacks:
                    open_stack(path)
                between = time.process_time()
                for paths in single:
                    open_image(paths)
                times.append((between - started, time.process_time() - between))
            one, four = np.median(times, axis=0) / asked.fields * 1000
            print(f"| {compression or 'none'} | {one:.2f} | {four:.2f} | {one / four:.2f} |")


if __name__ == "__main__":
    main()
