"""Stage 0: embeds its own drafts and proposes the next ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.exit_head.module import ExitHead, build_exit_head
from vllm_ppsd.protocol import DraftBook
from vllm_ppsd.worker.stage import DRAFTS, NO_DRAFT, Stage
from vllm_ppsd.worker.synthetic import RecordedDrafts


class ProposerStage(Stage):
    """Runs the exit head behind the exit layer of every tick."""

    def __init__(self, runner: Any, config: PPSDConfig) -> None:
        super().__init__(runner)
        self._config = config
        self._book = DraftBook()
        self._head: ExitHead | None = None
        self._recorded: RecordedDrafts | None = None
        self._scheduled: dict[str, int] = {}
        self._logits_indices: torch.Tensor | None = None

    def load(self) -> None:
        if self._config.head_is_needed:
            self._head = build_exit_head(
                self._config.model, self.runner.vllm_config, self.runner.get_model()
            )
        if self._config.synthetic_drafter is not None and self._config.max_drafts:
            self._recorded = RecordedDrafts.load(
                self._config.synthetic_drafter, self.runner.model_config.get_vocab_size()
            )

    def execute(
        self, execute: Callable[..., Any], scheduler_output: Any, intermediate: Any
    ) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            self._book.forget(request_id)
        self._scheduled = scheduler_output.num_scheduled_tokens
        return execute(scheduler_output, intermediate)

    def input_token(self, request_id: str, position: int) -> int:
        return self._book.take(request_id, position)

    def after_prepare(self, logits_indices: torch.Tensor) -> None:
        self._logits_indices = logits_indices

    def after_forward(self, output: Any, positions: torch.Tensor) -> Any:
        if self._head is None and self._recorded is None:
            return output
        drafts = self._propose(output, positions)
        batch = self.runner.input_batch
        skipped = self.runner.discard_request_mask.np
        for row, request_id in enumerate(batch.req_ids):
            if skipped[row]:
                drafts[row] = NO_DRAFT
                continue
            end = int(batch.num_computed_tokens_cpu[row]) + self._scheduled[request_id]
            if self._recorded is not None:
                drafts[row] = self._recorded.draft(self.runner.requests[request_id], end)
            self._book.propose(request_id, end, drafts[row])
        output.tensors[DRAFTS] = torch.tensor(
            drafts, dtype=torch.int64, device=self.runner.device
        )
        return output

    def _propose(self, output: Any, positions: torch.Tensor) -> list[int]:
        """Return the head's draft for every row."""
        if self._head is None:
            return [NO_DRAFT] * self.runner.input_batch.num_reqs
        drafts: list[int] = self._head(
            positions, output["hidden_states"], output["residual"], self._logits_indices
        ).tolist()
        return drafts
