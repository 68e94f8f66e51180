"""Where vLLM's V1 model runner calls the proposer on one device, and the port it is given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

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

    def verified(
        self, scheduler_output: Any, sampled_token_ids: Sequence[Sequence[int]]
    ) -> list[Verified]:
        """Return the requests of which this step's pass has sampled, by row."""
        batch, drafts = self._runner.input_batch, scheduler_output.scheduled_spec_decode_tokens
        drafted = [len(drafts.get(request_id, ())) for request_id in batch.req_ids]
        # A row samples once more than it has drafts, also where the sample is discarded.
        begins = accumulate((count + 1 for count in drafted), initial=0)
        return [
            Verified(
                row,
                batch.req_ids[row],
                tokens[-1],
                len(tokens) - 1,
                drafted[row],
                int(batch.num_tokens_no_spec[row]) - 1,
                bool(batch.num_tokens_no_spec[row] == batch.num_prompt_tokens[row] + 1),
                begin + len(tokens) - 1,
            )
            for row, (tokens, begin) in enumerate(zip(sampled_token_ids, begins, strict=False))
            if tokens
        ]

    def hand_over_probabilities(self, probabilities: torch.Tensor | None) -> None:
        """Leave draft probabilities where vLLM's own proposers do, for its rejection sampler."""
        self._runner._draft_probs = probabilities
        self._runner._draft_prob_req_ids = self._runner.input_batch.req_ids.copy()


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
        self,
        scheduler_output: Any,
        sampled_token_ids: list[list[int]],
        sampling_metadata: Any,
        hidden_states: torch.Tensor,
        sample_hidden_states: torch.Tensor,
        *_: Any,
    ) -> list[list[int]]:
        self.drafter.forget(scheduler_output.finished_req_ids)
        verified = self._port.verified(scheduler_output, sampled_token_ids)
        drafts = self.drafter.propose(verified, sample_hidden_states, len(sampled_token_ids))
        self._port.hand_over_probabilities(self.drafter.probabilities())
        return drafts

    def _dummy_run(self, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        output = super()._dummy_run(num_tokens, *args, **kwargs)  # type: ignore[misc]
        if hasattr(self, "drafter"):
            self.drafter.warm_up(num_tokens)
        return output
