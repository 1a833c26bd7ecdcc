"""Files of several planes, each written by its own library, and read back pixel for pixel."""

import gzip

import numpy as np
import pytest
import tifffile
from conftest import keep_four_labels
from PIL import Image
from typer.testing import CliRunner

from protein_atlas.app.uploads import unpack_upload
from protein_atlas.app.viewer import Viewer
from protein_atlas.cli import app
from protein_atlas.data.decode import read_gray
from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.sources import open_images
from protein_atlas.data.stack_files import open_stack_file
from protein_atlas.data.stacks import ImageStacks, open_stack
from protein_atlas.predict.load import load_predictor
from protein_atlas.system.errors import ImageError

NAMES = ["Cy5", "GFP", "DAPI", "ER"]
STAINS = ("red=Cy5", "green=GFP", "blue=DAPI", "yellow=ER")
BY_NUMBER = ("red=0", "green=1", "blue=2", "yellow=3")
OME = {"axes": "CYX", "Channel": {"Name": NAMES}, "PhysicalSizeX": 0.08, "PhysicalSizeXUnit": "µm"}


@pytest.fixture(scope="module")
def planes():
    return np.random.default_rng(0).integers(0, 256, (4, 40, 56), dtype=np.uint8)


def written(path, pixels, **how):
    tifffile.imwrite(path, pixels, **how)
    return path


KINDS = {
    "ome": dict(metadata=OME),
    "ome_zlib_tiled": dict(metadata=OME, compression="zlib", tile=(16, 16)),
    "ome_lzw_predictor": dict(metadata=OME, compression="lzw", predictor=True),
    "ome_zstd": dict(metadata=OME, compression="zstd"),
    "ome_big": dict(metadata=OME, bigtiff=True),
    "ome_big_endian": dict(metadata=OME, byteorder=">"),
    "white_is_zero": dict(metadata=OME, photometric="miniswhite"),
    "imagej": dict(imagej=True, metadata={"axes": "CYX", "Labels": NAMES}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_named_planes(tmp_path, planes, kind):
    how = KINDS[kind]
    stored = ~planes if kind == "white_is_zero" else planes
    path = written(tmp_path / ("a.tif" if kind == "imagej" else "a.ome.tif"), stored, **how)
    assert np.array_equal(open_stack(path, Layout(STAINS)), planes)
    assert np.array_equal(open_stack(path, Layout(BY_NUMBER[::-1])), planes[::-1])
    with open_stack_file(path) as stack:
        assert stack.facts.names == tuple(NAMES)
        assert kind == "imagej" or stack.facts.pixel_size == pytest.approx((0.08, 0.08))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.int16, np.uint32])
def test_depths(tmp_path, planes, dtype):
    """Signed and 32-bit values are those of 16 bits, as in files of one channel."""
    path = written(tmp_path / "a.ome.tif", planes.astype(dtype), metadata=OME)
    layout = Layout(STAINS, white_level=255)
    assert np.array_equal(open_stack(path, layout), planes)


def test_float_is_refused(tmp_path, planes):
    path = written(tmp_path / "a.ome.tif", (planes / 255).astype(np.float32), metadata=OME)
    with pytest.raises(ImageError, match=r"a\.ome\.tif: 32-bit floating point"):
        open_stack(path, Layout(STAINS))


