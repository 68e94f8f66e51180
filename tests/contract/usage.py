"""What PPSD's own source says of vLLM: what it overrides, reads and writes."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import vllm_ppsd
from vllm_ppsd.contract.source import digests, installed_source

PACKAGE = Path(vllm_ppsd.__file__).parent
SERVING = ["config", "drafter", "engine", "exit_head", "runner", "sampling", "single", "worker"]

_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_BATCH = "vllm.v1.worker.gpu_input_batch:InputBatch"
_STATE = "vllm.v1.worker.gpu_input_batch:CachedRequestState"
_V2 = "vllm.v1.worker.gpu"
RECEIVERS = (
    # package, how an object of vLLM's is called there, its class
    ("runner", r"(self\.)?_?runner", _RUNNER),
    ("runner", r"(.*\.)?input_batch|batch", _BATCH),
    ("runner", r"state|.*\.requests\[.*\]", _STATE),
    ("runner", r"cached", "vllm.v1.core.sched.output:CachedRequestData"),
    ("runner", r"scheduler_output", "vllm.v1.core.sched.output:SchedulerOutput"),
    ("runner.v2", r"(self\.)?_?runner", f"{_V2}.model_runner:GPUModelRunner"),
    ("runner.v2", r".*\.req_states|states", f"{_V2}.states:RequestState"),
    ("runner.v2", r".*\.block_tables|tables", f"{_V2}.block_table:BlockTables"),
    ("runner.v2", r"(self\._)?buffers", f"{_V2}.input_batch:InputBuffers"),
    ("runner.v2", r"(self\._)?manager", f"{_V2}.cudagraph_utils:CudaGraphManager"),
    ("runner.v2", r"graph|captured", f"{_V2}.cudagraph_utils:BatchExecutionDescriptor"),
    ("runner.v2", r"(input_)?batch|(step\.)?inputs", f"{_V2}.input_batch:InputBatch"),
    ("runner.v2", r"batch_req_state", f"{_V2}.model_runner:BatchReqState"),
    ("runner.v2", r"state", f"{_V2}.model_runner:ExecuteModelState"),
    ("runner.v2", r"output", f"{_V2}.sample.output:SamplerOutput"),
    ("runner.v2", r"sampling", f"{_V2}.sample.states:SamplingStates"),
    ("runner.v2", r"new", "vllm.v1.core.sched.output:NewRequestData"),
    ("engine", r"new", "vllm.v1.core.sched.output:NewRequestData"),
    ("engine", r"cached", "vllm.v1.core.sched.output:CachedRequestData"),
    ("engine", r"scheduler_output", "vllm.v1.core.sched.output:SchedulerOutput"),
    ("engine", r"request|r", "vllm.v1.request:Request"),
    ("worker", r"group", "vllm.distributed.parallel_state:GroupCoordinator"),
    ("config", r"engine_args", "vllm.engine.arg_utils:EngineArgs"),
)


def resolve(dotted: str) -> Any:
    """Return the module, or what is in it, of a dotted name."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            target: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            target = inspect.getattr_static(target, part)
        return target
    raise ModuleNotFoundError(dotted)


def source_of(dotted: str) -> str:
    """Return our source behind a dotted name; of a package, that of all its modules."""
    target = resolve(dotted)
    if not hasattr(target, "__path__"):
        return textwrap.dedent(inspect.getsource(target))
    files = sorted(Path(target.__path__[0]).rglob("*.py"))
    return "\n".join(f.read_text() for f in files if f.parent.name != "contract")


@cache
def words(dotted: str) -> set[str]:
    """Return the names, attributes and strings in our source behind a dotted name."""
    result: set[str] = set()
    for node in ast.walk(ast.parse(_without_future(source_of(dotted)))):
        if isinstance(node, ast.Attribute):
            result.add(node.attr)
        elif isinstance(node, ast.Name):
            result.add(node.id)
        elif isinstance(node, (ast.alias, ast.keyword)):
            result.add(node.name if isinstance(node, ast.alias) else str(node.arg))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            result.add(node.value)
    return result


@cache
def classes() -> tuple[type, ...]:
    """Return all of our classes that have a class of vLLM's among their bases."""
    result: set[type] = set()
    for module in pkgutil.walk_packages(vllm_ppsd.__path__, "vllm_ppsd."):
        names = vars(importlib.import_module(module.name)).values()
        result |= {
            each
            for each in names
            if isinstance(each, type) and each.__module__ == module.name and _theirs(each)
        }
    return tuple(sorted(result, key=str))


