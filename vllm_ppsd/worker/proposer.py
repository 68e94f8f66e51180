"""Stage 0: embeds its own drafts and proposes the next ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.drafter.build import build_drafter
from vllm_ppsd.drafter.drafted import DeviceTokens, Drafted
from vllm_ppsd.drafter.interface import Drafter, ExitStates, Wanted
from vllm_ppsd.protocol import ON_DEVICE, Candidate, DraftBook, Drafts, Lane, Tick
from vllm_ppsd.runner.port import Batch, PipelinePort
from vllm_ppsd.sampling.seeds import SeedBook
from vllm_ppsd.to_device import on_device
from vllm_ppsd.to_host import DeviceWaiter
from vllm_ppsd.worker.channels import Sender, StageChannels
from vllm_ppsd.worker.events import What
from vllm_ppsd.worker.feedback import Feedback
from vllm_ppsd.worker.messages import Kind
from vllm_ppsd.worker.non_last import NonLastStage
from vllm_ppsd.worker.reentry import FinalStates
from vllm_ppsd.worker.stage import handed_over


class ProposerStage(NonLastStage):
    """Drafts behind the exit layer of every tick that may count."""

    def __init__(self, port: PipelinePort, config: PPSDConfig, channels: StageChannels) -> None:
        self._draft_book = DraftBook()
        super().__init__(port, config, channels, self._draft_book)
        self._drafts: Sender[Drafts] = channels.senders[Kind.DRAFTS]
        self._waiter = DeviceWaiter(port.device, self._drafts.close)
        self._newest: dict[str, DeviceTokens] = {}
        self._seeds = SeedBook()
        self._feedback: Feedback | None = None
        self._embedded: dict[str, Sequence[int]] = {}
        model = port.vllm_config.model_config
        self._final = FinalStates(model.get_hidden_size(), model.dtype, port.device)
        if config.feedback_stages:
            self._feedback = Feedback(
                channels.receivers[Kind.FEEDBACK],
                config.feedback_stages,
                model.get_hidden_size(),
                model.dtype,
                port.device,
            )

    def load(self) -> None:
        if not self._config.max_drafts:
            return
        coupled = self._draw_coupled if self._config.makes_noise else None
        self.drafter = build_drafter(self._config, self._port, coupled)

    def warm_up(self, num_tokens: int) -> None:
        if self.drafter is None:
            return
        states = self._port.empty_states(num_tokens)
        positions = torch.zeros(num_tokens, dtype=torch.int64, device=self._port.device)
        deeper = self._feedback.nothing(num_tokens) if self._feedback is not None else None
        with self._port.warm_up_context(num_tokens):
            self.drafter.warm_up(_exit_states(positions, states, deeper))

    def begin(self, tick: Tick) -> bool:
        if self._feedback is not None:
            for request_id in tick.left:
                self._feedback.forget(request_id)
        self._seeds.update(tick.seeds, tick.left)
        for request_id in tick.left:
            self._final.forget(request_id)
            self._newest.pop(request_id, None)
        for lane in tick.lanes:
            if lane.is_root and not lane.drafted:
                self._final.forget(lane.request_id)
        return super().begin(tick)

    def inputs(self, tick: Tick) -> Mapping[str, Sequence[int]]:
        self._embedded = {lane.request_id: self._drafted_inputs(lane) for lane in tick.lanes}
        return dict(self._embedded)

    def _drafted_inputs(self, lane: Lane) -> Sequence[int]:
        tokens = self._draft_book.inputs(lane)
        if ON_DEVICE not in tokens:
            return tokens
        return self._newest[lane.request_id][: len(tokens)]

    def entering(self, tick: Tick, rows: Sequence[str]) -> Mapping[str, Sequence[int]]:
        """Draft behind the known tokens of the tick's re-entry bursts, and tell the last stage."""
        lanes = tick.reentries
        if not lanes:
            return {}
        assert self.drafter is not None
        with self.events.span(What.HOLD):
            # Sent, all of them: the scheduler has read the same outcomes.
            for lane in lanes:
                assert lane.after is not None
                for _ in range(self._gate.owed(lane.after)):
                    self._hear()
        tokens, final = self._final.take(lanes)
        wanted = [
            Wanted(
                rows.index(lane.request_id),
                lane.request_id,
                lane.end - lane.drafted,
                length=lane.drafted,
            )
            for lane in lanes
        ]
        longest = max(lane.drafted for lane in lanes)
        with self.events.span(What.DRAFT), self._watch.going_on(longest):
            drafted = self.drafter.go_on(final, tokens, wanted)
        names = [lane.request_id for lane in lanes]

        def send() -> None:
            bursts = [candidate.drafts for candidate in drafted.candidates()]
            entered = dict(zip(names, bursts, strict=True))
            self._drafts.send(Drafts(tick.number, entered=entered))

        self._waiter.run(send)
        embedded = dict(zip(names, drafted.of_each(), strict=True))
        self._embedded |= embedded
        return embedded

    def _hear(self) -> None:
        verdict, buffers = self._verdicts.receive_with_buffers()
        self._final.receive(verdict, buffers, self._stale_book.knows)
        self._gate.judge(verdict)

    def _entered(self, batch: Batch) -> None:
        if self._feedback is not None:
            self._feedback.enter(batch.lanes)

    def after_send(self, batch: Batch, states: Any) -> None:
        """Draft only now: the next stage needs no draft to begin."""
        if self.drafter is None:
            return
        names: Sequence[str] = ()
        drafted = Drafted.known([], self._port.device)
        if states is not None:
            self._catch_up()
            if not all(self._stale_book.is_stale(lane) for lane in batch.lanes):
                names, drafted = self._draft(self.drafter, batch, states)
        number, seconds = batch.tick.number, self._watch.result(batch.tick)
        forms = Drafts(number, _one_each(names, drafted.forms))
        self._draft_book.propose(forms)
        self._places.propose(forms)
        self._newest |= zip(names, drafted.of_each(), strict=True)

        def send() -> None:
            made = _one_each(names, drafted.candidates())
            self._drafts.send(Drafts(number, made, seconds=seconds))

        self._waiter.run(send)

    def _draft(self, drafter: Drafter, batch: Batch, states: Any) -> tuple[Sequence[str], Drafted]:
        """Draft behind every row that samples and may be sent on.

        Returns:
            The requests of these rows, and their drafts.
        """
        tick = batch.tick
        wanted = [
            Wanted(
                row,
                lane.request_id,
                lane.end,
                length=tick.shape(lane.request_id).length,
                embedded=self._replaceable(lane),
            )
            for row, lane in enumerate(batch.lanes)
            if lane.samples and lane.request_id not in tick.no_draft_req_ids
        ]
        last = batch.last
        if len(wanted) < len(batch.lanes):
            last = last[on_device([one.row for one in wanted], last.device)]
        exit_states = _exit_states(batch.positions, states, self._read_deeper(batch))
        longest = max((one.length for one in wanted), default=0)
        with (
            self.events.span(What.DRAFT),
            self._watch.drafting(longest),
            self._port.within(batch),
        ):
            drafted = drafter.draft(exit_states, last, wanted)
        return [one.request_id for one in wanted], drafted

    def _replaceable(self, lane: Lane) -> Sequence[int]:
        """Return the drafts that a lane carries behind its first row that samples."""
        rows = max(0, lane.samples - 1)
        if not rows or self._feedback is not None or self._draft_book.is_stale(lane):
            return ()
        return self._embedded[lane.request_id][-rows:]

    def _draw_coupled(
        self, shaped: torch.Tensor, _: Any, wanted: Sequence[Wanted], token_ids: torch.Tensor
    ) -> torch.Tensor:
        """Draw with the noise that the last stage will sample with."""
        return self._port.draw(shaped, wanted, token_ids, self._seeds)

    def _read_deeper(self, batch: Batch) -> torch.Tensor | None:
        """Wait for what a multi-depth head reads of later stages."""
        if self._feedback is None:
            return None
        ends = accumulate(lane.length for lane in batch.lanes)
        alive = [
            (lane, end - 1)
            for lane, end in zip(batch.lanes, ends, strict=True)
            if not self._stale_book.is_stale(lane)
        ]
        with self.events.span(What.STATES):
            return self._feedback.gather(
                [lane for lane, _ in alive], [last for _, last in alive], len(batch.positions)
            )


def _one_each(
    names: Sequence[str], candidates: Sequence[Candidate]
) -> dict[str, tuple[Candidate, ...]]:
    return {name: (one,) for name, one in zip(names, candidates, strict=True)}


def _exit_states(positions: torch.Tensor, states: Any, deeper: torch.Tensor | None) -> ExitStates:
    return ExitStates(positions, *handed_over(states), deeper)
