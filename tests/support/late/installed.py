"""Puts the late device in the place of a worker's CPU, for vLLM's V2 model runner."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch

from support.late import SEED, TRAP, links
from support.late.device import DEVICE, Event, Stream, use_stream
from support.late.tensors import FACTORIES, LATE, LateTensor, launch
from support.late.traps import TRAPS
from vllm_ppsd.tools.worker_extension import ToolsWorkerExtension

WORKER = "support.late.installed.LateWorker"


class LateWorker(ToolsWorkerExtension):
    """Mixed into a worker by vLLM's ``worker_extension_cls``."""

    def late_device(self) -> tuple[int, dict[str, int]]:
        """Return how many orders were drawn, and where the host waited how often."""
        return DEVICE.orders, dict(DEVICE.waits)


def install() -> None:
    """Give this process, whose main thread calls this, a late device."""
    import vllm.v1.worker.cpu.shm  # noqa: F401  (replaces parts of torch, which are replaced again)

    sys.setswitchinterval(0.0005)
    torch._dynamo.config.disable = True
    _install_torch()
    _install_vllm()
    if trap := os.environ.get(TRAP):
        TRAPS[trap]()
    FACTORIES.__enter__()


def _install_torch() -> None:
    torch.cuda.Stream, torch.cuda.Event, torch.Event = Stream, Event, Event
    torch.cuda.current_stream = lambda *_: DEVICE.current
    torch.cuda.set_stream = DEVICE.use
    torch.cuda.stream = use_stream
    torch.cuda.synchronize = torch.accelerator.synchronize = lambda *_: DEVICE.synchronize()
    torch.tensor, torch.as_tensor = map(_by_way_of_the_host, (torch.tensor, torch.as_tensor))


def _by_way_of_the_host(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes a tensor of the host's values; torch looks for no mode there."""

    @wraps(make)
    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        if isinstance(data, torch.Tensor):
            return data.to(device=device, **options)
        tensor = make(data, **options)
        return tensor if device is None else tensor.to(device)

    return made


def _install_vllm() -> None:
    import vllm.v1.worker.gpu.buffer_utils as buffers
    from vllm import _custom_ops
    from vllm.distributed.parallel_state import GroupCoordinator
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.utils import torch_utils
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    _replace(torch_utils.async_tensor_h2d, _async_tensor_h2d)
    _replace(buffers.UvaBuffer, _UvaBuffer)
    _custom_ops.onednn_mm = _onednn_mm
    for way in (links.isend_tensor_dict, links.irecv_tensor_dict):
        stock = getattr(GroupCoordinator, way.__name__)
        # PPSD's hooks look at what they replace.
        setattr(GroupCoordinator, way.__name__, wraps(stock)(way))

    def on_late_device(init: Callable[..., None]) -> Callable[..., None]:
        return lambda runner, vllm_config, _: init(runner, vllm_config, LATE)

    def called_directly(init: Callable[..., None]) -> Callable[..., None]:
        # Its operator is looked for by device.
        @wraps(init)
        def make(layer: Any, *args: Any, **options: Any) -> None:
            init(layer, *args, **options)
            layer.use_direct_call = True

        return make

    def into_its_buffers(load: Callable[..., None]) -> Callable[..., None]:
        def loaded(runner: Any, *args: Any, **options: Any) -> None:
            load(runner, *args, **options)
            if runner.is_first_pp_rank and not runner.is_last_pp_rank:
                runner.model.register_forward_hook(_Replay(runner.max_num_tokens))

        return loaded

    def in_an_order(execute: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(execute)
        def executed(worker: Any, *args: Any) -> Any:
            if not DEVICE.orders:
                DEVICE.seed(f"{os.environ[SEED]} {worker.rank}")
            DEVICE.tick()
            return execute(worker, *args)

        return executed

    def in_place(normed: Callable[..., Any]) -> Callable[..., Any]:
        # As the kernel of GPUs does it.
        @wraps(normed)
        def norm(layer: Any, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
            if residual is None:
                return normed(layer, x)
            made = normed(layer, x, residual)
            return x.copy_(made[0]), residual.copy_(made[1])

        return norm

    RMSNorm.forward_native = in_place(RMSNorm.forward_native)
    GPUModelRunner.__init__ = on_late_device(GPUModelRunner.__init__)
    GPUModelRunner.load_model = into_its_buffers(GPUModelRunner.load_model)
    Attention.__init__ = called_directly(Attention.__init__)
    Worker.execute_model = in_an_order(Worker.execute_model)


def _replace(old: Any, new: Any) -> None:
    """Put something in the place of something else, in all modules that have imported it."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is old:
                setattr(module, name, new)


def _async_tensor_h2d(
    data: Sequence[Any] | np.ndarray | torch.Tensor,
    device: Any = None,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take the place of vLLM's: what comes from the host is staged at once, and copied late."""
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data)
    if not isinstance(data, torch.Tensor):
        data = torch.tensor(data, dtype=dtype)
    if out is not None:
        return out.copy_(data, non_blocking=True)
    return data.to(device=device, dtype=dtype, non_blocking=True)


def _onednn_mm(handler: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Take the place of vLLM's, which makes the result on the host."""
    output = x.new_empty((*x.shape[:-1], handler.n))
    torch.ops._C.onednn_mm(output, x.reshape(-1, handler.k), bias, handler.handler_tensor)
    return output


class _UvaBuffer:
    """Takes the place of vLLM's: memory of the host that the device reads when it comes to it."""

    def __init__(self, size: Any, dtype: torch.dtype) -> None:
        self.cpu = torch.zeros(size, dtype=dtype)
        self.np = self.cpu.numpy()
        self._uva = LateTensor(self.cpu)

    def uva(self, n: int | None = None) -> torch.Tensor:
        return self._uva if n is None else self._uva[:n]


class _Replay:
    """Leaves what a stage hands on in the same buffers each time, as a CUDA graph does."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._buffers: dict[str, torch.Tensor] = {}

    def __call__(self, model: Any, inputs: Any, states: Any) -> Any:
        for name, made in states.tensors.items():
            if name not in self._buffers:
                self._buffers[name] = made.new_empty(self._tokens, *made.shape[1:])
            states.tensors[name] = self._buffers[name][: len(made)].copy_(made)
        return states


def launched(kernel: Callable[..., None]) -> Callable[..., None]:
    """Return what launches a kernel."""

    @wraps(kernel)
    def run(*args: Any, **kwargs: Any) -> None:
        launch(kernel, *args, **kwargs)

    return run
