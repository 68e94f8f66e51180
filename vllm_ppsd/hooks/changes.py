"""The changes themselves: each takes vLLM's function and returns its replacement.

A replacement calls vLLM's function unless PPSD was asked for, so that a vLLM
that was not asked for PPSD behaves as if the plugin were not installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from vllm_ppsd.hooks.marks import (
    has_engine,
    is_marked_worker,
    is_pipelined,
    is_ppsd,
    pipelined_config,
)
from vllm_ppsd.lifeline import follow_server
from vllm_ppsd.protocol import steps_in_flight

TEARDOWN_SECONDS = 15.0
"""What an engine may take to release what it holds once its requests are aborted, unless vLLM's
``VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS`` is set."""

VLLM_CHUNKS = 10
"""Messages that vLLM's shared-memory queue holds."""

MESSAGES_PER_STEP = 2
"""``execute_model`` and ``sample_tokens``."""

SPARE_MESSAGES = 2
"""Beside those of the steps in flight."""


def speculative_config(original: Callable[..., Any]) -> Callable[..., Any]:
    """``EngineArgs.create_speculative_config``: know the method ``ppsd``."""

    def replacement(self: Any, target_model_config: Any, target_parallel_config: Any) -> Any:
        from vllm_ppsd.config.arguments import requested
        from vllm_ppsd.config.entry import create

        if not requested(self):
            return original(self, target_model_config, target_parallel_config)
        return create(self, target_model_config, target_parallel_config)

    return replacement


def speculative_model_flag(original: Callable[..., Any]) -> Callable[..., Any]:
    """``EngineArgs.add_cli_args``: add ``--speculative-model``."""

    def replacement(parser: Any) -> Any:
        from vllm_ppsd.config.arguments import add_speculative_model_flag

        parser = original(parser)
        add_speculative_model_flag(parser)
        return parser

    return replacement


def concurrent_batches(original: Callable[..., Any]) -> Callable[..., Any]:
    """``VllmConfig.max_concurrent_batches``: room for every draft in flight."""

    def replacement(self: Any) -> int:
        batches: int = original(self)
        config = pipelined_config(self)
        if config is None:
            return batches
        return max(batches, steps_in_flight(config.max_drafts))

    return replacement


def no_draft_rpc(original: Callable[..., Any]) -> Callable[..., Any]:
    """``EngineCore.post_step``: drafts never pass through the scheduler."""

    def replacement(self: Any, model_executed: bool) -> None:
        if not is_pipelined(self.vllm_config.speculative_config):
            original(self, model_executed)

    return replacement


def sampling_parameters(original: Callable[..., Any]) -> Callable[..., Any]:
    """``SamplingParams._validate_spec_decode``: no sampling parameter is excluded.

    But with V1 on one device, where vLLM's rejection sampler verifies.
    """

    def replacement(self: Any, speculative_config: Any) -> None:
        from vllm_ppsd.config.support import uses_v2_runner

        if is_pipelined(speculative_config) or (is_ppsd(speculative_config) and uses_v2_runner()):
            return
        original(self, speculative_config)

    return replacement


def expand_kernel(original: Callable[..., Any]) -> Callable[..., Any]:
    """``_expand_kernel_impl``: fill ``output`` whatever its dtype.

    vLLM's fills an int64 copy, which is lost: temperature, top-k and top-p of drafted
    tokens are then whatever was in memory, on CPU with any speculative method.
    """

    def replacement(
        output: Any,
        input_val: Any,
        cu_num_tokens: Any,
        replace_from: Any,
        replace_to: Any,
        MAX_NUM_TOKENS: int | None = None,
    ) -> None:
        if not is_marked_worker():
            original(output, input_val, cu_num_tokens, replace_from, replace_to, MAX_NUM_TOKENS)
            return
        counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
        expanded = input_val.repeat_interleave(counts)
        output.copy_(expanded.masked_fill(expanded == replace_from, replace_to))

    return replacement


def cpu_model_runner(original: Callable[..., Any]) -> Callable[..., Any]:
    """``CPUWorker.init_device``: let the worker class choose its model runner, V1's or V2's."""

    def replacement(self: Any) -> None:
        runner_class = getattr(self, "model_runner_cls", None)
        if runner_class is None:
            original(self)
            return
        if self.use_v2_model_runner:
            import vllm.v1.worker.cpu.model_runner as module
        else:
            import vllm.v1.worker.cpu_worker as module

        stock = module.CPUModelRunner
        module.CPUModelRunner = runner_class
        try:
            original(self)
        finally:
            module.CPUModelRunner = stock

    return replacement


