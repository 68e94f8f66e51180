"""What a pipeline stage does besides plain decoding: the interface.

A stage object belongs to one model runner. Runner and worker call it at the points
below; everything else is vLLM's plain decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_ppsd.worker.feedback import FeedbackSender

NO_DRAFT = -1
"""In place of a draft, for a row that does not sample."""

_UNKNOWN = 0
"""Stands in on a middle stage, which embeds nothing, for a token known to stage 0."""


class Stage:
    """What every stage does. First, middle and last stage subclass it.

    Attributes:
        runner: the model runner that this stage belongs to.
        feedback: sends states back to stage 0, where its head reads them.
        sends: handles of the previous tick's sends to the next stage.
    """

    def __init__(self, runner: Any, feedback: FeedbackSender | None = None) -> None:
        self.runner = runner
        self.sends: list[Any] = []
        self._feedback_sender = feedback
        self._sampled: torch.Tensor | None = None

    def load(self) -> None:
        """Load what the stage needs besides the target's own layers."""

    def warm_up(self, num_tokens: int) -> None:
        """Compile, and use the memory of, what the stage runs behind its layers."""

    def execute(self, execute: Callable[..., Any], scheduler_output: Any, intermediate: Any) -> Any:
        """Run one tick; ``execute`` is vLLM's ``execute_model``."""
        return execute(scheduler_output, intermediate)

    def before_update(self, scheduler_output: Any) -> None:
        """Fill in the input tokens that the scheduler does not know."""
        cached = scheduler_output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            self._rewind(request_id, cached.num_computed_tokens[i])
            if not cached.new_token_ids[i]:
                cached.new_token_ids[i] = [self.input_token(request_id)]

    def input_token(self, request_id: str) -> int:
        """Return the input token of a drafted lane."""
        return _UNKNOWN

    def after_prepare(self, logits_indices: torch.Tensor) -> None:
        """Called when the tick's inputs stand; ``logits_indices`` has one row a lane."""
        # The compiled exit head has no guards: it reads what it is given as int64.
        self._sampled = logits_indices.to(torch.int64)

    def forward(self, forward: Callable[[], Any], positions: torch.Tensor) -> Any:
        """Run the stage's layers; what it returns goes down the pipe."""
        self.finish_sends()
        return forward()

    def send_back(self, output: Any) -> None:
        """Send what the head reads of a tick back to stage 0.

        Args:
            output: of the stage's layers; None if the tick was skipped.
        """
        if self._feedback_sender is None:
            return
        states = output
        if output is not None:
            assert self._sampled is not None
            if isinstance(output, torch.Tensor):
                states = output[self._sampled]
            else:
                states = output["hidden_states"][self._sampled] + output["residual"][self._sampled]
        self._feedback_sender.send(states)

    def after_send(self) -> None:
        """Called when what the layers made is on its way to the next stage."""

    def finish_sends(self) -> None:
        """Wait until the next stage has what the previous tick sent.

        vLLM waits before it prepares the next tick's inputs; it is enough to wait
        before the layers run, which may write to the buffers that were sent.
        """
        for handle in self.sends:
            handle.wait()
        self.sends = []

    def sample(self, sample: Callable[..., Any], grammar_output: Any) -> Any:
        """Sample; ``sample`` is vLLM's ``sample_tokens``."""
        return sample(grammar_output)

    def set_synthetic_acceptance(self, acceptance: float) -> None:
        """Change how often the synthetic drafter is right, where there is one."""

    def _rewind(self, request_id: str, position: int) -> None:
        """Forget cached output tokens from ``position`` on: the scheduler rewound.

        vLLM appends what the scheduler sends behind the tokens it has; after a
        flush it has drafts there.
        """
        state = self.runner.requests[request_id]
        keep = max(position - state.num_prompt_tokens, 0)
        if len(state.output_token_ids) <= keep:
            return
        del state.output_token_ids[keep:]
        batch = self.runner.input_batch
        row = batch.req_id_to_index.get(request_id)
        if row is not None:
            batch.num_tokens_no_spec[row] = state.num_prompt_tokens + keep
