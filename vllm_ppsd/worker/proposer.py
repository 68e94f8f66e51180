"""Stage 0: embeds its own drafts and proposes the next ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.forward_context import (
    get_forward_context,
    override_forward_context,
    set_forward_context,
)

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.exit_head.module import ExitHead, build_exit_head
from vllm_ppsd.protocol import DraftBook, Lane, TickGate, Verdict
from vllm_ppsd.worker.lanes import lanes_of
from vllm_ppsd.worker.messages import Lines, RowReceiver, RowSender
from vllm_ppsd.worker.stage import NO_DRAFT, Stage
from vllm_ppsd.worker.synthetic import RecordedDrafts
from vllm_ppsd.worker.wire import Kind


class ProposerStage(Stage):
    """Runs the exit head behind the exit layer of every tick that may count."""

    def __init__(self, runner: Any, config: PPSDConfig, lines: Lines) -> None:
        super().__init__(runner)
        self._config = config
        self._book = DraftBook()
        self._gate = TickGate(config.max_drafts)
        self._drafts = RowSender(lines.senders[Kind.DRAFTS])
        self._verdicts = RowReceiver(lines.receivers[Kind.VERDICTS])
        self._draft: Callable[[], list[int]] | None = None
        self._head: ExitHead | None = None
        self._recorded: RecordedDrafts | None = None
        self._lanes: dict[str, Lane] = {}
        self._quiet: frozenset[str] = frozenset()
        self._logits_indices: torch.Tensor | None = None

    def load(self) -> None:
        if self._config.head_is_needed:
            assert self._config.model is not None
            self._head = build_exit_head(
                self._config.model, self.runner.vllm_config, self.runner.get_model()
            )
        if self._config.synthetic_drafter is not None and self._config.max_drafts:
            self._recorded = RecordedDrafts.load(
                self._config.synthetic_drafter, self.runner.model_config.get_vocab_size()
            )

    def warm_up(self, num_tokens: int) -> None:
        if self._head is None:
            return
        config, device = self.runner.vllm_config, self.runner.device
        states = self.runner.model.make_empty_intermediate_tensors(
            batch_size=num_tokens, dtype=config.model_config.dtype, device=device
        )
        positions = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        with torch.inference_mode(), set_forward_context(None, config, num_tokens=num_tokens):
            self._head.warm_up(positions, states["hidden_states"], states["residual"])

    def execute(self, execute: Callable[..., Any], scheduler_output: Any, intermediate: Any) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            self._book.forget(request_id)
        self._lanes = lanes_of(scheduler_output)
        self._quiet = scheduler_output.quiet
        return execute(scheduler_output, intermediate)

    def input_token(self, request_id: str) -> int:
        token = self._book.enter(self._lanes[request_id])
        assert token is not None
        return token

    def before_update(self, scheduler_output: Any) -> None:
        for lane in self._lanes.values():
            if not lane.drafted:
                self._book.enter(lane)
        super().before_update(scheduler_output)

    def after_prepare(self, logits_indices: torch.Tensor) -> None:
        # The compiled head has no guards: it reads what it is given as int64.
        self._logits_indices = logits_indices.to(torch.int64)

    def forward(self, forward: Callable[[], Any], positions: torch.Tensor) -> Any:
        if not self._config.max_drafts:
            return super().forward(forward, positions)
        self.hold()
        self.finish_sends()
        rows = [self._lanes[request_id] for request_id in self.runner.input_batch.req_ids]
        self._gate.start(rows)
        if all(self._book.is_stale(lane) for lane in rows):
            self._draft = lambda: [NO_DRAFT] * len(rows)
            return self.runner.model.make_empty_intermediate_tensors(
                batch_size=positions.shape[-1],
                dtype=self.runner.model_config.dtype,
                device=self.runner.device,
            )
        output = forward()
        context = get_forward_context()

        def draft() -> list[int]:
            self._catch_up()
            if all(self._book.is_stale(lane) for lane in rows):
                return [NO_DRAFT] * len(rows)
            with override_forward_context(context):
                return self.propose(output, positions)

        self._draft = draft
        return output

    def after_send(self) -> None:
        """Draft only now: the next stage needs no draft to begin."""
        if self._draft is not None:
            self._drafts.send(self._draft())
            self._draft = None

    def set_synthetic_acceptance(self, acceptance: float) -> None:
        if self._recorded is not None:
            self._recorded.acceptance = acceptance

    def hold(self) -> None:
        """Take in verdicts: wait for those that this tick depends on."""
        for _ in range(self._gate.due()):
            self._judge()
        self._catch_up()

    def _catch_up(self) -> None:
        """Take in the verdicts that are there already.

        The ranks of a tensor parallel group must skip the same ticks, so they take in
        no more than what is due.
        """
        if get_tp_group().world_size > 1:
            return
        while self._gate.unjudged and self._verdicts.ready():
            self._judge()

    def _judge(self) -> None:
        verdicts = self._verdicts.wait()
        for lane, verdict in zip(self._gate.judged(), verdicts, strict=True):
            self._book.judge(lane, Verdict(verdict))

    def propose(self, output: Any, positions: torch.Tensor) -> list[int]:
        """Draft behind every row that samples and may be sent on, and note the drafts."""
        batch = self.runner.input_batch
        skipped = self.runner.discard_request_mask.np
        rows = [
            row
            for row, request_id in enumerate(batch.req_ids)
            if not skipped[row] and request_id not in self._quiet
        ]
        drafts = [NO_DRAFT] * len(batch.req_ids)
        for row, draft in zip(rows, self._head_drafts(output, positions, rows), strict=True):
            request_id = batch.req_ids[row]
            end = self._lanes[request_id].end
            if self._recorded is not None:
                draft = self._recorded.draft(self.runner.requests[request_id], end)
            self._book.propose(request_id, end, draft)
            drafts[row] = draft
        return drafts

    def _head_drafts(self, output: Any, positions: torch.Tensor, rows: list[int]) -> list[int]:
        if self._head is None:
            return [NO_DRAFT] * len(rows)
        states = output["hidden_states"], output["residual"]
        if not rows:
            self._head.observe(positions, *states)
            return []
        assert self._logits_indices is not None
        drafts, _ = self._head(positions, *states, self._logits_indices[rows])
        tokens: list[int] = drafts.tolist()
        return tokens
