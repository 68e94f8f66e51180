"""The shapes of operators' results, and garbage of these shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

META = torch.device("meta")


def garbage(like: torch.Tensor) -> torch.Tensor:
    """Return memory with values that are wrong, and yet no place outside a tensor."""
    made = torch.empty_strided(like.size(), like.stride(), dtype=like.dtype)
    return made.fill_(torch.nan if like.dtype.is_floating_point else 1)


_known_shapes: dict[Any, Any] = {}


def results(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return an operator's results on the meta device.

    Raises:
        NotImplementedError, RuntimeError: their shapes depend on values.
    """
    key = (func, _key(args), _key(tuple(kwargs.items())))
    try:
        return _known_shapes[key]
    except KeyError:
        pass
    on_meta = {key: META if key == "device" else _meta(value) for key, value in kwargs.items()}
    with _disable_current_modes():
        found = _known_shapes[key] = func(*_meta(args), **on_meta)
    return found


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.size(), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    return type(value), value


def _meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=META)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_meta, value))
    return value


def mapped(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Return a value with something else in the place of each of its tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(function, one) for one in value)
    return value
