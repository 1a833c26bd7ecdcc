"""What several test modules share: paths, the command as a subprocess, a small simulated data set, a trained run."""
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from protein_atlas.testing import same_everywhere

same_everywhere()  # before anything that starts threads is imported; subprocesses inherit it
os.environ.setdefault("KERAS_BACKEND", "torch")  # one a process: the notebooks need this one

import pandas as pd  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402
from packaging.requirements import Requirement  # noqa: E402  pytest needs it, too

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds until a process counts as hanging, also on a busy machine: no test is a measure of speed
# Files that take longest, in this order: what comes last is then short, and no process ends long after the others.
LONGEST = (
    "test_commands", "test_keras", "test_survival", "test_screening", "test_store", "test_published", "test_bad_input",
    "test_inference", "test_visitors", "test_levels", "test_networks", "test_sources", "test_app", "test_faults",
    "test_package", "test_starts", "test_run_folders", "test_negatives", "test_storage", "test_distributed",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    place = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_configure(config):
    """Where PROTEIN_ATLAS_ALL_EXTRAS is set, as in .ci/run, a missing extra is a failure: no test skips for it."""
    if os.environ.get("PROTEIN_ATLAS_ALL_EXTRAS") and (missing := missing_requirements()):
        raise pytest.UsageError(f'not installed: {", ".join(missing)}; pip install -e ".[dev,all]"')


def missing_requirements() -> list[str]:
    """The requirements of the extras dev and all that this environment does not meet."""
    missing = []
    for text in metadata.requires("protein_atlas") or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("dev", "all")):
            try:
                met = requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
            except metadata.PackageNotFoundError:
                met = False
            if not met:
                missing.append(f"{requirement.name}{requirement.specifier}")
    return sorted(set(missing))


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Meanwhile no file can grow over so many bytes, as on a disk that is full."""
    import resource  # Unix alone has it

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def command() -> Path:
    """The installed command `protein_atlas`, beside the interpreter that runs these tests."""
    path = Path(sys.executable).with_name("protein_atlas")
    assert path.is_file(), f'{path} is missing: install the project with pip install -e ".[dev]"'
    return path


@pytest.fixture(scope="session")
def run_command(command: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run the command with these arguments, as a user does; its output is captured, so it has no terminal."""

    def run(*arguments: object, timeout: float = PATIENCE) -> subprocess.CompletedProcess:
        # Bytes, decoded here: text mode would turn the carriage returns of a progress bar into line ends.
        done = subprocess.run(
            [command, *map(str, arguments)], capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def call_command(monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess]:
    """The same as `run_command` in this process: without the seconds that a new one needs to import torch."""
    from protein_atlas.cli import main

    def call(*arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["protein_atlas", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        said = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, exit.value.code or 0, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def invoke() -> Callable[..., str]:
    """The same for fixtures of modules: what the command said; it must have succeeded."""
    from typer.testing import CliRunner

    from protein_atlas.cli import app

    def call(*arguments: object) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.exception or done.output
        return done.output

    return call


@pytest.fixture(scope="session")
def run_once(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Run the command once for all processes that test: the first that asks; what it said is kept for the others."""
    from typer.testing import CliRunner

    from protein_atlas.cli import app

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def run(name: str, *arguments: object) -> tuple[Path, subprocess.CompletedProcess]:
        said = shared / f"{name}.json"
        with FileLock(shared / f"{name}.lock"):
            if not said.exists():
                done = CliRunner().invoke(app, [*map(str, arguments), str(shared / name)])
                assert done.exit_code == 0, done.exception or done.output
                said.write_text(json.dumps([done.stdout, done.stderr]), encoding="utf-8")
        return shared / name, subprocess.CompletedProcess(arguments, 0, *json.loads(said.read_text(encoding="utf-8")))

    return run


@pytest.fixture(scope="session")
def phantoms(run_once) -> Path:
    """140 simulated images of 32 pixels, every label at least 4 times; read it, do not write into it."""
    return run_once("phantoms", "simulate", "--n", 140, "--size", 32, "--min-count", 4)[0]


def keep_four_labels(path: Path) -> None:
    """Write a table of phantoms anew, with four labels in place of 28."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["Target"] = [" ".join(sorted({str(int(label) % 4) for label in shown.split()})) for shown in table["Target"]]
    table.to_csv(path, index=False)


@pytest.fixture(scope="session")
def few_labels(phantoms, tmp_path_factory) -> Path:
    """The images of `phantoms` with four labels: the pictures of 28 are half of what a training on so few costs."""
    folder = tmp_path_factory.mktemp("few_labels")
    (folder / "train").symlink_to(phantoms / "train")
    shutil.copy(phantoms / "train.csv", folder)
    keep_four_labels(folder / "train.csv")
    return folder


@pytest.fixture(scope="session")
def trained(run_once, phantoms) -> tuple[Path, subprocess.CompletedProcess]:
    """The run folder of one epoch on `phantoms`, and what the command said; read it, do not write into it."""
    options = ("--arch", "small_resnet", "--pretrained", "none", "--epochs", 1, "--workers", 0)
    return run_once("trained", "train", phantoms, *options, "--out")


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A copy of the trained run, to be changed."""
    folder = tmp_path_factory.mktemp("changed") / "run"
    shutil.copytree(trained[0], folder)
    return folder


@contextmanager
def labels_alone() -> Iterator[None]:
    """Meanwhile a training draws of its evidence the table of labels alone: the rest is half of what a small one costs.

    For tests of something else. What is left out, of the same kinds of images, is made and looked at by test_commands,
    test_folds, test_tta, test_levels, test_stacks, test_scale and the notebooks.
    """
    from protein_atlas.evaluate.interpretation import label_table_figure

    def write_labels(writer, interp, *_, **__):
        table = interp.label_table()
        writer.labels(table, label_table_figure(table))
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("protein_atlas.train.run.write_evaluation", write_labels)
        patch.setattr("protein_atlas.train.run.write_alike", lambda *_: None)
        yield


@pytest.fixture
def without_evidence() -> Iterator[None]:
    with labels_alone():
        yield


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, driven by Playwright; tests that need it skip, with the reason, where it is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, which root, as whom many a CI runs, must not have.
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