def test_pages_and_samples(tmp_path, planes):
    """One page a channel that nobody has described; values side by side, or plane after plane."""
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for plane in planes:
            writer.write(plane, metadata=None, contiguous=False)
    last = np.moveaxis(planes, 0, -1)
    written(tmp_path / "inter.tif", last, photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    written(tmp_path / "planar.tif", planes, photometric="minisblack", planarconfig="separate", metadata=None)
    for name in ("pages.tif", "inter.tif", "planar.tif"):
        assert np.array_equal(open_stack(tmp_path / name, Layout(BY_NUMBER)), planes), name
    assert np.array_equal(open_stack(tmp_path / "inter.tif", Layout(("x=B", "y=A"))), planes[[2, 3]])
    with pytest.raises(ImageError, match=r"pages\.tif: no plane 'red'; it has 4, 0, 1, 2, 3; say which is which"):
        open_stack(tmp_path / "pages.tif")


def test_pages_with_names(tmp_path, planes):
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for name, plane in zip(NAMES, planes, strict=True):
            writer.write(plane, metadata=None, contiguous=False, extratags=[(285, "s", 0, name, True)])
    assert np.array_equal(open_stack(tmp_path / "pages.tif", Layout(STAINS)), planes)


def test_colour_pictures(tmp_path, planes):
    """RGBA of 8 and of 16 bits, by the mapping that is said."""
    last = np.moveaxis(planes, 0, -1)
    Image.fromarray(last).save(tmp_path / "a.png")
    assert np.array_equal(open_stack(tmp_path / "a.png", Layout(("blue=R", "yellow=G", "red=B", "green=A"))), planes)
    from imagecodecs import png_encode

    (tmp_path / "deep.png").write_bytes(png_encode(np.ascontiguousarray(last, np.uint16) * 16))
    deep = open_stack(tmp_path / "deep.png", Layout(("x=B",), white_level=4080))
    assert np.array_equal(deep, planes[2:3])
    Image.fromarray(last[..., :3]).save(tmp_path / "a.jpg", quality=95)
    assert open_stack(tmp_path / "a.jpg", Layout(("x=R",))).shape == (1, 40, 56)


def test_zipped(tmp_path, planes):
    path = written(tmp_path / "a.ome.tif", planes, metadata=OME)
    (tmp_path / "b.tif.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(open_stack(tmp_path / "b.tif.gz", Layout(STAINS)), planes)


def test_hyperstack_behind_one_page(tmp_path, planes):
    """ImageJ writes more than 4 GB behind the tags of one page: so written here, and small."""
    whole = written(tmp_path / "a.tif", planes, imagej=True, metadata={"axes": "CYX"})
    with tifffile.TiffFile(whole) as tif:
        offset, tags = tif.pages[0].dataoffsets[0], tif.pages[0].tags
        description = tags["ImageDescription"].value
    with tifffile.TiffWriter(tmp_path / "one.tif") as writer:
        writer.write(planes[0], description=description, metadata=None)
    with open(tmp_path / "one.tif", "ab") as file, tifffile.TiffFile(tmp_path / "one.tif") as one:
        assert one.pages[0].dataoffsets[0] + planes[0].nbytes == file.tell() and offset
        file.write(planes[1:].tobytes())
    assert np.array_equal(open_stack(tmp_path / "one.tif", Layout(BY_NUMBER)), planes)
    zipped = tmp_path / "one.tif.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "one.tif").read_bytes()))
    assert np.array_equal(open_stack(zipped, Layout(BY_NUMBER)), planes)


def test_scenes_are_chosen(tmp_path, planes):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for shift in (0, 7):
            writer.write(planes + np.uint8(shift), metadata=OME)
    with pytest.raises(ImageError, match=r"2 scenes \(images\); .*scene=all; or one, from 0: --select scene=0"):
        open_stack(tmp_path / "a.ome.tif", Layout(STAINS))
    found = open_stack(tmp_path / "a.ome.tif", Layout(STAINS, select="scene=1"))
    assert np.array_equal(found, planes + np.uint8(7))


def test_planes_in_other_files(tmp_path, planes):
    """OME may spread an image over files: what is not in this one is not filled with zeros."""
    path = written(tmp_path / "a.ome.tif", planes[:2], metadata=OME | {"Channel": {"Name": NAMES[:2]}})
    text = path.read_bytes()
    assert text.count(b'SizeC="2"') == 1 and text.count(b'PlaneCount="2"') == 1
    path.write_bytes(text.replace(b'SizeC="2"', b'SizeC="3"'))
    with pytest.raises(ImageError, match=r"a\.ome\.tif"):
        open_stack(path, Layout(("x=2",)))


def test_single_planes_are_those_of_the_fast_road(tmp_path, planes):
    """What both roads read is the same: a file of one channel by `read_gray`, and the planes of a file by tifffile."""
    for compression in (None, "zlib", "lzw", "packbits", "lzma", "zstd"):
        one = written(tmp_path / f"one_{compression}.tif", planes[0], compression=compression)
        with open_stack_file(one) as stack:
            assert np.array_equal(stack.plane(0), read_gray(one))


@pytest.mark.parametrize("cut", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["ome", "ome_zlib_tiled", "imagej"])
def test_cut_off(tmp_path, planes, kind, cut):
    """Never zeros where nothing is: refused, or every pixel is right."""
    content = written(tmp_path / "whole.ome.tif", planes, **KINDS[kind]).read_bytes()
    path = tmp_path / "cut.ome.tif"
    path.write_bytes(content[: int(len(content) * cut)])
    try:
        found = open_stack(path, Layout(BY_NUMBER))
    except ImageError as error:
        assert "cut.ome.tif" in str(error)
    else:
        assert np.array_equal(found, planes)


def test_a_folder_of_channel_files_called_otherwise(tmp_path, planes):
    save_image(tmp_path, "a", planes[:2], Layout(("w1", "w2")))
    images = open_images(tmp_path, Layout(("green=w2", "blue=w1")))
    assert images.ids == ["a"] and np.array_equal(images.open("a"), planes[[1, 0]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder `single` of files of one channel; `stacked`, the same fields as OME-TIFFs of 0.16 micrometres a pixel;
    and a run on these."""
    place = tmp_path_factory.mktemp("trained")
    simulate_phantoms(place / "single", 60, 48)
    keep_four_labels(place / "single/train.csv")
    as_stacks(place / "single/train", place / "stacked/train", 0.16)
    (place / "stacked/train.csv").write_bytes((place / "single/train.csv").read_bytes())
    settings = ["--arch", "small_resnet", "--pretrained", "none", "--epochs", "1", "--size", "96", "--workers", "0"]
    line = ["train", str(place / "stacked"), "--out", str(place / "run"), "--channels", ",".join(STAINS), *settings]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    return place


def as_stacks(folder, place, micrometres):
    """The images of a folder as OME-TIFFs of so many micrometres a pixel."""
    place.mkdir(parents=True)
    images = open_images(folder)
    about = OME | {"PhysicalSizeX": micrometres}
    for image_id in images.ids:
        written(place / f"{image_id}.ome.tif", images.open(image_id), metadata=about)


def test_train_and_predict_by_one_command(call_command, trained, tmp_path):
    """From OME-TIFFs to predictions: the mapping is kept in run and bundle, and needs not be said again."""
    run, stacked = trained / "run", trained / "stacked/train"
    done = call_command("predict", run, stacked, "--out", tmp_path / "a.csv", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    done = call_command(
        "predict", run, trained / "single/train", "--out", tmp_path / "b.csv", "--device", "cpu",
        "--channels", "red=red,green=green,blue=blue,yellow=yellow",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_the_page_reads_them(trained):
    """Its examples are files of this library's own, named by stains; an upload is read by the names of its planes."""
    viewer = Viewer.open(trained / "run", "cpu")
    examples, first = viewer.examples, viewer.examples.ids[0]
    expected = open_images(trained / "stacked/train", Layout(STAINS)).open(first, 96)
    assert np.array_equal(examples.images[0], expected)
    viewed, _ = viewer.look_at_upload([str(trained / f"stacked/train/{first}.ome.tif")])
    assert np.array_equal(viewed.images, examples.images[:1]) and np.allclose(viewed.scores, examples.scores[:1])


def test_a_store_keeps_what_was_said(tmp_path, planes):
    from protein_atlas.data.packing import append_images, pack_images

    (tmp_path / "in").mkdir()
    written(tmp_path / "in" / "a.ome.tif", planes, metadata=OME)
    pack_images(tmp_path / "in", tmp_path / "store", layout=Layout(STAINS), workers=1)
    written(tmp_path / "in" / "b.ome.tif", planes[:, ::-1], metadata=OME)
    append_images(tmp_path / "in", tmp_path / "store", workers=1)
    store = open_images(tmp_path / "store")
    assert store.ids == ["a", "b"] and np.array_equal(store.open("b"), planes[:, ::-1])
    assert store.layout.planes == tuple(NAMES) and isinstance(open_images(tmp_path / "in", Layout(STAINS)), ImageStacks)


def test_another_scale_is_said(trained, tmp_path):
    """Twice as many micrometres a pixel as in training: half as many pixels a cell, which no network says by itself."""
    as_stacks(trained / "single/train", tmp_path / "coarse", 0.32)
    predictor = load_predictor(trained / "run", device="cpu")
    assert predictor.unlike(predictor.select(trained / "stacked/train")) is None
    said = predictor.unlike(predictor.select(tmp_path / "coarse"))
    assert said and "these images have 0.16 µm a pixel, those that it was trained on 0.08 µm a pixel" in said


def test_two_planes_of_one_name(tmp_path):
    """Which is meant is not known; the others keep their names, and none is taken for another by its place."""
    image = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    about = {"axes": "CYX", "Channel": {"Name": ["yellow", "blue", "blue", "green"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", image, metadata=about)
    with open_stack_file(str(tmp_path / "a.ome.tif")) as stack:
        assert stack.facts.names == ("yellow", None, None, "green")
    assert np.array_equal(open_images(tmp_path, Layout(("green", "yellow"))).open("a"), image[[3, 0]])
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(ImageError, match="no plane 'red'; it has 4, 0: yellow, 1, 2, 3: green"):
        unpack_upload([tmp_path / "a.ome.tif"], tmp_path / "unpacked", Layout()).folder.open("a")
