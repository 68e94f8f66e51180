"""The port to vLLM's V2 model runner: what every role asks of it, and what a pipeline does.

V2 keeps requests on the device, by the number of their slot. PPSD's scheduler decides where every
lane stands, so a tick begins with its positions written there: what a flush takes back needs no
step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from vllm.forward_context import set_forward_context
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

from vllm_ppsd.drafter.drafted import DeviceTokens
from vllm_ppsd.drafter.interface import Wanted
from vllm_ppsd.exit_head.continuation import Continuation
from vllm_ppsd.protocol import Lane
from vllm_ppsd.runner.base import BasePort
from vllm_ppsd.runner.drafting import Layout, draft_context
from vllm_ppsd.runner.port import Batch, BurstRows, ContinuationSteps, Continue, SharedNoise
from vllm_ppsd.runner.v2.graphs import ContinuationGraphs
from vllm_ppsd.runner.v2.sampler import LaneSampler, write
from vllm_ppsd.sampling.seeds import SeedBook, Seeds
from vllm_ppsd.to_device import on_device


class V2Port(BasePort):
    """``RunnerPort`` over vLLM's V2 model runner, and what mixins do to the runner besides.

    Args:
        runner: vLLM's model runner.

    Attributes:
        graphs: of a head's continuation steps; None where no head goes on.
    """

    graphs: ContinuationGraphs | None = None

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self._requests: dict[str, Any] = {}
        self._rows: Sequence[str] = ()

    def prompt_token_ids(self, request_id: str) -> Sequence[int]:
        tokens: list[int] = self._requests[request_id].prompt_token_ids
        return tokens

    def sampling_params(self, request_id: str) -> Any:
        return self._requests[request_id].sampling_params

    def draft_context(
        self, rows: Sequence[int], positions: Sequence[int], depth: int, steps: int = 1
    ) -> AbstractContextManager[Iterator[torch.Tensor]]:
        runner = self._runner
        chosen = on_device(self._slots(rows), self.device)
        sizes, tables = runner.block_tables.block_sizes, runner.block_tables.block_tables
        blocks = [(table.gpu[chosen], size) for table, size in zip(tables, sizes, strict=True)]
        layout = Layout(self.vllm_config, self.device, runner.attn_groups, blocks)
        return draft_context(layout, positions, depth, steps)

    def continuing(self, continuation: Continuation) -> ContinuationSteps:
        self.graphs = ContinuationGraphs(self._runner, continuation)
        return partial(self._in_graphs, self.graphs, super().continuing(continuation))

    def _in_graphs(
        self,
        graphs: ContinuationGraphs,
        eager: ContinuationSteps,
        rows: Sequence[int],
        positions: Sequence[int],
        depth: int,
        steps: int,
    ) -> AbstractContextManager[Iterator[Continue]]:
        """Make steps in a graph where there is one for so many rows, and as they come elsewhere."""
        graph = graphs.dispatch(len(rows))
        if graph is None:
            return eager(rows, positions, depth, steps)
        return nullcontext(graphs.steps(graph, self._slots(rows), positions, steps))

    def draw(
        self,
        shaped: torch.Tensor,
        wanted: Sequence[Wanted],
        token_ids: torch.Tensor,
        seeds: Seeds,
    ) -> torch.Tensor:
        # vLLM's noise for a token is that of its id, so the draft vocabulary takes its places in
        # the target's.
        logits = shaped.new_full((len(shaped), self._runner.vocab_size), -torch.inf)
        logits[:, token_ids] = shaped
        return gumbel_sample(
            logits,
            torch.arange(len(shaped), device=self.device),
            shaped.new_ones(len(shaped)),
            on_device([seeds.seed(one.request_id) for one in wanted], self.device),
            # V2 counts the position of the token that the drawn one is sampled behind.
            on_device([one.position - 1 for one in wanted], self.device),
            apply_temperature=False,
            is_drafting=False,
            use_fp64=self.vllm_config.model_config.use_fp64_gumbel,
        )

    def sample_bursts(self, prepare: Callable[[int], None]) -> BurstRows:
        # All rows are sampled at once, by their positions.
        self._runner.sampler = sampler = LaneSampler(self._runner.sampler, prepare)
        return sampler

    def make_room(self, longest: int) -> None:
        """Let lanes carry so many tokens."""
        runner = self._runner
        runner.num_speculative_steps = drafts = longest - 1
        states = runner.req_states
        states.num_speculative_steps = drafts
        states.draft_tokens = states.draft_tokens.new_zeros(states.max_num_reqs, drafts)

    def remember(self, scheduler_output: Any, left: Sequence[str]) -> None:
        """Keep what the stages ask of new requests; V2 keeps it on the last stage alone."""
        for request_id in left:
            self._requests.pop(request_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            self._requests[new.req_id] = new

    def lay_out(self, request_ids: Sequence[str]) -> None:
        """Note the rows of a tick, whose blocks the device knows."""
        self._rows = request_ids

    def _slots(self, rows: Sequence[int]) -> list[int]:
        return [self._slot(self._rows[row]) for row in rows]

    def _slot(self, request_id: str) -> int:
        slot: int = self._runner.req_states.req_id_to_index[request_id]
        return slot


class V2PipelinePort(V2Port):
    """What the mixin of a pipeline's runner does to the runner besides."""

    def within(self, batch: Batch) -> AbstractContextManager[Any]:
        """Return a context of the head's own: the tick's may be that of a CUDA graph."""
        state = self._runner.execute_model_state
        context: AbstractContextManager[Any] = set_forward_context(
            state.attn_metadata,
            self.vllm_config,
            num_tokens=len(batch.positions),
            slot_mapping=state.slot_mappings_by_layer,
        )
        return context

    def share_noise(self, seeds: SeedBook) -> SharedNoise:
        return _Noise(self._runner, seeds)

    def final_states(self) -> torch.Tensor:
        state = self._runner.execute_model_state
        states: torch.Tensor = state.hidden_states[state.input_batch.logits_indices]
        return states

    def place(self, request_ids: Sequence[str], positions: Sequence[int]) -> None:
        """Let requests go on from these positions."""
        slots = [self._slot(request_id) for request_id in request_ids]
        # Not by a staged write: vLLM has buffers for one of a kind in a step.
        write(self._runner.req_states.num_computed_tokens.gpu, slots, positions)

    def decodes(self, request_id: str, position: int) -> bool:
        """Whether a request's tokens from a position on are none that it came with."""
        return bool(position >= self._runner.req_states.prefill_len.np[self._slot(request_id)])

    def write_inputs(self, batch: Any, tokens: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Write lanes' tokens to where the tick's layers read them; of some requests.

        Args:
            batch: vLLM's ``InputBatch``.
            tokens: by request, all of its lane, in parts.
        """
        places: list[int] = []
        values: list[int] = []
        on_device_now: list[torch.Tensor] = []
        their_places: list[int] = []
        for row, request_id in enumerate(batch.req_ids):
            start = int(batch.query_start_loc_np[row])
            for part in tokens.get(request_id, ()):
                here = range(start, start + len(part))
                start = here.stop
                if isinstance(part, DeviceTokens):
                    their_places += here
                    on_device_now.append(part.tensor)
                else:
                    places += here
                    values += part
        write(batch.input_ids, places, values)
        if their_places:
            write(batch.input_ids, their_places, torch.cat(on_device_now))

    def without(self, idx_mapping: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return the slots of a batch with some rows marked: what is sampled there leaves no
        trace."""
        if not rows:
            return idx_mapping
        marked = idx_mapping.clone()
        marked.index_fill_(0, on_device(rows, self.device), -1)
        return marked

    def update_states(self, scheduler_output: Any) -> None:
        """Take in a step whose layers need not run."""
        runner = self._runner
        runner.finish_requests(scheduler_output)
        runner.free_states(scheduler_output)
        runner.add_requests(scheduler_output)
        runner.update_requests(scheduler_output)
        runner.block_tables.apply_staged_writes()


class _Noise:
    """``SharedNoise`` of V2: its sampler's own, by a seed that stage 0 knows, too."""

    def __init__(self, runner: Any, seeds: SeedBook) -> None:
        self._runner, self._seeds = runner, seeds

    def expect(self, lanes: Sequence[Lane], depth: int) -> None:
        sampling = self._runner.sampler.sampling_states
        slots = [self._runner.req_states.req_id_to_index[lane.request_id] for lane in lanes]
        seeds = np.array([self._seeds.seed(lane.request_id) for lane in lanes])
        if (sampling.seeds.np[slots] != seeds).any():
            sampling.seeds.np[slots] = seeds
            sampling.seeds.copy_to_uva()
        # Samplers that draw otherwise are for requests without a seed.
        sampling.seeds_set[slots] = True
