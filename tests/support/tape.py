"""CUDA graphs on a CPU: a tape of operators that runs over the very tensors it was recorded with.

vLLM's own capture runs; what it takes from ``torch.cuda`` is replaced. As in a real graph, what
Python did besides is not on the tape, a tensor that was made anew since is not read, memory that
was made while recording belongs to the graph, and nobody may wait for a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.platforms import current_platform
from vllm.v1.worker.gpu import cudagraph_utils


class Tape:
    """Takes the place of ``torch.cuda.CUDAGraph``.

    Attributes:
        replayed: how often.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._known: set[int] = set()
        self._own: dict[int, torch.Tensor] = {}
        self.replayed = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        with _Recorder(self):
            yield
        self._reuse_memory()

    def add(self, operator: Any, args: Any, kwargs: Any, made: Any) -> None:
        self._known |= {_memory(one) for one in _tensors((args, kwargs))} - self._own.keys()
        for one in _tensors(made):
            if _memory(one) not in self._known:
                self._own[_memory(one)] = one
        self._calls.append((operator, args, kwargs, made))

    def replay(self) -> None:
        for operator, args, kwargs, made in self._calls:
            again = operator(*args, **kwargs)
            for old, new in zip(_tensors(made), _tensors(again), strict=True):
                if _memory(old) != _memory(new):
                    old.copy_(new)
        self.replayed += 1
        self._reuse_memory()

    def _reuse_memory(self) -> None:
        """Leave garbage in the graph's own memory, as other graphs of its pool do."""
        for tensor in self._own.values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 1)


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a value"
        made = func(*args, **(kwargs or {}))
        self._tape.add(func, args, kwargs or {}, made)
        return made


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def install(patch: pytest.MonkeyPatch) -> None:
    """Let vLLM capture tapes."""
    patch.setattr(torch.cuda, "CUDAGraph", Tape)
    patch.setattr(torch.cuda, "graph", lambda tape, pool, stream: tape.recording())
    patch.setattr(cudagraph_utils, "graph_capture", lambda device: nullcontext())
    patch.setattr(cudagraph_utils, "capture_pool", lambda pool, config: nullcontext(pool))
    patch.setattr(cudagraph_utils, "current_stream", lambda: None)
    patch.setattr(cudagraph_utils, "is_global_first_rank", lambda: False)
    patch.setattr(type(current_platform), "get_global_graph_pool", lambda _: None)
