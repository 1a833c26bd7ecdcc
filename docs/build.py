"""Build the documentation site from the notebooks: python docs/build.py [--execute] [--out FOLDER]

The sources of the site are written anew each time, from what there is: the README's notebook, the tutorials, the
modules' notebooks with their public definitions rendered (signature, docstring), a page of all public names, the
commands with their options, CONTRIBUTING and CHANGELOG. Nothing is listed by hand. Every warning is an error, also a
link that leads nowhere.

With --execute the notebooks are run first, and the site has their figures; that takes some fifteen minutes on two
cores. Without it the tutorials have the outputs that are stored in them, and the modules have none. Nothing is fetched
from a network.
"""
import argparse
import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rooms import draw, rooms

os.environ.setdefault("OMP_NUM_THREADS", "1")
DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
NOTEBOOKS = REPOSITORY / "nbs"
# A link to a document, or to a place in it.
DOCUMENT = re.compile(
    r"\]\((\.\./)*(docs/)?(?P<name>(?<=docs/)\w+|README|CONTRIBUTING|CHANGELOG)\.md(?P<place>#[^)\s]*|)\)"
)
# Before a module's notebook is run, as nbdev does it by test_setup in pyproject.toml.
SETUP = "from protein_atlas.testing import same_everywhere\nsame_everywhere()"
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)


def markdown_cell(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def hidden_cell(text: str) -> dict:
    metadata = {"tags": ["remove-cell"]}
    return {"cell_type": "code", "metadata": metadata, "source": text, "outputs": [], "execution_count": None}


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def page_of(document: str) -> str:
    """The site's page of a document: the README's is its first."""
    return "index" if document == "README" else document.lower()


def repaired(text: str, depth: int) -> str:
    """Markdown with links as they are within the site: to notebooks as in the repository, to documents by their
    pages."""
    up = "../" * depth
    # Files that are no page of the site are named.
    text = re.sub(r"\[([^\]]+)\]\((?:\.\./)+(benchmarks/[\w.]+)\)", r"\1 (`\2`)", text)
    text = re.sub(r"\]\(api/?\)", f"]({up}api/index.md)", text)
    text = DOCUMENT.sub(lambda link: f"]({up}{page_of(link['name'])}.md{link['place']})", text)
    return text.replace("](../nbs/", f"]({up}")


def directive(module: str, name: str) -> str:
    """What renders a public name of a module."""
    value = getattr(importlib.import_module(f"protein_atlas.{module}"), name)
    path = f"protein_atlas.{module}.{name}"
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        members = "" if kind == "autoexception" else "\n   :members:"
        return f".. {kind}:: {path}{members}"
    if inspect.isfunction(value) and value.__name__ == name:
        # A signature made at run time, as of commands with settings, has no source where Sphinx finds its defaults.
        shown = f"({', '.join(inspect.signature(value).parameters)})" if hasattr(value, "__signature__") else ""
        return f".. autofunction:: {path}{shown}"
    if callable(value) and hasattr(value, "__name__"):  # another name for a function
        return f".. data:: {name}\n\n   Another name for ``{value.__name__}``."
    return f".. data:: {name}\n   :type: {type(value).__name__}\n\n   {shown_value(value)}"


def shown_value(value: object) -> str:
    text = repr(value)
    if len(text) <= 200 and "`" not in text:
        return f"``{text}``"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else ""


def defined(code: str) -> list[str]:
    """The names that a cell defines at its top level."""
    names = []
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            targets = [element for target in node.targets for element in getattr(target, "elts", [target])]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def module_cells(notebook: dict, module: str, public: tuple[str, ...], execute: bool) -> list[dict]:
    """The cells of a module's page: prose and examples as they are, definitions rendered, what is only plumbing left
    out."""
    cells, left = [], list(public)
    for cell in notebook["cells"]:
        text = source_of(cell)
        if cell["cell_type"] == "markdown":
            cells.append(markdown_cell(repaired(text, 1 + module.count("."))))
            if len(cells) == 1:
                cells.append(markdown_cell(f"```{{eval-rst}}\n.. py:module:: protein_atlas.{module}\n```"))
            continue
        flags = " ".join(re.findall(r"^#\|(.*)", text, re.MULTILINE))
        code = DIRECTIVE.sub("", text).strip()
        if "default_exp" in flags or not code:
            continue
        if "export" in flags:
            rendered = [name for name in defined(code) if name in left]
            left = [name for name in left if name not in rendered]
            for name in rendered:
                cells.append(markdown_cell(f"```{{eval-rst}}\n{directive(module, name)}\n```"))
            if execute:  # what is exported must be there for the examples; it is shown above
                cells.append({**cell, "source": code, "metadata": {"tags": ["remove-cell"]}})
        else:
            tags = ["remove-cell"] if "hide" in flags else ["hide-input"] if not execute and is_imports(code) else []
            skipped = "slow" in flags or "cuda" in flags or "eval: false" in flags
            cells.append({**cell, "source": code, "metadata": {"tags": [*tags, "skip-execution"] if skipped else tags}})
    for name in left:
        cells.append(markdown_cell(f"```{{eval-rst}}\n{directive(module, name)}\n```"))
    if execute:
        cells.insert(2, hidden_cell(SETUP))
    return cells


def is_imports(code: str) -> bool:
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body)


