"""The page as a visitor attacks it, over HTTP: what he may not read, fill, hold or break."""
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE
from PIL import Image

pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'protein_atlas[app]'")
httpx = pytest.importorskip("httpx", reason="httpx is not installed: it comes with the extra 'app'")

CHANNELS = ("red", "green", "blue", "yellow")


class Page:
    """A running page: its process, address, and the folder that it has for temporary files."""

    def __init__(self, process: subprocess.Popen, url: str, temporary: Path):
        self.process, self.url, self.temporary = process, url, temporary

    def files(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def end(self, by: int) -> None:
        """End it by this signal, one is enough: if it waited for a visitor who stays, it would wait for ever."""
        self.process.send_signal(by)
        self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def start(command, trained) -> Iterator[Callable[..., Page]]:
    """Start `protein_atlas app` on the trained run, with these options."""
    started = []

    def started_page(temporary: Path, *options: object, **environment: str) -> Page:
        process = subprocess.Popen(
            [command, "app", trained[0], "--port", "0", *map(str, options)], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", **environment},
        )  # fmt: skip
        started.append(process)
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"(http://\S+): open it", line):
                return Page(process, found[1], temporary)
        pytest.fail(f"the page did not start: {''.join(said)}")

    yield started_page
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="module")
def page(start, tmp_path_factory) -> Iterator[Page]:
    """One page for all; each test leaves it as it was, without a file, and the last one kills it."""
    page = start(tmp_path_factory.mktemp("page"), "--max-mb", 1)
    yield page
    page.process.kill()
    said = page.process.stdout.read()
    assert "Traceback" not in said and "ERROR" not in said, said


class Visitor:
    """A visitor without a browser: he keeps his cookie, and sends what he likes."""

    def __init__(self, page: Page, **headers: str):
        self.page, self.session = page, secrets.token_hex(5)
        self.client = httpx.Client(base_url=page.url, headers=headers, timeout=PATIENCE, trust_env=False)
        config = self.client.get("/config").json()
        self.acts = {act["api_name"]: act["id"] for act in config["dependencies"]}

    def upload(self, *files: tuple[str, bytes]):
        return self.client.post("/gradio_api/upload", files=[("files", file) for file in files])

    def join(self, act: str, data: list, **more: object):
        body = {"data": data, "fn_index": self.acts[act], "session_hash": self.session, **more}
        return self.client.post("/gradio_api/queue/join", json=body)

    def told(self) -> list[dict]:
        """The messages of what was asked for, until it is done."""
        found = []
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    found.append(json.loads(line.removeprefix("data: ")))
                    if found[-1]["msg"] in ("process_completed", "unexpected_error"):
                        break
        return found

    def drop(self, *files: tuple[str, bytes], act: str = "upload_image") -> str:
        """Upload files, as the page does it; all that comes back, as one text."""
        answer = self.upload(*files)
        assert answer.status_code == 200, answer.text
        dropped = [described(path) for path in answer.json()]
        data = [dropped, False] if act == "upload_image" else [dropped]
        joined = self.join(act, data)
        assert joined.status_code == 200, joined.text
        return json.dumps(self.told()[-1])


def described(path: str) -> dict:
    """As Gradio's page describes a file that it has uploaded."""
    return {"path": path, "orig_name": "x", "size": 1, "meta": {"_type": "gradio.FileData"}}


def png(value: int = 100, size: int = 32) -> bytes:
    made = BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).save(made, "PNG")
    return made.getvalue()


def field(name: str) -> list[tuple[str, bytes]]:
    return [(f"{name}_{channel}.png", png()) for channel in CHANNELS]


def zipped(*members: tuple[str, bytes]) -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def test_what_is_dropped_is_scored(page):
    said = Visitor(page).drop(*field("mine"))
    assert "Result for mine" in said and str(page.temporary) not in said
    assert page.files() == []


