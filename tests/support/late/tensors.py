"""Tensors of the late device: what is done to them is done when the device comes to it.

A ``LateTensor`` stands for memory of the device. Shapes are known at once, values are not: until a
launch is done, its results hold garbage. As on a GPU, the host gets at values by copies, which wait
unless they are told not to, and by calls that wait by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import cache, partial
from typing import Any

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from support.late.device import DEVICE
from support.late.shapes import garbage, mapped, results

_setup_privateuseone_for_python_backend()
LATE = torch.device("privateuseone", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten

OPAQUE = {"_C::get_scheduler_metadata"}
"""Operators whose result is only handed on, whatever its shape."""


class LateTensor(torch.Tensor):
    """A tensor of the late device.

    Attributes:
        inner: its memory; None before it is made, where only the device knows its shape.
        make: makes the memory then.
    """

    inner: torch.Tensor | None
    make: Callable[[], torch.Tensor]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    @torch.inference_mode()
    def __new__(cls, inner: torch.Tensor | None) -> LateTensor:
        known = inner if inner is not None else torch.empty(0)
        tensor: LateTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            known.size(),
            strides=known.stride(),
            storage_offset=known.storage_offset(),
            dtype=known.dtype,
            device=LATE,
        )
        tensor.inner = inner
        return tensor

    def __init__(self, inner: torch.Tensor | None) -> None:
        pass

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"LateTensor({tuple(self.size())}, {self.dtype})"

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_moved(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_moved(index), value)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        assert self.inner is not None
        return self.inner.data_ptr()


class Factories(TorchDispatchMode):
    """Sees calls that name the late device, which no tensor needs to be an argument of."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _any_late(args) or _any_late(kwargs.values()):
            return dispatch(func, args, kwargs)
        return func(*args, **kwargs)


FACTORIES = Factories()


class _Kind(Enum):
    COMPOSITE = auto()
    VIEW = auto()
    WRITES = auto()
    MAKES = auto()


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do what an operator does, late."""
    if (special := _SPECIAL.get(func)) is not None:
        return special(*args, **kwargs)
    kind = _kind(func)
    if kind is _Kind.COMPOSITE:
        with FACTORIES:
            return func.decompose(*args, **kwargs)
    if kind is _Kind.VIEW:
        return _wrapped(func(*unwrapped(args), **unwrapped(kwargs)))
    if kind is _Kind.WRITES:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(value, torch.Tensor):
                assert isinstance(value, LateTensor), f"{func} writes to the host's memory"
        launch(func, *args, **kwargs)
        return _written(func, args, kwargs)
    return _make(func, args, kwargs)


def launch(run: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Call something on the device, with the memory of its tensors."""

    def work() -> None:
        run(*unwrapped(args), **unwrapped(kwargs))

    DEVICE.current.launch(work)


def unwrapped(value: Any) -> Any:
    """Return a value with its tensors' memory in their place."""
    if isinstance(value, LateTensor):
        if value.inner is None:
            value.inner = value.make()
        return value.inner
    if isinstance(value, (list, tuple)):
        return type(value)(map(unwrapped, value))
    if isinstance(value, dict):
        return {key: unwrapped(one) for key, one in value.items()}
    return value


@cache
def _kind(func: Any) -> _Kind:
    composite = DispatchKey.CompositeImplicitAutograd
    # Others register their kernels as such.
    if func.namespace == "aten" and func.has_kernel_for_dispatch_key(composite):
        return _Kind.COMPOSITE
    marks = [argument.alias_info for argument in func._schema.arguments if argument.alias_info]
    if not func._schema.returns or any(mark.is_write for mark in marks):
        return _Kind.WRITES
    return _Kind.VIEW if marks else _Kind.MAKES


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the arguments that an operator returns."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    by_set = {
        name: given[a.name]
        for a in func._schema.arguments
        if a.alias_info
        for name in a.alias_info.before_set
    }
    results = [by_set[next(iter(one.alias_info.before_set))] for one in func._schema.returns]
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def _make(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make the results with garbage in them, and fill them late."""
    here = {key: CPU if key == "device" else value for key, value in kwargs.items()}
    if func._schema.name in OPAQUE:
        opaque = LateTensor(None)
        opaque.make = lambda: func(*unwrapped(args), **unwrapped(here))
        launch(lambda _: None, opaque)
        return opaque
    try:
        shapes = results(func, args, kwargs)
    except (NotImplementedError, RuntimeError):
        # The shapes depend on the values.
        DEVICE.current.synchronize()
        return _wrapped(func(*unwrapped(args), **unwrapped(here)))
    made = mapped(garbage, shapes)
    if func not in _EMPTY:
        launch(_fill, func, made, args, here)
    return _wrapped(made)


def _fill(func: Any, made: Any, args: Any, kwargs: dict[str, Any]) -> None:
    found = func(*args, **kwargs)
    if isinstance(made, torch.Tensor):
        made.copy_(found)
        return
    for into, one in zip(made, found, strict=True):
        into.copy_(one)


_wrapped = partial(mapped, LateTensor)


def _moved(index: Any) -> Any:
    """Return an index with its lists as tensors of the device, which the host waits for."""
    if isinstance(index, list):
        return torch.tensor(index, dtype=None if index else torch.int64).to(LATE)
    if isinstance(index, tuple):
        return tuple(map(_moved, index))
    return index


def _is_late(device: torch.device) -> bool:
    return device.type == LATE.type


def _any_late(values: Any) -> bool:
    for value in values:
        if isinstance(value, LateTensor) or (isinstance(value, torch.device) and _is_late(value)):
            return True
        if isinstance(value, (list, tuple)) and _any_late(value):
            return True
    return False


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """``Tensor.copy_``, one or both of whose sides are on the device."""
    both = isinstance(target, LateTensor) and isinstance(source, LateTensor)
    if not isinstance(source, LateTensor):
        # Memory that is not pinned is read before the call returns.
        source = source.clone()
    launch(aten.copy_.default, target, source)
    if not (both or non_blocking):
        DEVICE.current.synchronize()
    return target


def _to_copy(
    source: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
    **_: Any,
) -> torch.Tensor:
    """``Tensor.to``, from or to the device, or on it."""
    to_late = _is_late(device) if device is not None else isinstance(source, LateTensor)
    like = torch.empty_strided(source.size(), source.stride(), dtype=dtype or source.dtype)
    if memory_format is not None and memory_format is not torch.preserve_format:
        like = like.contiguous(memory_format=memory_format)
    made: torch.Tensor = garbage(like)
    return _copy(LateTensor(made) if to_late else made, source, non_blocking)


def _item(source: LateTensor) -> Any:
    return _to_copy(source, device=CPU).item()


def _waiting(func: Any) -> Callable[..., Any]:
    """Return what does as a function, which the host waits for."""

    def run(*args: Any, **kwargs: Any) -> Any:
        DEVICE.current.synchronize()
        return func(*unwrapped(args), **unwrapped(kwargs))

    return run


_EMPTY = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
_SPECIAL = {
    aten.copy_.default: _copy,
    aten._to_copy.default: _to_copy,
    aten._local_scalar_dense.default: _item,
    aten.equal.default: _waiting(aten.equal.default),
}
