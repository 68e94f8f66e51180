"""Random mixes of requests, in float32: every token is that of plain decoding.

Prompts are continued answers of other requests as well, with and without a wrong draft at
their end; and clients leave right behind a miss at the end of a block. A block that a stale
lane wrote into would show if the prefix cache handed it out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from support import engine as e
from support.mixes import (
    VOCABULARY,
    Asked,
    Got,
    check,
    drive,
    plain_runs,
    random_mix,
    recorded,
    stay,
)
from support.runners import V2_IN_LONG_RUNS, runs_on
from vllm.sampling_params import RequestOutputKind

from vllm_ppsd.drafter.recorded import write_record

pytestmark = pytest.mark.e2e

SEEDS = range(12)
SIZE = 20
BLOCK = 32
# A fraction of what eight requests need.
OPTIONS = {"dtype": "float32", "block_size": BLOCK, "num_gpu_blocks_override": 11}
PRIORITIES = {"scheduling_policy": "priority"}
ACCEPTANCES = (0.0, 0.3, 0.7, 0.9, 1.0)


@runs_on(V2_IN_LONG_RUNS)
def test_every_token_is_that_of_plain_decoding(tiny_llama: Path, tmp_path: Path):
    record = tmp_path / "record.jsonl"
    with e.engine(tiny_llama, ppsd=e.PLAIN, **OPTIONS, **PRIORITIES) as plain:
        mixes, expected = plain_runs(plain, SEEDS, SIZE)
        traps, caught = plain_traps(plain)
    write_record(record, recorded(mixes, expected))
    drafter = {"record": str(record), "acceptance": 0.5}
    # Everyone drafts, whatever this machine's ticks take; test_many_requests has the policy.
    ppsd = {"synthetic_drafter": drafter, "load_adaptive": False}
    with e.engine(tiny_llama, ppsd=ppsd, **OPTIONS, **PRIORITIES) as llm:
        for number, mix in enumerate(mixes):
            acceptance = ACCEPTANCES[number % len(ACCEPTANCES)]
            llm.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
            check(mix, drive(llm, mix), expected)
        e.assert_drafted(llm)
        assert e.preemptions(llm) > 0
        llm.collective_rpc("set_synthetic_acceptance", args=(0.7,))
        check_with_resets(llm, mixes[:1], expected)
        llm.collective_rpc("set_synthetic_acceptance", args=(0.0,))
        for trap, victim in traps:
            drive(llm, [trap])
            assert drive(llm, [victim]) == {victim.name: caught[victim.name]}
        assert e.prefix_cache_hits(llm) > 0


@runs_on(V2_IN_LONG_RUNS)
@pytest.mark.long
def test_a_reset_of_running_requests_with_three_ticks_in_flight(tiny_llama: Path, tmp_path: Path):
    mixes = [random_mix(seed, SIZE) for seed in SEEDS]
    expected: dict[str, Got] = {}
    with e.engine(tiny_llama, ppsd=e.PLAIN, **OPTIONS, **PRIORITIES) as plain:
        for mix in mixes:
            expected |= drive(plain, stay(mix))
    record = tmp_path / "record.jsonl"
    write_record(record, recorded(mixes, expected))
    ppsd = {
        "synthetic_drafter": {"record": str(record), "acceptance": 0.7},
        "load_adaptive": False,
        "num_speculative_tokens": 3,
    }
    with e.engine(tiny_llama, ppsd=ppsd, **OPTIONS, **PRIORITIES) as llm:
        check_with_resets(llm, mixes, expected)
        e.assert_drafted(llm)


@runs_on(V2_IN_LONG_RUNS)
def test_greedy_tokens_on_one_device_are_those_of_plain_decoding(tiny_llama: Path):
    rng = random.Random(0)
    heads = [rng.choices(VOCABULARY, k=length) for length in (40, 100, 160)]
    mixes = [random_mix(seed, SIZE, heads, one_device=True) for seed in SEEDS]
    expected: dict[str, Got] = {}
    with e.engine(tiny_llama, stages=1, ppsd=e.PLAIN, **OPTIONS, **PRIORITIES) as plain:
        for mix in mixes:
            expected |= drive(plain, stay(mix))
    drafting = {"num_speculative_tokens": 3, "draft_threshold": 0.0}
    with e.engine(tiny_llama, stages=1, ppsd=drafting, **OPTIONS, **PRIORITIES) as llm:
        for mix in mixes:
            check(mix, drive(llm, mix), expected)
        check_with_resets(llm, mixes[:1], expected)
        e.assert_drafted(llm)
        assert e.preemptions(llm) > 0
        assert e.prefix_cache_hits(llm) > 0


def check_with_resets(llm, mixes: Sequence[Sequence[Asked]], expected: dict[str, Got]) -> None:
    """Reset the prefix cache while requests run, as an update of the weights does.

    vLLM drops what is in flight, and the requests enter again in the same step.
    """
    # A grammar may take some steps before its request runs.
    free = [asked for asked in stay(mixes[0]) if asked.sampling.structured_outputs is None]
    longest = max(free, key=lambda asked: len(expected[asked.name].tokens[0]))
    alone = [replace(longest, arrives=0)]
    for step in count(1):
        before = e.preemptions(llm)
        resets = {step} if step % 2 else {step, step + 1, step + 3}
        check(alone, drive(llm, alone, resets), expected)
        if e.preemptions(llm) == before:
            break
    assert step > 3, "the answer ended before the third reset"
    for number, mix in enumerate(mixes):
        before = e.preemptions(llm)
        resets = set(random.Random(number).sample(range(90), 20))
        check(mix, drive(llm, mix, resets), expected)
        assert e.preemptions(llm) > before


def plain_traps(plain) -> tuple[list[tuple[Asked, Asked]], dict[str, Got]]:
    """Return pairs of requests, and what is expected of the second of each.

    The first leaves when the miss is known whose position ends a block, so that only stale
    lanes wrote there; the second begins with that whole block.
    """
    rng = random.Random(0)
    sampling = e.params(12, output_kind=RequestOutputKind.DELTA)
    traps, expected = [], {}
    for length in (29, 30, 31, 61, 62, 63):
        tokens = -length % BLOCK
        prompt = tuple(rng.choices(VOCABULARY, k=length))
        first = Asked(f"trap-{length}", prompt, sampling, 0, leaves=tokens, priority=0)
        answer = drive(plain, [replace(first, leaves=None)])[first.name].tokens[0]
        behind = (*prompt, *answer[:tokens], 5, 6, 7)
        second = replace(first, name=f"victim-{length}", prompt=behind, leaves=None)
        traps.append((first, second))
        expected |= drive(plain, [second])
    return traps, expected
