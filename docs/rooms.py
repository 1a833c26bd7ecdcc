"""The rooms of the house: what CONTRIBUTING.md says of them, and what the code's own imports say.

Drawn: python docs/rooms.py OUT.svg
"""
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "protein_atlas"
_ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \| (.+?) \|", re.MULTILINE)


def rooms() -> list[tuple[str, ...]]:
    """The rooms from the ground up, siblings together: the first column of the table in CONTRIBUTING.md."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("| room |", 1)[1].split("\n\n", 1)[0]
    return [tuple(re.findall(r"`(\w+)`", names)) for names, _ in _ROW.findall(table)]


def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package, as "data.labels" or "cli"; what is generated is left out."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py")) if path.stem == "__main__" or not path.stem.startswith("_")
    }  # fmt: skip


def imports(tree: ast.AST, module: str = "x") -> Iterator[str]:
    """Every module that the code imports anywhere, in functions too; those of the package as `protein_atlas.x.y`.

    module: whose code it is, as "data.labels": what relative imports are relative to.
    """
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["protein_atlas", *module.split(".")][: -node.level]
                base = ".".join([*above, *filter(None, [base])])
            # `from . import labels` names a module, `from .labels import LOCATIONS` does not
            names_modules = base == "protein_atlas" or base.removeprefix("protein_atlas.") in packages
            yield from (f"{base}.{alias.name}" for alias in node.names) if names_modules else [base]


def own_imports(module: str) -> set[str]:
    """The modules of the package that this one imports, as "data.labels"."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    return {name.removeprefix("protein_atlas.") for name in imports(tree, module) if name.startswith("protein_atlas.")}


def arrows() -> Counter:
    """How many imports go from one room to another: (from, to) -> number."""
    found: Counter = Counter()
    for module in modules():
        room = module.split(".")[0]
        found.update((room, name.split(".")[0]) for name in own_imports(module) if name.split(".")[0] != room)
    return found


def draw(path: Path) -> None:
    """A picture of the rooms, the ground floor below; an arrow is as thick as there are imports."""
    from matplotlib.figure import Figure

    floors, sizes = rooms(), Counter(module.split(".")[0] for module in modules())
    figure = Figure(figsize=(7, 0.85 * len(floors)), layout="constrained")
    axes, places = figure.subplots(), {}
    for floor, siblings in enumerate(floors):
        for place, room in enumerate(siblings):
            places[room] = (
                (place + 0.5) / len(siblings) * 6 + (0.35 if floor % 2 else -0.35) * (len(siblings) == 1), floor,
            )
    for (start, end), count in arrows().items():
        (x, y), (to_x, to_y) = places[start], places[end]
        bend = 0.12 * (1 if x <= to_x else -1) * (y - to_y - 1)
        axes.annotate(
            "", (to_x, to_y + 0.24), (x, y - 0.24),
            arrowprops={
                "arrowstyle": "-|>", "color": "0.55", "linewidth": 0.4 + count / 16,
                "connectionstyle": f"arc3,rad={bend / 4}",
            },
        )
    for room, (x, y) in places.items():
        label = f"{room}\n{sizes[room]} modules" if sizes[room] > 1 else room
        axes.text(
            x, y, label, ha="center", va="center", fontsize=9,
            bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": "0.2"},
        )
    axes.set(xlim=(-0.6, 6.6), ylim=(-0.6, len(floors) - 0.4))
    axes.axis("off")
    figure.savefig(path)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
