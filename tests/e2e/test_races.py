"""V2's adapter on a device that is late: text is that of plain decoding whatever the order.

How far a stage's device is behind its host, and which of its streams are slow, is drawn anew every
tick of every stage (``support.late``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import engine as e
from support import runners
from support.heads import write_multi_depth
from support.late import SEED, TRAP
from support.mixes import Asked, Got, check, drive, plain_runs, recorded
from support.plans import AnyPlan
from vllm import LLM

from vllm_ppsd.drafter.recorded import write_record
from vllm_ppsd.engine.admission import Admission

pytestmark = pytest.mark.e2e

# Prompts are prefilled in several chunks: the ticks of which nothing is drafted, so that stage 0
# does not wait for its device.
OPTIONS = {
    "dtype": "float32",
    "block_size": 32,
    "num_gpu_blocks_override": 12,
    "max_num_batched_tokens": 32,
    "worker_extension_cls": "support.late.installed.LateWorker",
    # A late device stays with its process.
    "distributed_executor_backend": "mp",
}
DEPTH = 3
BURSTS = {
    "num_speculative_tokens": DEPTH,
    "load_adaptive": False,
    "exact": False,
    "burst": {"reentry": 7, "following": 8},
}
HEADS = {"load_adaptive": False, "exact": False, "burst": {"reentry": 3, "following": 2}}
ACCEPTANCES = (0.5, 0.9, 0.7)


@pytest.fixture(autouse=True)
def v2(monkeypatch: pytest.MonkeyPatch) -> None:
    runners.use(monkeypatch, "V2")


@contextmanager
def late(model: Path, stages: int, ppsd: Any, trap: str | None = None) -> Iterator[LLM]:
    """An engine whose stages have late devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SEED, "races")
        if trap is not None:
            patch.setenv(TRAP, trap)
        with e.engine(model, stages=stages, ppsd=ppsd, **OPTIONS) as llm:
            yield llm


def check_devices(llm: LLM, least: int, waits: set[str]) -> None:
    """Assert that the stages have drawn so many orders, and where PPSD's host waited."""
    orders, places = zip(*llm.collective_rpc("late_device"), strict=True)
    print(f"{sum(orders)} orders; the host waited at", *places, sep="\n")
    assert sum(orders) >= least
    ours = {
        place.removeprefix("vllm_ppsd.")
        for of_stage in places
        for place in of_stage
        if place.startswith("vllm_ppsd.")
    }
    assert ours - {FAR_BEHIND} == waits


LONG = [list(range(start, start + 240)) for start in range(5, 245, 60)]
"""Prompts of eight chunks each: ticks that draft nothing, so that only the last stage waits for its
device, and that each write to the block tables."""


class Recorded(NamedTuple):
    """Mixes of requests, what is expected of each and of long prompts, and PPSD's options, by
    which drafts are recorded answers."""

    mixes: Sequence[Sequence[Asked]]
    expected: dict[str, Got]
    answers: Sequence[Sequence[int]]
    ppsd: dict[str, Any]


def answers(llm: LLM) -> list[list[int]]:
    """Return what each of the long prompts is answered, one after the other."""
    return [e.generate(llm, prompt, e.params(3)).tokens for prompt in LONG]


def record(model: Path, folder: Path, seeds: range) -> Recorded:
    with e.engine(model, ppsd=e.PLAIN, **OPTIONS) as plain:
        mixes, expected = plain_runs(plain, seeds, size=20)
        known = answers(plain)
    write_record(folder / "record.jsonl", recorded(mixes, expected))
    drafter = {"record": str(folder / "record.jsonl"), "acceptance": 0.5}
    return Recorded(mixes, expected, known, BURSTS | {"synthetic_drafter": drafter})


def run(llm: LLM, known: Recorded) -> None:
    assert answers(llm) == known.answers
    for number, mix in enumerate(known.mixes):
        acceptance = ACCEPTANCES[number % len(ACCEPTANCES)]
        llm.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
        check(mix, drive(llm, mix), known.expected)
    e.assert_drafted(llm)


@pytest.mark.parametrize(
    ("stages", "seeds", "least"),
    [
        (3, range(1), 100),
        pytest.param(2, range(6), 500, marks=pytest.mark.long),
        pytest.param(3, range(6), 500, marks=pytest.mark.long),
    ],
)
def test_random_requests_with_random_bursts(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stages: int,
    seeds: range,
    least: int,
):
    monkeypatch.setattr(Admission, "plan", AnyPlan(DEPTH).plan)
    known = record(tiny_llama, tmp_path, seeds)
    with late(tiny_llama, stages, known.ppsd) as llm:
        run(llm, known)
        check_devices(llm, least, {"worker.reentry.payload"})