@pytest.fixture
def private(tmp_path) -> Path:
    """Files of the server that are no upload: pictures, and a zip whose names are secret."""
    for name, content in [*field("secret"), ("secret.zip", zipped(("hidden-name.txt", b"x")))]:
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_no_path_of_the_server(page, private):
    visitor = Visitor(page)
    pictures = [described(str(private / name)) for name, _ in field("secret")]
    archive = [described(str(private / "secret.zip"))]
    for act, data in (
        ("upload_image", [pictures, False]), ("upload_image", [archive, False]), ("upload_folder", [archive]),
        ("upload_folder", [pictures]), ("upload_image", [[], pictures[0]]), ("show_image", [None, pictures[0], False]),
        ("upload_image", [[described("http://127.0.0.1:9/x.zip")], False]),
        ("upload_image", [{"value": archive}, False]),
        ("upload_image", [[str(private / "secret.zip")], False]), ("upload_image", [[[pictures[0]]], False]),
    ):  # fmt: skip
        answer = visitor.join(act, data)
        said = answer.text + (json.dumps(visitor.told()) if answer.status_code == 200 else "")
        assert answer.status_code == 400, said
        assert "Result for" not in said and "hidden-name" not in said and str(private) not in said
    relative = [described(os.path.relpath(private / "secret.zip", Path.cwd()))]
    assert visitor.join("upload_folder", [relative]).status_code == 400
    assert page.files() == []


def test_no_upload_and_no_session_of_another_visitor(page):
    ann, bob = Visitor(page), Visitor(page)
    mine = [described(path) for path in ann.upload(*field("anns")).json()]
    assert str(page.temporary) not in json.dumps(mine)
    refused = bob.join("upload_image", [mine, False])
    assert refused.status_code == 400 and "no file that you uploaded here" in refused.text
    assert ann.join("upload_image", [mine, False]).status_code == 200
    bob.session = ann.session
    assert "Result for" not in json.dumps(bob.told())
    assert bob.join("show_image", [None, "anns", True]).status_code == 200
    assert "Result for" not in json.dumps(bob.told())
    for session in (f"x&session_hash={ann.session}", f"../{ann.session}", ""):
        bob.session = session
        assert "Result for" not in json.dumps(bob.told())
    assert "Result for anns" in json.dumps(ann.told())
    again = ann.join("upload_image", [mine, False])
    assert again.status_code == 400  # it was good once


@pytest.mark.parametrize("value", [None, True, "forged", []], ids=str)
def test_forged_acts(page, value):
    """What no page sends is refused; names that are unknown are told of. The terminal hears of none (see `page`)."""
    visitor = Visitor(page)
    acts = visitor.client.get("/config").json()["dependencies"]
    assert len(acts) > 5
    for act in acts:
        for picked in (None, {"index": 0, "value": "<b>forged"}):
            for data in ([value] * len(act["inputs"]), [None, value, False][-len(act["inputs"]) :]):
                answer = visitor.join(act["api_name"], data, event_data=picked, trigger_id=act["targets"][0][0])
                assert answer.status_code in (200, 400), answer.text
                if answer.status_code == 200:
                    assert act["backend_fn"], act
                    told = json.dumps(visitor.told())
                    assert "Result for" not in told and "<b>forged" not in told, told


def test_an_unknown_name_is_told_of(page):
    visitor = Visitor(page)
    assert visitor.join("pick_example", [False], event_data={"value": "<b>none"}).status_code == 200
    output = visitor.told()[-1]["output"]
    assert output["error"] == "there is no image &#x27;&lt;b&gt;none&#x27;", output


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Host": "evil.example:7860"}, {"Host": "192.168.7.7"}, {"Host": ""},
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"},
    {"X-Forwarded-Host": "evil.example"},
], ids=lambda headers: " ".join(f"{key}:{value}" for key, value in headers.items()))  # fmt: skip
def test_a_foreign_host_or_origin(page, headers):
    visitor = Visitor(page)
    mine = [described(path) for path in visitor.upload(*field("mine")).json()]
    visitor.client.headers.update(headers)
    assert [visitor.client.get(path).status_code for path in ("/", "/config", "/theme.css")] == [403] * 3
    assert visitor.upload(("x.png", b"x")).status_code == 403
    refused = visitor.join("upload_image", [mine, False])
    assert refused.status_code == 403 and "Result for" not in refused.text
    for header in headers:
        del visitor.client.headers[header]
    assert visitor.join("upload_image", [mine, False]).status_code == 200
    visitor.told()


