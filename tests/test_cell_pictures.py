"""What is seen of cells: outlines give the mask back, agreement is as counted by hand, fields on a page tell cells."""
import re
import warnings
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from PIL import Image
from scipy import ndimage

from protein_atlas.cells.agreement import cell_agreement
from protein_atlas.cells.masks import MaskWarning
from protein_atlas.cells.outlines import cell_outlines
from protein_atlas.cells.pictures import OUTLINE_COLORS, field_figure
from protein_atlas.cells.pooling import CellPooling
from protein_atlas.cells.scored import CellScores, read_cell_scores
from protein_atlas.cells.source import open_cells
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.predict.cell_tables import CellTables
from protein_atlas.predict.predictions import Predictions
from protein_atlas.report.cell_page import ScoredFields, write_cells_page
from protein_atlas.system.errors import ImageError, LabelError, ReportError

VOCAB = ("Nucleoplasm", "Cytosol", "<img src=x onerror=alert(1)>")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Phantoms whose cells are known."""
    return simulate_phantoms(tmp_path_factory.mktemp("cells") / "phantoms", 3, 128, seed=3, workers=1, masks=True)


@pytest.fixture(scope="module")
def cells(known):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskWarning)
        return open_cells(known, known / "masks", pattern="{id}_cell", workers=1)


@pytest.fixture(scope="module")
def found(cells) -> Predictions:
    """Scores of the cells, of which the last could not be read."""
    scores = np.random.default_rng(0).random((len(cells), 3)).astype(np.float32)
    scores[-1] = np.nan
    return Predictions(tuple(cells.ids), scores, (scores > 0.5).astype(np.uint8), VOCAB, {len(cells) - 1: "cut short"})


@pytest.fixture(scope="module")
def scored(cells, found, tmp_path_factory) -> CellScores:
    """The table of them that `predict --cells` writes, read."""
    write = CellTables(cells, CellPooling("mean"))
    return read_cell_scores(write(found, tmp_path_factory.mktemp("scored") / "cells.csv"))


@given(st.integers(0, 10_000), st.integers(3, 40), st.integers(3, 40))
@settings(deadline=None, max_examples=40)
def test_what_is_outlined_is_the_cell(seed, height, width):
    """Whatever its form, with holes and parts that hang on it by a corner: a pixel is inside if it is the cell's."""
    mask, _ = ndimage.label(np.random.default_rng(seed).random((height, width)) < 0.6, np.ones((3, 3)))
    y, x = np.mgrid[:height, :width]
    pixels = np.column_stack([x.ravel(), y.ravel()])
    for number, lines in cell_outlines(mask).items():
        inside = np.zeros(mask.size, bool)
        for line in lines:
            assert (line[0] == line[-1]).all()
            inside ^= Polygon(line).contains_points(pixels)
        assert (inside.reshape(mask.shape) == (mask == number)).all()


