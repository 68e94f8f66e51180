"""Put hooks in place of vLLM's functions: each is wrapped once."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from vllm_ppsd.contract.entries import Entry

_MARK = "__vllm_ppsd_hook__"


class HookError(RuntimeError):
    """The contract does not hold for the installed vLLM."""


def install(hook: Entry) -> None:
    """Wrap the target; a second call changes nothing.

    Raises:
        HookError: another hook of ours is on it.
    """
    owner, leaf, raw = locate(hook)
    function = _function(raw)
    mark = getattr(function, _MARK, None)
    if mark == hook.name:
        return
    if mark is not None:
        raise HookError(f"hook {hook.name}: {hook.target} already carries hook {mark}")
    module, _, name = hook.ours.rpartition(".")
    wrap = getattr(importlib.import_module(module), name)
    replacement = functools.wraps(function)(wrap(function))
    setattr(replacement, _MARK, hook.name)
    kind = type(raw) if isinstance(raw, (property, staticmethod)) else lambda function: function
    setattr(owner, leaf, kind(replacement))


def installed(hook: Entry) -> bool:
    """Whether a hook is on its target in this process."""
    return getattr(_function(locate(hook)[2]), _MARK, None) == hook.name


def replaced_by_others(hook: Entry) -> str | None:
    """Say so if the function in this process is not that of vLLM's file; else None."""
    function = inspect.unwrap(_function(locate(hook)[2]))
    place = inspect.getsourcefile(function)
    if place == inspect.getsourcefile(importlib.import_module(hook.target.partition(":")[0])):
        return None
    return f"another plugin has replaced {hook.target}, by {function.__qualname__} of {place}"


def locate(hook: Entry) -> tuple[Any, str, Any]:
    """Return the object that holds the target, the target's name there, and the target."""
    module, _, name = hook.target.partition(":")
    owner: Any = importlib.import_module(module)
    *path, leaf = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, leaf, inspect.getattr_static(owner, leaf)


def _function(raw: Any) -> Any:
    if isinstance(raw, property):
        return raw.fget
    if isinstance(raw, staticmethod):
        return raw.__func__
    return raw
