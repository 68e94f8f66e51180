"""A stage before the last: it hears verdicts, and runs no tick whose lanes are all stale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import Lane, StaleBook, TickGate
from vllm_ppsd.worker.lanes import lanes_of
from vllm_ppsd.worker.messages import Lines, RowReceiver
from vllm_ppsd.worker.stage import Stage
from vllm_ppsd.worker.wire import Kind


class SkippingStage(Stage):
    """A middle stage; the first one drafts as well.

    Args:
        runner: the model runner that this stage belongs to.
        config: PPSD's.
        lines: this stage's wires.
        book: what is remembered of verdicts.
    """

    def __init__(self, runner: Any, config: PPSDConfig, lines: Lines, book: StaleBook) -> None:
        super().__init__(runner, lines.feedback_sender())
        self._config = config
        self._stale_book = book
        self._gate = TickGate(config.max_drafts, book)
        self._verdicts = RowReceiver(lines.receivers[Kind.VERDICTS])
        self._lanes: dict[str, Lane] = {}

    def execute(self, execute: Callable[..., Any], scheduler_output: Any, intermediate: Any) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            self._stale_book.forget(request_id)
        self._lanes = lanes_of(scheduler_output)
        return execute(scheduler_output, intermediate)

    def before_update(self, scheduler_output: Any) -> None:
        for lane in self._lanes.values():
            self._stale_book.arrive(lane)
        super().before_update(scheduler_output)

    def forward(self, forward: Callable[[], Any], positions: torch.Tensor) -> Any:
        if not self._config.max_drafts:
            return super().forward(forward, positions)
        self.hold()
        self.finish_sends()
        rows = [self._lanes[request_id] for request_id in self.runner.input_batch.req_ids]
        self.entered(rows)
        if not self._gate.start(rows):
            self.send_back(None)
            # Whatever it would write is overwritten when the positions re-enter.
            return self.runner.model.make_empty_intermediate_tensors(
                batch_size=positions.shape[-1],
                dtype=self.runner.model_config.dtype,
                device=self.runner.device,
            )
        output = forward()
        self.send_back(output)
        return output

    def entered(self, lanes: Sequence[Lane]) -> None:
        """Called when a tick of these lanes, in row order, starts."""

    def hold(self) -> None:
        """Take in verdicts: wait for those that this tick depends on.

        Stage 0 waits; when the tick comes to a middle stage, these have been sent.
        """
        for _ in range(self._gate.due(list(self._lanes.values()))):
            self._gate.judge(self._verdicts.wait())
        self._catch_up()

    def _all_stale(self) -> bool:
        return all(self._stale_book.is_stale(lane) for lane in self._lanes.values())

    def _catch_up(self) -> None:
        """Take in the verdicts that are there already.

        The ranks of a tensor parallel group must skip the same ticks, so they take in
        no more than what they have waited for.
        """
        if get_tp_group().world_size > 1:
            return
        while self._gate.unjudged and self._verdicts.ready():
            self._gate.judge(self._verdicts.wait())
