"""The tutorials are committed with their outputs, and nothing else is: no path, no warning, nothing too large."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient

NOTEBOOKS = {
    path: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((REPOSITORY / "nbs").rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
}
TUTORIALS = [path for path in NOTEBOOKS if path.parent.name == "tutorials"]
AGAIN = "run .ci/tutorials and commit"
LARGEST, LARGEST_TOGETHER = 500_000, 5_000_000  # bytes
# A cell that ends with one of these shows a picture.
FIGURE = re.compile(r"^figure$|figure\(|_sheet\(|\.show_batch\(|\.show_results\(|\.plot_top_losses\(|\.plot\.\w+\(")
UNWANTED = {
    "the place of a machine": re.compile(r"/(tmp|home|root|Users|var/folders|mnt)\b|[A-Z]:\\"),
    "a warning or an error": re.compile(r"Warning\b|Traceback \(most recent call last\)"),
    "a progress bar, or how long it took": re.compile(r"<progress\b|\d%\|[ █#]|<th>time</th>|'\d\d:\d\d'\]"),
    "an address in memory": re.compile(r"\bat 0x[0-9a-f]+"),
}


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in NOTEBOOKS[path]["cells"] if cell["cell_type"] == "code"]


def texts(output: dict) -> str:
    """All that an output says, apart from its pictures."""
    parts = [
        output.get("text", ""),
        *(value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")),
    ]
    return "\n".join("".join(part) for part in parts)


def test_only_tutorials_hold_outputs():
    found = [
        str(path.relative_to(REPOSITORY))
        for path in NOTEBOOKS
        if path not in TUTORIALS and any(cell["outputs"] for cell in code_cells(path))
    ]
    assert found == [], "run nbdev-clean --clear-all --fname nbs/api"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_outputs_of_a_tutorial(path):
    cells = code_cells(path)
    assert any(cell["outputs"] for cell in cells), f"no outputs: {AGAIN}"
    for cell in cells:
        source = "".join(cell["source"])
        assert cell["execution_count"] is None and cell["metadata"] == {}, source
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result"), source
            assert (
                output.get("name") != "stderr" and not output.get("execution_count") and not output.get("metadata")
            ), source
            for what, pattern in UNWANTED.items():
                assert not pattern.search(texts(output)), f"{what} in the output of:\n{source}"
        if FIGURE.search(source.strip().splitlines()[-1]) and not re.search(
            r"^#\|\s*(slow|cuda)", source, re.MULTILINE
        ):
            assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), (
                f"no picture: {AGAIN}:\n{source}"
            )
    assert path.stat().st_size <= LARGEST, f"{path.stat().st_size:,} bytes"


def test_size_of_all_tutorials():
    assert sum(path.stat().st_size for path in TUTORIALS) <= LARGEST_TOGETHER


@pytest.mark.parametrize(
    "said",
    [
        "saved in /tmp/abc/run",
        "UserWarning: old",
        "Traceback (most recent call last)",
        " 10%|█   |",
        "<__main__.Model at 0x7f00>",
    ],
)
def test_what_is_refused(said):
    assert any(pattern.search(said) for pattern in UNWANTED.values())


IMPORTS = re.compile(r"(from|import) ")
UNASKED = """import sys
[name for name in ("keras", "tensorflow", "onnx2tf", "ai_edge_litert") if name in sys.modules]"""


@pytest.mark.parametrize(
    "name",
    [
        "01_whole_road",
        pytest.param("02_your_own_stains", marks=pytest.mark.full),
        pytest.param("03_how_good_is_my_model", marks=pytest.mark.full),
    ],
)  # fmt: skip
def test_the_first_cells_warn_of_nothing(name):
    """In a kernel as Jupyter starts it, with ipywidgets or without, the imports of a tutorial say nothing; and what
    the star gives leaves Keras and TensorFlow alone."""
    notebook = nbformat.read(REPOSITORY / "nbs" / "tutorials" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    other = [any(line and not IMPORTS.match(line) for line in cell.source.split("\n")) for cell in code]
    after = other.index(True)
    notebook.cells = [*code[:after], nbformat.v4.new_code_cell(UNASKED)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(env=environment)
    *imports, unasked = notebook.cells
    assert imports and [cell.outputs for cell in imports] == [[]] * after
    assert [output["data"]["text/plain"] for output in unasked.outputs] == ["[]"], unasked.outputs
