"""Where vLLM's V1 model runner calls the proposer on one device, and the port it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.runner.port import Verified
from vllm_ppsd.runner.v1 import V1Port

if TYPE_CHECKING:
    from vllm_ppsd.single.proposer import EarlyExitProposer


class V1SinglePort(V1Port):
    """``SingleRunnerPort`` over vLLM's V1 model runner."""

    @property
    def max_model_len(self) -> int:
        length: int = self._runner.max_model_len
        return length

    @contextmanager
    def draft_context(
        self, rows: Sequence[int], positions: Sequence[int], depth: int
    ) -> Iterator[torch.Tensor]:
        at = torch.tensor(positions, dtype=torch.int64, device=self.device)
        attention: dict[str, Any] = {}
        slots: dict[str, torch.Tensor] = {}
        for group in range(len(self._runner.kv_cache_config.kv_cache_groups)):
            metadata = self._metadata(group, rows, positions, at)
            for attention_group in self._runner.attn_groups[group]:
                built = attention_group.build_metadata_for_drafting(metadata, draft_index=depth)
                attention |= dict.fromkeys(attention_group.layer_names, built)
                slots |= dict.fromkeys(attention_group.layer_names, metadata.slot_mapping)
        with set_forward_context(
            attention, self.vllm_config, num_tokens=len(rows), slot_mapping=slots
        ):
            yield at

    def verified(
        self, scheduler_output: Any, sampled_token_ids: Sequence[Sequence[int]]
    ) -> list[Verified]:
        """Return the requests of which this step's pass has sampled, by row."""
        batch, drafts = self._runner.input_batch, scheduler_output.scheduled_spec_decode_tokens
        return [
            Verified(
                row,
                batch.req_ids[row],
                tokens,
                len(drafts.get(batch.req_ids[row], ())),
                int(batch.num_tokens_no_spec[row]) - 1,
                bool(batch.num_tokens_no_spec[row] == batch.num_prompt_tokens[row] + 1),
            )
            for row, tokens in enumerate(sampled_token_ids)
            if tokens
        ]

    def hand_over_probabilities(self, probabilities: torch.Tensor | None) -> None:
        """Leave draft probabilities where vLLM's own proposers do, for its rejection sampler."""
        self._runner._draft_probs = probabilities
        self._runner._draft_prob_req_ids = self._runner.input_batch.req_ids.copy()

    def _metadata(
        self, group: int, rows: Sequence[int], positions: Sequence[int], at: torch.Tensor
    ) -> CommonAttentionMetadata:
        count = len(rows)
        table = self._runner.input_batch.block_table[group]
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.device)
        blocks = table.get_device_tensor(self._runner.input_batch.num_reqs)[chosen]
        block = blocks.gather(1, (at // table.block_size)[:, None])[:, 0].to(torch.int64)
        starts = torch.arange(count + 1, dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=starts.to(self.device),
            query_start_loc_cpu=starts,
            seq_lens=(at + 1).to(torch.int32),
            num_reqs=count,
            num_actual_tokens=count,
            max_query_len=1,
            max_seq_len=max(positions) + 1,
            block_table_tensor=blocks,
            slot_mapping=block * table.block_size + at % table.block_size,
            positions=at,
            seq_lens_cpu_upper_bound=torch.tensor(positions, dtype=torch.int32) + 1,
        )


class SingleRunnerMixin:
    """Lets the proposer see the target's exit states, and asks it for drafts."""

    drafter: EarlyExitProposer
    _port: V1SinglePort
    _exit_layer: int

    def adopt(self, config: PPSDConfig) -> EarlyExitProposer | None:
        """Hand the config on; there is no proposer if nothing is to be drafted."""
        if not config.max_drafts:
            return None
        self._port = V1SinglePort(self)
        self.drafter.adopt(self._port, config)
        self._exit_layer = config.exit_layer
        # Only a head with layers keeps key/value entries of what was verified.
        assert config.model is not None
        head = ExitHeadFolder.open(config.model).config
        self.use_aux_hidden_state_outputs = head.num_layers > 0
        return self.drafter

    def _get_eagle3_aux_layers_from_config(self) -> tuple[int, ...]:
        return (self._exit_layer,)

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        if self.use_aux_hidden_state_outputs:
            _, (states,) = output
            self.drafter.write_entries(kwargs["positions"], states)
        return output

    def propose_draft_token_ids(
        self, scheduler_output: Any, sampled_token_ids: list[list[int]], *_: Any
    ) -> list[list[int]]:
        self.drafter.forget(scheduler_output.finished_req_ids)
        verified = self._port.verified(scheduler_output, sampled_token_ids)
        drafts = self.drafter.propose(verified, rows=len(sampled_token_ids))
        self._port.hand_over_probabilities(self.drafter.probabilities())
        return drafts

    def _dummy_run(self, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        output = super()._dummy_run(num_tokens, *args, **kwargs)  # type: ignore[misc]
        if hasattr(self, "drafter"):
            self.drafter.warm_up(num_tokens)
        return output
