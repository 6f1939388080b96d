"""The order of the house: every module imports only what stands before it, and files and folders stay small.

All imports count, those inside functions and those for type checkers only too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

import lightning_prune

# From the first to the last. A layer imports from those before it and from itself; of several patterns that match a
# module, the longest counts. Packages that only pass names on stand after what they pass on.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("functional*",),
    ("support*",),
    ("plan*",),
    ("channels.trace*",),
    ("channels.rules*",),
    ("channels.graph*",),
    ("channels.surgery*",),
    ("channels.verify*",),
    ("channels.analysis*",),
    ("channels.select*",),
    ("channels.latency*",),
    ("channels.remove",),
    ("scoring*",),
    ("scores*",),
    ("channels.prune",),
    ("channels",),
    ("search*",),
    ("masks*",),
    ("factors*",),
    ("report*", "metrics*", "plots*"),
    ("io*", "export*"),
    ("callbacks.*",),
    ("callbacks.methods*", "callbacks.figures"),
    ("callbacks",),
    ("rethinking",),
    ("zoo*",),
    ("recipes*",),
    ("cli*",),
    ("",),  # the package's own `__init__`
)
MOST_LINES, MOST_FILES = 300, 16


class Import(NamedTuple):
    """One module importing another, both named below the package."""

    source: str
    target: str
    place: str  # file:line


def read_imports(package: Path) -> list[Import]:
    """Every import from a package within the package."""
    files = {path: _name(path, package) for path in sorted(package.rglob("*.py"))}
    modules, found = set(files.values()), []
    for path, source in files.items():
        around = source if path.name == "__init__.py" else source.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _names(node, package.name, around):
                target = name if name in modules else name.rpartition(".")[0]  # a name in a module, or a module
                if target in modules:
                    found.append(Import(source, target, f"{path.relative_to(package.parent)}:{node.lineno}"))  # type: ignore[attr-defined]
    return found


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _names(node: ast.AST, package: str, around: str) -> Iterator[str]:
    """What a statement imports, as names below the package. around: the package that the statement stands in."""
    if isinstance(node, ast.Import):
        full = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = f"{package}.{around}".rstrip(".").split(".")
        start = [*above[: len(above) + 1 - node.level], node.module or ""] if node.level else [node.module or ""]
        full = [".".join(part for part in (*start, alias.name) if part) for alias in node.names]
    else:
        return
    yield from (name.removeprefix(package).removeprefix(".") for name in full if f"{name}.".startswith(f"{package}."))


def layer_of(module: str, layers: Sequence[Sequence[str]]) -> int | None:
    """The place of a module's layer; None if it has none."""
    fitting = [(len(p), i) for i, layer in enumerate(layers) for p in layer if fnmatchcase(module, p)]
    return max(fitting)[1] if fitting else None


