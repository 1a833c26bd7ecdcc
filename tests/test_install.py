"""What an installation brings: the extras, and the core without torch; and what the workflows do with it."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, REPOSITORY, missing_requirements


def extras_of_setup() -> dict[str, list[str]]:
    """The extras as setup.py gives them."""
    program = (
        "import json, setuptools; setuptools.setup = lambda **given: print(json.dumps(given['extras_require']));"
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {'__file__': 'setup.py', '__name__': '__main__'})"
    )

    return json.loads(
        subprocess.run(
            [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout
    )


def test_core_requirements_are_those_of_settings():
    done = subprocess.run([sys.executable, REPOSITORY / ".ci" / "core", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^[\w-]+", (REPOSITORY / "requirements-core.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert "numpy" in names and not {"torch", "torchvision", "fastai", "captum", "timm"} & set(names)


def test_all_holds_every_extra_but_those_apart_and_dev_is_light():
    extras = extras_of_setup()
    missing = {extra for extra, requirements in extras.items() if not set(requirements) <= set(extras["all"])}
    # anndata holds pandas below 3, Cellpose 3 NumPy below 2.1, and either would hold everything else there
    assert missing == {"anndata", "cellpose", "dev"}
    dev = {re.match(r"[\w-]+", requirement)[0] for requirement in extras["dev"]}
    assert {"nbdev", "pytest"} <= dev and len(dev) <= 15
    assert not {"ray", "tensorflow", "gradio", "onnxruntime", "keras", "moto", "accelerate"} & dev


def test_a_missing_requirement_is_named(monkeypatch):
    from importlib import metadata

    monkeypatch.setattr(
        metadata, "requires", lambda name: ["numpy>=1", "no-such-thing>=2; extra == 'all'", "nothing; extra == 'other'"]
    )
    assert missing_requirements() == ["no-such-thing>=2"]


def test_the_core_runs_without_torch():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", REPOSITORY / "tests" / "core_alone.py"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "modules without torch" in done.stdout


# The workflows, which run elsewhere

WORKFLOWS = {path.stem: path.read_text(encoding="utf-8") for path in (REPOSITORY / ".github/workflows").glob("*.yml")}
UNIX_ALONE = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def words_of_commands(workflow: str) -> list[str]:
    return [word for line in re.findall(r"^ *- run: (.+)$", WORKFLOWS[workflow], re.M) for word in shlex.split(line)]


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflows_name_what_there_is(workflow):
    words = words_of_commands(workflow)
    paths = [word for word in words if "/" in word or word.endswith((".py", ".txt"))]
    extras = [extra for word in words for listed in re.findall(r"\.\[(.+)\]", word) for extra in listed.split(",")]
    assert paths and extras
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    assert set(extras) <= set(extras_of_setup())


def modules_imported_first(path: Path) -> set[str]:
    """The modules that a file imports whatever the system, before anything else can happen."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_what_windows_runs_imports_nothing_of_unix():
    """The package, the tests that the workflow runs on other systems, and the tests that these import."""
    waiting = {word.removesuffix(".py").rpartition("/")[2] for word in words_of_commands("ci") if "/test_" in word}
    assert len(waiting) >= 5
    waiting, files = waiting | {"conftest"}, list((REPOSITORY / "protein_atlas").rglob("*.py"))
    while waiting - {path.stem for path in files}:
        files += [REPOSITORY / "tests" / f"{name}.py" for name in waiting - {path.stem for path in files}]
        waiting = {name for path in files for name in modules_imported_first(path) if re.match("test_|conftest$", name)}
    assert {str(path): found for path in files if (found := modules_imported_first(path) & UNIX_ALONE)} == {}
