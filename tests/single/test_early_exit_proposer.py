"""How far drafting goes: bound, doubt, the model's length, prompts that are not finished."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fake_runner import HIDDEN, FakePort

from vllm_ppsd.drafter.drafted import Drafted
from vllm_ppsd.drafter.interface import Wanted
from vllm_ppsd.protocol import Candidate, Draft
from vllm_ppsd.runner.port import Verified
from vllm_ppsd.single.proposer import EarlyExitProposer


class Counting(EarlyExitProposer):
    """Drafts the token after the newest one; its probability is 0.9 for even tokens."""

    def __init__(
        self,
        lengths: list[int],
        drafts: int,
        threshold: float,
        prompt: int = 1,
        head_steps: int = 1,
    ) -> None:
        super().__init__(vllm_config=None)  # type: ignore[arg-type]
        self._lengths, self._prompt = lengths, prompt
        config: Any = SimpleNamespace(
            max_drafts=drafts, draft_threshold=threshold, head_steps=head_steps
        )
        self.adopt(FakePort(), config)
        self.batches: list[tuple[list[int], list[int]]] = []

    def after(self, sampled: list[list[int]], verified: dict[str, list[int]]) -> list[list[int]]:
        """Propose behind a pass that sampled so, and verified such drafts."""
        behind = [
            Verified(
                row,
                f"r{row}",
                tokens[-1],
                len(tokens) - 1,
                len(verified.get(f"r{row}", ())),
                self._lengths[row] - 1,
                self._lengths[row] == self._prompt + 1,
                row,
            )
            for row, tokens in enumerate(sampled)
            if tokens
        ]
        return self.propose(behind, torch.zeros(len(sampled), HIDDEN), rows=len(sampled))

    def _draft(self, behind: Sequence[Verified], tokens: Sequence[int], depth: int) -> list[Draft]:
        positions = [one.position + depth for one in behind]
        self.batches.append(([one.row for one in behind], positions))
        drafts = [token + 1 for token in tokens]
        return [Draft(d, probability=0.9 if d % 2 == 0 else 0.1) for d in drafts]


def test_every_request_that_sampled_is_drafted_for_at_its_own_position():
    proposer = Counting([10, 20, 30], drafts=2, threshold=0.0)
    assert proposer.after([[4, 5], [], [7]], {}) == [[6, 7], [], [8, 9]]
    assert proposer.batches == [([0, 2], [9, 29]), ([0, 2], [10, 30])]


def test_the_first_token_of_an_output_does_not_wait_for_drafts():
    proposer = Counting([10, 11, 12], drafts=1, threshold=0.0, prompt=10)
    assert proposer.after([[], [5], [7]], {}) == [[], [], [8]]
    assert proposer.batches == [([2], [11])]


def test_nothing_is_drafted_behind_a_doubtful_draft():
    proposer = Counting([10, 20], drafts=3, threshold=0.5)
    # 5 is followed by 6 (sure) and 7 (doubtful); 6 by 7 (doubtful).
    assert proposer.after([[5], [6]], {}) == [[6, 7], [7]]
    assert [rows for rows, _ in proposer.batches] == [[0, 1], [0]]


def test_doubt_adds_up_over_the_drafts_of_a_round(monkeypatch: pytest.MonkeyPatch):
    def sure(
        self: Any, behind: Sequence[Verified], tokens: Sequence[int], depth: int
    ) -> list[Draft]:
        return [Draft(token + 1, probability=0.8) for token in tokens]

    monkeypatch.setattr(Counting, "_draft", sure)
    proposer = Counting([10], drafts=5, threshold=0.6)
    assert proposer.after([[5]], {}) == [[6, 7, 8]], "0.8 and 0.64 are enough, 0.51 is not"


def test_no_draft_lies_past_the_models_length():
    proposer = Counting([98, 99, 100], drafts=4, threshold=0.0)
    assert proposer.after([[1], [1], [1]], {}) == [[2, 3], [2], []]


def test_fewer_drafts_can_be_asked_for():
    proposer = Counting([10], drafts=4, threshold=0.0)
    proposer.drafts = 1
    assert proposer.after([[1]], {}) == [[2]]


def test_a_request_whose_drafts_fail_drafts_no_more_until_it_is_tried_anew():
    proposer = Counting([10, 20], drafts=2, threshold=0.5)
    for _ in range(40):
        proposer.after([[5], [5, 6, 7]], {"r0": [1], "r1": [6, 7]})
    assert proposer.after([[5], [5]], {}) == [[], [6, 7]]
    for _ in range(200):
        drafts = proposer.after([[5], [5]], {})
    assert drafts == [[6], [6, 7]]


def test_at_threshold_0_everything_is_drafted_whatever_was_missed():
    proposer = Counting([10], drafts=3, threshold=0.0)
    for _ in range(100):
        assert proposer.after([[5]], {"r0": [1, 2, 3]}) == [[6, 7, 8]]


def test_the_rate_of_a_request_that_left_is_forgotten():
    proposer = Counting([10], drafts=1, threshold=0.5)
    for _ in range(60):
        proposer.after([[5]], {"r0": [1]})
    proposer.forget(["r0"])
    assert len(proposer._acceptance) == 0


class GoingOn(Counting):
    """As ``Counting``, by a head that goes on from final states of as many as the row."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, head_steps=4)
        self.drafter: Any = self
        self.asked: list[tuple[list[float], list[int], list[Wanted]]] = []

    def go_on(
        self, final: torch.Tensor, tokens: list[int], wanted: list[Wanted], promising: Any
    ) -> Drafted:
        self.asked.append((final[:, 0].tolist(), list(tokens), list(wanted)))
        bursts: list[list[Draft]] = []
        for token, one in zip(tokens, wanted, strict=True):
            burst = [Draft(token + 1)]
            while len(burst) < one.length and promising(one, self.probability(burst[-1].token)):
                burst.append(Draft(burst[-1].token + 1))
            bursts.append(burst)
        return Drafted.known([Candidate(tuple(burst)) for burst in bursts], torch.device("cpu"))

    @staticmethod
    def probability(token: int) -> float:
        return 0.9 if token % 2 == 0 else 0.1


