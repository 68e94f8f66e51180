"""Stage 0: embeds its own drafts and proposes the next ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from vllm.forward_context import (
    get_forward_context,
    override_forward_context,
    set_forward_context,
)

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.exit_head.module import ExitHead, build_exit_head
from vllm_ppsd.protocol import DraftBook, Lane
from vllm_ppsd.sampling.drafts import draw, is_greedy
from vllm_ppsd.sampling.proposals import Proposals, draw_proposals
from vllm_ppsd.sampling.seeds import SeedBook
from vllm_ppsd.worker.feedback import Feedback
from vllm_ppsd.worker.messages import DraftSender, Lines
from vllm_ppsd.worker.skipping import SkippingStage
from vllm_ppsd.worker.stage import NO_DRAFT
from vllm_ppsd.worker.synthetic import RecordedDrafts
from vllm_ppsd.worker.wire import Kind


class ProposerStage(SkippingStage):
    """Runs the exit head behind the exit layer of every tick that may count."""

    def __init__(self, runner: Any, config: PPSDConfig, lines: Lines) -> None:
        self._draft_book = DraftBook()
        super().__init__(runner, config, lines, self._draft_book)
        self._lines = lines
        self._drafts = DraftSender(lines.senders[Kind.DRAFTS])
        self._draft: Callable[[], list[int]] | None = None
        self._head: ExitHead | None = None
        self._recorded: RecordedDrafts | None = None
        self._seeds = SeedBook() if config.makes_noise else None
        self._proposals: Proposals | None = None
        self._quiet: frozenset[str] = frozenset()
        self._feedback: Feedback | None = None
        self._deeper: torch.Tensor | None = None

    def load(self) -> None:
        if self._config.head_is_needed:
            assert self._config.model is not None
            self._head = build_exit_head(
                self._config.model, self.runner.vllm_config, self.runner.get_model()
            )
            self._token_ids = self._head.token_ids
            self._feedback = self._open_feedback()
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
            deeper = None
            if self._feedback is not None:
                deeper = self._feedback.nothing(num_tokens)
            self._head.warm_up(positions, states["hidden_states"], states["residual"], deeper)

    def execute(self, execute: Callable[..., Any], scheduler_output: Any, intermediate: Any) -> Any:
        self._quiet = scheduler_output.quiet
        if self._feedback is not None:
            for request_id in scheduler_output.finished_req_ids:
                self._feedback.forget(request_id)
        if self._seeds is not None:
            self._seeds.update(scheduler_output.seeds, scheduler_output.finished_req_ids)
        return super().execute(execute, scheduler_output, intermediate)

    def input_token(self, request_id: str) -> int:
        token = self._draft_book.enter(self._lanes[request_id])
        assert token is not None
        return token

    def entered(self, lanes: Sequence[Lane]) -> None:
        if self._feedback is not None:
            self._feedback.enter(lanes)

    def forward(self, forward: Callable[[], Any], positions: torch.Tensor) -> Any:
        self._draft = self._draft_nothing if self._config.max_drafts else None

        def layers() -> Any:
            output, context = forward(), get_forward_context()
            if self._config.max_drafts:
                self._draft = partial(self._draft_behind, output, positions, context)
            return output

        return super().forward(layers, positions)

    def after_send(self) -> None:
        """Draft only now: the next stage needs no draft to begin."""
        if self._draft is not None:
            drafts = self._draft()
            self._drafts.send(drafts, self._proposals)
            self._draft = self._proposals = None

    def set_synthetic_acceptance(self, acceptance: float) -> None:
        if self._recorded is not None:
            self._recorded.acceptance = acceptance

    def _draft_nothing(self) -> list[int]:
        return [NO_DRAFT] * len(self._lanes)

    def _draft_behind(self, output: Any, positions: torch.Tensor, context: Any) -> list[int]:
        self._catch_up()
        if self._all_stale():
            return self._draft_nothing()
        self.read_deeper(len(positions))
        with override_forward_context(context):
            return self.propose(output, positions)

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
                # It was not drawn from what the head says.
                self._proposals = None
            self._draft_book.propose(request_id, end, draft)
            drafts[row] = draft
        return drafts

    def _head_drafts(self, output: Any, positions: torch.Tensor, rows: list[int]) -> list[int]:
        if self._head is None:
            return [NO_DRAFT] * len(rows)
        states = output["hidden_states"], output["residual"]
        if not rows:
            self._head.write_entries(positions, *states, self._deeper)
            return []
        assert self._sampled is not None
        drafts, _, logits = self._head(positions, *states, self._sampled[rows], self._deeper)
        tokens: list[int] = drafts.tolist()
        return self._drawn(rows, tokens, logits)

    def _open_feedback(self) -> Feedback | None:
        assert self._head is not None
        stages = self._config.feedback_stages
        if not stages:
            return None
        return Feedback(
            self._lines.receivers[Kind.FEEDBACK],
            stages,
            self._head.config.target.hidden_size,
            self.runner.model_config.dtype,
            self.runner.device,
            waits=self._config.feedback == "wait",
        )

    def read_deeper(self, count: int) -> None:
        """Take in what a multi-depth head reads of later stages, for ``count`` tokens."""
        if self._feedback is None:
            return
        assert self._sampled is not None
        lanes = [self._lanes[request_id] for request_id in self.runner.input_batch.req_ids]
        rows = [row for row, lane in enumerate(lanes) if not self._stale_book.is_stale(lane)]
        self._deeper = self._feedback.gather(
            [lanes[row] for row in rows], self._sampled[rows], count
        )

    def _drawn(self, rows: list[int], drafts: list[int], logits: torch.Tensor) -> list[int]:
        """Return ``drafts``, drawn where the last stage will not be greedy."""
        if self._seeds is None:
            return drafts
        assert self._head is not None
        ids = [self.runner.input_batch.req_ids[row] for row in rows]
        samplings = [self.runner.requests[request_id].sampling_params for request_id in ids]
        drawn = [i for i, sampling in enumerate(samplings) if not is_greedy(sampling)]
        if not drawn:
            return drafts
        sampled = (
            logits[drawn],
            [samplings[i] for i in drawn],
            [self._seeds.state(ids[i], self._lanes[ids[i]].end) for i in drawn],
            self._token_ids,
        )
        if self._config.draft_sampling == "probabilistic":
            chosen, self._proposals = draw_proposals(*sampled, [rows[i] for i in drawn])
        else:
            chosen = draw(*sampled)
        for i, token in zip(drawn, chosen.tolist(), strict=True):
            drafts[i] = token
        return drafts
