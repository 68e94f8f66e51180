"""The last stage: samples every lane that counts and leaves no trace of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import Lane, RetirementBook, Verdict
from vllm_ppsd.sampling.rejection import RejectionSampler
from vllm_ppsd.sampling.sampler import CoupledSampler
from vllm_ppsd.sampling.seeds import SeedBook
from vllm_ppsd.worker.lanes import lanes_of
from vllm_ppsd.worker.messages import DraftReceiver, Lines, RowSender
from vllm_ppsd.worker.output import PPSDModelRunnerOutput
from vllm_ppsd.worker.stage import NO_DRAFT, Stage
from vllm_ppsd.worker.wire import Kind


class ScorerStage(Stage):
    """Judges lanes and compares drafts with samples."""

    def __init__(self, runner: Any, config: PPSDConfig, lines: Lines) -> None:
        super().__init__(runner, lines.feedback_sender())
        self._speculates = config.max_drafts > 0
        self._drafts = DraftReceiver(lines.receivers[Kind.DRAFTS])
        self._verdicts = RowSender(lines.senders[Kind.VERDICTS])
        self._book = RetirementBook()
        self._lanes: dict[str, Lane] = {}
        self._stale: set[str] = set()
        self._skipped = False
        self._seeds = SeedBook() if config.makes_noise else None
        self._rejects = config.draft_sampling == "probabilistic" and self._speculates
        self._sampler: CoupledSampler | None = None

    def load(self) -> None:
        if self._seeds is not None:
            sampler = self.runner.sampler
            make = RejectionSampler if self._rejects else CoupledSampler
            self._sampler = make(sampler.topk_topp_sampler)
            sampler.topk_topp_sampler = self._sampler

    def execute(self, execute: Callable[..., Any], scheduler_output: Any, intermediate: Any) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            self._book.forget(request_id)
        if self._seeds is not None:
            self._seeds.update(scheduler_output.seeds, scheduler_output.finished_req_ids)
        self._lanes = lanes_of(scheduler_output)
        self._stale = {id for id, lane in self._lanes.items() if not self._book.counts(lane)}
        self._skipped = bool(self._lanes) and len(self._stale) == len(self._lanes)
        if self._skipped:
            # Whatever it would write is overwritten when the positions re-enter,
            # so the tick only has to keep the batch in step, and to take in what was
            # sent: the stage before waits for that.
            intermediate.wait_for_comm()
            self.runner._update_states(scheduler_output)
            self.send_back(None)
            return None
        return execute(scheduler_output, intermediate)

    def before_update(self, scheduler_output: Any) -> None:
        """Nothing to fill in: this stage has sampled every retired token itself."""

    def after_prepare(self, logits_indices: torch.Tensor) -> None:
        super().after_prepare(logits_indices)
        mask = self.runner.discard_request_mask
        rows = [self.runner.input_batch.req_id_to_index[id] for id in self._stale]
        if rows:
            mask.np[rows] = True
            mask.copy_to_gpu(self.runner.input_batch.num_reqs)

    def forward(self, forward: Callable[[], Any], positions: torch.Tensor) -> Any:
        output = forward()
        self.send_back(output)
        return output

    def sample(self, sample: Callable[..., Any], grammar_output: Any) -> Any:
        if self._skipped:
            self._skipped = False
            self._drafts.wait()
            self._verdicts.send([Verdict.NONE] * len(self._lanes))
            return PPSDModelRunnerOutput.stale(list(self._lanes))
        if self.runner.execute_model_state is None:
            return sample(grammar_output)
        self._couple()
        # Who rejects must know the draft; otherwise the token does not wait for it.
        drafts = self._hear() if self._rejects else None
        with self._generators_of_discarded_rows_parked():
            output = sample(grammar_output)
        if drafts is None:
            drafts = self._hear()
        return PPSDModelRunnerOutput.of(output, self._retire(output, drafts))

    def _couple(self) -> None:
        """Say what noise every row is sampled with."""
        if self._seeds is None or self._sampler is None:
            return
        lanes = [self._lanes[request_id] for request_id in self.runner.input_batch.req_ids]
        self._sampler.expect([self._seeds.state(lane.request_id, lane.end) for lane in lanes])

    def _hear(self) -> list[int]:
        """Wait for this tick's drafts, and tell the sampler where it judges them."""
        if not self._speculates:
            return [NO_DRAFT] * len(self._lanes)
        drafts, proposals = self._drafts.wait()
        if isinstance(self._sampler, RejectionSampler):
            self._sampler.tell(drafts, proposals)
        return drafts

    def _retire(self, output: Any, drafts: list[int]) -> dict[str, int]:
        """Record every retired token; return the drafts they are compared with."""
        compared: dict[str, int] = {}
        verdicts = [Verdict.NONE] * len(output.req_ids)
        for row, request_id in enumerate(output.req_ids):
            sampled = output.sampled_token_ids[row]
            if not sampled:
                continue
            hit = self._book.retire(self._lanes[request_id], sampled[0], drafts[row])
            verdicts[row] = Verdict.HIT if hit else Verdict.MISS
            if drafts[row] != NO_DRAFT:
                compared[request_id] = drafts[row]
        if self._speculates:
            self._verdicts.send(verdicts)
        return compared

    @contextmanager
    def _generators_of_discarded_rows_parked(self) -> Iterator[None]:
        """Keep rows whose sample is discarded away from their seeded generators.

        vLLM rewinds a generator after the draw, which CPU generators cannot do.
        """
        batch = self.runner.input_batch
        discarded = self.runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0]
        parked = {
            int(row): batch.generators.pop(int(row))
            for row in discarded
            if int(row) in batch.generators
        }
        try:
            yield
        finally:
            batch.generators.update(parked)
