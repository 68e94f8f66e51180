"""Workers of V2 on a CPU whose head goes on in graphs: tapes, captured by vLLM's own capture."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from vllm.config.compilation import CUDAGraphMode

from support import tape
from vllm_ppsd.tools.worker_extension import ToolsWorkerExtension

WORKER = "support.graphed.GraphedWorker"
SIZES = [2, 4]
"""No graph is for three rows, and none for one."""


class GraphedWorker(ToolsWorkerExtension):
    """Mixed into a worker by vLLM's ``worker_extension_cls``."""

    model_runner: Any

    def watch(self) -> None:
        """Note every continuation step from now on."""
        self._made: list[tuple[list[int], list[float]]] = []
        if self.model_runner._port.graphs is None:
            return
        drafter = self.ppsd.drafter
        go_on = drafter._continue

        def noting(*args: Any, **options: Any) -> Any:
            steps = go_on(*args, **options)
            self._made += [(s.tokens.tolist(), s.probabilities.tolist()) for s in steps]
            return steps

        drafter._continue = noting

    def made(self) -> list[tuple[list[int], list[float]]]:
        """Return by step the drafts and the head's probabilities."""
        return self._made

    @torch.inference_mode()
    def capture_tapes(self) -> None:
        """Set up and capture as V2 does on a GPU."""
        runner = self.model_runner
        graphs = runner._port.graphs
        if graphs is None:
            return
        config = runner.vllm_config.compilation_config
        config.cudagraph_capture_sizes, config.max_cudagraph_capture_size = SIZES, max(SIZES)
        for name in graphs._continuation.attention_layers:
            # Its operator asks for a context when it runs, which no graph would have.
            config.static_forward_context[name].use_direct_call = True
        with pytest.MonkeyPatch.context() as patch:
            tape.install(patch)
            graphs.init_cudagraph_manager(CUDAGraphMode.FULL_AND_PIECEWISE)
            for group in (group for groups in graphs.attn_groups for group in groups):
                group.metadata_builders = [_InPlace(group.metadata_builders[0])]
            graphs.capture()

    def replays(self) -> dict[int, int]:
        """Return by number of rows how often a graph was replayed."""
        graphs = self.model_runner._port.graphs
        if graphs is None:
            return {}
        return {graph.num_tokens: made.replayed for graph, made in graphs._manager.graphs.items()}


class _InPlace:
    """Renews metadata in the tensors that were captured, as backends for GPUs do."""

    supports_update_block_table = False

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._captured: dict[int, Any] = {}

    def build_for_cudagraph_capture(self, common: Any) -> Any:
        made = self._captured[common.num_reqs] = self._builder.build(0, common)
        return made

    def build(self, common_prefix_len: int, common: Any) -> Any:
        made = self._builder.build(common_prefix_len, common)
        captured = self._captured[common.num_reqs]
        captured.scheduler_metadata.set_(made.scheduler_metadata)
        for field in dataclasses.fields(captured):
            old, new = getattr(captured, field.name), getattr(made, field.name)
            if isinstance(old, torch.Tensor):
                assert old.data_ptr() == new.data_ptr(), f"{field.name} is in another place"
        return made
