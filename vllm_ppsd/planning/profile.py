"""``vllm-ppsd profile``: measure the times that the cost model needs, from traces."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.planning.times import Parts, Profile
from vllm_ppsd.tools.engines import engine
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.report import hardware
from vllm_ppsd.trace.recording import record
from vllm_ppsd.trace.spans import Span, Trace, What

PROMPT = list(range(100, 108))
"""Short, so that many requests end their prompts in one tick and stay together."""

TOKENS = 48

SEEN = 4
"""Steps of so many lanes that make a mean."""


def measure(model: str, head: str | None, lanes: Sequence[int]) -> Profile:
    """Measure a model on this machine, with its exit head at two pipeline stages.

    Args:
        model: the target.
        head: its exit head, None for the one that ships.
        lanes: numbers of requests in a step; 1 must be among them.

    Raises:
        PPSDConfigError: ``lanes`` lacks 1, or no head fits.
    """
    if 1 not in lanes or min(lanes) < 1:
        raise PPSDConfigError(f"--lanes {sorted(lanes)}: 1 must be the smallest of them")
    exit_head = find(head, model)
    partition = exit_head.config.two_stages
    print("starting the model twice, plain and with PPSD (a minute or two each) …")
    plain, drafting = (
        _traces(model, partition, {"model": str(exit_head.path)} | options, lanes)
        for options in ({"num_speculative_tokens": 0}, {"load_adaptive": False})
    )
    return derive(model, hardware(), partition, plain, drafting, exit_head.config)


def derive(
    model: str,
    machine: str,
    partition: Sequence[int],
    plain: Sequence[Trace],
    drafting: Sequence[Trace],
    head: ExitHeadConfig | None = None,
) -> Profile:
    """Return the profile that traces of both ways of decoding show.

    Of work means, slow steps included: what a token takes on average is their sum. Of the
    time between spans medians, since now and then it is a wait for something else. How
    much contention slows work follows from one request's layers, beside others' work and
    alone; it is taken out of all other times.

    Args:
        model: its name.
        machine: its name.
        partition: decoder layers per stage.
        plain: traces of plain pipeline decoding, with one request and with several.
        drafting: the same with PPSD.
        head: that PPSD drafted with.

    Raises:
        PPSDConfigError: too few steps of one request show a part.
    """
    last = len(partition) - 1
    alone, ahead = _of_one_request(plain), _of_one_request(drafting)
    seen = [slowed for stage in range(last + 1) if (slowed := _slowed(alone, ahead, stage))]
    contention = max(1.0, statistics.mean(seen or [1]))

    def by_lanes(traces: Sequence[Trace], stage: int, what: What) -> dict[int, float]:
        return _by_lanes(traces, stage, what, contention)

    both = [*plain, *drafting]
    layers = [by_lanes(both, stage, What.LAYERS) for stage in range(last + 1)]
    lm_heads = by_lanes(both, last, What.LM_HEAD)
    samplers = by_lanes(plain, last, What.SAMPLE)
    heads = by_lanes(drafting, 0, What.DRAFT)
    parts = {"layers": layers[0], "LM head": lm_heads, "sampler": samplers, "exit head": heads}
    if short := [name for name, seen in parts.items() if 1 not in seen]:
        raise PPSDConfigError(
            f"fewer than {SEEN} steps of one request alone show the times of: {', '.join(short)}. "
            "Measure again on an idle machine, or with a head that drafts"
        )
    return Profile(
        model=model,
        hardware=machine,
        num_layers=sum(partition),
        by_lanes={
            lanes: Parts(
                layer=sum(seen[lanes] for seen in layers) / sum(partition),
                head=float(np.interp(lanes, sorted(heads), [heads[n] for n in sorted(heads)])),
                lm_head=lm_heads[lanes],
                sampler=samplers[lanes],
            )
            for lanes in sorted(set(lm_heads).intersection(samplers, *layers))
        },
        hand_over=_between(alone, (0, What.LAYERS), (1, What.LAYERS), behind=0),
        verdict=_verdict(ahead, last),
        prepare=_between(ahead, (0, What.DRAFT), (0, What.HOLD), behind=1),
        control=_between(alone, (last, What.SAMPLE), (0, What.LAYERS), behind=1),
        control_beside=_control_beside(both, last),
        contention=contention,
        head=head,
    )


def _of_one_request(traces: Iterable[Trace]) -> list[Trace]:
    return [trace for trace in traces if all(len(lanes) == 1 for lanes in trace.ticks)]


def _slowed(alone: Sequence[Trace], ahead: Sequence[Trace], stage: int) -> float | None:
    """Times that a stage's layers take longer beside other stages' work, if that was seen."""
    usual = [span.duration for trace in alone for span in trace.work(stage, What.LAYERS)]
    seen = [
        (span.duration, trace.overlap(span))
        for trace in ahead
        for span in trace.work(stage, What.LAYERS)
    ]
    beside = sum(overlap for _, overlap in seen)
    done_beside = len(seen) * statistics.mean(usual or [0]) - sum(d - o for d, o in seen)
    if len(usual) < SEEN or done_beside <= 0 or beside < SEEN * statistics.mean(usual):
        return None
    return beside / done_beside


def _by_lanes(
    traces: Iterable[Trace], stage: int, what: What, contention: float
) -> dict[int, float]:
    """Mean time alone by the lanes of a step, where enough steps had so many.

    Requests that arrive together need not share their steps: those that miss a step by
    a moment stay apart.
    """
    times: dict[int, list[float]] = {}
    for trace in traces:
        for span in trace.work(stage, what):
            beside = trace.overlap(span)
            alone = span.duration - beside + beside / contention
            times.setdefault(len(trace.ticks[span.tick]), []).append(alone)
    return {lanes: statistics.mean(all_) for lanes, all_ in times.items() if len(all_) >= SEEN}


def _between(
    traces: Iterable[Trace], first: tuple[int, What], second: tuple[int, What], behind: int
) -> float:
    """Median time from the end of one span of a tick to the start of one ``behind`` ticks later."""
    waits = []
    for trace in traces:
        ends = {span.tick: span.end for span in _decoding(trace, *first)}
        waits += [
            span.start - ends[span.tick - behind]
            for span in _decoding(trace, *second)
            if span.tick - behind in ends
        ]
    return max(0.0, statistics.median(waits)) if waits else 0.0


def _control_beside(traces: Iterable[Trace], last: int) -> float | None:
    """Mean way of a token through the scheduler in steps of several requests, if it was seen.

    With several requests no more ticks are in flight than there are stages. Where stage 0
    had nothing to do when a result was there, the tick that follows waited for it alone.
    """
    waits = []
    for trace in traces:
        sampled = {span.tick: span.end for span in _decoding(trace, last, What.SAMPLE)}
        spans = [s for s in trace.spans if s.stage == 0 and s.what in (What.LAYERS, What.DRAFT)]
        for before, span in pairwise(spans):
            result = sampled.get(span.tick - last - 1)
            others = len(trace.ticks[span.tick]) > 1 and span.what == What.LAYERS
            if others and result is not None and before.end < result < span.start:
                waits.append(span.start - result)
    return statistics.mean(waits) if len(waits) >= SEEN else None


def _verdict(traces: Iterable[Trace], last: int) -> float:
    """Median time from the end of sampling until stage 0, held for it, goes on."""
    waits = []
    for trace in traces:
        ends = sorted(span.end for span in _decoding(trace, last, What.SAMPLE))
        for hold in _decoding(trace, 0, What.HOLD):
            before = [end for end in ends if hold.start < end <= hold.end]
            if before:
                waits.append(hold.end - before[-1])
    return statistics.median(waits) if waits else 0.0


def _decoding(trace: Trace, stage: int, what: What) -> list[Span]:
    wanted = set(trace.decoding)
    return [s for s in trace.spans if (s.stage, s.what) == (stage, what) and s.tick in wanted]


def _traces(
    model: str, partition: Sequence[int], speculation: dict[str, Any], lanes: Sequence[int]
) -> list[Trace]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    room: dict[str, Any] = {
        "max_num_batched_tokens": max(256, len(PROMPT) * max(lanes)),
        "max_num_seqs": max(lanes),
    }
    speculation = {"method": "ppsd"} | speculation
    prompt: Any = {"prompt_token_ids": PROMPT}
    with (
        engine(model, partition=partition, speculative_config=speculation, **room) as llm,
        progress("numbers of requests") as bar,
    ):
        llm.generate([prompt], sampling, use_tqdm=False)
        return [record(llm, [prompt] * n, sampling) for n in bar.track(lanes)]
