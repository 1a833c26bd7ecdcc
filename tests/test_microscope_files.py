"""CZI, LIF and ND2 are read as their makers' programs have written them, through bioio."""

import os
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from protein_atlas.cli import app
from protein_atlas.data.images import Layout
from protein_atlas.data.microscope_files import MicroscopeStack
from protein_atlas.data.sources import open_images
from protein_atlas.data.stack_files import open_stack_file
from protein_atlas.system.errors import ImageError
from protein_atlas.system.storage import open_folder

NAMES = ("DAPI", "GFP", "Cy5", "ER")
STAINS = ("blue=DAPI", "green=GFP", "red=Cy5", "yellow=ER")


def write_czi(path: Path, pixels: np.ndarray, names=NAMES, micrometres=(0.1, 0.1)) -> None:
    """pixels: (scenes, C, Z, H, W)."""
    from pylibCZIrw.czi import create_czi

    with create_czi(str(path)) as file:
        for scene, c, z in np.ndindex(pixels.shape[:3]):
            at = {"C": c, "Z": z, "T": 0}
            kwargs = {"scene": scene, "location": (scene * 2 * pixels.shape[-1], 0)} if len(pixels) > 1 else {}
            file.write(data=pixels[scene, c, z][..., None], plane=at, **kwargs)
        file.write_metadata(
            "a", channel_names=dict(enumerate(names)), scale_y=micrometres[0] * 1e-6, scale_x=micrometres[1] * 1e-6
        )


def write_lif(path: Path, pixels: np.ndarray, micrometres=(0.1, 0.1)) -> None:
    """pixels: (scenes, C, H, W), uint8 or uint16. There is no library that writes these, so this does: a header of XML,
    and the planes of each image, one after the other, as liffile describes the format."""
    n, channels, height, width = pixels.shape
    item, images = pixels.dtype.itemsize, []
    for scene in range(n):
        described = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="{8 * item}" NameOfMeasuredQuantity="" '
            f'Min="0" Max="1" Unit="" '
            f'LUTName="{name}" IsLUTInverted="0" BytesInc="{c * height * width * item}" BitInc="0"/>'
            for c, name in enumerate(NAMES[:channels])
        )
        sides = "".join(
            f'<DimensionDescription DimID="{number}" NumberOfElements="{length}" Origin="0" '
            f'Length="{(length - 1) * micrometres[2 - number] * 1e-6:.9g}" Unit="m" BytesInc="{step}" BitInc="0"/>'
            for number, length, step in ((1, width, item), (2, height, width * item))
        )
        images.append(
            f'<Element Name="Position {scene + 1}"><Data><Image><ImageDescription><Channels>{described}</Channels>'
            f"<Dimensions>{sides}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{pixels[scene].nbytes}" MemoryBlockID="Mem_{scene}"/></Element>'
        )
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="a"><Data><Experiment/></Data>'
        f'<Memory Size="0" MemoryBlockID="Mem_a"/><Children>{"".join(images)}</Children></Element>'
        "</LMSDataContainerHeader>"
    )
    with open(path, "wb") as file:
        file.write(struct.pack("<IIBI", 0x70, 2 * len(xml) + 5, 0x2A, len(xml)) + xml.encode("utf-16-le"))
        for scene in range(n):
            name = f"Mem_{scene}"
            head = struct.pack("<IIBQBI", 0x70, 14 + 2 * len(name), 0x2A, pixels[scene].nbytes, 0x2A, len(name))
            file.write(head + name.encode("utf-16-le") + pixels[scene].tobytes())


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 4096, (2, 4, 20, 30), dtype=np.uint16)


def test_czi_with_scenes(tmp_path, pixels):
    write_czi(tmp_path / "a.czi", pixels[:, :, None])
    images = open_images(tmp_path, Layout(STAINS, bits=16, select="scene=all"))
    assert images.ids == ["a_0", "a_1"]
    for scene, image_id in enumerate(images.ids):
        assert np.array_equal(images.open(image_id), pixels[scene])
    facts = images.facts("a_1")
    assert (facts.names, facts.scenes, facts.pixel_size) == (NAMES, 2, pytest.approx((0.1, 0.1)))


