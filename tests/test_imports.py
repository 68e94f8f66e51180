"""Who may know whom: serving nothing of the laboratory, and only the port a model runner."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_ppsd

PACKAGE = Path(vllm_ppsd.__file__).parent
LABORATORY = {"bench", "cli", "demo", "planning", "tools", "trace", "training"}
SERVING = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in LABORATORY
]


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_laboratory_is_where_it_is_said_to_be():
    assert all((PACKAGE / name / "__init__.py").is_file() for name in LABORATORY)
    assert len(SERVING) > 20


@pytest.mark.parametrize("path", SERVING, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_serving_imports_nothing_of_the_laboratory(path: Path):
    parts = [name.split(".") for name in imported(path)]
    assert [p for p in parts if p[0] == "vllm_ppsd" and p[1:] and p[1] in LABORATORY] == []


OUTSIDE = [path for path in SERVING if path.relative_to(PACKAGE).parts[0] != "runner"]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_port_touches_a_model_runner(path: Path):
    touched = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value).rpartition(".")[2].endswith("runner")
    ]
    assert touched == []
