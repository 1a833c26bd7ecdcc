"""The package as a whole: versions, public names, one-way imports, nothing unpickled, every public thing explained."""
import ast
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs"))
import rooms  # noqa: E402
from build import repaired  # noqa: E402
from rooms import PACKAGE, imports, own_imports  # noqa: E402

import protein_atlas
from protein_atlas.vision.own_weights import own_networks

ROOMS = rooms.rooms()  # from the ground up: the table in CONTRIBUTING.md
FLOOR = {room: floor for floor, siblings in enumerate(ROOMS) for room in siblings}
# know arrays only: neither torch nor fastai
CORE = ("system", "data", "cells", "fetch", "evaluate", "features", "predict", "report")
LARGEST = 450  # lines of a module
HEAVY = ("torch", "torchvision", "fastai", "fastcore", "timm")
SOURCES = rooms.modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}
MODULES = [name for name in SOURCES if name != "__main__"]  # those that a notebook exports
NOTEBOOKS = sorted(
    path for path in (REPOSITORY / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)  # fmt: skip
PROMISES = REPOSITORY / "docs" / "promises.md"
PAGES = sorted(f"docs/{path.name}" for path in PROMISES.parent.glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES)


def test_one_version():
    settings = ConfigParser(delimiters=["="])
    settings.read(REPOSITORY / "settings.ini", encoding="utf-8")
    versions = {
        "settings.ini": settings["DEFAULT"]["version"],
        "protein_atlas/__init__.py": protein_atlas.__version__,
        "the installed package": importlib.metadata.version("protein_atlas"),
    }
    assert len(set(versions.values())) == 1, f"the versions differ: {versions}"


def test_wheels_have_the_weights(tmp_path):
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", tmp_path]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    there = {str(path.relative_to(tmp_path / "protein_atlas")) for path in tmp_path.rglob("*") if path.is_file()}
    found = {f"weights/{name}.safetensors" for name in own_networks()}
    assert "weights/small_resnet.safetensors" in found
    others = {"py.typed", "templates/page.html.jinja", "weights/simulated.json"}
    assert found | others | {"data/label_sets.csv", "data/label_systems.csv"} <= there


# Public names


@pytest.mark.parametrize("module", MODULES)
def test_notebook_mirrors_the_module(module: str):
    """`protein_atlas.data.labels` is exported by nbs/api/data/labels.ipynb: that file is all that a new module
    needs."""
    notebook = REPOSITORY / "nbs" / "api" / Path(*module.split(".")).with_suffix(".ipynb")
    assert notebook.is_file(), f"protein_atlas.{module} has no notebook {notebook.relative_to(REPOSITORY)}"
    assert any(f"#| default_exp {module}" in source.splitlines() for _, source in cells(notebook)), (
        f"{notebook.name}: default_exp is not {module}"
    )


def test_star_import_gives_the_names_of_the_tutorials():
    namespace = {}
    exec("from protein_atlas import *", namespace)
    names = [name for names in protein_atlas._STAR.values() for name in names]
    assert set(namespace) - {"__builtins__"} == set(names)
    assert len(names) == len(set(names)), "the star has a name twice"
    assert 60 <= len(names) <= 80, f"the star has {len(names)} names: the others are imported from their rooms"
    for module, own in protein_atlas._STAR.items():
        loaded = importlib.import_module(f"protein_atlas.{module}")
        for name in own:
            assert name in loaded.__all__, f"the star gives {name} from {module}, which does not define it"
            assert namespace[name] is getattr(loaded, name)


def test_star_and_keras_do_not_shadow_each_other():
    """No name means one thing in the star and another in a module of `protein_atlas.keras`."""
    both = {
        name for module in MODULES if module.startswith("keras.") for name in public_names(module)
        if name in protein_atlas.__all__
    }  # fmt: skip
    assert not both, f"also in the star: {sorted(both)}"


def public_names(module: str) -> list[str]:
    """`__all__` of a module, read from its source: nothing is imported."""
    for node in TREES[module].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def test_unknown_name():
    with pytest.raises(AttributeError, match="no_such_name"):
        assert protein_atlas.no_such_name


# Imports


def test_core_needs_no_deep_learning_library():
    """One fresh process that imports the core, module by module; arrays are all it knows."""
    core = [name for name in MODULES if name.split(".")[0] in CORE]
    code = (
        "import importlib, sys\n"
        f"for name in {core}:\n"
        "    importlib.import_module('protein_atlas.' + name)\n"
        f"    heavy = sorted(set(sys.modules) & set({HEAVY}))\n"
        "    assert not heavy, f'protein_atlas.{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_are_seen():
    """The reading of imports itself, in each of the forms that Python has."""
    code = (
        "import a.b\nfrom .c import d\nfrom . import e\nfrom ..system.f import g\n"
        "def h():\n    from protein_atlas.data import i, j\n"
    )
    found = {
        "a.b", "protein_atlas.data.c", "protein_atlas.data.e", "protein_atlas.system.f", "protein_atlas.data.i",
        "protein_atlas.data.j",
    }
    assert set(imports(ast.parse(code), "data.labels")) == found


@pytest.mark.parametrize("module", SOURCES)
def test_rooms_import_one_way(module: str):
    room = module.split(".")[0]
    assert room in FLOOR, f"protein_atlas.{room} is no room of the house: see the table in CONTRIBUTING.md"
    assert "protein_atlas" not in imports(TREES[module], module), (
        f"{module} imports the package's root: import the module meant"
    )
    above = [name for row in ROOMS[: FLOOR[room]] for name in row]
    wrong = sorted(name for name in own_imports(module) if name.split(".")[0] not in (*above, room))
    assert not wrong, f"{module} imports {wrong}, but {room} may import only from itself and {above}"


def test_no_import_goes_in_a_circle():
    """Nor within a room."""
    depends = {module: own_imports(module) - {module} for module in SOURCES}
    while free := [module for module, needs in depends.items() if not needs & depends.keys()]:
        for module in free:
            del depends[module]
    assert not depends, f"these import each other: {depends}"


def test_few_modules_stand_at_the_top():
    top = sorted(path.name for path in PACKAGE.iterdir() if path.is_file() and path.suffix == ".py")
    assert len(top) <= 10, top


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small(module: str):
    lines = len(SOURCES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LARGEST, f"{module} has {lines} lines, at most {LARGEST}: one topic a module"


# Nothing is unpickled

UNPICKLERS = ("pickle", "_pickle", "cPickle", "cloudpickle", "joblib", "dill", "shelve", "marshal")
# Functions that unpickle, or run code from a file, whatever their arguments.
NEVER = (
    "load_learner", "load_pickle", "save_pickle", "read_pickle", "to_pickle", "torch.hub.load", "torch.jit.load",
    "torch.package",
)
# Functions that unpickle unless they are told not to; torchvision's `get_state_dict` hands its arguments on to
# torch.hub.
TOLD = ("torch.load", "torch.serialization.load", "load_state_dict_from_url", "get_state_dict")


def origins(tree: ast.AST) -> dict[str, str]:
    """What the names that a module imports stand for: `import torch as t` gives t -> torch."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def among(name: str, functions: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these functions, from whatever module, or lies in one of them."""
    if name.startswith("safetensors."):  # its load is a namesake: the format holds no pickle
        return False
    return any(f".{function}." in f".{name}." for function in functions)


def unpickling(tree: ast.AST) -> list[str]:
    """What in the code may run a file's content: 'line: reason'."""
    found, names = [], origins(tree)
    for name in imports(tree):
        if name.split(".")[0] in UNPICKLERS:
            found.append(f"imports {name}")
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.ImportFrom):
            found += [
                f"{where}: imports {alias.name}" for alias in node.names if among(f"{node.module}.{alias.name}", NEVER)
            ]
        if isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in inner:
            first, dot, rest = ast.unparse(node).partition(".")
            name = names.get(first, first) + dot + rest
            if among(name, NEVER):
                found.append(f"{where}: {name}")
            if among(name, TOLD) and id(node) not in called:
                found.append(f"{where}: {name} handed on: what will it be told?")
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = ast.unparse(node.func).partition(".")
        name, keywords = (
            names.get(first, first) + dot + rest,
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
        )
        if among(name, TOLD) and keywords.get("weights_only") != "True":
            found.append(f"{where}: {name} without weights_only=True")
        if name in ("numpy.load", "np.load") and (len(node.args) > 2 or None in keywords):
            found.append(f"{where}: {name} with arguments that may be allow_pickle")
        if keywords.get("allow_pickle", "False") != "False":
            found.append(f"{where}: {name} with allow_pickle")
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            found.append(f"{where}: {name}")
        if (
            name.endswith(("__import__", "import_module"))
            and ast.unparse(node.args[0]).strip("'\"").split(".")[0] in UNPICKLERS
        ):
            found.append(f"{where}: {ast.unparse(node)}")
        if isinstance(keywords.get("weights"), str) and keywords["weights"].strip("'\"") == "DEFAULT":
            found.append(f"{where}: {name} with weights by name: torchvision unpickles them")
    return found


# What this process says to those it has started itself, over pipes that nobody else has, as multiprocessing does.
OWN_PROCESSES = {"system.processes": ["dumps", "loads"], "vision.load": ["dumps"]}


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_is_unpickled(module: str):
    allowed = OWN_PROCESSES.get(module, [])
    assert unpickling(TREES[module]) == ["imports pickle"] * bool(allowed)
    used = {node.func.attr for node in ast.walk(TREES[module])
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("pickle.")}  # fmt: skip
    assert sorted(used) == allowed


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "import pickle as p", "from joblib import load", "def f():\n    import dill",
        "importlib.import_module('pickle')", "__import__('_pickle')", "torch.load(path)",
        "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)", "torch.load(path, **options)",
        "from torch import load\nload(path)", "from torch import load as read\nread(path)",
        "import torch as t\nt.load(path)", "import torch.serialization as s\ns.load(path)",
        "read = torch.load\nread(path)", "map(torch.load, paths)", "torch.hub.load('a/b', 'c')",
        "from torch import hub\nhub.load('a/b', 'c')", "torch.jit.load(path)",
        "torch.hub.load_state_dict_from_url(url)", "from torch.hub import load_state_dict_from_url as get\nget(url)",
        "weights.get_state_dict(progress=False)", "resnet18(weights='DEFAULT')", "np.load(path, allow_pickle=True)",
        "from numpy import load\nload(path, allow_pickle=True)", "import numpy\nnumpy.load(path, None, True)",
        "np.load(path, **options)", "load_learner(path)", "from fastai.learner import load_learner",
        "from fastcore.xtras import load_pickle as l", "import fastai.learner as fl\nfl.load_learner(path)",
        "pd.read_pickle(path)", "from pandas import read_pickle", "eval(text)",
    ],
)
def test_unpickling_would_be_found(code: str):
    assert unpickling(ast.parse(code))


