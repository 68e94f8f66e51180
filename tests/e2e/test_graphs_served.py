"""A head that goes on in graphs drafts what it does without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import engine as e
from support.graphed import WORKER
from support.runners import V2
from vllm import LLM

pytestmark = [pytest.mark.e2e, *V2]

PROMPTS = [[5, 6, 7], *(list(range(start, start + 40)) for start in (9, 100, 200, 300))]
OPTIONS = {
    "dtype": "float32",
    "block_size": 32,
    "worker_extension_cls": WORKER,
    # What is mixed into a worker stays with its process.
    "distributed_executor_backend": "mp",
}
BURSTS = {"load_adaptive": False, "exact": False, "burst": {"reentry": 4, "following": 2}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "pipeline": (2, BURSTS),
    "one device": (1, {"num_speculative_tokens": 4, "draft_threshold": 0.0}),
}


@contextmanager
def engine(model: Path, layout: str, graphs: bool) -> Iterator[LLM]:
    stages, ppsd = LAYOUTS[layout]
    with e.engine(model, stages=stages, ppsd=ppsd, **OPTIONS) as llm:
        if graphs:
            llm.collective_rpc("capture_tapes")
        yield llm


class Run(NamedTuple):
    """Texts of requests alone and together; of the former, drafts, hits and misses, and drafts and
    probabilities by step."""

    alone: list[list[int]]
    together: list[list[int]]
    counts: tuple[int, int, int]
    made: list[tuple[list[int], list[float]]]


def run(llm: LLM) -> Run:
    llm.collective_rpc("watch")
    alone = [e.generate(llm, prompt, e.params(40)).tokens for prompt in PROMPTS[:2]]
    sampled = e.params(30, temperature=0.8, seed=3)
    alone.append(e.generate(llm, PROMPTS[2], sampled).tokens)
    counts, made = e.counts(llm), llm.collective_rpc("made")[0]
    together = e.generate_staggered(llm, PROMPTS, e.params(40), every=2)
    e.assert_drafted(llm)
    return Run(alone, [output.tokens for output in together], counts, made)


@pytest.mark.parametrize("layout", ["one device", pytest.param("pipeline", marks=pytest.mark.long)])
def test_drafts_and_text_are_those_without_graphs(going_on: Path, layout: str):
    with engine(going_on, layout, graphs=False) as llm:
        expected = run(llm)
    with engine(going_on, layout, graphs=True) as llm:
        seen = run(llm)
        replays = llm.collective_rpc("replays")[0]
    assert seen[:3] == expected[:3]
    assert all(count > 0 for count in seen.counts)
    assert min(replays.values()) > 0, "rows fill graphs, and some do not"
    if layout == "pipeline":
        # What is drafted behind stale lanes depends on when verdicts come in.
        return
    for (tokens, probabilities), others in zip(seen.made, expected.made, strict=True):
        assert tokens == others[0]
        assert probabilities == pytest.approx(others[1], rel=1e-4)
