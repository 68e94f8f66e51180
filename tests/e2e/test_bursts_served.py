"""Lanes of several tokens, in float32: every token is that of plain decoding.

The synthetic drafter's bursts are right token by token with a chosen probability, so that bursts
are accepted whole, in part, and not at all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import engine as e
from support.distribution import check_distribution
from support.mixes import check, drive, plain_runs, recorded
from support.plans import AnyPlan
from support.reference import Reference
from support.runners import BOTH

from vllm_ppsd.drafter.recorded import write_record
from vllm_ppsd.engine.admission import Admission
from vllm_ppsd.protocol import Lane, Outcome, PartCosts, StageTimes

pytestmark = [pytest.mark.e2e, *BOTH]

OPTIONS = {"dtype": "float32", "block_size": 32}
SCARCE = {"num_gpu_blocks_override": 10, "scheduling_policy": "priority"}
ACCEPTANCES = (0.5, 0.9, 0.0, 0.8, 1.0)
LONG = [list(range(start, start + 40)) for start in (5, 100, 200)]
"""Prompts of requests that need more blocks than there are, all together."""


def run_mixes(model: Path, folder: Path, seeds: range, size: int, stages: int) -> None:
    with e.engine(model, ppsd=e.PLAIN, **OPTIONS, **SCARCE) as plain:
        mixes, expected = plain_runs(plain, seeds, size)
        answers = [e.generate(plain, prompt, e.params(150)).tokens for prompt in LONG]
    record = folder / "record.jsonl"
    write_record(record, [*recorded(mixes, expected), *zip(LONG, answers, strict=True)])
    ppsd = {
        "synthetic_drafter": {"record": str(record), "acceptance": 0.5},
        "load_adaptive": False,
        "exact": False,
        "burst": {"reentry": 7, "following": 8},
    }
    with e.engine(model, stages=stages, ppsd=ppsd, **OPTIONS, **SCARCE) as llm:
        for number, mix in enumerate(mixes):
            acceptance = ACCEPTANCES[number % len(ACCEPTANCES)]
            llm.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
            check(mix, drive(llm, mix), expected)
        together = e.generate_staggered(llm, LONG, e.params(150), every=2)
        assert [output.tokens for output in together] == answers
        assert e.preemptions(llm) > 0
        assert e.prefix_cache_hits(llm) > 0
        llm.collective_rpc("set_synthetic_acceptance", args=(0.7,))
        for number, mix in enumerate(mixes[:3]):
            before = e.preemptions(llm)
            resets = set(random.Random(number).sample(range(90), 20))
            check(mix, drive(llm, mix, resets), expected)
            assert e.preemptions(llm) > before
        # In the mixes hardly a request is long enough for a following lane of eight right drafts.
        llm.collective_rpc("set_synthetic_acceptance", args=(1.0,))
        assert e.generate(llm, LONG[0], e.params(150)).tokens == answers[0]
        e.assert_drafted(llm)
        hits = e.accepted_by_position(llm)
        # All eight of some bursts, and only the first of others.
        assert hits[0] > hits[1] > hits[6] >= hits[7] > 0


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts drafts that following lanes took the place of, by whether these went on."""
    counts: Counter[str] = Counter()
    judged = Admission.judged

    def counting(self: Admission, lane: Lane, outcome: Outcome) -> None:
        if outcome.continues is not None:
            counts["wrong"] += lane.samples - len(outcome.tokens)
        counts["right"] += outcome.overwritten
        judged(self, lane, outcome)

    monkeypatch.setattr(Admission, "judged", counting)
    return counts


def test_random_requests_with_random_bursts(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: Counter[str]
):
    monkeypatch.setattr(Admission, "plan", AnyPlan(depth=1).plan)
    run_mixes(tiny_llama, tmp_path, range(8), 20, stages=2)
    assert replaced["wrong"] > 0
    assert replaced["right"] > 0