def test_safe_loading_is_allowed():
    code = (
        "import importlib, json, torch\nimport numpy as np\n"
        "torch.load(path, map_location='cpu', weights_only=True)\nnp.load(path)\nnp.load(path, allow_pickle=False)\n"
        "weights.get_state_dict(weights_only=True)\njson.load(file)\nmodel.eval()\npicture.load()\n"
        "importlib.import_module('timm')\nload_state_dict(state)"
    )
    assert not unpickling(ast.parse(code))


# Everything public is explained


@pytest.mark.parametrize("module", MODULES)
def test_public_things_are_explained(module: str):
    tree = TREES[module]
    public = importlib.import_module(f"protein_atlas.{module}").__all__
    assert ast.get_docstring(tree), f"{module}: the notebook's first cell needs '# title' and '> summary'"
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public:
            continue
        assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [parameter.arg for parameter in parameters if parameter.annotation is None]
            assert not bare, f"{module}.{node.name}: parameters without a type: {bare}"


@pytest.mark.parametrize("module", MODULES)
def test_sphinx_can_read(module: str):
    """What its own parser does not know, as an f-string in a field's type or an argument's default, it leaves out of
    the site."""
    pycode = pytest.importorskip("sphinx.pycode", reason="Sphinx is not installed: pip install 'protein_atlas[docs]'")
    pycode.ModuleAnalyzer.for_string(SOURCES[module].read_text(encoding="utf-8"), module).analyze()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.arguments):
            for default in (*node.defaults, *filter(None, node.kw_defaults)):
                pycode.ast.unparse(default)


