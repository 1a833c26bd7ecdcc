"""The report and the comparison as files that are mailed: self-contained, accessible, and working in a real browser."""
import ast
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from protein_atlas.report.run import write_report
from protein_atlas.report.run_folder import RunFolder
from protein_atlas.report.run_writer import Artifact
from protein_atlas.train.evaluation import renew_evaluation

# Text that is less than 4.5 times as light or dark as what is behind it (WCAG 2.1, success criterion 1.4.3).
LOW_CONTRAST = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const a = light(rgb(getComputedStyle(element).color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(walker.currentNode.data.trim() + " " + ratio.toFixed(2));
  }
  return low;
}"""


class Page(HTMLParser):
    """The tags of a page, with their attributes, and its headings."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def check_page(path: Path) -> Page:
    """What holds for every page: nothing from elsewhere, every image described, headings in order."""
    assert path.stat().st_size < 10_000_000
    page = Page(path)
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        if "src" in attributes:
            assert attributes["src"].startswith("data:"), (tag, attributes["src"][:80])
        if "href" in attributes:
            assert attributes["href"] == "data:," or attributes["href"][1:] in anchors, attributes["href"]
    assert all(image["alt"].strip() for image in page.all("img"))
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1 and all(b - a <= 1 for a, b in zip(headings, headings[1:]))
    assert page.all("html")[0]["lang"] == "en" and any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    assert "http://" not in path.read_text(encoding="utf-8") and "@import" not in path.read_text(encoding="utf-8")
    return page


def test_train_writes_a_report(trained):
    page = check_page(trained[0] / "report.html")
    assert len(page.all("img")) >= 10
    text = (trained[0] / "report.html").read_text(encoding="utf-8")
    run = RunFolder.open(trained[0])
    assert f"{run.metrics['macro_f1']:.3f}" in text
    for label in run.vocab:
        assert label.replace("&", "&amp;") in text


def test_a_run_decides_again_as_it_did(trained):
    run = RunFolder.open(trained[0])
    assert run.cross_fit().score == pytest.approx(run.metrics["macro_f1"], abs=1e-12)