def complaints(package: Path, layers: Sequence[Sequence[str]] = LAYERS) -> list[str]:
    """What is wrong with the imports of a package."""
    imports, found = read_imports(package), []
    order = " < ".join("/".join(layer) for layer in layers)
    modules = {_name(path, package) for path in package.rglob("*.py")}
    homeless = [name for name in sorted(modules) if layer_of(name, layers) is None]
    found += [f"{name} has no layer; give it a place in {order}" for name in homeless]
    for source, target, place in imports:
        first, second = layer_of(source, layers), layer_of(target, layers)
        if first is not None and second is not None and second > first:
            found.append(f"{place}: {source} imports {target}, which comes after it in {order}")
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for source, target, _ in imports:
        graph[source].add(target)
    return found + [f"import circle: {' <-> '.join(circle)}" for circle in circles(graph)]


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, and modules that import themselves."""
    reach = {node: _reached(graph, node) for node in graph}
    found = {frozenset(other for other in reach[node] if node in reach[other]) for node in graph if node in reach[node]}
    return sorted(sorted(component) for component in found)


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    stack = list(graph[start])
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += graph[node]
    return found


def too_large(package: Path) -> list[str]:
    """Files of too many lines, and folders of too many files."""
    files = sorted(package.rglob("*.py"))
    lines = {path: len(path.read_text().splitlines()) for path in files}
    folders = {path.parent: sum(other.parent == path.parent for other in files) for path in files}
    return [
        *(f"{path} has {n} lines, more than {MOST_LINES}: split it" for path, n in lines.items() if n > MOST_LINES),
        *(f"{path} has {n} files, more than {MOST_FILES}: split it" for path, n in folders.items() if n > MOST_FILES),
    ]


PACKAGE = Path(lightning_prune.__file__).parent


def test_imports_follow_the_order_of_the_layers() -> None:
    assert len(read_imports(PACKAGE)) > 100
    found = complaints(PACKAGE)
    assert not found, "\n".join(found)


def test_files_and_folders_are_small() -> None:
    found = too_large(PACKAGE)
    assert not found, "\n".join(found)


MADE = {"__init__": "from made.top import x", "low": "", "mid/__init__": "", "mid/a": "", "mid/b": "", "top": "x = 1"}
ORDER = (("low",), ("mid*",), ("top",), ("",))
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "upward": ({"low": "import os\nimport made.top"}, "low.py:2: low imports top, which comes after it in low < mid"),
    "of a name": ({"low": "from made.mid.a import name"}, "low.py:1: low imports mid.a,"),
    "of a module": ({"low": "from made.mid import a"}, "low.py:1: low imports mid.a,"),
    "in a function": ({"mid/a": "def f():\n    from made import top"}, "a.py:2: mid.a imports top,"),
    "for types": (
        {"mid/a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import made.top"},
        "a.py:3: mid.a imports top,",
    ),
    "relative": ({"mid/a": "from ..top import x"}, "a.py:1: mid.a imports top,"),
    "relative in a package": ({"mid/__init__": "from .. import top"}, "__init__.py:1: mid imports top,"),
    "of the whole package": ({"low": "import made"}, "low.py:1: low imports ,"),
    "circle": ({"mid/a": "from .b import x", "mid/b": "from . import a"}, "import circle: mid.a <-> mid.b"),
    "circle in functions": (
        {"mid/a": "from made.mid import b", "mid/b": "def f():\n    import made.mid.a"},
        "import circle: mid.a <-> mid.b",
    ),
    "no layer": ({"other": ""}, "other has no layer"),
}


def made(root: Path, change: Mapping[str, str]) -> Path:
    for name, text in {**MADE, **change}.items():
        path = root / "made" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "made"


@pytest.mark.parametrize("name", WRONG)
def test_the_check_sees_what_is_wrong(name: str, tmp_path: Path) -> None:
    change, message = WRONG[name]
    assert any(message in complaint for complaint in complaints(made(tmp_path, change), ORDER))


def test_the_check_lets_right_ones_through(tmp_path: Path) -> None:
    fine = {"mid/a": "from ..low import x\nfrom . import b\nimport torch", "mid/b": "from made import low"}
    assert complaints(made(tmp_path, {**fine, "top": "import made.mid.a\nx = 1"}), ORDER) == []
    assert too_large(tmp_path) == []


def test_the_check_sees_what_is_too_large(tmp_path: Path) -> None:
    package = made(tmp_path, {"low": "\n" * 301, **{f"mid/m{i}": "" for i in range(14)}})
    long, full = too_large(package)
    assert long.endswith("low.py has 301 lines, more than 300: split it")
    assert full.endswith("mid has 17 files, more than 16: split it")


def test_private_attributes_of_lightning_are_read_in_one_file() -> None:
    private = re.compile(r"\b(trainer|pl_module|strategy|callback|fit_loop|epoch_loop)\._[a-z]|_average_model")
    lightning = re.compile(r"from lightning\.[\w.]+ import .*\b_[A-Za-z]")
    for path in PACKAGE.rglob("*.py"):
        found = [line for line in path.read_text().splitlines() if private.search(line) or lightning.search(line)]
        if path.name == "trainer.py":
            assert found
        else:
            assert not found, f"{path}: {found}; read it in callbacks/trainer.py"
