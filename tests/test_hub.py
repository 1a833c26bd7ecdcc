"""The Hugging Face Hub's own client against a local server that speaks the part of its protocol that bundles need."""
import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import HfApi

from protein_atlas.predict.hub import from_hub, push_to_hub
from protein_atlas.system.errors import BundleError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Repositories(BaseHTTPRequestHandler):
    """Model repositories in memory, `server.files` by repository and name; every commit has the same hash."""

    protocol_version = "HTTP/1.1"

    def answer(self, content: bytes | dict | list, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.files.setdefault(repo, {})
            self.server.private[repo] = bool(asked.get("private") or asked.get("visibility") == "private")
            self.answer({"url": f"{self.server.url}/{repo}", "name": repo})
        elif path == "/api/validate-yaml":  # the head of the card
            head = json.loads(body)["content"].split("---")[1]
            fine = "library_name: protein_atlas" in head and "pipeline_tag: image-classification" in head
            self.answer({"errors": [] if fine else [{"message": f"not the head of a card: {head}"}], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").split("/commit/")[0]
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )
        else:
            self.answer({"error": f"not spoken here: {path}"}, 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        repo = path.removeprefix("/api/models").removeprefix("/")
        for mark in ("/resolve/", "/revision/", "/tree/"):
            repo = repo.split(mark)[0]
        files = self.server.files.get(repo)
        if files is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/resolve/" in path:
            content = files[path.split("/resolve/")[1].split("/", 1)[1]]
            self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        elif "/tree/" in path:
            self.answer([
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ])  # fmt: skip
        else:
            self.answer({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output stays its own."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Repositories)
    server.files, server.private = {}, {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(hub: ThreadingHTTPServer, tmp_path: Path, monkeypatch) -> HfApi:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    return HfApi(endpoint=hub.url, token="hf_not_a_token")


def test_there_and_back(hub, api, trained, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(trained[0] / "bundle", bundle)
    (bundle / "diary.txt").write_text("not for others")
    url = push_to_hub(bundle, "me/model", api=api)
    assert url.endswith(COMMIT)
    assert hub.private == {"me/model": True}
    sealed = ["README.md", "SHA256SUMS", "model.json", "model.safetensors", "reference.safetensors"]
    assert sorted(hub.files["me/model"]) == sealed

    hub.files["me/model"]["evil.pkl"] = b"\x80\x04 never fetched"
    fetched = from_hub("me/model", cache_dir=tmp_path / "cache", api=api)
    assert sorted(path.name for path in fetched.iterdir()) == sealed
    for path in fetched.iterdir():
        assert path.read_bytes() == (bundle / path.name).read_bytes()


def test_what_comes_back_is_checked(hub, api, trained, tmp_path):
    push_to_hub(trained[0] / "bundle", "me/model", api=api)
    hub.files["me/model"]["model.json"] = hub.files["me/model"]["model.json"].replace(b"small_resnet", b"resnet34")
    with pytest.raises(BundleError, match="model.json is not the file that was saved"):
        from_hub("me/model", cache_dir=tmp_path / "cache", api=api)


def test_no_such_repository(api, tmp_path):
    with pytest.raises(BundleError, match="me/nothing: could not be fetched from the Hub"):
        from_hub("me/nothing", cache_dir=tmp_path / "cache", api=api)


def test_no_connection(trained, tmp_path):
    api = HfApi(endpoint="http://127.0.0.1:9", token="hf_not_a_token")
    with pytest.raises(BundleError, match="me/model"):
        push_to_hub(trained[0] / "bundle", "me/model", api=api)
    with pytest.raises(BundleError, match="me/model"):
        from_hub("me/model", cache_dir=tmp_path / "cache", api=api)
