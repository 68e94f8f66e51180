"""A stage before the last: it takes in verdicts, and runs no tick whose lanes are all stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.distributed.parallel_state import get_tp_group

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import StaleBook, Tick, TickGate, Verdict
from vllm_ppsd.runner.port import Batch, PipelinePort
from vllm_ppsd.worker.channels import Receiver, StageChannels
from vllm_ppsd.worker.events import What
from vllm_ppsd.worker.messages import Kind
from vllm_ppsd.worker.stage import Stage


class NonLastStage(Stage):
    """A stage before the last.

    Args:
        port: to the model runner that this stage belongs to.
        config: PPSD's.
        channels: this stage's.
        book: what is remembered of verdicts.
    """

    def __init__(
        self, port: PipelinePort, config: PPSDConfig, channels: StageChannels, book: StaleBook
    ) -> None:
        super().__init__(port, channels)
        self._config = config
        self._stale_book = book
        self._gate = TickGate(config.max_drafts, book)
        self._verdicts: Receiver[Verdict] = channels.receivers[Kind.VERDICTS]

    def begin(self, tick: Tick) -> bool:
        entered = self._stale_book.enter(tick)
        assert entered is tick, "lanes of one request in a tick: parents would have to travel"
        return super().begin(tick)

    def run(self, batch: Batch, layers: Callable[[], Any]) -> Any:
        if not self._config.max_drafts:
            self.finish_sends()
            return self._run_layers(batch, layers)
        with self.events.span(What.HOLD):
            self._hold(batch.tick)
        self.finish_sends()
        self._entered(batch)
        if not self._gate.start(batch.tick):
            self._send_back(batch.tick, batch.last, None)
            return None
        return self._run_layers(batch, layers)

    def _entered(self, batch: Batch) -> None:
        """Called when a tick starts."""

    def _hold(self, tick: Tick) -> None:
        """Take in verdicts: wait for those that this tick depends on.

        Stage 0 waits; when the tick comes to a middle stage, these have been sent.
        """
        for _ in range(self._gate.due(tick)):
            self._hear()
        self._catch_up()

    def _hear(self) -> None:
        """Take in the oldest verdict that has not come in."""
        self._gate.judge(self._verdicts.receive())

    def _catch_up(self) -> None:
        """Take in the verdicts that are there already.

        The ranks of a tensor parallel group must skip the same ticks, so they take in
        no more than what they have waited for.
        """
        if get_tp_group().world_size > 1:
            return
        while self._gate.unjudged and self._verdicts.ready():
            self._hear()