def queue_room(original: Callable[..., Any]) -> Callable[..., Any]:
    """``MultiprocExecutor._init_executor``: room in the workers' queue for all steps in flight.

    Every worker reads the engine's messages when their step comes to it, and the engine
    writes no message before the last stage has read the one ``VLLM_CHUNKS`` before. With
    two messages a step that is five steps: fewer than a longer pipeline has in flight. The
    memory stays the same; a message that is larger than a chunk goes over a socket.
    """

    def replacement(self: Any) -> None:
        chunks = MESSAGES_PER_STEP * self.vllm_config.max_concurrent_batches + SPARE_MESSAGES
        if pipelined_config(self.vllm_config) is None or chunks <= VLLM_CHUNKS:
            original(self)
            return
        import vllm.v1.executor.multiproc_executor as module

        stock = module.MessageQueue

        class Roomy(stock):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                # With the start method `fork` workers inherit this class; their queue of replies
                # is given no size and stays as it is.
                if "max_chunk_bytes" in kwargs:
                    kwargs["max_chunk_bytes"] = kwargs["max_chunk_bytes"] * VLLM_CHUNKS // chunks
                    kwargs["max_chunks"] = chunks
                super().__init__(*args, **kwargs)

        module.MessageQueue = Roomy
        try:
            original(self)
        finally:
            module.MessageQueue = stock

    return replacement


def engine_lifeline(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Executor.__init__``: an engine core goes when the process that started it has ended.

    vLLM's engine core waits for requests for ever if its server is killed, and its workers
    wait with it.
    """

    def replacement(self: Any, vllm_config: Any) -> None:
        if is_ppsd(vllm_config.speculative_config):
            follow_server(TEARDOWN_SECONDS)
        original(self, vllm_config)

    return replacement


def every_failure(original: Callable[..., Any]) -> Callable[..., Any]:
    """``WorkerProc._execute_worker_rpc``: every worker's failure is a reply.

    vLLM's workers reply to a step only if they are the one that the engine listens to.
    """

    def replacement(self: Any, rpc_request: Any) -> None:
        *request, replies = rpc_request
        if replies in (None, self.rank) or not hasattr(self.worker, "ppsd_config"):
            original(self, rpc_request)
            return
        reply = self.handle_output
        self.handle_output = lambda output: reply(output) if isinstance(output, Exception) else None
        try:
            original(self, (*request, self.rank))
        finally:
            del self.handle_output

    return replacement


def hear_failures(original: Callable[..., Any]) -> Callable[..., Any]:
    """``MultiprocExecutor._post_init_executor``: a failure of any worker ends the wait for one."""

    def replacement(self: Any) -> None:
        original(self)
        if not is_ppsd(self.vllm_config.speculative_config) or not self.response_mqs:
            return
        from vllm_ppsd.engine.replies import Replies

        queues = [Replies(queue) for queue in self.response_mqs]
        awaited = queues[self._get_output_rank()]
        awaited.watch([queue for queue in queues if queue is not awaited])
        self.response_mqs = queues

    return replacement


def send_states(original: Callable[..., Any]) -> Callable[..., Any]:
    """``GroupCoordinator.isend_tensor_dict``: a group may hand over its own way."""

    def replacement(self: Any, tensor_dict: Any, *args: Any, **kwargs: Any) -> Any:
        if handover := getattr(self, "ppsd_handover", None):
            return handover.send(tensor_dict)
        return original(self, tensor_dict, *args, **kwargs)

    return replacement


def receive_states(original: Callable[..., Any]) -> Callable[..., Any]:
    """``GroupCoordinator.irecv_tensor_dict``: the other end."""

    def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        if handover := getattr(self, "ppsd_handover", None):
            return handover.receive()
        return original(self, *args, **kwargs)

    return replacement


def clean_shutdown(original: Callable[..., Any]) -> Callable[..., Any]:
    """``CoreEngineProcManager.shutdown``: let the engine stop its workers before it is killed.

    By default vLLM's server sends SIGTERM and, in the same moment, SIGKILL to the engine
    and its workers; an ``LLM`` sends SIGKILL after five seconds, just when the engine loses
    patience with workers that linger in the interpreter's exit. Shared memory and semaphores
    are left to Python's resource tracker.
    """

    def replacement(self: Any, timeout: float | None = None) -> None:
        patience = float(os.environ.get("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", TEARDOWN_SECONDS))
        short = timeout is None or timeout < patience
        if has_engine() and short and self._request_shutdown_timeout == 0:
            timeout = patience
        original(self, timeout)

    return replacement
