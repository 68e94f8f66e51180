"""Lanes of several tokens, in float32: every token is that of plain decoding.

The synthetic drafter's bursts are right token by token with a chosen probability, so that bursts
are accepted whole, in part, and not at all.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from support import engine as e
from support.mixes import Got, check, drive, random_mix, stay

from vllm_ppsd.drafter.recorded import write_record
from vllm_ppsd.engine.admission import PLAIN, Admission
from vllm_ppsd.protocol import BurstPlan

pytestmark = pytest.mark.e2e

SIZE = 20
BLOCK = 32
OPTIONS = {"dtype": "float32", "block_size": BLOCK, "num_gpu_blocks_override": 11}
PRIORITIES = {"scheduling_policy": "priority"}
ACCEPTANCES = (0.5, 0.9, 0.0, 0.8, 1.0)


def test_random_requests_with_random_bursts(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mixes = [random_mix(seed, SIZE) for seed in range(8)]
    with e.engine(tiny_llama, ppsd=e.PLAIN, **OPTIONS, **PRIORITIES) as plain:
        expected: dict[str, Got] = {}
        for mix in mixes:
            expected |= drive(plain, stay(mix))
    plans = Plans()
    monkeypatch.setattr(Admission, "plan", plans.plan)
    ppsd = drafting(record_of(mixes, expected, tmp_path), reentry=7, following=8)
    with e.engine(tiny_llama, ppsd=ppsd, **OPTIONS, **PRIORITIES) as llm:
        for number, mix in enumerate(mixes):
            acceptance = ACCEPTANCES[number % len(ACCEPTANCES)]
            llm.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
            check(mix, drive(llm, mix), expected)
        assert e.preemptions(llm) > 0
        llm.collective_rpc("set_synthetic_acceptance", args=(0.7,))
        for number, mix in enumerate(mixes[:2]):
            before = e.preemptions(llm)
            resets = set(random.Random(number).sample(range(90), 20))
            check(mix, drive(llm, mix, resets), expected)
            assert e.preemptions(llm) > before
        e.assert_drafted(llm)
        assert_accepted_in_part(llm)


class Plans:
    """In place of a policy: another plan whenever one is asked for."""

    def __init__(self) -> None:
        self._rng = random.Random(0)

    def plan(self, request: Any) -> BurstPlan:
        rng = self._rng
        if request.use_structured_output:
            return PLAIN
        return BurstPlan(
            rng.choice([0, 1, 3, 7]), rng.choice([1, 1, 2, 3, 8]), rng.choice([0, 1, 1])
        )


def drafting(record: Path, acceptance: float = 0.5, **burst: int) -> dict[str, Any]:
    return {
        "synthetic_drafter": {"record": str(record), "acceptance": acceptance},
        "load_adaptive": False,
        "exact": False,
        "burst": burst,
    }


def record_of(mixes: Any, expected: dict[str, Got], folder: Path) -> Path:
    record = folder / "record.jsonl"
    write_record(record, [(a.prompt, expected[a.name].tokens[0]) for mix in mixes for a in mix])
    return record


def assert_accepted_in_part(llm: Any) -> None:
    """Fail where no burst was cut: some outcome must have accepted only its first drafts."""
    per_position = accepted_per_position(llm)
    assert per_position[1] > 0
    assert per_position[0] > per_position[1] > per_position[6]


def accepted_per_position(llm: Any) -> list[int]:
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    return list(metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values)