def test_its_own_names(page):
    port = page.url.rsplit(":", 1)[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        visitor = Visitor(page, Host=host, Origin=f"http://{host}")
        assert "Result for mine" in visitor.drop(*field("mine"))


@pytest.mark.parametrize("method, path", [
    ("GET", "/gradio_api/file=/etc/passwd"), ("GET", "/gradio_api/file/etc/passwd"), ("GET", "/file=/etc/passwd"),
    ("GET", "/gradio_api/proxy=http://127.0.0.1:9/"), ("GET", "/gradio_api/info"), ("GET", "/gradio_api/openapi.json"),
    ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/redoc"), ("GET", "/monitoring"),
    ("GET", "/monitoring/summary"),
    ("GET", "/gradio_api/app_id"), ("GET", "/gradio_api/token"), ("GET", "/gradio_api/runs"), ("GET", "/?x=1&/../x/y/"),
    ("GET", "/gradio_api/call/upload_image/x"), ("GET", "/gradio_api/vibe-code"), ("GET", "/gradio_api/queue/status"),
    ("POST", "/gradio_api/call/upload_image"), ("POST", "/gradio_api/call/v2/upload_image"),
    ("POST", "/gradio_api/run/upload_image"), ("POST", "/gradio_api/api/upload_image"), ("POST", "/login"),
    ("POST", "/gradio_api/component_server"), ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/vibe-edit"), ("POST", "/gradio_api/stream/x"), ("POST", "/gradio_api/cancel"),
    ("GET", "/static/../../../etc/passwd"), ("GET", "/assets/..%2f..%2f..%2fetc/passwd"), ("GET", "//etc/passwd"),
    ("PUT", "/gradio_api/upload"), ("OPTIONS", "/gradio_api/queue/join"), ("DELETE", "/"),
])  # fmt: skip
def test_nothing_but_what_the_page_needs(page, method, path):
    if path == "/?x=1&/../x/y/":
        assert Visitor(page).client.get(path).status_code == 200
        return
    with socket.create_connection(("127.0.0.1", int(page.url.rsplit(":", 1)[1])), timeout=PATIENCE) as raw:
        raw.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
            "Connection: close\r\n\r\n{}".encode()
        )
        said = b"".join(iter(lambda: raw.recv(65536), b""))
    assert said.startswith(b"HTTP/1.1 404 "), said[:300]
    assert b"root:" not in said


def test_what_it_tells_of_itself(page):
    for path in ("/", "/config"):
        answer = Visitor(page).client.get(path)
        told = answer.text
        assert str(page.temporary) not in told and str(Path.home()) not in told and str(Path.cwd()) not in told
        assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_uploads_are_bounded(page):
    visitor = Visitor(page)
    large = visitor.upload(("large.zip", bytes(1_200_000)))
    assert large.status_code == 413 and "large.zip: more than 1,048,576 bytes" in large.text
    assert page.files() == []
    many = visitor.upload(*[(f"{number}.zip", bytes(400_000)) for number in range(3)])
    assert many.status_code == 413 and "more than 1,048,576 bytes in all" in many.text
    assert page.files() == []
    for bad in ("x" * 250, ".."):
        assert visitor.upload((bad, b"x")).status_code == 413
    assert visitor.client.post("/gradio_api/upload", content=b"x").status_code == 400
    assert visitor.client.post("/gradio_api/upload", data={"files": "/etc/passwd"}).status_code == 400
    deep = visitor.client.post("/gradio_api/queue/join", content=b"[" * 5_000_000)
    assert deep.status_code == 400
    assert visitor.client.post("/gradio_api/queue/join", content=b"[" * 50_000).status_code == 400
    refused = visitor.client.post("/gradio_api/queue/join", json={"data": [], "fn_index": 999, "session_hash": "a"})
    assert refused.status_code == 400


def test_an_aborted_upload_leaves_nothing(page):
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n"
        "Content-Type: multipart/form-data; boundary=XX\r\n\r\n--XX\r\nContent-Disposition: form-data; "
        'name="files"; filename="cut.zip"\r\n\r\n'
    )
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", int(page.url.rsplit(":", 1)[1]))) as raw:
            raw.sendall(head.encode() + bytes(300_000))
            wait_until(lambda: page.files() != [])
    wait_until(lambda: page.files() == [])


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def giant(width: int) -> bytes:
    """A small PNG that says it is large."""
    content = bytearray(png())
    content[16:24] = width.to_bytes(4, "big") * 2
    return bytes(content)