def cells(notebook: Path) -> list[tuple[str, str]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_notebook_begins_with_title_and_summary(notebook: Path):
    first = cells(notebook)[0]
    assert first[0] == "markdown" and re.match(r"# \S[^\n]*\n+> \S", first[1]), (
        f"{notebook.name}: the first cell must be '# title', a blank line, '> one-line summary'; it is "
        f"{first[1][:80]!r}"
    )


def definitions(cell: str) -> list[str]:
    """The functions and classes that an exported cell defines; a name is counted once."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return list(dict.fromkeys(node.name for node in ast.parse(cell).body if isinstance(node, kinds)))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_one_definition_an_exported_cell(notebook: Path):
    for kind, source in cells(notebook):
        if kind == "code" and source.startswith("#| export"):
            found = definitions(source)
            assert len(found) <= 1, f"{notebook.name}: one cell defines {', '.join(found)}: a cell for each"


def test_definitions_of_a_cell_are_found():
    cell = "#| export\nX = 1\nclass A:\n    def f(self): pass\n@cache\ndef b(): pass\nasync def c(): pass\ndef b(): ..."
    assert definitions(cell) == ["A", "b", "c"]


# Promises


def test_each_promise_has_its_tests():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").glob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    rows = [line.split("|") for line in PROMISES.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    promises = {row[1].strip(): re.findall(r"`(test_\w+)`", row[2]) for row in rows if "---" not in row[1]}
    promises.pop("promise")
    assert len(promises) > 20
    for promise, tests in promises.items():
        assert tests and set(tests) <= defined, f"{promise}: {sorted(set(tests) - defined) or 'no test'}"


# Paths that exist on one machine only

MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root|tmp/w|home/\w+|Users/\w+)(?:/|\b)|\bshared/")


def published_texts() -> dict[str, str]:
    texts = {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8") for path in SOURCES.values()}
    for notebook in NOTEBOOKS:
        texts[str(notebook.relative_to(REPOSITORY))] = "\n".join(source for _, source in cells(notebook))
    for name in DOCUMENTS:
        texts[name] = (REPOSITORY / name).read_text(encoding="utf-8")
    return texts


def test_no_path_of_one_machine():
    found = [
        f"{name}: {line.strip()}" for name, text in published_texts().items() for line in text.splitlines()
        if MACHINE_PATHS.search(line)
    ]  # fmt: skip
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", ["open('/work/data')", "see /root/x", "../shared/data/cells", "/home/ann/images"])
def test_paths_of_one_machine_would_be_found(line: str):
    assert MACHINE_PATHS.search(line)


@pytest.mark.parametrize("line", ["path/to/work/here", "https://example.org/rooted", "shared, and so on"])
def test_other_text_is_no_path_of_one_machine(line: str):
    assert not MACHINE_PATHS.search(line)


# Names in prose, docstrings and examples

NAMED = re.compile(r"(?<![\w./])protein_atlas((?:\.[a-zA-Z_]\w*)+)")
IMPORTED = re.compile(r"from (protein_atlas\.[\w.]+) import ([\w, ]+)")
# What older files say of themselves: the names stay as they were written.
PERSISTED = {"protein_atlas.resampling", "protein_atlas.images"}


def exists(name: str) -> bool:
    """Whether a dotted name is a room, a module, or what a module has."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in SOURCES or (PACKAGE / Path(*parts[:length])).is_dir():
            found = importlib.import_module(f"protein_atlas.{module}")
            for attribute in parts[length:]:
                if not hasattr(found, attribute):
                    return False
                found = getattr(found, attribute)
            return True
    return False


def test_names_in_prose_exist():
    wrong = []
    for place, text in published_texts().items():
        names = {match[0] for match in NAMED.finditer(text)}
        names |= {
            f"{match[1]}.{name.split()[0]}"
            for match in IMPORTED.finditer(text)
            for name in match[2].split(",")
            if name.strip()
        }
        wrong += [f"{place}: {name}" for name in names - PERSISTED if not exists(name)]
    assert not wrong, "\n".join(sorted(wrong))


def test_names_that_do_not_exist_would_be_found():
    assert exists("protein_atlas.data.splits.balanced_split") and exists("protein_atlas.data")
    assert not exists("protein_atlas.splits") and not exists("protein_atlas.data.splits.no_such_name")


# Commands

SHELL = re.compile(r"^```(?:sh|bash)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def commands_that_do_not_exist(text: str) -> tuple[int, list[str]]:
    """How many commands of ours a text shows as code; and which of them, or of their options, there are not."""
    from typer.main import get_command

    from protein_atlas.cli import app

    commands, seen, wrong = get_command(app).commands, 0, []
    shown = [line for block in SHELL.findall(text) for line in block.splitlines()] + INLINE.findall(text)
    for part in (part for line in shown for part in re.split("&&|;|  #", line)):
        program, name, *rest = *part.split(), "", ""
        if program != "protein_atlas" or not re.fullmatch("[a-z]+", name):
            continue
        seen += 1
        parameters = commands[name].params if name in commands else []
        known = {"--help"}.union(*([*one.opts, *one.secondary_opts] for one in parameters))
        if name not in commands or not {word.split("=")[0] for word in rest if word.startswith("--")} <= known:
            wrong.append(part.strip())
    return seen, wrong


def test_commands_in_prose_exist():
    found = {place: commands_that_do_not_exist(text) for place, text in published_texts().items()}
    assert sum(seen for seen, _ in found.values()) > 50 and found["README.md"][0] > 10
    assert {place: wrong for place, (_, wrong) in found.items() if wrong} == {}


def test_commands_that_do_not_exist_would_be_found():
    said = "`protein_atlas trian x`, `protein_atlas train x --epochs 3 --epoch 4`, `protein_atlas train x --epochs 3`"
    assert commands_that_do_not_exist(said) == (3, said.replace("`", "").split(", ")[:2])


# Links


LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")


def test_links_lead_to_files():
    prose = {REPOSITORY / name: [(REPOSITORY / name).read_text(encoding="utf-8")] for name in DOCUMENTS}
    prose |= {path: [source for kind, source in cells(path) if kind == "markdown"] for path in NOTEBOOKS}
    broken = [
        f"{path.relative_to(REPOSITORY)}: {target}" for path, texts in prose.items() for text in texts
        for target in LINK.findall(text) if not (path.parent / target).exists()
    ]  # fmt: skip
    assert not broken, "\n".join(broken)


def test_links_stay_on_the_site():
    """What the site makes of them leads to one of its pages, and not to a file that the repository alone has."""
    nbs = REPOSITORY / "nbs"
    pages = {str(path.relative_to(nbs)) for path in [*NOTEBOOKS, *(nbs / "images").iterdir()]}
    pages |= {Path(name).name for name in PAGES} | {"contributing.md", "changelog.md", "index.md"}
    prose = {Path(path.name): [path.read_text(encoding="utf-8")] for path in PROMISES.parent.glob("*.md")}
    prose |= {
        path.relative_to(nbs): [source for kind, source in cells(path) if kind == "markdown"] for path in NOTEBOOKS
    }
    outside = [
        f"{page}: {target}" for page, texts in prose.items() for text in texts
        for target in LINK.findall(repaired(text, len(page.parts) - 1))
        if os.path.normpath(page.parent / target) not in pages | {"api/index.md"}
    ]  # fmt: skip
    assert not outside, "\n".join(outside)


def test_links_would_be_found():
    assert LINK.findall("![a](b/c.png) and [d](https://e.org) and [f](g.ipynb#h)") == ["b/c.png", "g.ipynb"]
