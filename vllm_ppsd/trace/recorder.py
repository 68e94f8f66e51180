"""In a worker: time a stage's work by wrapping it, while a trace is recorded.

Nothing is wrapped, and nothing checked, while none is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from vllm_ppsd.trace.spans import Outcome, Span, StageRecord, TracedLane, What
from vllm_ppsd.worker.lanes import lanes_of


class Recorder:
    """Records one stage from its making until ``stop``.

    Args:
        runner: the stage's model runner.
        number: the stage's place in the pipeline.
        is_last: whether it is the last stage, which knows what came of the lanes.
    """

    def __init__(self, runner: Any, number: int, is_last: bool) -> None:
        self._on_accelerator = runner.device.type != "cpu"
        self._number, self._is_last = number, is_last
        self._spans: list[Span] = []
        self._ticks: list[list[TracedLane]] = []
        self._wrapped: list[tuple[Any, str]] = []
        stage = runner.ppsd_stage
        self._wrap(stage, "execute", self._execute)
        self._wrap(stage, "forward", self._forward)
        self._wrap(stage, "sample", self._sample)
        for target, name, what in (
            (stage, "propose", What.DRAFT),
            (stage, "hold", What.HOLD),
            (stage, "read_deeper", What.STATES),
            (runner.model, "compute_logits", What.LM_HEAD),
        ):
            if hasattr(target, name):
                self._wrap(target, name, self._timed(what))

    def stop(self) -> StageRecord:
        """Unwrap everything; return what was recorded."""
        for target, name in self._wrapped:
            # What is found then is the method of its class again.
            delattr(target, name)
        return StageRecord(stage=self._number, spans=self._spans, ticks=self._ticks)

    def _wrap(self, target: Any, name: str, around: Callable[..., Any]) -> None:
        inner = getattr(target, name)
        setattr(target, name, lambda *args, **kwargs: around(inner, *args, **kwargs))
        self._wrapped.append((target, name))

    def _timed(self, what: What) -> Callable[..., Any]:
        def around(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = inner(*args, **kwargs)
            self._spans.append(Span(self._number, what, start, self._now(), len(self._ticks) - 1))
            return result

        return around

    def _execute(
        self, inner: Callable[..., Any], execute: Any, scheduler_output: Any, intermediate: Any
    ) -> Any:
        lanes = lanes_of(scheduler_output).values()
        if lanes:
            self._ticks.append(
                [TracedLane(lane.request_id, lane.position, lane.length) for lane in lanes]
            )
        return inner(execute, scheduler_output, intermediate)

    def _forward(self, inner: Callable[..., Any], forward: Any, positions: Any) -> Any:
        layers = self._timed(What.LAYERS)
        return inner(lambda: layers(forward), positions)

    def _sample(self, inner: Callable[..., Any], sample: Any, grammar_output: Any) -> Any:
        if not self._is_last:
            return inner(sample, grammar_output)
        output = self._timed(What.SAMPLE)(inner, sample, grammar_output)
        lanes = self._ticks[-1]
        tokens = dict(zip(output.req_ids, output.sampled_token_ids, strict=True))
        drafts = getattr(output, "drafts", {})
        self._ticks[-1] = [
            lane._replace(outcome=_outcome(lane, tokens[lane.request], drafts.get(lane.request)))
            for lane in lanes
        ]
        return output

    def _now(self) -> float:
        if self._on_accelerator:
            torch.accelerator.synchronize()
        return time.monotonic_ns() / 1e6


def _outcome(lane: TracedLane, sampled: list[int], draft: int | None) -> Outcome:
    if not sampled:
        return Outcome.STALE if lane.length == 1 else Outcome.PROMPT
    if draft is None:
        return Outcome.RETIRED
    return Outcome.HIT if draft == sampled[0] else Outcome.MISS