def write_notebook(path: Path, notebook: dict, cells: list[dict]) -> None:
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**notebook, "cells": cells, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


def write_tutorials(folder: Path) -> list[str]:
    names = []
    for source in sorted((NOTEBOOKS / "tutorials").glob("*.ipynb")):
        notebook = json.loads(source.read_text(encoding="utf-8"))
        cells = []
        for cell in notebook["cells"]:
            text = source_of(cell)
            if cell["cell_type"] == "markdown":
                cells.append(markdown_cell(repaired(text, 1)))
            else:
                flags, code = " ".join(re.findall(r"^#\|(.*)", text, re.MULTILINE)), DIRECTIVE.sub("", text).strip()
                tags = (["remove-cell"] if "hide" in flags else []) + (
                    ["skip-execution"] if "slow" in flags or "cuda" in flags else []
                )
                cells.append({**cell, "source": code, "metadata": {"tags": tags}})
        write_notebook(folder / "tutorials" / source.name, notebook, cells)
        names.append(source.stem)
    return names


def modules() -> dict[str, Path]:
    """Every module of the package, as "data.labels", and its notebook; the rooms from the ground up."""
    found = {}
    for notebook in sorted((NOTEBOOKS / "api").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in notebook.parts:
            found[".".join(notebook.relative_to(NOTEBOOKS / "api").with_suffix("").parts)] = notebook
    order = [room for siblings in rooms() for room in siblings]
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0].split(".")[0]), item[0])))


def write_modules(folder: Path, execute: bool) -> dict[str, list[str]]:
    """A page a module; returns the pages of each room."""
    # Patched methods, too.
    loaded = {module: importlib.import_module(f"protein_atlas.{module}") for module in modules()}
    pages: dict[str, list[str]] = {}
    for module, source in modules().items():
        notebook, page = json.loads(source.read_text(encoding="utf-8")), Path(*module.split("."))
        write_notebook(
            folder / "api" / page.with_suffix(".ipynb"), notebook,
            module_cells(notebook, module, tuple(loaded[module].__all__), execute),
        )  # fmt: skip
        pages.setdefault(module.split(".")[0], []).append(page.as_posix())
    return pages


def first_line(value: object) -> str:
    text = inspect.getdoc(value) if inspect.isclass(value) or callable(value) else ""
    return (text or "").split("\n\n")[0].replace("\n", " ")


def write_names(folder: Path) -> None:
    """One page with every public name, by module, each with its first line and a link."""
    lines = [
        "# All names", "",
        "Every public name, by module, the rooms in the order in which they build on each other. "
        "Those with a star also come by `from protein_atlas import *`.", "",
    ]
    star = importlib.import_module("protein_atlas").__all__
    for module in modules():
        loaded = importlib.import_module(f"protein_atlas.{module}")
        lines += [f"## {module}", "", (loaded.__doc__ or "").strip(), ""]
        for name in loaded.__all__:
            text = first_line(getattr(loaded, name)).replace("<", "&lt;")
            mark = " ★" if name in star and not module.startswith("keras.") else ""
            lines.append(
                f"- {{py:obj}}`{name} <protein_atlas.{module}.{name}>`{mark}"
                + (f": {text}" if text and text[0] != "(" else "")
            )
        lines.append("")
    (folder / "names.md").write_text("\n".join(lines), encoding="utf-8")