def overrides() -> dict[tuple[str, str], str | None]:
    """Return (ours, vLLM's) for every member of ours that shadows one of vLLM's.

    Of vLLM's definitions the first, and those behind it as far as each calls ``super()``.
    The value is the platform of the classes in which it does, None if of both.
    """
    platforms: dict[tuple[str, str], set[str]] = defaultdict(set)
    for each in classes():
        for place, own in enumerate(each.__mro__):
            if not own.__module__.startswith("vllm_ppsd."):
                continue
            for name in _defined(own):
                for theirs in _theirs(each.__mro__[place + 1 :]):
                    if name not in {*theirs.__dict__, *inspect.get_annotations(theirs)}:
                        continue
                    pair = (
                        f"{own.__module__}.{own.__qualname__}.{name}",
                        f"{_name(theirs)}.{name}",
                    )
                    # Of a device may be several runners: `cpu` and `cpu_v2`.
                    device = each.__module__.rpartition(".")[2].partition("_")[0]
                    platforms[pair].add(device)
                    if f"super().{name}(" not in _source(theirs):
                        break
    return {
        pair: next(iter(seen)) if seen in ({"cpu"}, {"cuda"}) else None
        for pair, seen in platforms.items()
    }


def own_fields() -> list[set[str]]:
    """Return what our subclasses use of ``self`` that a base of vLLM's defines.

    A set for each name: the definitions of which one at least must be in the table.
    """
    used: dict[str, set[str]] = defaultdict(set)
    for each in classes():
        for own in each.__mro__:
            if own.__module__.startswith("vllm_ppsd."):
                for name in _attributes(ast.parse(textwrap.dedent(_source(own))), "self"):
                    used[f"{own.__qualname__}.{name}"] |= {
                        f"{_name(theirs)}.{name}" for theirs in _theirs(each)
                    }
    there = present(set().union(*used.values()))
    return [names & there for names in used.values() if names & there]


def received_fields() -> dict[tuple[str, str], set[str]]:
    """Return, by package and receiver, what is used of vLLM's objects and defined by them."""
    used = {}
    for package, receiver, owner in RECEIVERS:
        tree = ast.parse(_without_future(source_of(f"vllm_ppsd.{package}")))
        names = _attributes(tree, receiver)
        used[package, receiver] = {f"{owner}.{name}" for name in names}
    there = present(set().union(*used.values()))
    return {place: names & there for place, names in used.items()}


def present(targets: Iterable[str]) -> set[str]:
    """Return those of the targets that vLLM defines."""
    return {t for t, digest in digests(installed_source(), targets).items() if digest is not None}


def _without_future(source: str) -> str:
    """Return several modules' source as one: such imports must come first in a module."""
    return source.replace("from __future__", "from future")


def _attributes(tree: ast.AST, receiver: str) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.fullmatch(receiver, ast.unparse(node.value))
    }


def _defined(own: type) -> Iterator[str]:
    (definition,) = ast.parse(textwrap.dedent(_source(own))).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))


def _theirs(bases: type | Iterable[type]) -> list[type]:
    mro = bases.__mro__ if isinstance(bases, type) else bases
    return [base for base in mro if base.__module__.startswith("vllm.")]


_source = cache(inspect.getsource)


def _name(theirs: type) -> str:
    return f"{theirs.__module__}:{theirs.__qualname__}"


def imported_functions() -> set[str]:
    """Return every function of vLLM's that a module which serves imports, where it is defined."""
    result = set()
    for package in SERVING:
        for node in ast.walk(ast.parse(_without_future(source_of(f"vllm_ppsd.{package}")))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vllm."):
                module = importlib.import_module(str(node.module))
                values = (inspect.unwrap(getattr(module, alias.name)) for alias in node.names)
                result |= {_place(value) for value in values if inspect.isfunction(value)}
    return result - {"vllm.logger:init_logger"}


def _place(function: Any) -> str:
    module = importlib.import_module(function.__module__)
    file = ".__init__" if hasattr(module, "__path__") else ""
    return f"{module.__name__}{file}:{function.__qualname__}"