def test_a_head_that_goes_on_starts_from_the_state_that_was_sampled_from():
    proposer = GoingOn([10, 20, 30], drafts=3, threshold=0.0)
    verified = [
        Verified(0, "r0", 5, 1, 2, 9, False, sampled_from=1),
        Verified(2, "r2", 7, 0, 0, 29, False, sampled_from=4),
    ]
    states = torch.arange(5.0)[:, None].expand(-1, HIDDEN)
    assert proposer.propose(verified, states, rows=3) == [[6, 7, 8], [], [8, 9, 10]]
    wanted = [Wanted(0, "r0", 10, length=3), Wanted(2, "r2", 30, length=3)]
    assert proposer.asked == [([1.0, 4.0], [5, 7], wanted)]
    assert proposer.batches == []


def test_a_head_that_goes_on_stops_where_any_other_does():
    for kind in (Counting, GoingOn):
        proposer = kind([10, 20], drafts=3, threshold=0.5)
        assert proposer.after([[5], [6]], {}) == [[6, 7], [7]]
        proposer = kind([98, 99, 100], drafts=4, threshold=0.0)
        assert proposer.after([[1], [1], [1]], {}) == [[2, 3], [2], []]
        proposer = kind([11, 12], drafts=1, threshold=0.0, prompt=10)
        assert proposer.after([[4], [5]], {}) == [[], [6]]


def test_where_nothing_pays_a_head_does_not_go_on():
    proposer = GoingOn([10], drafts=2, threshold=0.5)
    for _ in range(40):
        proposer.after([[5]], {"r0": [1]})
    asked = len(proposer.asked)
    assert proposer.after([[5]], {"r0": [1]}) == [[]]
    assert len(proposer.asked) == asked
