"""Digests of definitions, read from vLLM's source files; nothing of vLLM is imported."""

from __future__ import annotations

import ast
import functools
import hashlib
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DIGITS = 12
"""Hexadecimal digits of a digest: 48 bits, plenty against a change by accident."""

_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def installed_source() -> Path:
    """Return the folder that holds the installed ``vllm/``.

    Raises:
        ModuleNotFoundError: there is none.
    """
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("vLLM is not installed")
    return Path(spec.submodule_search_locations[0]).parent


def digests(folder: Path, targets: Iterable[str]) -> dict[str, str | None]:
    """Return the digest of every target's definition; None where it is not there.

    The digest is the first 12 digits of the sha256 of the definition's text, without its
    indentation: of a function with its decorators, of a class, or of all statements by which a
    class assigns a field.

    Args:
        folder: holds ``vllm/``.
        targets: such as ``vllm.v1.request:Request.status``.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for target in targets:
        module, _, name = target.partition(":")
        names[module].append(name)
    result: dict[str, str | None] = {}
    for module, wanted in names.items():
        path = _file(folder, module)
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        module_scope, lines = ast.parse(text), text.split("\n")
        members = functools.cache(_members)
        for name in wanted:
            nodes: list[Any] = [module_scope]
            for part in name.split("."):
                nodes = [inner for node in nodes for inner in members(node).get(part, ())]
            result[f"{module}:{name}"] = _digest(nodes, lines) if nodes else None
    return result


def files_digest(folder: Path, targets: Iterable[str]) -> str:
    """Return one digest of all files that hold a target; see ``digests`` for the arguments."""
    whole = hashlib.sha256()
    for module in sorted({target.partition(":")[0] for target in targets}):
        path = _file(folder, module)
        whole.update(path.read_bytes() if path.is_file() else b"")
    return whole.hexdigest()[:DIGITS]


def _file(folder: Path, module: str) -> Path:
    return folder.joinpath(*module.split(".")).with_suffix(".py")


def _members(scope: ast.AST) -> dict[str, list[ast.stmt]]:
    """Return the statements that define each name in a module or class.

    Of a function or class its definition, or several where it is defined anew; of a field of a
    class, all statements that assign it, in the class or to ``self`` in its methods.
    """
    definitions: dict[str, list[ast.stmt]] = defaultdict(list)
    assigned: dict[str, list[ast.stmt]] = defaultdict(list)
    for node in _statements(scope):
        if isinstance(node, (ast.ClassDef, *_FUNCTION)):
            definitions[node.name].append(node)
        for target in _targets(node):
            if isinstance(target, ast.Name):
                assigned[target.id].append(node)
        if not isinstance(scope, ast.ClassDef) or not isinstance(node, _FUNCTION):
            continue
        for inner in _statements(node):
            for target in _targets(inner):
                if isinstance(target, ast.Attribute) and _is_self(target.value):
                    assigned[target.attr].append(inner)
    return {**assigned, **definitions}


def _statements(scope: ast.AST) -> Iterator[ast.stmt]:
    """Return a scope's statements, those within its ``if``, ``for`` and so on included."""
    for block in _BLOCKS:
        for node in getattr(scope, block, ()):
            if isinstance(node, ast.stmt):
                yield node
            if not isinstance(node, (ast.ClassDef, *_FUNCTION)):
                yield from _statements(node)


def _targets(node: ast.stmt) -> Iterator[ast.expr]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        targets = [node.target]
    for target in targets:
        yield from target.elts if isinstance(target, ast.Tuple) else [target]


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _digest(nodes: Sequence[ast.stmt], lines: Sequence[str]) -> str:
    whole = hashlib.sha256()
    for node in nodes:
        first = min(d.lineno for d in (*getattr(node, "decorator_list", ()), node))
        text = "\n".join(lines[first - 1 : node.end_lineno])
        whole.update(textwrap.dedent(text).encode() + b"\n")
    return whole.hexdigest()[:DIGITS]
