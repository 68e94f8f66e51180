"""What V2's speculator is asked for on one device, and what becomes of the drafts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_ppsd.runner.port import Verified
from vllm_ppsd.runner.v2 import single
from vllm_ppsd.runner.v2.single import EarlyExitSpeculator, V2SinglePort, V2SingleRunnerMixin

SLOTS = {"a": 5, "b": 2, "c": 0}


class Proposer:
    """Drafts as many tokens as were accepted."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def propose(
        self, verified: Sequence[Verified], final: torch.Tensor, rows: int
    ) -> list[list[int]]:
        self.did.append((list(verified), final.flatten().tolist()))
        drafts: list[list[int]] = [[] for _ in range(rows)]
        for one in verified:
            drafts[one.row] = [one.token] * one.accepted
        return drafts

    def write_entries(self, positions: torch.Tensor, states: torch.Tensor) -> None:
        self.did.append(("entries", positions.tolist(), states.tolist()))

    def warm_up(self, num_tokens: int) -> None:
        self.did.append(("warm-up", num_tokens))

    def forget(self, request_ids: set[str]) -> None:
        self.did.append(("forgotten", request_ids))


def runner() -> Any:
    return SimpleNamespace(
        vllm_config=None,
        device=torch.device("cpu"),
        max_model_len=64,
        sampler=SimpleNamespace(sampling_states=SimpleNamespace(seeds=ofs(8, {5: 77}))),
        req_states=SimpleNamespace(
            req_id_to_index=SLOTS,
            last_sampled_tokens=torch.tensor([[30], [0], [20], [0], [0], [10]]),
            total_len=SimpleNamespace(gpu=torch.tensor([9, 0, 8, 0, 0, 12], dtype=torch.int32)),
            prompt_len=ofs(6, {0: 9, 2: 7, 5: 3}),
        ),
    )


def ofs(size: int, values: dict[int, int]) -> Any:
    array = np.zeros(size, dtype=np.int64)
    for place, value in values.items():
        array[place] = value
    return SimpleNamespace(np=array)


def batch() -> Any:
    """Request a verified two drafts, b decoded plainly, c is amid its prompt."""
    return SimpleNamespace(
        req_ids=["a", "b", "c"],
        num_reqs=3,
        num_tokens=6,
        idx_mapping=torch.tensor([5, 2, 0]),
        idx_mapping_np=np.array([5, 2, 0]),
        cu_num_logits_np=np.array([0, 3, 4, 5]),
        logits_indices=torch.tensor([0, 1, 2, 3, 5]),
        positions=torch.arange(6),
    )


def propose(aux: list[torch.Tensor] | None = None, **options: Any) -> tuple[Any, Any, Any]:
    port = V2SinglePort(runner())
    proposer = Proposer()
    speculator = EarlyExitSpeculator(proposer, port, 3)  # type: ignore[arg-type]
    states = torch.arange(6.0)[:, None]
    sampled = torch.tensor([2, 1, 0], dtype=torch.int32)
    drafts = speculator.propose(batch(), {}, {}, states, aux, sampled, None, **options)
    return drafts, proposer, speculator


def test_the_proposer_learns_what_was_sampled_and_from_which_state():
    drafts, proposer, speculator = propose()
    ((verified, final),) = proposer.did
    assert verified == [
        Verified(0, "a", 10, 1, 2, position=11, is_first=False, sampled_from=1),
        Verified(1, "b", 20, 0, 0, position=7, is_first=True, sampled_from=3),
    ]
    assert final == [0, 1, 2, 3, 5]
    assert drafts.tolist() == [[10, 0, 0], [0, 0, 0], [0, 0, 0]]
    taken = speculator.take()
    assert (taken.req_ids, taken.draft_token_ids) == (["a", "b", "c"], [[10], [], []])


def test_no_more_is_drafted_than_v2_can_use():
    drafts, _, speculator = propose(num_speculative_tokens=0)
    assert drafts.tolist() == [[0] * 3] * 3
    assert speculator.take().draft_token_ids == [[], [], []]


def test_a_head_with_layers_keeps_what_the_pass_made(monkeypatch: pytest.MonkeyPatch):
    contexts: list[dict[str, Any]] = []

    def context(metadata: Any, config: Any, **options: Any) -> Any:
        contexts.append(options)
        return nullcontext()

    monkeypatch.setattr(single, "set_forward_context", context)
    _, proposer, _ = propose([torch.ones(6, 1)])
    assert proposer.did[0] == ("entries", [0, 1, 2, 3, 4, 5], [[1.0]] * 6)
    assert contexts == [{"num_tokens": 6, "slot_mapping": {}}]


def test_a_dummy_run_compiles_and_drafts_nothing():
    drafts, proposer, speculator = propose(dummy_run=True)
    assert proposer.did == [("warm-up", 6)]
    assert drafts.tolist() == [[0] * 3] * 3
    assert speculator.take().req_ids == []


def test_drafts_are_drawn_by_the_seeds_that_v2_samples_with():
    assert V2SinglePort(runner()).seed("a") == 77


def test_an_engine_that_drafts_nothing_is_v2s_own():
    class Plain:
        speculator = None
        vllm_config = device = None
        req_states = SimpleNamespace(max_num_reqs=8, draft_tokens=torch.zeros(8, 0))

        def execute_model(self, step: str) -> str:
            return f"{step} executed"

    class Mixed(V2SingleRunnerMixin, Plain):
        pass

    mixed: Any = Mixed()
    assert mixed.adopt(SimpleNamespace(max_drafts=0, num_speculative_tokens=1)) is None
    assert mixed.execute_model("step") == "step executed"
    assert mixed.take_draft_token_ids() is None
    assert mixed.req_states.draft_tokens.shape == (8, 1), "the scheduler pads its requests"
