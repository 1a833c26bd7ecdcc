"""OME-Zarr: read as others write it, here and from S3; written, and opened by the libraries of others."""
import json
import pickle

import numpy as np
import pytest
from test_storage import server  # noqa: F401  a fixture

from protein_atlas.cells.crop import CellCrop
from protein_atlas.cells.source import open_cells
from protein_atlas.data.geometry import resize_image
from protein_atlas.data.images import Layout, save_image
from protein_atlas.data.intensity import measure_intensity
from protein_atlas.data.ome_zarr import OmeZarrImages
from protein_atlas.data.ome_zarr_writing import pack_ome_zarr
from protein_atlas.data.packing import pack_images
from protein_atlas.data.sources import map_images, open_images
from protein_atlas.system.errors import ImageError

zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install 'protein_atlas[ome-zarr]'")

LAYOUT = Layout(("green=GFP", "blue=DAPI"))
LABELS = ("DAPI", "GFP", "Cy5")


def write(path, pixels, axes="cyx", version="0.4", labels=LABELS, unit="micrometer", **options):
    """An image of one level, as a program of somebody else's writes it."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    options = {"chunks": tuple(min(32, side) for side in pixels.shape)} | options
    group.create_array("0", shape=pixels.shape, dtype=pixels.dtype, **options)[...] = pixels
    step = {"type": "scale", "scale": [0.25 if axis in "yx" else 1 for axis in axes]}
    ome = {"multiscales": [{
        "axes": [{"name": axis, **({"unit": unit} if axis in "yx" else {})} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [step]}],
    }]}  # fmt: skip
    if labels:
        ome["omero"] = {"channels": [{"label": label} for label in labels]}
    group.attrs.update(ome if version == "0.4" else {"ome": {"version": version, **ome}})


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)


def first_pixel(found):
    return int(found[0, 0, 0])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["cyx", "tczyx", "yxc", "zxyc"])
def test_axes_in_any_order(tmp_path, image, version, axes):
    pixels = image[tuple(None for axis in axes if axis in "tz")]
    now = [axis for axis in axes if axis in "tz"] + ["c", "y", "x"]
    write(tmp_path / "a.ome.zarr", pixels.transpose([now.index(axis) for axis in axes]), axes, version)
    images = open_images(tmp_path / "a.ome.zarr", LAYOUT)
    assert (images.ids, images.facts("a").pixel_size) == (["a"], (0.25, 0.25))
    assert (images.open("a") == image[[1, 0]]).all()
    assert (images.open("a", (20, 25)) == resize_image(image[[1, 0]], (20, 25))).all()


def test_sixteen_bits_of_either_byte_order_sharded_or_not(tmp_path, image):
    values = image.astype(np.uint16) * 16
    write(tmp_path / "big.zarr", values.astype(">u2"))
    write(tmp_path / "shard.zarr", values, version="0.5", chunks=(1, 16, 16), shards=(3, 48, 64))
    layout = Layout(LAYOUT.channels, planes=LAYOUT.planes, bits=16, white_level=4095)
    images = open_images(tmp_path, layout)
    assert images.ids == ["big", "shard"] and (images.read(images.ids) == values[[1, 0]]).all()
    shard = next(path for path in (tmp_path / "shard.zarr/0").rglob("*") if path.is_file() and path.name != "zarr.json")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ImageError, match="shard.zarr/0: .*damaged|shard.zarr/0: cannot be read"):
        images.open("shard")


def test_without_names_numbers_say_it(tmp_path, image):
    write(tmp_path / "a.zarr", image, labels=None, unit=None)
    with pytest.raises(ImageError, match="a.zarr: no plane 'GFP'; it has 3, 0, 1, 2; say which is which: --channels"):
        open_images(tmp_path / "a.zarr", LAYOUT).open("a")
    images = open_images(tmp_path / "a.zarr", Layout(("x=2",)))
    assert (images.open("a") == image[2:]).all() and images.facts("a").pixel_size is None


def test_refused_by_name(tmp_path, image):
    write(tmp_path / "float.zarr", image.astype(np.int32))
    write(tmp_path / "times.zarr", np.stack([image, image]), "tcyx")
    write(tmp_path / "deep.zarr", np.stack([image, image]), "zcyx")
    images = open_images(tmp_path, LAYOUT)
    said = {
        "float": "float.zarr/0: its pixels are <i4, expected",
        "times": "times.zarr: 2 times; say which, from 0: --select t=0",
        "deep": "deep.zarr: 2 planes in z; take the brightest of them: --select z=max",
    }
    for image_id, text in said.items():
        with pytest.raises(ImageError, match=text):
            images.open(image_id)
    write(tmp_path / "pickled.zarr", image)
    about = json.loads((tmp_path / "pickled.zarr/0/.zarray").read_text())
    (tmp_path / "pickled.zarr/0/.zarray").write_text(json.dumps({**about, "filters": [{"id": "pickle"}]}))
    with pytest.raises(ImageError, match="pickled.zarr/0: packed by the codec pickle, which is not read"):
        open_images(tmp_path, LAYOUT).open("pickled")
    with pytest.raises(ImageError, match="no image files; expected names such as"):
        (tmp_path / "empty").mkdir()
        open_images(tmp_path / "empty")


def test_a_plate_by_processes(tmp_path, image):
    plate = tmp_path / "p.zarr"
    wells = [{"path": "A/1"}, {"path": "H/12"}]
    zarr.open_group(plate, mode="w", zarr_format=3).attrs["ome"] = {"plate": {"wells": wells}}
    for number, well in enumerate(("A/1", "H/12")):
        fields = {"well": {"images": [{"path": "0"}, {"path": "1"}]}}
        zarr.open_group(plate / well, mode="w", zarr_format=3).attrs["ome"] = fields
        for field in (0, 1):
            write(plate / well / str(field), image // (1 + number + field), version="0.5")
    images = open_images(plate, LAYOUT)
    assert images.ids == ["A01_0", "A01_1", "H12_0", "H12_1"]
    wanted = [int(image[1, 0, 0]) // n for n in (1, 2, 2, 3)]
    images.open("A01_0")  # the library has threads now, which processes that are forked do not get
    assert list(map_images(first_pixel, images, images.ids * 4, workers=2)) == wanted * 4


def test_from_s3(tmp_path, image, server):  # noqa: F811
    write(tmp_path / "set/one.ome.zarr", image)
    write(tmp_path / "set/two.ome.zarr", image // 2, version="0.5")
    client = server.client()
    client.create_bucket(Bucket="bucket")
    for path in (tmp_path / "set").rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "bucket", path.relative_to(tmp_path).as_posix())
    images = open_images("s3://bucket/set", LAYOUT, storage_options=server.options())
    assert images.ids == ["one", "two"] and (images.open("two") == image[[1, 0]] // 2).all()
    one = open_images("s3://bucket/set/one.ome.zarr", LAYOUT, storage_options=server.options())
    assert (one.open("one") == image[[1, 0]]).all() and isinstance(one, OmeZarrImages)
    before = one.stamp("one")
    assert before == one.stamp("one") and before[1] > 0
    client.put_object(Bucket="bucket", Key="set/one.ome.zarr/0/0.0.0", Body=b"damaged")
    assert one.stamp("one") != before
    with pytest.raises(ImageError, match="s3://bucket/set/one.ome.zarr/0: a chunk is damaged: it has 7 bytes"):
        one.open("one")


@pytest.mark.parametrize("version, bits", [("0.4", 8), ("0.5", 16)])
def test_there_and_back(tmp_path, version, bits):
    """What is packed as OME-Zarr and from there into a store is what is packed into a store."""
    generator = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    for image_id in ("c", "a", "b"):
        save_image(tmp_path / "files", image_id, generator.integers(0, 200, (4, 256, 256), dtype=np.uint8))
    source = open_images(tmp_path / "files")
    if bits == 16:
        from PIL import Image

        for path in (tmp_path / "files").iterdir():
            Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 20).save(path)
        source = open_images(tmp_path / "files", Layout(bits=16, white_level=4095))
    pack_ome_zarr(source, tmp_path / "x.ome.zarr", ome_version=version, ids=["c", "a", "b"], workers=2)
    images = open_images(tmp_path / "x.ome.zarr", source.layout)
    assert images.ids == ["c", "a", "b"]
    assert measure_intensity(images, images.ids) == measure_intensity(source, images.ids)
    pack_images(images, tmp_path / "store", [64], workers=1)
    pack_images(source, tmp_path / "same", [64], ids=["c", "a", "b"], workers=1)
    ours, same = open_images(tmp_path / "store"), open_images(tmp_path / "same")
    assert ours.ids == same.ids
    # a half of a half is rounded once more than a quarter
    assert np.abs(ours.read(ours.ids).astype(int) - same.read(same.ids)).max() <= 1
    pack_images(images, tmp_path / "whole", workers=1)
    assert (open_images(tmp_path / "whole").read(images.ids) == source.read(images.ids)).all()


def written(folder, version):
    (folder / "files").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (4, 128, 128), dtype=np.uint8)
    save_image(folder / "files", "a", image)
    pack_ome_zarr(folder / "files", folder / "x.ome.zarr", ome_version=version, workers=1)
    return folder / "x.ome.zarr/a", image


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_reference_opens_it(tmp_path, version):
    reader = pytest.importorskip("ome_zarr.reader", reason="ome-zarr is not installed: pip install ome-zarr")
    from ome_zarr.io import parse_url

    place, image = written(tmp_path, version)
    (node,) = reader.Reader(parse_url(place))()
    assert [level.shape for level in node.data] == [(4, 128, 128), (4, 64, 64)]
    assert (np.asarray(node.data[0]) == image).all() and (np.asarray(node.data[1]) == resize_image(image, 64)).all()
    assert node.metadata["channel_names"] == ["red", "green", "blue", "yellow"]
    assert node.metadata["colormap"][3] == [[0, 0, 0], [1, 1, 0]] and node.metadata["contrast_limits"] == [[0, 255]] * 4


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_the_reference_writes(tmp_path, version):
    """Of a stack with a pyramid, by ome-zarr's own writer, the brightest of z, the smaller level too, and the scale."""
    writer = pytest.importorskip("ome_zarr.writer", reason="ome-zarr is not installed: pip install ome-zarr")
    from ome_zarr.format import FormatV04, FormatV05

    stack = np.random.default_rng(0).integers(0, 4096, (2, 3, 64, 64), dtype=np.uint16)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    writer.write_image(
        stack, group, (2,), axes="czyx", fmt={"0.4": FormatV04, "0.5": FormatV05}[version](),
        scale={"c": 1, "z": 0.5, "y": 0.25, "x": 0.25}, axes_units={axis: "micrometer" for axis in "zyx"},
    )  # fmt: skip
    images = open_images(tmp_path / "a.ome.zarr", Layout(("green=1", "blue=0"), bits=16, select="z=max"))
    assert (images.open("a") == stack[[1, 0]].max(axis=1)).all()
    half = np.asarray(group[sorted(group.array_keys())[1]])
    assert half.shape[-1] == 32 and (images.open("a", 32) == half[[1, 0]].max(axis=1)).all()
    assert images.facts("a").pixel_size == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_napari_opens_it(tmp_path, version):
    plugin = pytest.importorskip("napari_ome_zarr", reason="napari is not installed: pip install napari-ome-zarr")
    components = pytest.importorskip("napari.components")
    place, image = written(tmp_path, version)
    viewer = components.ViewerModel()
    for data, options, _ in plugin.napari_get_reader(str(place))(str(place)):
        viewer.add_image(data, **options)
    assert [layer.name.rpartition(" ")[2] for layer in viewer.layers] == ["red", "green", "blue", "yellow"]
    assert all((np.asarray(layer.data[0]) == plane).all() for layer, plane in zip(viewer.layers, image))
    assert [tuple(layer.colormap.colors[-1][:3]) for layer in viewer.layers][3] == (1, 1, 0)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_cells_by_labels_in_the_image(tmp_path, image, version):
    """As `ome_zarr.writer.write_labels` and Cellpose's and napari's exports lay them: numbers, in the image itself."""
    mask = np.zeros((40, 50), np.int32)
    mask[2:12, 5:25], mask[20:35, 30:45] = 7, 70_000
    write(tmp_path / "a.zarr", image, version=version)
    write(tmp_path / "a.zarr/labels/cells", mask, "yx", version, labels=None)
    fields = open_images(tmp_path / "a.zarr", LAYOUT)
    cells = open_cells(fields, "labels/cells", crop=CellCrop(margin=0), workers=1)
    assert cells.ids == ["a#7", "a#70000"]
    np.testing.assert_array_equal(cells.open("a#70000"), image[[1, 0], 20:35, 30:45])
    again = pickle.loads(pickle.dumps(cells.some(["a#7"])))
    assert again.fingerprint("a#7") == cells.fingerprint("a#7") != cells.fingerprint("a#70000")
    with pytest.raises(ImageError, match="no labels 'nuclei' of 'a': .*a.zarr/labels/nuclei: no image of OME-Zarr"):
        open_cells(fields, "labels/nuclei")
    write(tmp_path / "a.zarr/labels/odd", mask.astype(np.float32), "yx", version, labels=None)
    with pytest.raises(ImageError, match="labels/odd: 32-bit floating point, as probabilities and flows are"):
        open_cells(fields, "labels/odd", workers=1)
