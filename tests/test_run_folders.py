"""A run folder that somebody has edited: the report, the comparison and the prediction are right, or name the file."""
import csv
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protein_atlas.report import html
from protein_atlas.report.compare import compare_runs
from protein_atlas.report.run import write_report
from protein_atlas.report.run_folder import RunFolder
from protein_atlas.report.run_writer import Artifact
from protein_atlas.system.errors import ProteinAtlasError

TABLES = ("labels.csv", "split.csv", "valid_scores.csv", "history.csv", "top_losses.csv", "channel_importance.csv",
          "split_audit.csv")  # fmt: skip
OBJECTS = ("metrics.json", "settings.json", "thresholds.json")
PICTURES = ("labels.png", "curve.png", "maps.png")
WRONG = ("x", "", "nan", "-1", "2.5", "inf", "1e999", "None", "\x00")


def table_edits(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Edits of a CSV table, with their names."""
    rows = list(csv.reader(io.StringIO(content.decode("utf-8"))))
    row, other = sorted(rng.sample(range(1, len(rows)), 2)) if len(rows) > 2 else (1, 1)
    column = rng.randrange(len(rows[0]))

    def text(changed: list[list[str]]) -> bytes:
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(changed)
        return file.getvalue().encode()

    yield "no rows", text(rows[:1])
    yield f"row {row} removed", text(rows[:row] + rows[row + 1 :])
    yield f"row {row} twice", text(rows[: row + 1] + rows[row:])
    swapped = list(rows)
    swapped[row], swapped[other] = rows[other], rows[row]
    yield f"rows {row} and {other} swapped", text(swapped)
    yield f"without column {rows[0][column]}", text([line[:column] + line[column + 1 :] for line in rows])
    for value in WRONG:
        cells = [*rows[row][:column], value, *rows[row][column + 1 :]]
        yield f"row {row}, {rows[0][column]}: {value!r}", text([*rows[:row], cells, *rows[row + 1 :]])


def object_edits(content: bytes, rng: random.Random, n: int) -> Iterator[tuple[str, bytes]]:
    """Edits of a JSON object, with their names: of each value at most n."""
    known = json.loads(content)
    for name, value in known.items():
        yield f"without {name}", json.dumps({key: of for key, of in known.items() if key != name}).encode()
        for wrong in rng.sample([None, [], {}, "x", -1, float("nan"), 10**30, True, [float("nan"), 1], {"a": []}], n):
            if type(wrong) is not type(value) or wrong != wrong:
                yield f"{name}: {wrong!r}", json.dumps(known | {name: wrong}).encode()


def edits(name: str, content: bytes, rng: random.Random, n: int = 1) -> Iterator[tuple[str, bytes]]:
    yield "emptied", b""
    yield "cut", content[: rng.randrange(1, len(content) - 1)]
    yield "not text", bytes(rng.randrange(256) for _ in range(200))
    if name.endswith(".csv"):
        yield from table_edits(content, rng)
    elif name.endswith(".json"):
        yield from object_edits(content, rng, n)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run, to be changed."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def read_all(run: Path) -> None:
    """All that a report reads of a folder, but the pictures."""
    opened = RunFolder.open(run)
    for of in (opened.losses, opened.audit, opened.importance, opened.shown_settings):
        of()


def check(work: Callable, file: Path, what: str) -> bool:
    """Whether it was refused; an error must be ours, and name the file."""
    try:
        work()
    except ProteinAtlasError as error:
        assert file.name in str(error), f"{file.name}, {what}: the error does not name it: {error}"
        return True
    except Exception as error:  # a fault of the program
        raise AssertionError(f"{file.name}, {what}: {error!r}") from error
    return False


@pytest.mark.parametrize("name", [*TABLES, *OBJECTS])
@pytest.mark.parametrize(("seed", "n"), [(0, 1), pytest.param(1, 3, marks=pytest.mark.full)])
def test_an_edited_file_is_named(run, name, seed, n):
    file, rng = run / name, random.Random(seed)
    content, refused = file.read_bytes(), []
    for what, edited in edits(name, content, rng, n):
        if edited == content:
            continue
        file.write_bytes(edited)
        if check(lambda: read_all(run), file, what):
            refused.append(what)
    assert {"emptied", "not text"} <= set(refused)
    if name.endswith(".csv"):
        # Two rows of a table that says where each belongs, or two images to train on, may stand the other way round.
        lost = [what for what in refused if "removed" in what or "twice" in what]
        assert len(lost) == 2 and "no rows" in refused, refused


@pytest.mark.parametrize("name", PICTURES)
def test_an_edited_picture_is_named(run, name, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "_webp", lambda picture, photo: "")  # seconds, of pictures that are whole
    file, rng = run / name, random.Random(0)
    content = file.read_bytes()
    for what, edited in edits(name, content, rng):
        file.write_bytes(edited)
        assert check(lambda: write_report(run, tmp_path / "report.html"), file, what), what


def test_the_same_numbers_make_the_same_report(run, tmp_path):
    """An edit that changes no meaning is no fault: other keys, another order of rows that are named."""
    before = write_report(run, tmp_path / "before.html").read_bytes()
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(dict(reversed(metrics.items())) | {"mine": [1, {"a": None}]}))
    header, *rows = (run / "channel_importance_labels.csv").read_text().splitlines()
    (run / "channel_importance_labels.csv").write_text("\n".join([header, *reversed(rows)]))
    assert write_report(run, tmp_path / "after.html").read_bytes() == before


@pytest.mark.parametrize("name, old, new, said", [
    ("metrics.json", '"macro_f1":', '"macro_f2":', "metrics.json: macro_f1 is missing"),
    ("settings.json", '"seed": 0', '"seed": "0"', "settings.json: seed: Input should be a valid integer, found '0'"),
    ("history.csv", ",True", ",yes", "history.csv: row 1: column 'chosen' must be True or False, found 'yes'"),
    ("split.csv", ",valid,", ",test,", "column 'side' must be train or valid, found 'test'"),
    ("channel_importance.csv", "red,blank", "pink,blank", "row 1: column 'channel' must be one of red, green, blue"),
    ("top_losses.csv", "row,Id", "row,ID", "top_losses.csv: there is no column 'Id'"),
])  # fmt: skip
def test_commands_name_file_and_field(call_command, run, trained, name, old, new, said):
    content = (run / name).read_text(encoding="utf-8")
    assert old in content
    (run / name).write_text(content.replace(old, new, 1), encoding="utf-8")
    commands = [("report", run)]
    if name in ("metrics.json", "settings.json", "history.csv", "split.csv"):
        commands += [("compare", run, trained[0], "--out", run.parent / "page.html"),
                     ("compare", trained[0], run, "--out", run.parent / "page.html")]  # fmt: skip
    for arguments in commands:
        done = call_command(*arguments)
        assert done.returncode == 2 and said in done.stderr and "fault of the program" not in done.stderr, done.stderr


def test_predictions_need_the_bundle_alone(call_command, run, phantoms, tmp_path):
    """A prediction reads the bundle, whose files have checksums; what else a run folder holds is not asked."""
    for name in (*TABLES, *OBJECTS):
        (run / name).write_bytes(b"")
    done = call_command("predict", run, phantoms / "train", "--out", tmp_path / "a.csv", "--workers", 0)
    assert done.returncode == 0, done.stderr
    for path in sorted((run / "bundle").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        done = call_command("predict", run, phantoms / "train", "--out", tmp_path / "b.csv", "--workers", 0)
        assert done.returncode == 2 and path.name in done.stderr and "fault of" not in done.stderr, (path, done.stderr)
        path.write_bytes(content)


def test_a_label_of_any_name_is_read_back(trained, run):
    """Tables are read as they were written: a label NA is no missing value."""
    names = {"Nucleoplasm": "NA", "Cytosol": "None", "Golgi apparatus": "null", "Nucleoli": "nan"}
    for name in (*TABLES, "thresholds.json"):
        table = name in ("labels.csv", "split_audit.csv")
        text = (run / name).read_text(encoding="utf-8")
        for old, new in names.items():
            if table:
                text = text.replace(f"\n{old},", f"\n{new},")
            elif name == "valid_scores.csv":
                head, rest = text.split("\n", 1)
                text = ",".join(new if cell == old else cell for cell in head.split(",")) + "\n" + rest
            elif name == "split.csv":
                lines = [line.split(",") for line in text.splitlines()]
                for line in lines:
                    line[1] = ";".join(new if cell == old else cell for cell in line[1].split(";"))
                text = "\n".join(map(",".join, lines)) + "\n"
            else:
                text = text.replace(f'"{old}":', f'"{new}":')
        (run / name).write_text(text, encoding="utf-8")
    opened, before = RunFolder.open(run), RunFolder.open(trained[0])
    assert opened.vocab == tuple(names.get(name, name) for name in before.vocab)
    assert (opened.valid.targets == before.valid.targets).all() and (opened.scores == before.scores).all()
    assert compare_runs(run, run).differences["macro F1"].estimate == 0


def test_each_file_that_a_page_is_made_of_is_kept(call_command, run, trained):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in Artifact:
        if (run / name).is_file() and name != Artifact.REPORT:
            for arguments in (("report", run), ("compare", run, trained[0]), ("compare", trained[0], run)):
                done = call_command(*arguments, "--out", run / name)
                assert done.returncode == 2 and f"{name}: is " in done.stderr, done.stderr
                assert "is read" in done.stderr and "would be overwritten" in done.stderr
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
