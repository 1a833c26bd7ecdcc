"""A Sphinx extension for this library's docstrings: one line, then parameters as `name: text`, in paragraphs.

Parameters become a list with their names set off, and what is raised a paragraph of its own; all else stays as it is
written.
"""
import inspect
import re

_AFTER = re.compile(r"^(Returns?|Raises|Source)\b")


def _parameters(obj: object) -> list[str]:
    """The names that a docstring may explain: arguments, or the fields of a dataclass."""
    try:
        names = list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        names = []
    return names + list(getattr(obj, "__dataclass_fields__", {}))


def _escaped(text: str) -> str:
    """Text as reStructuredText reads it: only what stands between backticks is markup."""
    parts = text.split("`")
    for place, part in enumerate(parts):
        if place % 2 == 0:
            part = re.sub(r"([*|\\]|_\b)", r"\\\1", part)
            parts[place] = "\\ " + part if place and part[:1].isalnum() else part  # as in `Interval`s
    return "``".join(parts) if len(parts) % 2 else _escaped(text.replace("`", "'"))


def structured(lines: list[str], names: list[str]) -> list[str]:
    """The docstring's lines as reStructuredText: first line, parameters as a list, then the rest by paragraphs."""
    text = inspect.cleandoc("\n".join(lines))
    first, _, rest = text.partition("\n\n")
    found = [_escaped(" ".join(first.split()))]
    if not rest.strip():
        return found
    one = "|".join(map(re.escape, sorted(set(names), key=len, reverse=True)))
    # A name, or some with commas, and a colon: where a line begins, or after the end of a sentence.
    start = re.compile(rf"(?:(?<=^)|(?<=[.;:)] ))((?:{one})(?:(?:, | and )(?:{one}))*): ") if one else None
    explained, others = [], []
    for paragraph in re.split(r"\n\s*\n", rest):
        running = ""
        for line in paragraph.split("\n"):
            breaks = _AFTER.match(line.strip()) or (start is not None and start.match(line.strip()))
            if breaks and running:
                _sort(running, start, explained, others)
                running = ""
            running = f"{running} {line.strip()}".strip()
        _sort(running, start, explained, others)
    if explained:
        found += ["", *(f"- **{_escaped(name)}**: {_escaped(what)}" for name, what in explained)]
    for paragraph in others:
        found += ["", _escaped(paragraph)]
    return found


def _sort(running: str, start: re.Pattern | None, explained: list, others: list) -> None:
    """Put one run of sentences where it belongs: parameters, or the rest; `Raises` begins a paragraph of its own."""
    for sentence in re.split(r"(?<=[.]) (?=Raises\b|Returns?\b|Source:)", running):
        if start is None or not start.search(sentence) or _AFTER.match(sentence):
            others.append(sentence)
            continue
        before, *parts = start.split(sentence)
        if before.strip():
            others.append(before.strip())
        explained += zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True)


def _process(app, what, name, obj, options, lines) -> None:
    if what in ("class", "exception", "function", "method", "property", "attribute") and lines:
        lines[:] = [*structured(lines, _parameters(obj)), ""]


def _skip(app, what, name, obj, skip, options) -> bool | None:
    """Leave out what a class has from other libraries, such as matplotlib's setters."""
    return True if not (getattr(obj, "__module__", None) or "protein_atlas").startswith("protein_atlas") else None


def setup(app) -> dict:
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