@given(st.integers(0, 10_000), st.integers(2, 25), st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_agreement_is_as_counted_pair_by_pair(seed, n, k, n_fields):
    rng = np.random.default_rng(seed)
    scores, fields = rng.random((n, k)), rng.integers(0, n_fields, n).astype(str)
    decisions = (scores > 0.6).astype(np.uint8)
    agreed = cell_agreement(scores, decisions, fields, [f"label {place}" for place in range(k)])

    def alike(one, other):
        either = (decisions[one] | decisions[other]).sum()
        return (decisions[one] & decisions[other]).sum() / either if either else 1.0

    pairs = {(one, other): alike(one, other) for one, other in combinations(range(n), 2)}
    for field, row in agreed.fields.iterrows():
        own = [value for (one, other), value in pairs.items() if fields[one] == fields[other] == field]
        assert row["cells"] == (fields == field).sum()
        assert row["jaccard"] == pytest.approx(np.mean(own) if own else np.nan, nan_ok=True)
    others = [value for (one, other), value in pairs.items() if fields[one] != fields[other]]
    assert agreed.elsewhere == pytest.approx(np.mean(others) if others else np.nan, nan_ok=True)
    assert (agreed.labels["between"].dropna() <= 1 + 1e-9).all()
    single = int((pd.Series(fields).value_counts() == 1).sum())
    assert (f"{single} field" in agreed.describe()) == (single > 0) or single == 0
    assert len(agreed.table) == len(set(fields)) * k


def test_what_predict_writes_is_read(cells, found, scored):
    np.testing.assert_array_equal(scored.scores, found.scores)
    assert scored.ids == cells.ids and scored.decisions.tolist() == found.decisions.tolist() and scored.vocab == VOCAB
    assert scored.unread.tolist() == [False] * (len(cells) - 1) + [True]
    for name in ("top", "left", "bottom", "right", "area", "on_border"):
        assert scored.cells[name].tolist() == cells.cells[name].tolist()


def test_tables_that_are_none(tmp_path, scored):
    file = tmp_path / "cells.csv"
    for changed, said in (
        (lambda table: table.drop(columns="Field"), "column 'Field' is missing"),
        (lambda table: table.assign(Field="a"), f"row 1: column 'Id': {scored.ids[0]!r}; expected <field>#<number>"),
        (lambda table: table.assign(Predicted="Golgi"), "row 1: column 'Predicted': 'Golgi'"),
        (lambda table: table.assign(Cytosol="high"), "row 1: column 'Cytosol': 'high'; expected a number"),
        (lambda table: table.assign(area=1.5), "row 1: column 'area': '1.5'; expected a whole number"),
    ):
        changed(scored.frame()).to_csv(file, index=False)
        with pytest.raises(LabelError, match=re.escape(f"{file}: ") + ".*" + re.escape(said)):
            read_cell_scores(file)


def test_every_cell_of_a_field_is_drawn(cells, scored):
    field = cells.cells["field"].iloc[0]
    image, some = cells.fields.open(field), scored.of_field(field)
    with Image.open(cells.masks[field]) as opened:
        mask = np.asarray(opened)
    figure = field_figure(image, mask, some.decided)
    drawn = sum(len(of.get_segments()) for of in figure.axes[0].collections)
    assert drawn == sum(map(len, cell_outlines(mask).values()))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    counts = [int(re.search(r"\((\d+)\)$", text)[1]) for text in texts if "border" not in text]
    assert sum(counts) == len(some) and len(counts) <= len(OUTLINE_COLORS) + 2
    with pytest.raises(ImageError, match="the mask has"):
        field_figure(image, mask[:-1], some.decided)


def test_what_does_not_fit_together_is_counted(cells, scored):
    n = len(cells)
    moved = CellScores(scored.cells.assign(area=scored.cells["area"] + (np.arange(n) == 1)), scored.scores,
                       scored.decisions, VOCAB)  # fmt: skip
    said = ScoredFields(cells, moved.take(np.arange(1, n))).problems()
    assert [text.split(";")[0] for text in said] == [
        f"1 of {n - 1} rows of scores say another box or area than the mask, which has changed since",
        f"1 of {n} cells have no row of scores",
        f"1 of {n - 1} cells could not be read when they were predicted, and have no scores",
    ]
    with pytest.raises(ReportError, match="give the fields and masks that were predicted"):
        ScoredFields(cells, moved.take([1]))


@pytest.mark.parametrize("width", [390, 1200])
def test_cells_are_told_by_mouse_finger_and_keys(browser, cells, scored, tmp_path, width):
    file = write_cells_page(tmp_path / "cells.html", ScoredFields(cells, scored), title="Phantoms")
    page = browser.new_page(viewport={"width": width, "height": 900}, has_touch=True, accept_downloads=True)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    first = cells.cells[cells.cells["field"] == cells.cells["field"].iloc[0]]
    section = page.locator("section.cells").first
    assert section.locator("svg path").count() == section.locator("tbody tr").count() == len(first)
    whole = first[~first["on_border"]] if (~first["on_border"]).any() else first  # whose middle is surely in it
    cell = whole.iloc[0]
    path = section.locator(f'path[data-cell="{cell.number}"]')
    for act in (page.mouse.move, page.touchscreen.tap):
        page.evaluate("document.querySelectorAll('.told').forEach(each => each.textContent = '')")
        page.mouse.move(0, 0)
        path.scroll_into_view_if_needed()
        at = path.bounding_box()
        act(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        page.wait_for_function("name => document.querySelector('.told').textContent.startsWith(name)", arg=cell.name)
    told = section.locator(".told").inner_text()
    assert told == path.locator("title").text_content() and section.locator("tr.on").count() == 1
    other = section.locator("button.cell").last
    other.press("Enter")
    number = other.inner_text()
    assert section.locator(".told").inner_text().startswith(f"{first['field'].iloc[0]}{number}: ")
    assert section.locator("path.on").get_attribute("data-cell") == number[1:]
    with page.expect_download() as download:
        section.locator("a.download").click()
    assert pd.read_csv(download.value.path())["Id"].tolist() == first.index.tolist()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("img[src=x]").count() == 0 and said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_fields_with_their_cells_on_the_page(known, cells, scored, call_command, monkeypatch):
    """What the command puts together: examples that are cells, and the fields for a tab of their own."""
    from protein_atlas.app import page

    table = known.parent / "cells.csv"
    scored.take(np.arange(1, len(scored))).frame().to_csv(table, index=False)
    shown = []
    monkeypatch.setattr(page, "serve", lambda viewer, *_: not shown.append(viewer))
    options = ["app", "simulated@48", "--images", known, "--cells", known / "masks" / "{id}_cell"]
    done = call_command(*options, "--cell-scores", table)
    assert done.returncode == 0, done.stderr
    assert f"1 of {len(cells)} cells have no row of scores; the first: {cells.ids[0]}" in done.stderr
    (viewer,) = shown
    field = cells.cells["field"].iloc[0]
    assert viewer.examples.ids == tuple(cells.ids[:12])
    assert f'aria-label="Cells of {field}"' in viewer.cells_html(field)
    done = call_command(*options)
    assert done.returncode == 2 and "need all of --images FIELDS --cells MASKS --cell-scores FILE" in done.stderr
