"""The exit head as a drafter: greedy rows keep its best token, sampled rows are drawn."""

from __future__ import annotations

from typing import Any

import torch
from support.fake_runner import FakePort

from vllm_ppsd.drafter.head import HeadDrafter
from vllm_ppsd.drafter.interface import ExitStates, Wanted
from vllm_ppsd.exit_head.module import Guess
from vllm_ppsd.protocol import Candidate, Draft
from vllm_ppsd.sampling.drafts import draw
from vllm_ppsd.sampling.noise import state

IDS = torch.tensor([3, 5, 8, 9])
STATES = ExitStates(torch.arange(40), torch.zeros(40, 4), None)
LAST = torch.arange(40)
WANTED = [Wanted(row, f"r{row}", row + 1) for row in range(40)]


def coupled(shaped: Any, samplings: Any, wanted: Any, token_ids: Any) -> Any:
    return draw(shaped, [state(1, one.position) for one in wanted], token_ids)


class Head:
    """Gives every row the same logits; its best token is 8."""

    token_ids = IDS

    def __init__(self) -> None:
        self.kept = 0

    def __call__(self, positions: Any, hidden: Any, residual: Any, rows: Any, deeper: Any) -> Any:
        logits = torch.tensor([0.0, 0.5, 1.0, -1.0]).expand(len(rows), -1)
        drafts = torch.full((len(rows),), 8)
        return Guess(drafts, logits.softmax(-1).amax(-1), logits, torch.zeros(len(rows), 4))

    def write_entries(self, positions: Any, hidden: Any, residual: Any, deeper: Any) -> None:
        self.kept += len(positions)


def draft(how: Any, wanted: Any = WANTED, **sampling: Any) -> list[int]:
    head: Any = Head()
    drafter = HeadDrafter(head, None, FakePort(**sampling), how, with_probabilities=False)
    return [one.drafts[0].token for one in drafter.draft(STATES, LAST, wanted).candidates()]


def test_greedy_requests_keep_the_most_probable_draft():
    assert draft(coupled, temperature=0.0) == [8] * 40
    assert draft(None, temperature=1.0) == [8] * 40


def test_sampled_requests_are_drawn_by_position():
    drawn = [draft(coupled) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1 and set(drawn[0]) <= set(IDS.tolist())


def test_where_nothing_is_wanted_the_heads_entries_are_kept():
    head: Any = Head()
    drafter = HeadDrafter(head, None, FakePort(), None, False)
    assert drafter.draft(STATES, LAST, []).candidates() == []
    assert head.kept == 40


def test_probabilities_come_with_the_drafts_where_they_are_read():
    head: Any = Head()
    drafter = HeadDrafter(head, None, FakePort(temperature=0.0), None, with_probabilities=True)
    (candidate,) = drafter.draft(STATES, LAST[:1], WANTED[:1]).candidates()
    best = torch.tensor([0.0, 0.5, 1.0, -1.0]).softmax(-1).max().item()
    assert candidate == Candidate((Draft(8, probability=best),))