def test_a_report_says_what_is_missing(call_command, run):
    for name in ("maps.png", "top_losses.png", "channel_importance.csv"):
        (run / name).unlink()
    done = call_command("report", run)
    assert done.returncode == 0, done.stderr
    check_page(run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count("protein_atlas report RUN_DIR --images DATA_DIR") == 3


def test_images_bring_the_evidence_back(call_command, trained, phantoms, run, tmp_path):
    (run / "maps.png").unlink(missing_ok=True)
    out = tmp_path / "again.html"
    done = call_command("report", run, "--images", phantoms, "--out", out)
    assert done.returncode == 0, done.stderr
    check_page(out)
    assert "RUN_DIR --images" not in out.read_text(encoding="utf-8")
    for name in ("labels.csv", "maps.csv", "top_losses.csv"):
        then, now = (pd.read_csv(folder / name) for folder in (trained[0], run))
        pd.testing.assert_frame_equal(then, now, check_exact=False, rtol=1e-6)
    assert not [path for path in run.parent.iterdir() if path.name.startswith(".")], "a part is left"


@pytest.mark.parametrize("arguments, said", [
    (("report", "nowhere"), "nowhere: no such folder"), (("compare", "nowhere", "nowhere"), "nowhere: no such folder"),
])  # fmt: skip
def test_no_run(call_command, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = call_command(*arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_a_damaged_run_is_named(call_command, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "valid_scores.csv").write_text("Id,Nucleoplasm\nx,0.5\n")
    done = call_command("report", folder)
    assert done.returncode == 2, done.stderr
    assert "labels of labels.csv are not columns of valid_scores.csv" in done.stderr


def test_compare(call_command, trained, run, tmp_path):
    out = tmp_path / "compare.html"
    done = call_command("compare", trained[0], run, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "difference 0.000 [0.000, 0.000]: no difference can be told" in done.stdout
    check_page(out)


def test_report_in_a_browser(browser, trained):
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto((trained[0] / "report.html").as_uri())
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"

    def first_labels() -> list[str]:
        return opened.locator("table.sortable").first.locator("tbody th").all_inner_texts()

    order = first_labels()
    header = opened.locator("table.sortable").first.locator("th button").nth(4)
    header.click()
    column = opened.locator("table.sortable").first.locator("thead th").nth(4)
    assert column.get_attribute("aria-sort") == "descending" and sorted(first_labels()) == sorted(order)
    cells = opened.locator("table.sortable").first.locator("tbody tr td:nth-child(5)")
    values = [float(value) for value in cells.evaluate_all("cells => cells.map(c => c.dataset.value)") if value]
    assert values == sorted(values, reverse=True)
    header.focus()
    opened.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "ascending"
    assert opened.evaluate(LOW_CONTRAST) == []
    for width in (1200, 360):
        opened.set_viewport_size({"width": width, "height": 900})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        widths = opened.evaluate("[...document.images].map(each => each.width / Math.min(each.naturalWidth, 600))")
        assert min(widths) >= 1
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    opened.close()


# Of each table the rows whose text is not seen: folded away, or cut by what they stand in.
UNSEEN_ROWS = """() => [...document.querySelectorAll("tr")].filter(row => {
  const box = row.getBoundingClientRect(), around = row.closest(".scroll");
  return !row.checkVisibility({contentVisibilityAuto: true}) || box.height === 0 || box.right > innerWidth + 1
    || around.scrollHeight > around.clientHeight + 1;
}).length"""


def test_a_report_on_paper(browser, trained):
    opened = browser.new_page(viewport={"width": 700, "height": 900})  # the width of A4 within its margins
    opened.goto((trained[0] / "report.html").as_uri())
    assert opened.evaluate(UNSEEN_ROWS) > 0
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.locator("details:not([open])").count() == 0 < opened.locator("details").count()
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator("details[open]").count() == 0
    opened.emulate_media(media="print")  # where no script may run
    assert opened.evaluate(UNSEEN_ROWS) == 0
    opened.close()


def test_words_are_explained_where_they_first_stand(browser, trained):
    opened = browser.new_page()
    opened.goto((trained[0] / "report.html").as_uri())
    text = " ".join(opened.locator("header").inner_text().split())
    for word, first in (
        ("acro F1", "Macro F1 is the mean"), ("interval", "The interval is"), ("threshold", "A threshold is"),
        ("average precision", "average precision: how far"),
    ):
        assert abs(text.index(first) - text.index(word)) < 700, word
    opened.close()


def test_a_report_can_be_written_elsewhere(run, tmp_path):
    before = (run / "report.html").read_bytes()
    assert write_report(run, tmp_path / "mine.html") == tmp_path / "mine.html"
    assert (run / "report.html").read_bytes() == before


def test_evidence_needs_the_images(run, tmp_path):
    from protein_atlas.system.errors import ImageError

    with pytest.raises(ImageError, match="no such folder|no image files"):
        renew_evaluation(run, tmp_path)


# One owner of the run folder's format

# Files of the same name that are not in a run folder: an audit saved by itself, the table of a command, an unfinished
# run, a part of a page.
OTHERS = {
    "data/split_audit.py": {"split_audit.csv", "split_audit.md"}, "commands/images.py": {"duplicates.csv"},
    "train/resume.py": {"settings.json", "logs"}, "app/page.py": {"examples"},
}  # fmt: skip


def texts(tree: ast.AST) -> list[str]:
    """All texts of a program but its docstrings."""
    bodies = [
        node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
    ]
    docstrings = {id(node.body[0].value) for node in bodies if isinstance(node.body[0], ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in constants if id(node) not in docstrings]


def names_in(text: str) -> set[str]:
    """Which names of files of a run folder a text has; of folders, whether it is their name."""
    files = {str(name) for name in Artifact if "." in name and re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)}
    return files | {str(name) for name in Artifact if "." not in name and name == text and name != Artifact.BUNDLE}


def test_names_of_the_run_folder_stand_in_one_module(repository):
    package = repository / "protein_atlas"
    found = {}
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        names = set().union(*map(names_in, texts(ast.parse(path.read_text(encoding="utf-8")))))
        if place != "report/run_writer.py" and (names := names - OTHERS.get(place, set())):
            found[place] = names
    assert not found, f"use protein_atlas.report.run_writer instead of {found}"


@pytest.mark.parametrize(
    "code",
    [
        'path / "metrics.json"', 'f"{run}/labels.csv: missing"',
        'def f():\n    "metrics.json"\n    return open(x + "/split.csv")', 'path / "examples"',
    ],
)
def test_a_name_elsewhere_would_be_found(code):
    assert set().union(*map(names_in, texts(ast.parse(code))))


@pytest.mark.parametrize(
    "code", ['def f():\n    """Writes metrics.json."""', '"my_labels.csv.gz"', '"two examples"', "labels.csv"]
)
def test_other_texts_are_none(code):
    assert not set().union(*map(names_in, texts(ast.parse(code))))