MARKUP = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("files, said", [
    ([("bomb.zip", zipped(*[(f"a_{c}.png", bytes(2_000_000)) for c in CHANNELS]))], "more than 4,194,304 bytes"),
    ([("up.zip", zipped(*[(f"../../../up_{c}.png", png()) for c in CHANNELS]))], "Result for up"),
    ([(f"giant_{c}.png", giant(60_000)) for c in CHANNELS], "giant_red.png: "),
    ([("none.zip", zipped(*[(f"{n}.txt", b"") for n in range(5_000)]))], "none.zip: no channel files"),
    ([("long.zip", zipped(("x" * 300 + "_red.png", png())))], "long.zip: "),
    ([(f"{MARKUP[:27]}_{c}.png", png()) for c in CHANNELS], "&lt;img src=x onerror=alert"),
    ([("markup.zip", zipped((MARKUP, b""), *[(f"fine_{c}.png", png()) for c in CHANNELS]))], "&lt;img src=x onerror"),
    ([(f"cell_{c}.png", b"no image") for c in CHANNELS], "cell_red.png: not an image file"),
], ids=lambda value: value[:12] if isinstance(value, str) else "")  # fmt: skip
@pytest.mark.parametrize("act", ["upload_image", "upload_folder"])
def test_bad_files_are_named(page, files, said, act):
    answer = Visitor(page).drop(*files, act=act)
    expected = "Predictions" if said.startswith("Result") and act == "upload_folder" else said
    assert expected in answer, answer[:2000]
    shown = [text for text in json.loads(answer)["output"]["data"] if isinstance(text, str)]
    assert MARKUP[:10] not in "".join(shown) and str(page.temporary) not in answer and "Traceback" not in answer
    assert page.files() == []


@pytest.mark.parametrize("options, said", [
    (("--port", 99999), "less than or equal to 65535"), (("--host", "no.such.host.invalid"), "cannot listen on"),
    (("--max-mb", 0), "expected at least 1"),
])  # fmt: skip
def test_options_that_cannot_be(call_command, trained, options, said):
    done = call_command("app", trained[0], *options)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def slow_folder() -> bytes:
    """A zip that keeps the network busy for a minute."""
    return zipped(*[(f"{number}_{c}.png", png(size=1)) for number in range(2400) for c in CHANNELS])


@pytest.mark.full
def test_filled_killed_swept_silent_and_ended_by_one_signal(start, page):
    """The last test: visitors fill the page as far as they can, and it is killed. The next page removes what it left,
    and ends with a visitor connected and a network at work.

    Whatever the environment says, no count of use is sent: a proxy for all requests hears nothing.
    """
    assert page.process.poll() is None and page.files() == []
    answers = [Visitor(page).upload((f"{number}.zip", bytes(1_000_000))).status_code for number in range(8)]
    assert answers == [200] * 4 + [413] * 4, "all visitors together are bounded"
    assert sum(path.stat().st_size for path in page.files()) < 4 * 2**20
    page.end(signal.SIGKILL)
    assert len(page.files()) == 4
    temporary = page.temporary
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        page = start(
            temporary, "--host", "0.0.0.0", "--name", "atlas.lab", HTTPS_PROXY=address,
            HTTP_PROXY=address, https_proxy=address, http_proxy=address, NO_PROXY="", GRADIO_ANALYTICS_ENABLED="True",
        )  # fmt: skip
        assert page.files() == []
        page.url = page.url.replace("0.0.0.0", "127.0.0.1")
        for host, status in (("atlas.lab", 200), ("10.1.2.3", 200), ("evil.example", 403)):
            assert httpx.get(page.url, headers={"Host": host}).status_code == status
        visitor = Visitor(page)
        heart = visitor.client.stream("GET", f"/gradio_api/heartbeat/{visitor.session}")
        waits = visitor.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": visitor.session})
        dropped = [described(path) for path in visitor.upload(("slow.zip", slow_folder())).json()]
        assert visitor.join("upload_folder", [dropped]).status_code == 200
        with heart as beats, waits as told:
            next(beats.iter_lines())
            assert any('"progress"' in line for line in told.iter_lines())
            visitor.upload(*field("waits"))
            page.end(signal.SIGTERM)
        assert page.process.returncode == 0
        assert list(page.temporary.glob("protein_atlas*")) == []
        said = page.process.stdout.read()
        assert "Traceback" not in said, said
        proxy.settimeout(0.1)
        with pytest.raises(TimeoutError):
            proxy.accept()
