"""The documentation site: no warning, every public name, no link to nowhere, nothing from elsewhere."""
import importlib
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import PATIENCE, REPOSITORY

pytest.importorskip("myst_nb", reason="Sphinx and myst-nb are not installed: pip install 'protein_atlas[docs]'")
pytestmark = pytest.mark.full  # the site is built for two minutes


class Links(HTMLParser):
    """Of a page: anchors, what it links to, what it loads, and images without a text."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.loaded, self.unnamed = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag in ("script", "img", "link", "iframe", "source"):
            self.loaded += [attributes[name] for name in ("src", "href") if attributes.get(name)]
        if tag == "img" and not (attributes.get("alt") or "").strip():
            self.unnamed.append(attributes.get("src"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "html"
    done = subprocess.run(
        [sys.executable, REPOSITORY / "docs" / "build.py", "--out", out],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Links]:
    return {path: Links(path) for path in site.rglob("*.html")}


def test_every_public_name_has_its_place(pages):
    anchors = set().union(*(page.anchors for path, page in pages.items() if "api" in path.parts))
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in (REPOSITORY / "protein_atlas").rglob("*.py")
        if not path.stem.startswith("_")
    ]
    names = {f"{module}.{name}" for module in modules for name in importlib.import_module(module).__all__}
    assert len(names) > 200
    assert names <= anchors, f"not rendered: {sorted(names - anchors)}"


def test_every_notebook_has_a_page(site):
    notebooks = {
        path.relative_to(REPOSITORY / "nbs").with_suffix(".html")
        for path in (REPOSITORY / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }
    assert all((site / page).is_file() for page in notebooks)
    tutorials = (site / "index.html").read_text(encoding="utf-8")
    assert all(page.name in tutorials for page in notebooks if page.parent.name == "tutorials"), (
        "a tutorial is not linked at home"
    )


def test_every_command_is_there(site):
    text = (site / "commands.html").read_text(encoding="utf-8")
    from protein_atlas.cli import app

    for command in app.registered_commands:
        assert f'id="{command.name or command.callback.__name__}"' in text


def test_no_link_leads_nowhere(site, pages):
    broken, outside = [], set()
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                outside.add(link)
                assert parts.netloc, (path, link)
                continue
            if parts.scheme:
                assert parts.scheme in ("data", "mailto"), (path, link)
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if not target.is_file():
                broken.append((str(path.relative_to(site)), link))
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append((str(path.relative_to(site)), link))
    assert broken == [], broken[:10]
    assert any("proteinatlas.org" in link for link in outside)


def test_nothing_is_loaded_from_elsewhere(pages):
    for path, page in pages.items():
        assert [
            link for link in page.loaded if urlsplit(link).scheme in ("http", "https") or link.startswith("//")
        ] == [], path
        assert page.unnamed == [], path


def test_search_in_a_browser(browser, site):
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    page, asked = browser.new_page(viewport={"width": 390, "height": 900}), []
    try:
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/search.html?q=macro_f1")
        page.wait_for_selector("#search-results li a")
        assert any(
            "metrics" in link for link in page.locator("#search-results li a").evaluate_all("a => a.map(x => x.href)")
        )
        for name in ("index.html", "api/vision/losses.html", "commands.html"):
            page.goto(f"{address}/{name}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert [url for url in asked if not url.startswith((address, "data:"))] == []
    finally:
        page.close()
        server.shutdown()
        server.server_close()
