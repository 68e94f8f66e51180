"""CUDA graphs of a head's continuation steps, captured and replayed as V2's own drafters do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.logger import init_logger
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, init_attn_backend
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    CudaGraphManager,
    prepare_inputs_to_capture,
)
from vllm.v1.worker.gpu.input_batch import InputBuffers
from vllm.v1.worker.utils import AttentionGroup

from vllm_ppsd.exit_head.continuation import Continuation
from vllm_ppsd.exit_head.module import Guess
from vllm_ppsd.runner.port import Continue
from vllm_ppsd.to_device import on_device

logger = init_logger("vllm.plugins.ppsd")


class ContinuationGraphs:
    """A full CUDA graph of one continuation step for each number of rows that V2 captures.

    V2 sets them up where it sets up a speculator's. The head's layers have attention groups of
    their own, as a drafter's have, so that their metadata is not that of the target's graphs.
    Block tables and slots are written to V2's buffers, which every tick writes anew.

    Args:
        runner: vLLM's V2 model runner.
        continuation: what is captured.

    Attributes:
        attn_groups: of the head's layers, by group of layers that share a block table; empty
            where nothing is captured.
    """

    def __init__(self, runner: Any, continuation: Continuation) -> None:
        self._runner, self._continuation = runner, continuation
        self.release()

    def release(self) -> None:
        """Drop the graphs, and what they read and write."""
        self.attn_groups: list[list[AttentionGroup]] = []
        self._manager: CudaGraphManager | None = None
        self._outputs: Guess | None = None
        self._buffers: Any = None
        self._final = self._tokens = torch.empty(0)

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Make what a graph reads; called when V2 has laid out its key/value cache.

        Args:
            cudagraph_mode: what config and attention backends allow.
        """
        self.release()
        if cudagraph_mode.decode_mode() != CUDAGraphMode.FULL:
            if cudagraph_mode != CUDAGraphMode.NONE:
                logger.info(
                    "PPSD: the exit head goes on without CUDA graphs: cudagraph_mode is %s",
                    cudagraph_mode,
                )
            return
        runner = self._runner
        config, device, rows = runner.vllm_config, runner.device, runner.req_states.max_num_reqs
        model = runner.model_config
        self._buffers = InputBuffers(rows, rows, device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._final = torch.zeros(rows, model.get_hidden_size(), dtype=model.dtype, device=device)
        self.attn_groups, _, _ = init_attn_backend(
            runner.kv_cache_config,
            config,
            device,
            active_layer_names=self._continuation.attention_layers,
        )
        self._manager = CudaGraphManager(
            config, device, CUDAGraphMode.FULL_DECODE_ONLY, decode_query_len=1
        )

    def capture(self) -> None:
        """Capture the graphs; called when V2 has captured its own."""
        if self._manager is not None:
            self._manager.capture(self._prepare_capture, "Capturing CUDA graphs of the exit head")
            if not self._manager.graphs:
                logger.info(
                    "PPSD: the exit head goes on without CUDA graphs: none of vLLM's capture sizes "
                    "is within max_num_seqs"
                )

    def dispatch(self, rows: int) -> BatchExecutionDescriptor | None:
        """Return which graph steps over so many rows run in; None if in none."""
        manager = self._manager
        if manager is None or not manager.graphs:
            return None
        graph = manager.dispatch(rows, rows, uniform_token_count=1, num_active_loras=0)
        if graph.cg_mode == CUDAGraphMode.FULL:
            return graph
        logger.info_once(
            "PPSD: the exit head goes on without a CUDA graph where more than %d requests do at "
            "once",
            max(captured.num_tokens for captured in manager.graphs),
        )
        return None

    def steps(
        self,
        graph: BatchExecutionDescriptor,
        slots: Sequence[int],
        positions: Sequence[int],
        steps: int,
    ) -> Iterator[Continue]:
        """Lay out one step after the other, and hand out what replays it.

        Args:
            graph: for as many rows as there are, or more.
            slots: of the requests, V2's, one per row.
            positions: of the first step's tokens, one per row.
            steps: how many there are at most.
        """
        tables, buffers, count = self._runner.block_tables, self._buffers, len(slots)
        padded = graph.num_tokens
        device = self._runner.device
        requests = on_device(slots, device)
        at = on_device(positions, device) + torch.arange(steps, device=device)[:, None]
        blocks = tables.gather_block_tables(requests, num_reqs_padded=padded)
        # Rows that nobody asks for have no tokens, and attend to nothing.
        starts = torch.arange(padded + 1, dtype=torch.int32).clamp(max=count)
        device_starts = buffers.query_start_loc[: padded + 1]
        device_starts.copy_(torch.arange(padded + 1, device=device).clamp(max=count))
        buffers.seq_lens[count:] = 0
        begins = torch.tensor(positions, dtype=torch.int32)
        longest = max(positions) + 1
        for step in range(steps):
            buffers.positions[:count] = at[step]
            buffers.seq_lens[:count] = at[step] + 1
            upper_bounds = torch.zeros(padded, dtype=torch.int32)
            upper_bounds[:count] = begins + 1 + step
            # Slots behind the last row are -1: nothing is written there.
            places = tables.compute_slot_mappings(
                requests, buffers.query_start_loc[: count + 1], buffers.positions, padded
            )
            # The graph reads what backends keep from build to build, and the buffers.
            build_attn_metadata(
                attn_groups=self.attn_groups,
                num_reqs=padded,
                num_tokens=padded,
                query_start_loc_gpu=device_starts,
                query_start_loc_cpu=starts,
                max_query_len=1,
                seq_lens=buffers.seq_lens[:padded],
                max_seq_len=longest + step,
                block_tables=blocks,
                slot_mappings=places,
                kv_cache_config=self._runner.kv_cache_config,
                seq_lens_cpu_upper_bound=upper_bounds,
                positions=buffers.positions[:padded],
                is_prefilling=torch.zeros(padded, dtype=torch.bool),
            )
            yield partial(self._replay, graph)

    def _replay(
        self, graph: BatchExecutionDescriptor, final: torch.Tensor, tokens: torch.Tensor
    ) -> Guess:
        """Make the step that is laid out; see ``runner.port.Continue``."""
        assert self._manager is not None and self._outputs is not None
        count = len(tokens)
        self._final[:count] = final
        self._tokens[:count] = tokens
        self._manager.run_fullgraph(graph)
        made = Guess(*(kept[:count] for kept in self._outputs))
        return made._replace(drafts=made.drafts.clone(), probabilities=made.probabilities.clone())

    def _prepare_capture(
        self, graph: BatchExecutionDescriptor, warmup: bool
    ) -> Callable[[CUDAGraphMode], None]:
        """Lay out made-up rows that write no key/value entries; return what is captured."""
        runner, rows = self._runner, graph.num_tokens
        attention = prepare_inputs_to_capture(
            rows,
            rows,
            runner.model_state,
            self._buffers,
            runner.block_tables,
            self.attn_groups,
            runner.kv_cache_config,
            full_cudagraph=True,
            max_query_len=1,
        )

        def forward(mode: CUDAGraphMode) -> None:
            with set_forward_context(
                attention.attn_metadata,
                runner.vllm_config,
                num_tokens=rows,
                cudagraph_runtime_mode=mode,
                slot_mapping=attention.slot_mappings,
            ):
                guess: Guess = self._continuation(
                    self._buffers.positions[:rows], self._final[:rows], self._tokens[:rows]
                )
            if self._outputs is None:
                # Not in a graph's memory: the first run warms the largest number of rows up.
                self._outputs = Guess(*map(torch.empty_like, guess))
            for kept, made in zip(self._outputs, guess, strict=True):
                kept[:rows] = made

        return forward


class _Port(Protocol):
    graphs: ContinuationGraphs | None


class GraphsMixin:
    """Lets V2's model runner set up and drop the graphs with its own.

    Where it has no speculator, they take a speculator's place while it does.
    """

    _port: _Port | None = None
    speculator: Any

    @contextmanager
    def _as_speculator(self) -> Iterator[None]:
        before = self.speculator
        if before is None and self._port is not None:
            self.speculator = self._port.graphs
        try:
            yield
        finally:
            self.speculator = before

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        with self._as_speculator():
            super().initialize_kv_cache(*args, **kwargs)  # type: ignore[misc]

    def capture_model(self, *, profile_only: bool = False) -> int:
        try:
            with self._as_speculator():
                size: int = super().capture_model(profile_only=profile_only)  # type: ignore[misc]
        finally:
            if profile_only:
                self._release()
        return size

    def shutdown(self) -> None:
        self._release()
        super().shutdown()  # type: ignore[misc]

    def _release(self) -> None:
        if self._port is not None and self._port.graphs is not None:
            self._port.graphs.release()
