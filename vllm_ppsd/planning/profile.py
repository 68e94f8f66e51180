"""``vllm-ppsd profile``: measure the times that the cost model needs, from traces."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.offline import engine
from vllm_ppsd.planning.hardware import hardware
from vllm_ppsd.planning.times import Parts, Profile
from vllm_ppsd.progress import progress
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
    found = find(head, model)
    partition = found.config.two_stages
    print("starting the model twice, plain and with PPSD (a minute or two each) …")
    plain, drafting = (
        _traces(model, partition, {"model": str(found.path)} | options, lanes)
        for options in ({"num_speculative_tokens": 0}, {"load_adaptive": False})
    )
    return derive(model, hardware(), partition, plain, drafting, found.config)


def derive(
    model: str,
    machine: str,
    partition: Sequence[int],
    plain: Mapping[int, Trace],
    drafting: Mapping[int, Trace],
    head: ExitHeadConfig | None = None,
) -> Profile:
    """Return the profile that traces of both ways of decoding show.

    Of work means, slow steps included: what a token takes on average is their sum. Of the
    time between spans medians, since now and then it is a wait for something else.

    Args:
        model: its name.
        machine: its name.
        partition: decoder layers per stage.
        plain: by number of requests, a trace of plain pipeline decoding.
        drafting: the same with PPSD.
        head: that PPSD drafted with.
    """
    last = len(partition) - 1
    layers = [_by_lanes(plain.values(), stage, What.LAYERS) for stage in range(last + 1)]
    lm_heads = _by_lanes(plain.values(), last, What.LM_HEAD)
    samplers = _by_lanes(plain.values(), last, What.SAMPLE)
    heads = _by_lanes(drafting.values(), 0, What.DRAFT)
    busy = [_by_lanes([drafting[1]], stage, What.LAYERS) for stage in range(last + 1)]
    parts = {"layers": layers[0], "LM head": lm_heads, "sampler": samplers, "exit head": heads}
    parts |= {f"layers of stage {stage}, with PPSD": seen for stage, seen in enumerate(busy)}
    if short := [name for name, seen in parts.items() if 1 not in seen]:
        raise PPSDConfigError(
            f"fewer than {SEEN} steps of one request alone show the times of: {', '.join(short)}. "
            "Give a longer answer (--tokens), or a head that drafts"
        )
    by_lanes = {
        lanes: Parts(
            layer=sum(seen[lanes] for seen in layers) / sum(partition),
            head=float(np.interp(lanes, sorted(heads), [heads[n] for n in sorted(heads)])),
            lm_head=lm_heads[lanes],
            sampler=samplers[lanes],
        )
        for lanes in sorted(set(lm_heads).intersection(samplers, *layers))
    }
    alone = plain[1]
    slowed = [busy[stage][1] / layers[stage][1] for stage in range(last + 1)]
    return Profile(
        model=model,
        hardware=machine,
        num_layers=sum(partition),
        by_lanes=by_lanes,
        hand_over=_between(alone, (0, What.LAYERS), (1, What.LAYERS), behind=0),
        verdict=_verdict(drafting[1], last),
        prepare=_between(drafting[1], (0, What.DRAFT), (0, What.HOLD), behind=1),
        control=_between(alone, (last, What.SAMPLE), (0, What.LAYERS), behind=1),
        contention=max(1.0, statistics.mean(slowed)),
        head=head,
    )


def _by_lanes(traces: Iterable[Trace], stage: int, what: What) -> dict[int, float]:
    """Mean time by the lanes of a step, where enough steps had so many.

    Requests that arrive together need not share their steps: those that miss a step by
    a moment stay apart.
    """
    found: dict[int, list[float]] = {}
    for trace in traces:
        for lanes, durations in trace.durations(stage, what).items():
            found.setdefault(lanes, []).extend(durations)
    return {lanes: statistics.mean(all_) for lanes, all_ in found.items() if len(all_) >= SEEN}


def _between(trace: Trace, first: tuple[int, What], second: tuple[int, What], behind: int) -> float:
    """Median time from the end of one span of a tick to the start of one ``behind`` ticks later."""
    ends = {s.tick: s.end for s in _of(trace, *first)}
    waits = [
        s.start - ends[s.tick - behind] for s in _of(trace, *second) if s.tick - behind in ends
    ]
    return max(0.0, statistics.median(waits)) if waits else 0.0


def _verdict(trace: Trace, last: int) -> float:
    """Median time from the end of sampling until stage 0, held for it, goes on."""
    ends = sorted(s.end for s in _of(trace, last, What.SAMPLE))
    waits = []
    for hold in _of(trace, 0, What.HOLD):
        before = [end for end in ends if hold.start < end <= hold.end]
        if before:
            waits.append(hold.end - before[-1])
    return statistics.median(waits) if waits else 0.0


def _of(trace: Trace, stage: int, what: What) -> Iterable[Span]:
    wanted = set(trace.decoding)
    return [s for s in trace.spans if s.stage == stage and s.what == what and s.tick in wanted]


def _traces(
    model: str, partition: Sequence[int], speculation: dict[str, Any], lanes: Sequence[int]
) -> dict[int, Trace]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    room = {
        "max_num_batched_tokens": max(256, len(PROMPT) * max(lanes)),
        "max_num_seqs": max(lanes),
    }
    speculation = {"method": "ppsd"} | speculation
    prompt: Any = {"prompt_token_ids": PROMPT}
    with (
        engine(model, partition, speculative_config=speculation, **room) as llm,
        progress("numbers of requests") as bar,
    ):
        llm.generate([prompt], sampling, use_tqdm=False)
        return {n: record(llm, [prompt] * n, sampling) for n in bar.track(lanes)}