@pytest.fixture(scope="module")
def known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    with pytest.MonkeyPatch.context() as patch:
        runners.use(patch, "V2")
        # A race shows by chance, and no more mixes run than it takes.
        return record(tiny_llama, tmp_path_factory.mktemp("record"), range(8))


@pytest.mark.long
@pytest.mark.parametrize(
    ("trap", "stages"),
    [("reuse_buffers", 2), ("write_early", 2), ("read_early", 2), ("copy_early", 3)],
)
def test_a_race_put_back_is_seen(
    tiny_llama: Path, known: Recorded, monkeypatch: pytest.MonkeyPatch, trap: str, stages: int
):
    monkeypatch.setattr(Admission, "plan", AnyPlan(DEPTH).plan)
    with (
        late(tiny_llama, stages, known.ppsd, trap) as llm,
        # What was garbage may be out of bounds, too.
        pytest.raises((AssertionError, RuntimeError)),
    ):
        run(llm, known)


ASKED = [
    ([5, 6, 7], e.params(40)),
    (list(range(9, 49)), e.params(40)),
    (list(range(100, 140)), e.params(40, temperature=1.0, seed=3, presence_penalty=0.7)),
    (list(range(200, 240)), e.params(40, temperature=0.7, seed=5, top_k=20)),
]
FAR_BEHIND = "runner.v2.pending.PendingSteps.begin"
"""Where a stage waits whose device is as far behind as there are buffers for steps."""
SINGLE_WAITS = {
    "runner.v2.single.V2SinglePort.verified",
    "drafter.head.HeadDrafter._continue",
    "to_host.HostCopy.tensor",
}
HEAD_WAITS = {"worker.reentry.payload", "drafter.head.HeadDrafter.draft"}


def one_by_one(llm: LLM) -> tuple[list[list[int]], tuple[int, int, int]]:
    """Return the tokens of every request alone, and drafts, hits and misses."""
    tokens = [e.generate(llm, prompt, sampling).tokens for prompt, sampling in ASKED]
    e.assert_drafted(llm)
    return tokens, e.counts(llm)


def where_nothing_is_late(
    model: Path, ppsd: Any, stages: int = 2
) -> tuple[list[list[int]], tuple[int, int, int]]:
    """Return what comes of the requests on a device that is the host."""
    with pytest.MonkeyPatch.context() as patch:
        runners.use(patch, "V2")
        with e.engine(model, stages=stages, ppsd=ppsd, **OPTIONS) as llm:
            return one_by_one(llm)


@pytest.fixture(scope="module")
def not_late(going_on: Path) -> tuple[list[list[int]], tuple[int, int, int]]:
    """What comes of the requests with a head that goes on."""
    return where_nothing_is_late(going_on, HEADS)


@pytest.mark.long
def test_a_head_that_goes_on_drafts_what_it_does_where_nothing_is_late(going_on: Path, not_late):
    with late(going_on, 2, HEADS) as llm:
        assert one_by_one(llm) == not_late
        check_devices(llm, 100, HEAD_WAITS)


@pytest.mark.long
def test_one_device_drafts_what_it_does_where_nothing_is_late(going_on: Path):
    ppsd = {"num_speculative_tokens": 3}
    expected = where_nothing_is_late(going_on, ppsd, stages=1)
    with late(going_on, 1, ppsd) as llm:
        assert one_by_one(llm) == expected
        check_devices(llm, 50, SINGLE_WAITS)


@pytest.mark.long
def test_a_multi_depth_head_reads_what_it_does_where_nothing_is_late(
    tiny_llama: Path, tmp_path: Path
):
    ppsd = {"model": write_multi_depth(tiny_llama, tmp_path / "head", [6])}
    expected = where_nothing_is_late(tiny_llama, ppsd)
    with late(tiny_llama, 2, ppsd) as llm:
        assert one_by_one(llm) == expected
        check_devices(llm, 100, set())


@pytest.mark.long
def test_a_head_that_does_not_wait_for_its_states_is_seen(going_on: Path, not_late):
    with late(going_on, 2, HEADS, "draft_early") as llm:
        tokens, (_, hits, _) = one_by_one(llm)
    expected, (_, hits_not_late, _) = not_late
    # Drafts change no text.
    assert tokens == expected
    assert hits < hits_not_late
