"""TIFF files of many kinds are read as tifffile reads them, or refused with a reason; none is read otherwise."""
import itertools

import numpy as np
import pytest
import tifffile
from PIL import Image

from protein_atlas.data.decode import read_gray
from protein_atlas.system.errors import ImageError

RNG = np.random.default_rng(0)
SHALLOW = RNG.integers(0, 256, (70, 90), np.uint8)
DEEP = RNG.integers(0, 65536, (70, 90), np.uint16)
READ = (None, "lzw", "deflate", "adobe_deflate", "packbits", "lzma", "zstd")
REFUSED = {"jpeg2000": "JPEG 2000", "jpegxl": "JPEG XL", "jpegxr": "JPEG XR", "lerc": "LERC", "png": "PNG"}


def kinds():
    """Every combination that tifffile writes, each with a name."""
    for pixels, compression, byteorder, bigtiff, tile, strips, predictor in itertools.product(
        (SHALLOW, DEEP), READ, "<>", (False, True), (None, (16, 32), (64, 64)), (None, 7), (False, True)
    ):
        if (tile and strips) or (predictor and compression in (None, "packbits")):
            continue
        yield pixels, dict(
            compression=compression, byteorder=byteorder, bigtiff=bigtiff, tile=tile, rowsperstrip=strips,
            predictor=predictor,
        )


def test_every_layout_of_every_compression_gives_the_pixels(tmp_path):
    path, tried = tmp_path / "a.tif", 0
    for number, (pixels, kwargs) in enumerate(kinds()):
        photometric = ("miniswhite" if number % 3 == 0 else "minisblack")
        tifffile.imwrite(path, pixels, photometric=photometric, **kwargs)
        stored = tifffile.imread(path)
        found = read_gray(path)
        assert found.dtype == pixels.dtype, kwargs
        np.testing.assert_array_equal(found, ~stored if number % 3 == 0 else stored, err_msg=str(kwargs))
        tried += 1
    assert tried == 384


@pytest.mark.parametrize("compression", REFUSED)
def test_other_compressions_are_named(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SHALLOW, compression=compression, photometric="minisblack")
    with pytest.raises(ImageError, match=rf"a\.tif: compressed by a method that is not read, .*{REFUSED[compression]}"):
        read_gray(path)


def test_jpeg_in_tiff_is_read_as_tifffile_reads_it(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SHALLOW, compression="jpeg", photometric="minisblack")
    np.testing.assert_array_equal(read_gray(path), tifffile.imread(path))


@pytest.mark.parametrize("photometric", ["rgb", "separated"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours(tmp_path, photometric, planar):
    path = tmp_path / "a.tif"
    bands = np.zeros((3 if photometric == "rgb" else 4, *SHALLOW.shape), np.uint8)
    bands[1] = SHALLOW
    tifffile.imwrite(
        path, bands if planar == "separate" else np.moveaxis(bands, 0, -1), photometric=photometric, planarconfig=planar
    )
    if photometric == "rgb":
        np.testing.assert_array_equal(read_gray(path), SHALLOW)
    else:
        with pytest.raises(ImageError, match=r"a\.tif: .*(not RGB|values a pixel)"):
            read_gray(path)


@pytest.mark.parametrize(("dtype", "reason"), [
    (np.complex64, "64 bits|floating point|kind"), (np.uint64, "64 bits"), (bool, "1 bits a value"),
])  # fmt: skip
def test_other_numbers_are_named(tmp_path, dtype, reason):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((20, 30), dtype), photometric="minisblack")
    with pytest.raises(ImageError, match=rf"a\.tif: .*({reason})"):
        read_gray(path)


@pytest.mark.parametrize(("dtype", "read"), [
    (np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64),
])  # fmt: skip
def test_floating_point_is_read_as_it_is(tmp_path, dtype, read):
    values = np.linspace(-1, 1, 600).reshape(20, 30).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack")
    found = read_gray(path)
    assert found.dtype == read
    np.testing.assert_array_equal(found, values)


def test_signed_values_that_are_none_below_zero(tmp_path):
    path = tmp_path / "a.tif"
    for dtype, value, read in (
        (np.int16, 300, np.uint16), (np.int32, 300, np.uint16), (np.uint32, 300, np.uint16), (np.int8, 100, np.uint8),
    ):  # fmt: skip
        tifffile.imwrite(path, np.full((4, 4), value, dtype))
        np.testing.assert_array_equal(read_gray(path), np.full((4, 4), value))
        assert read_gray(path).dtype == read


def test_an_ome_tiff_and_a_pyramid_of_one_plane(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, DEEP, ome=True, metadata={"axes": "YX"})
    np.testing.assert_array_equal(read_gray(path), DEEP)
    with tifffile.TiffWriter(path) as writer:
        writer.write(DEEP, subifds=1, tile=(32, 32))
        writer.write(DEEP[::2, ::2], subfiletype=1, tile=(32, 32))
    np.testing.assert_array_equal(read_gray(path), DEEP)


def test_planes_behind_one_page_are_counted(tmp_path):
    path = tmp_path / "a.tif"
    for count in (2, 4, 5):
        stack = np.zeros((count, 30, 40), np.uint16)
        tifffile.imwrite(path, stack, truncate=True, photometric="minisblack")
        with pytest.raises(ImageError, match=rf"a\.tif: {count} images behind one page"):
            read_gray(path)
        tifffile.imwrite(path, stack, photometric="minisblack")
        with pytest.raises(ImageError, match=rf"a\.tif: {count} pages"):
            read_gray(path)


def test_what_pillow_writes(tmp_path):
    path = tmp_path / "a.tif"
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits"):
        for pixels in (SHALLOW, DEEP):
            Image.fromarray(pixels).save(path, compression=compression)
            np.testing.assert_array_equal(read_gray(path), pixels)
    Image.fromarray(SHALLOW).convert("1").save(path)
    with pytest.raises(ImageError, match="1 bits a value"):
        read_gray(path)


@pytest.mark.parametrize("orientation", [0, 1, 9, 200])
def test_an_orientation_that_says_nothing(tmp_path, orientation):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SHALLOW, extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(read_gray(path), SHALLOW)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_orientation_that_turns(tmp_path, orientation):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SHALLOW, extratags=[(274, "H", 1, orientation, True)])
    with pytest.raises(ImageError, match=f"orientation {orientation}"):
        read_gray(path)


def test_a_list_of_pages_without_end_is_damage(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SHALLOW)
    with tifffile.TiffFile(path) as file:
        place, count = file.pages[0].offset, len(file.pages[0].tags)
    content = bytearray(path.read_bytes())
    content[place + 2 + 12 * count : place + 6 + 12 * count] = place.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.tif: damaged"):
        read_gray(path)
