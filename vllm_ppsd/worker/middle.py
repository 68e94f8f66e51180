"""A middle stage: it embeds nothing and drafts nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import Drafts, StagePass, StaleBook, Tick
from vllm_ppsd.runner.port import Batch, PipelinePort
from vllm_ppsd.worker.channels import Receiver, Sender, StageChannels
from vllm_ppsd.worker.messages import Kind
from vllm_ppsd.worker.non_last import NonLastStage

_UNUSED = 0
"""Input token of a stage that embeds nothing."""


class MiddleStage(NonLastStage):
    """Runs its layers over the lanes that may count.

    Args:
        port, config, channels: as for every stage.
    """

    def __init__(self, port: PipelinePort, config: PPSDConfig, channels: StageChannels) -> None:
        super().__init__(port, config, channels, StaleBook())
        self._drafts: Receiver[Drafts] | None = channels.receivers.get(Kind.DRAFTS)
        self._passes: Sender[StagePass] = channels.senders[Kind.PASSES]
        self._before: int | None = None

    def enter(self, tick: Tick) -> Tick:
        if self._drafts is not None and tick.lanes:
            if self._before is not None:
                self._hear_drafts(self._drafts, self._before)
            self._before = tick.number
        return super().enter(tick)

    def inputs(self, tick: Tick) -> Mapping[str, Sequence[int]]:
        return {lane.request_id: [_UNUSED] * lane.drafted for lane in tick.lanes}

    def entering(self, tick: Tick, rows: Sequence[str]) -> Mapping[str, Sequence[int]]:
        return {lane.request_id: [_UNUSED] * lane.drafted for lane in tick.reentries}

    def after_send(self, batch: Batch, states: Any) -> None:
        if not self._config.times_parts:
            return
        if seen := self._watch.passed(batch.tick, self._stage):
            self._passes.send(seen)

    def _hear_drafts(self, channel: Receiver[Drafts], tick: int) -> None:
        """Wait for what was drafted in a tick; stage 0 sends it behind what entered with it."""
        while (drafts := channel.receive(tick)).entered:
            pass
        self._places.propose(drafts)
