"""What OME-Zarr costs beside the packed store: bytes, and milliseconds of processor time an image packed and read.

    python benchmarks/ome_zarr.py --images FOLDER     # real files: <id>_<red|green|blue|yellow>.png
    python benchmarks/ome_zarr.py                     # phantoms of 512 px, which compress differently

One thread, files in the page cache. Reading alternates between the kinds, after one round to warm up; medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from protein_atlas.data.ome_zarr_writing import OME_VERSIONS, pack_ome_zarr
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.sources import open_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if chosen.images is None:
            simulate_phantoms(folder / "data", chosen.count, 512, 0)
        files = open_images(chosen.images or folder / "data")
        ids, reports, packed, sources = files.ids[: chosen.count], {}, {}, {"files": files}
        kinds = {f"OME-Zarr {version}": version for version in OME_VERSIONS} | {"store, zstd": None}
        for number, (kind, version) in enumerate(kinds.items()):
            place, started = folder / f"{number}.ome.zarr", time.process_time()
            if version is None:
                reports[kind] = pack_images(files, place, ids=ids, workers=1)
            else:
                reports[kind] = pack_ome_zarr(files, place, ome_version=version, ids=ids, workers=1)
            packed[kind], sources[kind] = time.process_time() - started, open_images(place)
        spent: dict[str, list[float]] = {kind: [] for kind in sources}
        for round_ in range(1 + chosen.repeats):
            for kind, images in sources.items():
                started = time.process_time()
                for image_id in ids:
                    images.open(image_id)
                if round_:
                    spent[kind].append(time.process_time() - started)
        print("| kind | MB an image | ms an image packed | ms an image read |\n| --- | ---: | ---: | ---: |")
        for kind in sources:
            size = sum(files.stamp(one)[1] for one in ids) if kind == "files" else reports[kind].store_bytes
            made = f"{1000 * packed[kind] / len(ids):.1f}" if kind in packed else ""
            read = 1000 * statistics.median(spent[kind]) / len(ids)
            print(f"| {kind} | {size / len(ids) / 1e6:.3f} | {made} | {read:.2f} |")


if __name__ == "__main__":
    main()
