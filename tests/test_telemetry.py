"""What libraries would report of the machine: nothing is asked of the network, nothing is left in the home."""
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
from conftest import PATIENCE

START = "from protein_atlas.system.telemetry import quiet_telemetry; quiet_telemetry(); import time\n"
PROGRAMS = {
    "onnxruntime": "from protein_atlas.predict.engines import _library; _library('onnxruntime', 'onnx')",
    "openvino": "from protein_atlas.predict.engines import _library; _library('openvino', 'openvino').Core()",
    "gradio": START + "import gradio; gradio.Blocks()",
    "huggingface_hub": "from protein_atlas.predict.hub import _hub; _hub(); from huggingface_hub.utils import "
                       "send_telemetry; send_telemetry('x')",
}


@pytest.fixture
def listening():
    """A proxy for all that leaves this machine, and what it was asked for."""
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self):  # noqa: N802  as http.server calls it
            asked.append(self.path)
            self.send_error(502)

        do_GET = do_POST = do_HEAD = do_CONNECT  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def left_by(program: str, home: Path, proxy: str, **more: str) -> list[str]:
    """The files in the home of a process that ran this program, and two seconds more."""
    proxies = {name: proxy for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")}
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport time; time.sleep(2)"],
        capture_output=True, text=True, timeout=PATIENCE,
        env={**kept, "HOME": str(home), **proxies, "NO_PROXY": "127.0.0.1,localhost", **more},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    files = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    return [str(path) for path in files if "matplotlib" not in path.parts]  # its list of this machine's fonts


@pytest.mark.parametrize("library", PROGRAMS)
def test_nothing_is_reported(library, tmp_path, listening):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    proxy, asked = listening
    assert left_by(PROGRAMS[library], tmp_path, proxy) == []
    assert asked == []


def test_user_may_want_it(tmp_path, listening):
    """What is set stays; and the proxy hears it, so that the test above can fail."""
    pytest.importorskip("gradio")
    proxy, asked = listening
    left_by(PROGRAMS["gradio"] + "; time.sleep(3)", tmp_path, proxy, GRADIO_ANALYTICS_ENABLED="True")
    assert asked


# Where a machine asks its own cloud what it is; a Ray that starts does, whether or not it reports.
OWN_CLOUD = ("http://169.254.169.254/", "http://metadata.google.internal/")


@pytest.mark.full
def test_ray_reports_nothing(tmp_path, listening):
    pytest.importorskip("ray")
    proxy, asked = listening
    program = "from operator import neg\nfrom protein_atlas.system.ray import RayCluster\n" \
              "assert list(RayCluster().map(neg, [1, 2], 'negate', 'number')) == [-1, -2]"
    left_by(program, tmp_path, proxy)
    assert [url for url in asked if not url.startswith(OWN_CLOUD)] == []
