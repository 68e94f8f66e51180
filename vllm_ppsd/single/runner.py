"""The V1 model runner's side of PPSD on one device, for CPU and CUDA runners alike."""

from __future__ import annotations

from typing import Any

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.single.proposer import EarlyExitProposer


class SingleRunnerMixin:
    """Lets the proposer see the target's exit states, and asks it for drafts."""

    drafter: EarlyExitProposer
    _exit_layer: int

    def adopt(self, config: PPSDConfig) -> None:
        """Hand the config on; there is no drafter if nothing is to be drafted."""
        if not config.max_drafts:
            return
        self.drafter.adopt(self, config)
        self._exit_layer = config.exit_layer
        # Only a head with layers keeps key/value entries of what was verified.
        assert config.model is not None
        head = ExitHeadFolder.open(config.model).config
        self.use_aux_hidden_state_outputs = head.num_layers > 0

    def _get_eagle3_aux_layers_from_config(self) -> tuple[int, ...]:
        return (self._exit_layer,)

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        if self.use_aux_hidden_state_outputs:
            _, (states,) = output
            self.drafter.observe(kwargs["positions"], states)
        return output

    def propose_draft_token_ids(
        self, scheduler_output: Any, sampled_token_ids: list[list[int]], *_: Any
    ) -> list[list[int]]:
        self.drafter.forget(scheduler_output.finished_req_ids)
        drafts = self.drafter.propose(
            sampled_token_ids, scheduler_output.scheduled_spec_decode_tokens
        )
        # Where vLLM's own proposers leave them for the rejection sampler.
        self._draft_probs = self.drafter.distributions()
        self._draft_prob_req_ids = self.input_batch.req_ids.copy()  # type: ignore[attr-defined]
        return drafts

    def _dummy_run(self, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        output = super()._dummy_run(num_tokens, *args, **kwargs)  # type: ignore[misc]
        if hasattr(self, "drafter"):
            self.drafter.warm_up(num_tokens)
        return output
