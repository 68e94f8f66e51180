"""The last stage: samples every lane that counts and leaves no trace of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import Drafts, Lane, RetirementBook, Tick, Verdict
from vllm_ppsd.runner.port import Batch, RunnerPort
from vllm_ppsd.sampling.sampler import CoupledSampler
from vllm_ppsd.sampling.seeds import SeedBook
from vllm_ppsd.worker.channels import Receiver, Sender, StageChannels
from vllm_ppsd.worker.events import What
from vllm_ppsd.worker.messages import Kind
from vllm_ppsd.worker.stage import Stage


class ScorerStage(Stage):
    """Decides which lanes count, and compares drafts with samples."""

    samples = True

    def __init__(self, port: RunnerPort, config: PPSDConfig, channels: StageChannels) -> None:
        super().__init__(port, channels)
        self._speculates = config.max_drafts > 0
        self._drafts: Receiver[Drafts] = channels.receivers[Kind.DRAFTS]
        self._verdicts: Sender[Verdict] = channels.senders[Kind.VERDICTS]
        self._book = RetirementBook()
        self._stale: set[str] = set()
        self._seeds = SeedBook()
        self._sampler: CoupledSampler | None = None
        self._makes_noise = config.makes_noise

    def load(self) -> None:
        if self._makes_noise:
            self._port.wrap_sampler(self._couple)

    def begin(self, tick: Tick) -> bool:
        super().begin(tick)
        for request_id in tick.left:
            self._book.forget(request_id)
        self._seeds.update(tick.seeds, tick.left)
        self._stale = {lane.request_id for lane in tick.lanes if not self._book.counts(lane)}
        if tick.lanes and len(self._stale) == len(tick.lanes):
            self._send_back(tick, None, None)
            return False
        return True

    def discards(self, lane: Lane) -> bool:
        return lane.request_id in self._stale

    def run(self, batch: Batch, layers: Callable[[], Any]) -> Any:
        return self._run_layers(batch, layers)

    def after_execute(self) -> None:
        self.events.since_last(What.LM_HEAD)

    @contextmanager
    def sampling(self, batch: Batch | None) -> Iterator[None]:
        with self.events.span(What.SAMPLE):
            if batch is not None and self._sampler is not None:
                states = [self._seeds.state(lane.request_id, lane.end) for lane in batch.lanes]
                self._sampler.expect(states)
            yield

    def judge(self, tick: Tick, sampled: Mapping[str, Sequence[int]]) -> Verdict:
        # The token does not wait for its draft; the comparison does.
        candidates = self._drafts.receive(tick.number).candidates if self._speculates else {}
        outcomes = {
            lane.request_id: self._book.retire(
                lane, sampled[lane.request_id], candidates.get(lane.request_id, ())
            )
            for lane in tick.lanes
            if sampled[lane.request_id]
        }
        verdict = Verdict(tick.number, outcomes)
        if self._speculates:
            self._verdicts.send(verdict)
        self.events.judged(verdict)
        return verdict

    def _couple(self, stock: Any) -> CoupledSampler:
        self._sampler = CoupledSampler(stock)
        return self._sampler
