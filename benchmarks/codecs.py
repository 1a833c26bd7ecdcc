"""What codecs make of 16-bit images: bytes, and milliseconds of processor time an image encoded and decoded.

    python benchmarks/codecs.py --images FOLDER               # <id>_<channel>.<png, jpg, tif>; 8 bit becomes 12 bit
    python benchmarks/codecs.py --images FOLDER --channels gfp,rfp

Files of 8 bits are brought to 12: each value x 16, and noise as a camera has it, the square root of the light and a
readout noise of a few steps, without which the low bits would be the same everywhere. Files of 16 bits stay as they
are. One thread; each round codes with every codec, after one round to warm up; medians. Each is decoded and compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numcodecs import blosc, zstd

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import CHANNELS, Layout

_GAIN, _READOUT = 4, 6  # photons a step, and the deviation of the readout in steps


def _camera(planes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """An image (C, H, W), uint16: of 12 bits with noise where the files have 8."""
    image = np.stack(planes)
    if image.dtype == np.uint16:
        return image
    light = image.astype(np.float64) * 16
    noisy = rng.normal(light, np.sqrt(light / _GAIN + _READOUT**2))
    return np.clip(np.rint(noisy), 0, 4095).astype(np.uint16)


def _blosc(shuffle: int) -> Callable[[np.ndarray], bytes]:
    return lambda image: blosc.compress(image, b"zstd", 1, shuffle)


CODECS: dict[str, tuple[Callable, Callable]] = {
    "raw": (lambda image: image.tobytes(), bytes),
    "zstd, level 1": (lambda image: zstd.compress(image, 1, True), zstd.decompress),
    "blosc zstd 1, byte shuffle": (_blosc(blosc.SHUFFLE), blosc.decompress),
    "blosc zstd 1, bit shuffle": (_blosc(blosc.BITSHUFFLE), blosc.decompress),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--channels", default=",".join(CHANNELS))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    blosc.use_threads = False
    files, rng = ImageFolder(chosen.images, Layout(tuple(chosen.channels.split(",")))), np.random.default_rng(0)
    images = [_camera(list(files.planes(image_id)), rng) for image_id in files.ids[: chosen.count]]
    spent: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CODECS}
    sizes: dict[str, int] = {}
    for round_ in range(1 + chosen.repeats):
        for name, (encode, decode) in CODECS.items():
            started = time.process_time()
            chunks = [encode(image) for image in images]
            encoded = time.process_time()
            decoded = [decode(chunk) for chunk in chunks]
            ended = time.process_time()
            assert all(bytes(back) == image.tobytes() for back, image in zip(decoded, images, strict=True)), name
            sizes[name] = sum(map(len, chunks))
            if round_:
                spent[name][0].append(encoded - started)
                spent[name][1].append(ended - encoded)
    print(f"{len(images)} images, the first {images[0].shape}, values up to {max(image.max() for image in images)}")
    print("| codec | MB an image | of zstd | ms encoded | ms decoded |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (encoding, decoding) in spent.items():
        ms = [1000 * statistics.median(of) / len(images) for of in (encoding, decoding)]
        share = sizes[name] / sizes["zstd, level 1"]
        print(f"| {name} | {sizes[name] / len(images) / 1e6:.3f} | {share:.2f} | {ms[0]:.1f} | {ms[1]:.1f} |")


if __name__ == "__main__":
    main()