@pytest.mark.long
@pytest.mark.parametrize("stages", [2, 3])
def test_many_random_requests_with_random_bursts(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replaced: Counter[str],
    stages: int,
):
    monkeypatch.setattr(Admission, "plan", AnyPlan(depth=stages - 1).plan)
    run_mixes(tiny_llama, tmp_path, range(30), 20, stages)
    assert replaced["wrong"] > 0
    assert replaced["right"] > 0


def test_a_head_that_goes_on_is_used_as_the_policy_says(
    going_on: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without any option: bursts, of one request and of several.

    What parts of a tick take is given: in so small a model it is anything.
    """
    monkeypatch.setattr(PartCosts, "times", lambda _: StageTimes((1.0, 1.0), 0.05, 0.05, 0.02))
    reference = Reference(going_on)
    prompts = [[5, 6, 7], *(list(range(start, start + 40)) for start in (9, 100, 200, 300))]
    expected = [reference.greedy(prompt, 60) for prompt in prompts]
    with e.engine(going_on, ppsd={}, **OPTIONS) as llm:
        assert [e.generate(llm, prompt, e.params(60)).tokens for prompt in prompts] == expected
        e.assert_drafted(llm)
        assert e.accepted_by_position(llm)[1] > 0
        together = e.generate_staggered(llm, prompts, e.params(60), every=2)
        assert [output.tokens for output in together] == expected


@pytest.mark.long
def test_draft_then_verify_is_what_one_device_does(going_on: Path):
    """Of two ways to the same drafts, one sends final states from stage to stage."""
    prompts = [[5, 6, 7], list(range(9, 49))]
    drafts = 4
    seen = []
    for stages, options in (
        (1, {"num_speculative_tokens": drafts, "draft_threshold": 0.0}),
        (3, {"exact": False, "burst": {"reentry": drafts, "following": 0}}),
    ):
        with e.engine(going_on, stages=stages, ppsd=options, **OPTIONS) as llm:
            outputs = [e.generate(llm, prompt, e.params(120)) for prompt in prompts]
            seen.append((outputs, e.counts(llm)[1]))
            e.assert_drafted(llm)
    (there, hits_there), (here, hits_here) = seen
    check_outputs(here, there)
    # In a pipeline the last burst ends where the request does.
    assert 0 <= hits_there - hits_here <= drafts * len(prompts)
    assert hits_here > 5 * drafts


def check_outputs(here: Sequence[e.Output], there: Sequence[e.Output]) -> None:
    """Assert that tokens are the same, and their logprobs as good as the same."""
    for one, other in zip(here, there, strict=True):
        assert one.tokens == other.tokens
        for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("stages", "ranks"), [(3, 1), (2, 2)])
def test_sampled_requests_with_a_head_that_goes_on(going_on: Path, stages: int, ranks: int):
    options = OPTIONS | {"tensor_parallel_size": ranks}
    prompt = list(range(5, 45))
    asked = [
        e.params(60),
        e.params(60, temperature=1.0, seed=3, presence_penalty=0.7, bad_words=["t17"]),
    ]
    with e.engine(going_on, stages=stages, ppsd=e.PLAIN, **options) as plain:
        expected = [e.generate(plain, prompt, one) for one in asked]
    ppsd = {"exact": False, "burst": {"reentry": 3, "following": 2}}
    with e.engine(going_on, stages=stages, ppsd=ppsd, **options) as llm:
        check_outputs([e.generate(llm, prompt, one) for one in asked], expected)
        e.assert_drafted(llm)
        assert e.accepted_by_position(llm)[1] > 0


@pytest.mark.long
def test_sampled_bursts_are_distributed_as_the_target_says(going_on: Path):
    ppsd = {"exact": False, "burst": {"reentry": 3, "following": 2}}
    with e.engine(going_on, stages=2, ppsd=ppsd, **OPTIONS) as llm:
        check_distribution(llm, Reference(going_on), [9, 9])
        e.assert_drafted(llm)
        assert e.accepted_by_position(llm)[1] > 0
