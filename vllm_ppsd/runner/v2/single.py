"""Where vLLM's V2 model runner calls the proposer on one device, and the port it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.forward_context import set_forward_context
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.drafter.interface import Wanted
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.runner.port import Verified
from vllm_ppsd.runner.v2.graphs import GraphsMixin
from vllm_ppsd.runner.v2.port import V2Port
from vllm_ppsd.single.proposer import EarlyExitProposer
from vllm_ppsd.to_device import on_device


class V2SinglePort(V2Port):
    """``SingleRunnerPort`` over vLLM's V2 model runner."""

    @property
    def max_model_len(self) -> int:
        length: int = self._runner.max_model_len
        return length

    def seed(self, request_id: str) -> int:
        """Return the seed that a request is sampled with: its own, or one that V2 gave it."""
        return int(self._runner.sampler.sampling_states.seeds.np[self._slot(request_id)])

    def draw_coupled(
        self, shaped: torch.Tensor, _: Any, wanted: Sequence[Wanted], token_ids: torch.Tensor
    ) -> torch.Tensor:
        """Draw with the noise that the drafts are verified with, as ``drafter.head.Draw``."""
        return self.draw(shaped, wanted, token_ids, self)

    def verified(self, batch: Any, num_sampled: torch.Tensor) -> list[Verified]:
        """Return the requests of which this step's pass has sampled, by row.

        Waits for the device: how far to draft depends on what was sampled.

        Args:
            batch: vLLM's ``InputBatch``.
            num_sampled: int32 [rows], tokens that count.
        """
        states = self._runner.req_states
        slots = batch.idx_mapping
        newest, lengths = states.last_sampled_tokens.view(-1)[slots], states.total_len.gpu[slots]
        counted = torch.stack([num_sampled.to(torch.int64), newest, lengths.to(torch.int64)])
        begins = batch.cu_num_logits_np
        return [
            Verified(
                row,
                batch.req_ids[row],
                token,
                accepted=count - 1,
                drafted=int(begins[row + 1] - begins[row]) - 1,
                position=length - 1,
                is_first=length == states.prompt_len.np[batch.idx_mapping_np[row]] + 1,
                sampled_from=int(begins[row]) + count - 1,
            )
            for row, (count, token, length) in enumerate(counted.T.tolist())
            if count
        ]


class EarlyExitSpeculator(BaseSpeculator):
    """The proposer as V2 calls one.

    Args:
        proposer: makes the drafts.
        port: the proposer's.
        width: drafts that V2 has room for.
    """

    supports_mm_inputs = False
    draft_logits = None

    def __init__(self, proposer: EarlyExitProposer, port: V2SinglePort, width: int) -> None:
        self.proposer, self._port, self._width = proposer, port, width
        self._drafted = DraftTokenIds([], [])

    @property
    def attn_groups(self) -> list[list[Any]]:
        """Of layers whose attention metadata V2 does not build."""
        return self._port.graphs.attn_groups if self._port.graphs is not None else []

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """Set up CUDA graphs of a head that goes on; nothing else of drafts runs in one."""
        if self._port.graphs is not None:
            self._port.graphs.init_cudagraph_manager(cudagraph_mode)

    def capture(self) -> None:
        """Capture them."""
        if self._port.graphs is not None:
            self._port.graphs.capture()

    def propose(
        self,
        input_batch: Any,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, torch.Tensor],
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        num_sampled: torch.Tensor,
        *_: Any,
        dummy_run: bool = False,
        num_speculative_tokens: int | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Return drafts, int64 [rows, width], as V2 asks.

        Where there is none it is 0: the scheduler may have it embedded, but not counted.
        """
        if dummy_run:
            self.proposer.warm_up(input_batch.num_tokens)
            return self._padded([[] for _ in input_batch.req_ids])
        if aux_hidden_states:
            self._write_entries(input_batch, attn_metadata, slot_mappings, aux_hidden_states[0])
        self._port.lay_out(input_batch.req_ids)
        verified = self._port.verified(input_batch, num_sampled)
        final = last_hidden_states[input_batch.logits_indices]
        proposed = [
            tokens[:num_speculative_tokens]
            for tokens in self.proposer.propose(verified, final, len(input_batch.req_ids))
        ]
        self._drafted = DraftTokenIds(input_batch.req_ids, proposed)
        return self._padded(proposed)

    def take(self) -> DraftTokenIds:
        """Return the newest drafts, which decide how many rows the next step verifies."""
        return self._drafted

    def _padded(self, drafts: Sequence[Sequence[int]]) -> torch.Tensor:
        width = self._width
        flat = [token for mine in drafts for token in (*mine, *[0] * (width - len(mine)))]
        return on_device(flat, self._port.device).view(len(drafts), width)

    def _write_entries(
        self,
        batch: Any,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, torch.Tensor],
        states: torch.Tensor,
    ) -> None:
        # A context of the head's own: the pass's may be that of a CUDA graph.
        with set_forward_context(
            attn_metadata,
            self._port.vllm_config,
            num_tokens=len(states),
            slot_mapping=slot_mappings,
        ):
            self.proposer.write_entries(batch.positions[: len(states)], states)


class V2SingleRunnerMixin(GraphsMixin):
    """Puts the proposer in the place of V2's speculator.

    The runner is made without speculation: V2 knows no speculators of others. What is drafted is
    sampled anew with the noise of its position, so that text is what V2 writes without drafts.
    """

    speculator: EarlyExitSpeculator | None
    _port: V2SinglePort
    _config: PPSDConfig

    def adopt(self, config: PPSDConfig) -> EarlyExitProposer | None:
        """Make the proposer; there is none if nothing is to be drafted."""
        self._config, self._port = config, V2SinglePort(self)
        # vLLM's scheduler pads requests to so many rows, whatever is drafted.
        self._port.make_room(1 + config.num_speculative_tokens)
        if not config.max_drafts:
            return None
        proposer = EarlyExitProposer(self.vllm_config)  # type: ignore[attr-defined]
        coupled = self._port.draw_coupled if config.draft_sampling == "coupled" else None
        proposer.adopt(self._port, config, coupled)
        self.speculator = EarlyExitSpeculator(proposer, self._port, config.max_drafts)
        return proposer

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self._port.sample_bursts(lambda _: None)
        if self.speculator is None:
            return
        model = self._port.model()
        self.speculator.proposer.load_model(model)
        # Only a head with layers keeps key/value entries of what was verified.
        assert self._config.model is not None
        if ExitHeadFolder.open(self._config.model).config.num_layers:
            model.set_aux_hidden_state_layers((self._config.exit_layer,))
            self.use_aux_hidden_state_outputs = True

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if self.speculator is not None:
            finished = scheduler_output.finished_req_ids
            self._port.remember(scheduler_output, finished)
            self.speculator.proposer.forget(finished)
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        return None if self.speculator is None else self.speculator.take()
