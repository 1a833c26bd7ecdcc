"""What goes on after a stop knows what it depends on, whatever a storage tells of its files."""
import warnings
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from protein_atlas.data.images import CHANNELS
from protein_atlas.data.labels import LabelTable
from protein_atlas.data.packing import pack_images
from protein_atlas.data.sources import open_images
from protein_atlas.predict.bundle import open_bundle
from protein_atlas.system.errors import TrainingError
from protein_atlas.system.storage import RemoteFolder
from protein_atlas.train.resume import UnfinishedRun, depends_on

LABELS = ("left", "right")


class WebServer:
    """Files in memory; marks: what it tells of them, besides their size."""

    def __init__(self, marks: tuple[str, ...] = ()):
        self.files, self.times, self.asked = {}, Counter(), Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):  # noqa: N802  as http.server calls it
                name = self.path.lstrip("/")
                content = server.listing() if name.rstrip("/") == "data" else server.files.get(name)
                server.asked[self.command, name] += 1
                self.send_response(404 if content is None else 200)
                for mark in marks if name in server.files else ():
                    changed = server.times[name]
                    told = formatdate(1.7e9 + changed, usegmt=True) if mark == "Last-Modified" else f'"{changed}"'
                    self.send_header(mark, told)
                self.send_header("Content-Type", "image/png" if name in server.files else "text/html")
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content or b"")

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, daemon=True).start()

    def listing(self) -> bytes:
        return "\n".join(f'<a href="/{name}">{name}</a>' for name in self.files).encode()

    def write(self, image_id: str, level: int) -> None:
        """The files of an image, of a size that does not depend on the level; the server's clock may go backwards."""
        for channel in CHANNELS:
            content, name = BytesIO(), f"data/{image_id}_{channel}.png"
            Image.fromarray(np.full((32, 32), level, np.uint8)).save(content, "png", compress_level=0)
            self.files[name], self.times[name] = content.getvalue(), self.times[name] - 60


@pytest.fixture(params=[(), ("Last-Modified",), ("ETag",)], ids=["nothing", "time", "etag"])
def web(request):
    pytest.importorskip("aiohttp")
    server = WebServer(request.param)
    for number in range(6):
        server.write(f"f{number}", 20 * number + 20)
    yield server
    server.http.shutdown()
    server.http.server_close()


def table_of(web: WebServer, folder: Path) -> Path:
    rows = [",".join([f"f{n}", *(f"{web.url}/data/f{n}_{channel}.png" for channel in CHANNELS)]) for n in range(6)]
    (folder / "files.csv").write_text("\n".join([",".join(["Id", *CHANNELS]), *rows]) + "\n")
    return folder / "files.csv"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """Of a network that has learned nothing: it predicts as well as any."""
    from protein_atlas.data.images import save_image
    from protein_atlas.evaluate.thresholds import Thresholds
    from protein_atlas.train.learner import rgby_learner
    from protein_atlas.vision.data import protein_datablock
    from protein_atlas.vision.models import small_resnet

    place = tmp_path_factory.mktemp("model")
    for number in range(6):
        save_image(place, f"f{number}", np.full((4, 32, 32), 40 * number, np.uint8))
    table = LabelTable(np.array([f"f{n}" for n in range(6)]), np.eye(2, dtype=np.uint8)[[0, 1] * 3], LABELS)
    dls = protein_datablock(place, LABELS).dataloaders(table, bs=2, num_workers=0)
    learn = rgby_learner(dls, small_resnet, pretrained=False)
    learn.save_bundle(place / "bundle", Thresholds([0.5, 0.5], LABELS, "fixed"))
    return place / "bundle"


class Here:
    """In the place of a cluster: this process."""

    cpus, gpus = 1.0, 0.0

    @staticmethod
    def map(function, jobs, desc, unit):
        return map(function, jobs)


def test_a_file_of_the_same_size_is_another(web):
    """Also of a folder whose listing tells names alone."""
    ids, name = [f"f{n}" for n in range(6)], "data/f1_green.png"

    def known() -> list[str]:
        images = open_images(f"{web.url}/data/")
        return [RemoteFolder(web.url).facts(name).version, *map(images.fingerprint, ids)]

    before = known()
    assert before == known()
    web.write("f1", 7)
    assert [one != other for one, other in zip(before, known(), strict=True)] == [True, *(n == 1 for n in range(6))]


def test_a_screening_of_urls_does_changed_images_again(web, bundle, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    from protein_atlas.predict.screening import screen

    def kept() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return screen(bundle, table_of(web, tmp_path), tmp_path / "out", Here, part_images=2).kept

    assert [kept(), kept()] == [0, 3]
    before = pandas.read_parquet(tmp_path / "out/predictions").sort_values("row")["left"].to_numpy()
    web.write("f2", 250)
    assert kept() == 2
    after = pandas.read_parquet(tmp_path / "out/predictions").sort_values("row")["left"].to_numpy()
    assert (before != after).tolist() == [n == 2 for n in range(6)]


def test_a_training_on_urls_does_not_go_on_with_others(web, tmp_path):
    images, run = open_images(table_of(web, tmp_path)), UnfinishedRun(tmp_path / "run.unfinished")
    run.path.mkdir()
    table = LabelTable(np.array(images.ids), np.eye(2, dtype=np.uint8)[[0, 1] * 3], LABELS)
    for _ in range(2):
        assert run.check_depends(depends_on(table, np.array([5]), images))[1] == []
    web.write("f4", 3)
    with pytest.raises(TrainingError, match="1 of 6 images, the first of them in row 5 of train.csv, are not those"):
        run.check_depends(depends_on(table, np.array([5]), images))


def test_a_prediction_goes_on_before_the_image_that_changed(web, bundle, tmp_path):
    from protein_atlas.predict.load import load_predictor

    table, predictor = table_of(web, tmp_path), load_predictor(bundle, device="cpu")
    out, broken = tmp_path / "out.csv", web.files["data/f5_red.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        web.files["data/f5_red.png"] = b"no picture"
        with pytest.raises(ValueError, match="f5_red"):
            predictor.predict(table, out=out, bs=1, workers=0)
        web.files["data/f5_red.png"] = broken
        web.write("f3", 250)
    with pytest.warns(UserWarning, match="the input of row 4 is not what it was at an earlier start: 3 of 5"):
        found = predictor.predict(table, out=out, bs=1, workers=0)
    assert found.resumed == 3
    np.testing.assert_allclose(found.scores, predictor.scores(table, bs=1, workers=0))


def test_pack_asks_once_for_each_file(web, tmp_path):
    """What a file is, and how many bytes it has: one question."""
    pack_images(table_of(web, tmp_path), tmp_path / "store", workers=1)
    heads = {asked for (kind, _), asked in web.asked.items() if kind == "HEAD"}
    assert heads == {1}


def test_a_thresholds_file_or_network_that_was_replaced(bundle, tmp_path):
    """A bundle is sealed: neither can be exchanged behind a journal's back."""
    import shutil

    for name in ("model.json", "model.safetensors"):
        place = tmp_path / name
        shutil.copytree(bundle, place)
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=name), open_bundle(place):
            pass
