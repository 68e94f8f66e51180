"""The port to vLLM's V1 model runner: what every role asks of it, and what a pipeline does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from vllm.distributed.parallel_state import get_pp_group
from vllm.forward_context import override_forward_context

from vllm_ppsd.drafter.interface import Wanted
from vllm_ppsd.protocol import Lane
from vllm_ppsd.runner.base import BasePort
from vllm_ppsd.runner.drafting import Layout, draft_context
from vllm_ppsd.runner.port import Batch, BurstRows, SharedNoise
from vllm_ppsd.sampling.bursts import BurstSampler
from vllm_ppsd.sampling.drafts import draw
from vllm_ppsd.sampling.sampler import CoupledSampler
from vllm_ppsd.sampling.seeds import SeedBook


class V1Port(BasePort):
    """``RunnerPort`` over vLLM's V1 model runner; arguments as ``BasePort``."""

    def prompt_token_ids(self, request_id: str) -> Sequence[int]:
        tokens: list[int] = self._runner.requests[request_id].prompt_token_ids
        return tokens

    def sampling_params(self, request_id: str) -> Any:
        return self._runner.requests[request_id].sampling_params

    def within(self, batch: Batch) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = override_forward_context(batch.forward_context)
        return context

    def draft_context(
        self, rows: Sequence[int], positions: Sequence[int], depth: int, steps: int = 1
    ) -> AbstractContextManager[Iterator[torch.Tensor]]:
        runner, batch = self._runner, self._runner.input_batch
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.device)
        tables = [
            (table.get_device_tensor(batch.num_reqs)[chosen], table.block_size)
            for table in (
                batch.block_table[group]
                for group in range(len(runner.kv_cache_config.kv_cache_groups))
            )
        ]
        layout = Layout(self.vllm_config, self.device, runner.attn_groups, tables)
        return draft_context(layout, positions, depth, steps)

    def draw(
        self,
        shaped: torch.Tensor,
        wanted: Sequence[Wanted],
        token_ids: torch.Tensor,
        seeds: SeedBook,
    ) -> torch.Tensor:
        return draw(
            shaped, [seeds.state(one.request_id, one.position) for one in wanted], token_ids
        )

    def share_noise(self, seeds: SeedBook) -> SharedNoise:
        sampler = self._runner.sampler
        sampler.topk_topp_sampler = coupled = CoupledSampler(sampler.topk_topp_sampler)
        return _Noise(coupled, seeds)

    def sample_bursts(self, prepare: Callable[[int], None]) -> BurstRows:
        self._runner.rejection_sampler = bursts = BurstSampler(self._runner.sampler, prepare)
        return bursts

    def final_states(self) -> torch.Tensor:
        states: torch.Tensor = self._runner.execute_model_state.sample_hidden_states
        return states


class _Noise:
    """``SharedNoise`` of V1: a generator's state for every row."""

    def __init__(self, sampler: CoupledSampler, seeds: SeedBook) -> None:
        self._sampler, self._seeds = sampler, seeds

    def expect(self, lanes: Sequence[Lane], depth: int) -> None:
        self._sampler.expect(
            [
                self._seeds.state(lane.request_id, lane.end - max(0, lane.samples - 1 - depth))
                for lane in lanes
            ]
        )


class V1PipelinePort(V1Port):
    """What the mixin of a pipeline's runner does to the runner besides."""

    def request_ids(self) -> Sequence[str]:
        """Return the requests of the tick, by row."""
        ids: list[str] = self._runner.input_batch.req_ids
        return ids

    def rewind(self, request_id: str, position: int) -> None:
        """Forget cached output tokens from ``position`` on: the scheduler rewound.

        vLLM appends what the scheduler sends behind the tokens it has; after a flush it has
        drafts there.
        """
        state = self._runner.requests[request_id]
        keep = max(position - state.num_prompt_tokens, 0)
        if len(state.output_token_ids) <= keep:
            return
        del state.output_token_ids[keep:]
        batch = self._runner.input_batch
        row = batch.req_id_to_index.get(request_id)
        if row is not None:
            batch.num_tokens_no_spec[row] = state.num_prompt_tokens + keep

    def append(self, request_id: str, tokens: Sequence[int]) -> None:
        """Note tokens behind those that a request of the tick has, as its next inputs."""
        self._runner.requests[request_id].output_token_ids.extend(tokens)
        batch = self._runner.input_batch
        row = batch.req_id_to_index[request_id]
        start = batch.num_tokens_no_spec[row]
        end = start + len(tokens)
        batch.token_ids_cpu[row, start:end] = tokens
        batch.is_token_ids[row, start:end] = True
        batch.num_tokens_no_spec[row] = end

    def commit_blocks(self) -> None:
        """Let the device know the blocks of the tick before its inputs are laid out."""
        batch = self._runner.input_batch
        batch.block_table.commit_block_table(batch.num_reqs)

    def sample_rows(self, lanes: Sequence[Lane]) -> tuple[Any, Any, int]:
        """Lay out a tick whose lanes sample several rows; return what ``_prepare_inputs`` does."""
        runner = self._runner
        # vLLM samples of a prompt's chunk as well.
        samples = np.array([max(1, lane.samples) for lane in lanes], dtype=np.int32)
        ends = runner.query_start_loc.np[1 : len(lanes) + 1]
        metadata = runner._calc_spec_decode_metadata(samples - 1, ends)
        if runner.lora_config:
            lengths = np.array([lane.length for lane in lanes], dtype=np.int32)
            runner.set_active_loras(runner.input_batch, lengths, samples)
        return metadata.logits_indices, metadata, int(samples.max())

    def discard(self, rows: Sequence[int]) -> None:
        """Let samples of some rows leave no trace in the token buffers."""
        if rows:
            mask = self._runner.discard_request_mask
            mask.np[rows] = True
            mask.copy_to_gpu(self._runner.input_batch.num_reqs)

    @contextmanager
    def discarded_generators_parked(self) -> Iterator[None]:
        """Keep rows whose sample is discarded away from their seeded generators.

        vLLM rewinds a generator after the draw, which CPU generators cannot do.
        """
        batch = self._runner.input_batch
        discarded = self._runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0]
        parked = {
            int(row): batch.generators.pop(int(row))
            for row in discarded
            if int(row) in batch.generators
        }
        try:
            yield
        finally:
            batch.generators.update(parked)

    def allocate_intermediate_tensors(self) -> None:
        """Allocate the buffers that vLLM allocates in its warm-up, which eager CPU skips."""
        runner = self._runner
        if runner.intermediate_tensors is None and not get_pp_group().is_first_rank:
            runner.intermediate_tensors = self.empty_states(runner.max_num_tokens)
