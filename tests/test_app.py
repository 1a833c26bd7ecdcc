"""The page, in a real browser: files dropped, examples, labels clicked, folders, what is refused; nothing is kept."""
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import PATIENCE
from PIL import Image

pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'protein_atlas[app]'")


class Served:
    """A running page: its address, its folder for uploads, what it printed."""

    def __init__(self, process: subprocess.Popen, url: str, temporary: Path):
        self.process, self.url, self.temporary = process, url, temporary

    def kept(self) -> list[str]:
        """All files below the server's own temporary folder."""
        return [str(path) for path in self.temporary.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def served(browser, trained, tmp_path_factory) -> Iterator[Served]:
    """The command `protein_atlas app` on the trained run."""
    temporary = tmp_path_factory.mktemp("served")
    command = [
        str(Path(sys.executable).with_name("protein_atlas")), "app", str(trained[0]), "--port", "0", "--max-mb", "1",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.match(r"(http://127\.0\.0\.1:\d+): open it", line):
            break
    else:
        pytest.fail(f"the page did not start: {''.join(said)}")
    yield Served(process, found[1], temporary)
    visitor = browser.new_page()
    visitor.goto(found[1])
    visitor.wait_for_selector("#examples button", timeout=PATIENCE * 1000)
    process.send_signal(signal.SIGINT)  # with a visitor connected
    assert process.wait(PATIENCE) == 0, process.stdout.read()
    visitor.close()
    assert "Traceback" not in process.stdout.read()
    assert not [path for path in temporary.rglob("*") if path.is_file()], "the server has left files behind"


@pytest.fixture
def page(browser, served):
    """The page, opened; at its end no error was logged, and nothing was asked of another host."""
    opened = browser.new_page(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(served.url)
    opened.wait_for_selector("#image-upload input[type=file]", state="attached", timeout=PATIENCE * 1000)
    opened.wait_for_selector("#examples button", timeout=PATIENCE * 1000)
    yield opened
    foreign = [url for url in asked if not url.startswith((served.url, "data:", "blob:"))]
    opened.close()
    assert foreign == [], "asked of other hosts"
    assert [text for text in said if "413" not in text] == []


@pytest.fixture(scope="module")
def channel_files(phantoms) -> list[Path]:
    return [phantoms / "train" / f"phantom-0-00000_{channel}.png" for channel in ("red", "green", "blue", "yellow")]


def drop(page, files, zone: str = "image-upload") -> None:
    page.set_input_files(f"#{zone} input[type=file]", [str(file) for file in files])


def wait_for(page, selector: str, timeout: int = PATIENCE * 1000):
    page.wait_for_selector(selector, timeout=timeout)
    return page.locator(selector)


def alert(page, zone: str = "result") -> str:
    return wait_for(page, f"#{zone} [role=alert]").first.inner_text()


def test_four_files_and_a_label(page, served, trained, channel_files):
    from protein_atlas.vision.network import load_bundle

    drop(page, channel_files)
    assert wait_for(page, "#result h2").inner_text() == "phantom-0-00000"
    assert page.locator("#result .pictures img").count() == 5
    predictor = load_bundle(trained[0], "cpu")
    (scores,) = predictor.scores(channel_files[0].parent, ["phantom-0-00000"], workers=0)
    shown = page.locator("#result .bars button").evaluate_all(
        "b => b.map(x => [x.dataset.pick, x.querySelector('.value').innerText])"
    )
    assert {name: value.split(" / ")[0] for name, value in shown} == {
        name: f"{score:.2f}" for name, score in zip(predictor.vocab, scores)
    }
    maps = []
    for place, act in ((0, "click"), (3, "press")):
        button = page.locator("#result .bars button").nth(place)
        label = button.get_attribute("data-pick")
        button.click() if act == "click" else button.press("Enter")
        wait_for(page, f'#map section[aria-label="Map for {label}"]')
        assert page.locator("#map img").count() == 2
        maps.append(page.locator("#map img").first.get_attribute("src"))
    assert maps[0] != maps[1]
    assert served.kept() == [], "an upload was kept"


def test_pages_and_zip_and_several_images(page, served, channel_files, phantoms, tmp_path):
    planes = [Image.open(file) for file in channel_files]
    planes[0].save(tmp_path / "stack.tif", save_all=True, append_images=planes[1:])
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for file in sorted((phantoms / "train").glob("phantom-0-0000[12]_*.png")):
            archive.write(file, f"plate/{file.name}")
        archive.writestr("readme.txt", "no image")
    drop(page, [tmp_path / "stack.tif"])
    assert wait_for(page, "#result h2").inner_text() == "stack"
    page.locator(
        "#image-upload button[aria-label='Clear'], #image-upload button[aria-label='Remove this file']"
    ).first.click()
    page.wait_for_selector("#result h2", state="detached")
    drop(page, [tmp_path / "some.zip"])
    assert wait_for(page, "#result h2").inner_text() == "phantom-0-00001"
    assert "readme.txt" in alert(page)
    page.locator("#which input").click()
    page.get_by_role("option", name="phantom-0-00002").click()
    page.wait_for_function("document.querySelector('#result h2').innerText === 'phantom-0-00002'")
    assert served.kept() == []


def test_example_and_safe_colors(page):
    examples = page.locator("#examples button")
    assert 1 <= examples.count() <= 6
    name = examples.first.get_attribute("data-pick")
    examples.first.click()
    assert wait_for(page, "#result h2").inner_text() == name
    before = page.locator("#result img").first.get_attribute("src")
    page.locator("#safe input").check()
    page.wait_for_function("before => document.querySelector('#result img').src !== before", arg=before)


@pytest.mark.parametrize("name, content, said", [
    ("cell_red.png", b"no image", "cell_red.png"), ("picture.png", None, "picture.png: which channel is this?"),
    ("two.tif", None, "two.tif: 2 pages, for 4 channels: red, green, blue, yellow, in this order"),
    ("broken.zip", b"PK", "broken.zip: not a zip that can be read"),
])  # fmt: skip
def test_bad_files_are_named(page, served, tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name.endswith(".png"):
        Image.new("L", (32, 32)).save(path)
    else:
        Image.new("L", (32, 32)).save(path, save_all=True, append_images=[Image.new("L", (32, 32))])
    others = [tmp_path / f"cell_{channel}.png" for channel in ("green", "blue", "yellow") if name == "cell_red.png"]
    for other in others:
        Image.new("L", (32, 32)).save(other)
    drop(page, [path, *others])
    text = alert(page)
    assert said in text and str(served.temporary) not in text and "Traceback" not in text
    assert served.kept() == []


def test_a_file_over_the_limit(page, tmp_path):
    (tmp_path / "large.zip").write_bytes(bytes(1_200_000))
    drop(page, [tmp_path / "large.zip"])
    said = page.get_by_text(re.compile("exceeds the maximum|too large|size", re.IGNORECASE)).first
    said.wait_for(timeout=PATIENCE * 1000)
    assert page.locator("#result h2").count() == 0


def test_a_folder(page, served, trained, phantoms, tmp_path):
    from protein_atlas.vision.network import load_bundle

    ids = [f"phantom-0-{number:05d}" for number in range(5)]
    with zipfile.ZipFile(tmp_path / "folder.zip", "w") as archive:
        for image_id in ids:
            for channel in ("red", "green", "blue", "yellow"):
                file = phantoms / "train" / f"{image_id}_{channel}.png"
                cut = image_id == ids[3] and channel == "blue"
                archive.writestr(file.name, file.read_bytes()[:60] if cut else file.read_bytes())
    page.get_by_role("tab", name="A folder").click()
    drop(page, [tmp_path / "folder.zip"], "folder-upload")
    wait_for(page, "#table tbody tr")
    assert page.locator("#table tbody th").all_inner_texts() == ids
    assert f"{ids[3]}: {ids[3]}_blue.png" in alert(page, "table")
    with page.expect_download() as download:
        page.locator("#table a.download").click()
    got = pd.read_csv(download.value.path())
    good = [image_id for image_id in ids if image_id != ids[3]]
    expected = load_bundle(trained[0], "cpu").predict(phantoms / "train", good, workers=0).frame()
    assert got["Id"].tolist() == ids and got.columns.tolist() == expected.columns.tolist()
    got = got[got["Id"] != ids[3]].reset_index(drop=True)
    assert got["Predicted"].tolist() == expected["Predicted"].tolist()
    pd.testing.assert_frame_equal(got.iloc[:, 3:], expected.iloc[:, 3:], check_dtype=False, rtol=1e-4, atol=1e-6)
    assert served.kept() == []


def test_names_with_markup(page, served, channel_files, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for image_id in (name, "another"):
            for file in channel_files:
                archive.write(file, f"{image_id}_{file.stem.rpartition('_')[2]}.png")
        archive.writestr("<img src=y>.txt", "no image")
    drop(page, [tmp_path / "two.zip"])
    assert wait_for(page, "#result h2").inner_text() in (name, "another")
    assert "<img src=y>.txt" in alert(page)  # the note goes with the first image
    page.locator("#which input").click()
    page.get_by_role("option", name=name).click()
    page.wait_for_function("name => document.querySelector('#result h2').innerText === name", arg=name)
    assert page.locator("img[src=x], img[src=y]").count() == 0
    assert served.kept() == []


def test_labelled_images_like_it(page, served, channel_files, trained):
    from protein_atlas.features.files import read_features

    known = read_features(trained[0] / "features.npz")
    drop(page, channel_files)
    nearest = wait_for(page, "#result ul.known li")
    assert nearest.count() == 6
    assert f"of {len(known)} labelled images of this run" in page.locator("#result").inner_text()
    said = nearest.first.inner_text()
    assert "distance 0." in said and "phantom-0-" in said and "phantom-0-00000" not in said  # which is the image itself
    page.get_by_role("tab", name="Map").click()
    assert wait_for(page, "#points circle").count() == len(known)
    point = page.locator("#points circle").nth(7)
    box = point.bounding_box()
    for act in (page.mouse.move, page.mouse.click):  # a mouse, a finger
        page.mouse.move(0, 0)
        act(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_function("document.querySelector('#points .told').innerText.startsWith('phantom-0-')")
    titles = page.locator("#points circle title").all_text_contents()
    assert page.locator("#points .told").inner_text() in titles
    assert served.kept() == []


def test_on_a_phone(page, channel_files):
    page.set_viewport_size({"width": 390, "height": 800})
    drop(page, channel_files)
    wait_for(page, "#result h2")
    page.locator("#result .bars button").first.click()
    wait_for(page, "#map img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("tab", name="Map").click()
    wait_for(page, "#points svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_port_that_is_taken(served, call_command, trained):
    done = call_command("app", trained[0], "--port", served.url.rsplit(":", 1)[1])
    assert done.returncode == 2 and "choose another --port" in done.stderr, done.stderr