def test_lif_with_scenes(tmp_path, pixels):
    write_lif(tmp_path / "a.lif", pixels)
    images = open_images(tmp_path, Layout(("blue=0", "green=1", "red=2", "yellow=3"), bits=16, select="scene=all"))
    assert images.ids == ["a_0", "a_1"]
    for scene, image_id in enumerate(images.ids):
        assert np.array_equal(images.open(image_id), pixels[scene])
    assert images.facts("a_0").pixel_size == pytest.approx((0.1, 0.1), rel=1e-3)
    with pytest.raises(ImageError, match=r"a\.lif: 2 scenes \(images\); take each as an image: --select scene=all"):
        open_images(tmp_path, Layout(("blue=0", "green=1")))


@pytest.mark.parametrize("ending", [".czi", ".lif"])
def test_pixels_that_are_not_square(tmp_path, pixels, ending):
    """They become square at the scale asked for: 20 x 30 pixels of 0.2 x 0.1 micrometres are 4 x 3 micrometres."""
    path = tmp_path / f"a{ending}"
    if ending == ".czi":
        write_czi(path, pixels[:1, :, None], micrometres=(0.2, 0.1))
    else:
        write_lif(path, pixels[:1], micrometres=(0.2, 0.1))
    images = open_images(tmp_path, Layout(("blue=0", "green=1", "red=2", "yellow=3"), bits=16, resample=0.1))
    assert images.facts("a").pixel_size == pytest.approx((0.2, 0.1), rel=1e-3)
    assert images.open("a").shape == (4, 40, 30)


@pytest.mark.parametrize("ending", [".czi", ".lif"])
def test_cut_off(tmp_path, pixels, ending):
    path = tmp_path / f"a{ending}"
    if ending == ".czi":
        write_czi(path, pixels[:1, :, None])
    else:
        write_lif(path, pixels[:1])
    whole = path.read_bytes()
    layout = Layout(("blue=0", "green=1", "red=2", "yellow=3"), bits=16)
    for share in (0, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match=rf"a\{ending}"):
            open_images(tmp_path, layout).open("a")


def test_behind_a_url(tmp_path, pixels):
    write_lif(tmp_path / "a.lif", pixels[:1])
    bucket = open_folder("memory://microscope")
    bucket.write("set/a.lif", (tmp_path / "a.lif").read_bytes())
    images = open_images("memory://microscope/set", Layout(("blue=0", "green=1", "red=2", "yellow=3"), bits=16))
    assert np.array_equal(images.read(["a"])[0], pixels[0])
    bucket.remove(list(bucket.files()))


def test_pack_and_train(tmp_path):
    """A folder of CZI, its table, and the commands."""
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        lit = np.zeros((1, 4, 1, 32, 32), np.uint8)
        lit[0, 1, 0, :, :16] = 200 if number % 2 else 20
        write_czi(folder / f"f{number:02}.czi", lit + rng.integers(0, 20, lit.shape, dtype=np.uint8))
    pd.DataFrame({
        "Id": [f"f{n:02}" for n in range(24)], "Target": [["Nucleoplasm", "Cytosol"][n % 2] for n in range(24)]
    }).to_csv(tmp_path / "labels.csv", index=False)  # fmt: skip
    channels = ["--channels", ",".join(STAINS)]
    done = CliRunner().invoke(app, ["pack", str(folder), str(tmp_path / "store"), *channels])
    assert done.exit_code == 0, done.output
    with open_stack_file(folder / "f03.czi") as stack:
        assert np.array_equal(open_images(tmp_path / "store").open("f03"), [stack.plane(n) for n in range(4)])
    found = open_images(tmp_path / "store")
    assert np.array_equal(found.open("f03"), open_images(folder, Layout(STAINS)).open("f03"))


@pytest.mark.parametrize(("variable", "library"), [("PROTEIN_ATLAS_ND2", "nd2"), ("PROTEIN_ATLAS_LIF", "liffile")])
def test_a_given_file(variable, library):
    """Of a file that is given, each plane of its first image is what the maker's own library says."""
    path = os.environ.get(variable)
    if path is None:
        pytest.skip(f"{variable} is not set to a file of this kind")
    select = "scene=0,z=0,t=0"
    stack = MicroscopeStack(Path(path), select, 2**28)
    if library == "nd2":
        import nd2

        with nd2.ND2File(path) as file:
            array = file.to_xarray()
            expected = array.isel({axis: 0 for axis in "PTZ" if axis in array.dims}).to_numpy()
    else:
        from liffile import LifFile

        with LifFile(path) as file:
            array = file.images[0].asxarray()
            expected = array.isel({axis: 0 for axis in "TZ" if axis in array.dims}).to_numpy()
    planes = np.stack([stack.plane(n) for n in range(len(stack.facts.names))])
    assert np.array_equal(planes, expected.reshape(planes.shape))