def write_commands(folder: Path) -> None:
    """Every command with its arguments and options, from the program itself."""
    from typer.main import get_command

    program = get_command(importlib.import_module("protein_atlas.cli").app)
    lines = ["# At a shell", "", f"{program.help}", "", "`protein_atlas COMMAND --help` says the same.", ""]
    for name, command in program.commands.items():
        lines += [
            f"## {name}", "", inspect.cleandoc(command.help or "").replace("<", "&lt;"), "", "| | | default |",
            "| --- | --- | --- |",
        ]
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                shown, text = f"`{parameter.name.upper()}`", getattr(parameter, "help", "") or ""
            else:
                shown, text = (
                    ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts]),
                    parameter.help or "",
                )
            unsaid = (
                parameter.default is None
                or parameter.default is False
                or callable(parameter.default)
                or parameter.required
            )
            default = "" if unsaid else f"`{parameter.default}`"
            lines.append(f"| {shown} | {text.replace('|', chr(92) + '|').replace('<', '&lt;')} | {default} |")
        lines.append("")
    (folder / "commands.md").write_text("\n".join(lines), encoding="utf-8")


def toctree(entries: list[str], caption: str = "", depth: int = 1) -> str:
    head = f"```{{toctree}}\n:maxdepth: {depth}\n" + (f":caption: {caption}\n" if caption else "")
    return head + "\n" + "\n".join(entries) + "\n```\n"


def write_sources(folder: Path, execute: bool) -> None:
    tutorials, pages_of = write_tutorials(folder), write_modules(folder, execute)
    write_names(folder)
    write_commands(folder)
    written = sorted(DOCS.glob("*.md"))
    for page in written:
        (folder / page.name).write_text(repaired(page.read_text(encoding="utf-8"), 0), encoding="utf-8")
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (REPOSITORY / f"{name}.md").read_text(encoding="utf-8")
        (folder / f"{name.lower()}.md").write_text(text, encoding="utf-8")
    (folder / "api" / "index.md").write_text(
        "# Modules\n\nEach is a notebook: prose, definitions, and the tests of them. A room imports only from those "
        "below it in the picture, which is drawn from the code.\n\n"
        "![The rooms of the package as boxes, their imports as arrows, all downwards](rooms.svg)\n\n"
        + "\n".join(toctree(pages, caption=room) for room, pages in pages_of.items()), encoding="utf-8",
    )
    draw(folder / "api" / "rooms.svg")
    (folder / "tutorials" / "index.md").write_text("# Tutorials\n\n" + toctree(tutorials), encoding="utf-8")
    home = json.loads((NOTEBOOKS / "index.ipynb").read_text(encoding="utf-8"))
    parts = []
    for cell in home["cells"]:
        text = source_of(cell)
        parts.append(repaired(text, 0) if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    pages = [
        "tutorials/index", *(page.stem for page in written), "commands", "api/index", "names", "contributing",
        "changelog",
    ]  # fmt: skip
    (folder / "index.md").write_text(
        "\n\n".join(parts) + "\n\n" + toctree(pages).replace(":maxdepth: 1", ":hidden:\n:maxdepth: 2"), encoding="utf-8"
    )
    shutil.copytree(NOTEBOOKS / "images", folder / "images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--execute", action="store_true", help="run the notebooks, and show their figures")
    parser.add_argument("--out", type=Path, default=DOCS / "_build" / "html", help="folder of the site; replaced")
    options = parser.parse_args()
    with TemporaryDirectory() as work:
        sources, site = Path(work) / "sources", Path(work) / "site"
        sources.mkdir()
        write_sources(sources, options.execute)
        mode = "force" if options.execute else "off"
        command = [
            sys.executable, "-m", "sphinx", "--builder", "html", "--conf-dir", str(DOCS), "--nitpicky",
            "--fail-on-warning", "--keep-going", "--quiet", "--define", f"nb_execution_mode={mode}", "--doctree-dir",
            str(Path(work) / "doctrees"), str(sources), str(site),
        ]
        subprocess.run(command, check=True)
        if options.out.exists():
            shutil.rmtree(options.out)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(site, options.out)
    print(f"{options.out / 'index.html'}: the site; for its search: python -m http.server -d {options.out}")


if __name__ == "__main__":
    main()
