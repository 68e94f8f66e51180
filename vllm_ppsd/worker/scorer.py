"""The last stage: samples every lane that counts and leaves no trace of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import torch

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import Draft, Drafts, Lane, RetirementBook, StagePass, Tick, Verdict
from vllm_ppsd.runner.port import Batch, BurstRows, PipelinePort, SharedNoise
from vllm_ppsd.sampling.seeds import SeedBook
from vllm_ppsd.worker.channels import Receiver, Sender, StageChannels
from vllm_ppsd.worker.events import What
from vllm_ppsd.worker.messages import Kind
from vllm_ppsd.worker.reentry import payload
from vllm_ppsd.worker.stage import Stage


class ScorerStage(Stage):
    """Decides which lanes count, and compares drafts with samples."""

    samples = True

    def __init__(self, port: PipelinePort, config: PPSDConfig, channels: StageChannels) -> None:
        super().__init__(port, channels)
        self._speculates = config.max_drafts > 0
        self._drafts: Receiver[Drafts] = channels.receivers[Kind.DRAFTS]
        self._verdicts: Sender[Verdict] = channels.senders[Kind.VERDICTS]
        self._passes: Receiver[StagePass] = channels.receivers[Kind.PASSES]
        self._book = RetirementBook()
        self._stale: set[str] = set()
        self._seeds = SeedBook()
        self._noise: SharedNoise | None = None
        self._makes_noise = config.makes_noise
        self._bursts: BurstRows | None = None
        self._longest = config.longest_burst
        self._times_parts = config.times_parts
        self._entered: Mapping[str, Sequence[Draft]] = {}
        self._rows: tuple[Lane, ...] = ()
        self._final: torch.Tensor | None = None

    def load(self) -> None:
        if self._makes_noise:
            self._noise = self._port.share_noise(self._seeds)
        if self._longest > 1:
            self._bursts = self._port.sample_bursts(self._expect_noise)

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
        self._watch.until_now()
        if self._longest > 1:
            self._final = self._port.final_states()

    @contextmanager
    def sampling(self, batch: Batch | None) -> Iterator[None]:
        with self.events.span(What.SAMPLE):
            self._watch.go_on()
            self._rows = batch.lanes if batch is not None else ()
            if batch is not None and any(lane.samples > 1 for lane in self._rows):
                self._expect_bursts(batch)
            else:
                self._expect_noise(0)
            yield

    def _expect_bursts(self, batch: Batch) -> None:
        """Tell the sampler the drafts of lanes; wait for those that entered in this tick."""
        assert self._bursts is not None
        if batch.tick.reentries:
            self._entered = self._drafts.receive(batch.tick.number).entered
        self._bursts.expect(
            [
                () if self.discards(lane) else [draft.token for draft in self._within(lane)]
                for lane in batch.lanes
            ]
        )

    def _within(self, lane: Lane) -> Sequence[Draft]:
        return self._book.within(lane, self._entered.get(lane.request_id, ()))

    def _expect_noise(self, depth: int) -> None:
        """Tell the sampler the noise of every lane's row behind its first ``depth`` ones."""
        if self._noise is not None and self._rows:
            self._noise.expect(self._rows, depth)

    def judge(self, tick: Tick, sampled: Mapping[str, Sequence[int]]) -> Verdict:
        self._watch.until_now()
        # The token does not wait for its draft; the comparison does.
        drafts = self._drafts.receive(tick.number) if self._speculates else Drafts(tick.number)
        self._places.propose(drafts)
        outcomes = {
            lane.request_id: self._book.retire(
                lane,
                sampled[lane.request_id],
                drafts.candidates.get(lane.request_id, ()),
                self._entered.get(lane.request_id, ()),
            )
            for lane in tick.lanes
            if sampled[lane.request_id]
        }
        reentering = [
            outcome
            for name, outcome in outcomes.items()
            if outcome.continues is None and name in tick.reentry_req_ids
        ]
        final = tuple(one.request_id for one in reentering)
        verdict = Verdict(tick.number, outcomes, final, drafts.seconds)
        if self._speculates:
            states = payload(self._final, self._rows, reentering) if reentering else ()
            self._verdicts.send(verdict, to_first=states)
        self._entered, self._rows, self._final = {}, (), None
        self.events.judged(verdict)
        if not self._times_parts:
            return verdict
        # The stages wait for the verdict; only the scheduler reads what passes took.
        return msgspec.structs.replace(verdict, passes=self._passed(tick))

    def _passed(self, tick: Tick) -> tuple[StagePass, ...]:
        """Return the passes of middle stages that have been told by now, and this stage's."""
        passes = []
        while self._passes.ready():
            passes.append(self._passes.receive())
        if mine := self._watch.passed(tick, self._stage):
            passes.append(mine)
        return tuple(passes)
