"""The shape of the package: no import circles, few modules at the top, files that can be read in one go."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from dpbench.paths import PACKAGE

LONGEST = 400
TESTS = Path(__file__).parent
TEST_MODULES = {path.stem for path in TESTS.rglob("*.py") if path.stem == "conftest" or path.stem.startswith("test_")}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    paths = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ["dpbench", *path.relative_to(PACKAGE).with_suffix("").parts]
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports(path: Path, known: Iterable[str]) -> set[str]:
    """Modules of the package that a file imports: at its top, inside functions, or for types alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in inner}
    return {name for name in names if name in known and name != "dpbench"}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Sets of nodes of which each reaches each."""

    def reached(start: str) -> set[str]:
        seen, left = set(), list(edges.get(start, ()))
        while left:
            if (node := left.pop()) not in seen:
                seen.add(node)
                left += edges.get(node, ())
        return seen

    closed = {node: reached(node) for node in edges}
    return sorted({tuple(sorted(m for m in edges if m in closed[n] and n in closed[m])) for n in edges if n in closed[n]})


def test_no_module_imports_itself_through_others():
    """Neither while loading, nor in a function, nor for types alone."""
    assert circles(graph()) == []


def test_no_package_imports_itself_through_others():
    packages: dict[str, set[str]] = defaultdict(set)
    for name, imported in graph().items():
        package = name.split(".")[1] if "." in name else name
        packages[package] |= {other.split(".")[1] for other in imported} - {package}
    assert circles(packages) == []


def test_a_planted_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


def imported_test_modules(path: Path) -> set[str]:
    """Modules named like tests that a file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(alias.name for alias in node.names)}
    return {name for name in names if name.split(".")[-1] in TEST_MODULES}


def test_few_modules_lie_at_the_top():
    assert len([path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]) <= 8


def test_every_file_can_be_read_in_one_go():
    long = {str(p.relative_to(PACKAGE)): n for p in modules().values() if (n := len(p.read_text().splitlines())) > LONGEST}
    assert long == {}


def test_jobs_are_thin():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE / "jobs").glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 80} == {}


def test_no_test_module_is_imported():
    """What several test modules need lies in tests/support."""
    imported = {str(path.relative_to(TESTS)): imported_test_modules(path) for path in TESTS.rglob("*.py")}
    assert {path: names for path, names in imported.items() if names} == {}


def test_a_planted_import_of_a_test_module_is_found(tmp_path):
    for line in ("import test_layout", "from test_layout import graph", "def f():\n    from tests import test_layout"):
        (tmp_path / "planted.py").write_text(line)
        assert imported_test_modules(tmp_path / "planted.py")
