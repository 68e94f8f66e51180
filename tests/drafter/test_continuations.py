"""How a drafter goes on: who, how far, at which positions, in how many contexts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.fake_runner import FakePort

from vllm_ppsd.drafter.drafted import Drafted
from vllm_ppsd.drafter.head import HeadDrafter
from vllm_ppsd.drafter.interface import ExitStates, Wanted
from vllm_ppsd.exit_head.module import Guess
from vllm_ppsd.protocol import Candidate, Draft

VOCABULARY = 1000
STATES = ExitStates(torch.arange(9), torch.zeros(9, 4), None)


def guess(drafts: torch.Tensor, final: torch.Tensor) -> Guess:
    """The most probable token is the draft; its probability falls with the token."""
    logits = torch.zeros(len(drafts), VOCABULARY)
    logits[torch.arange(len(drafts)), drafts] = 20.0
    return Guess(drafts, 1 - drafts / VOCABULARY, logits, final)


class Head:
    """Drafts ten times the row of the pass."""

    token_ids = torch.arange(VOCABULARY)

    def __call__(self, positions: Any, hidden: Any, residual: Any, rows: Any, deeper: Any) -> Guess:
        return guess(rows * 10, torch.stack([rows.float()] * 4, dim=1))


class Adding:
    """Drafts the token behind the one given; notes which final state and position it had."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], list[float], list[int]]] = []

    def __call__(self, positions: Any, final: Any, tokens: Any) -> Guess:
        self.seen.append((positions.tolist(), final[:, 0].tolist(), tokens.tolist()))
        return guess(tokens + 1, final + 0.5)


def bursts(drafted: Drafted) -> list[tuple[Draft, ...]]:
    return [candidate.drafts for candidate in drafted.candidates()]


def make(
    draw: Any = None, probabilities: bool = False, temperature: float = 0.0
) -> tuple[HeadDrafter, Adding, FakePort]:
    head: Any = Head()
    continuation: Any = Adding()
    port = FakePort(temperature=temperature)
    return HeadDrafter(head, continuation, port, draw, probabilities), continuation, port


def test_a_burst_behind_an_exit_state():
    drafter, continuation, port = make()
    wanted = [Wanted(3, "a", 40, length=3)]
    (candidate,) = drafter.draft(STATES, torch.tensor([5]), wanted).candidates()
    assert candidate == Candidate((Draft(50, 1), Draft(51, 2), Draft(52, 3)))
    assert continuation.seen == [([40], [5.0], [50]), ([41], [5.5], [51])]
    assert port.contexts == [([3], [40], 2)]


def test_requests_want_different_lengths():
    drafter, continuation, port = make()
    wanted = [Wanted(0, "a", 10, length=2), Wanted(1, "b", 20), Wanted(2, "c", 30, length=4)]
    candidates = drafter.draft(STATES, torch.tensor([0, 1, 2]), wanted).candidates()
    assert [[draft.token for draft in one.drafts] for one in candidates] == [
        [0, 1],
        [10],
        [20, 21, 22, 23],
    ]
    assert port.contexts == [([0, 2], [10, 30], 1), ([2], [31], 2)]
    assert [positions for positions, *_ in continuation.seen] == [[10, 30], [31], [32]]


@pytest.mark.parametrize(
    ("embedded", "replaces", "tokens"),
    [((30, 40), 0, [50, 51]), ((30, 7), 1, [40, 41]), ((7, 40), 2, [30, 31])],
)
def test_drafts_are_replaced_from_the_first_that_comes_out_otherwise(embedded, replaces, tokens):
    drafter, continuation, port = make()
    wanted = [Wanted(0, "a", 10), Wanted(3, "b", 40, length=2, embedded=embedded)]
    other, candidate = drafter.draft(STATES, torch.tensor([0, 5]), wanted).candidates()
    assert other == Candidate((Draft(0, 1),))
    assert candidate == Candidate((Draft(tokens[0], 1), Draft(tokens[1], 2)), replaces=replaces)
    assert continuation.seen == [([40 - replaces], [5.0 - replaces], tokens[:1])]
    assert port.contexts == [([3], [40 - replaces], 1)]


def test_redrafts_of_sampled_requests_are_drawn_at_their_own_positions():
    drawn: list[int] = []

    def draw(shaped: Any, samplings: Any, wanted: Any, token_ids: Any) -> torch.Tensor:
        drawn.extend(one.position for one in wanted)
        return shaped.argmax(dim=-1) + 100

    drafter, *_ = make(draw, temperature=1.0)
    wanted = [Wanted(0, "a", 10), Wanted(3, "b", 40, embedded=(1, 2, 3))]
    drafter.draft(STATES, torch.tensor([0, 5]), wanted)
    assert drawn == [10, 37, 38, 39, 40]


def test_drafts_behind_known_tokens():
    drafter, continuation, port = make(probabilities=True)
    final = torch.tensor([[7.0] * 4, [8.0] * 4])
    wanted = [Wanted(1, "a", 21, length=2), Wanted(4, "b", 51, length=2)]
    first, second = bursts(drafter.go_on(final, [100, 200], wanted))
    assert [(draft.token, draft.step) for draft in first] == [(101, 2), (102, 3)]
    assert [(draft.token, draft.step) for draft in second] == [(201, 2), (202, 3)]
    assert second[0].probability == pytest.approx(1 - 0.201)
    assert continuation.seen[0] == ([20, 50], [7.0, 8.0], [100, 200])
    assert port.contexts == [([1, 4], [20, 50], 2)]


def test_a_request_stops_behind_a_doubtful_draft():
    drafter, _, port = make()
    wanted = [Wanted(0, "a", 11, length=4), Wanted(1, "b", 21, length=4)]
    limits = {"a": 0.999, "b": 0.5}
    drafted = drafter.go_on(
        torch.zeros(2, 4), [0, 200], wanted, lambda one, p: p > limits[one.request_id] - 1e-6
    )
    assert [list(burst) for burst in drafted.of_each()] == [[1, 2], [201, 202, 203, 204]]
    assert port.contexts == [([0, 1], [10, 20], 4), ([1], [22], 2)]


def test_doubt_is_in_all_drafts_up_to_one():
    drafter, *_ = make()
    asked: list[float] = []

    def promising(one: Wanted, right: float) -> bool:
        asked.append(right)
        return True

    drafter.go_on(torch.zeros(1, 4), [100], [Wanted(0, "a", 10, length=3)], promising)
    assert asked[:2] == pytest.approx([0.899, 0.899 * 0.898])


def test_nothing_is_asked_where_nothing_is_wanted():
    drafter, continuation, _ = make()
    assert drafter.go_on(torch.zeros(0, 4), [], []).candidates() == []
    assert continuation.seen == []


def test_every_step_of_a_sampled_request_is_drawn_at_its_own_position():
    drawn: list[list[tuple[int, int]]] = []

    def draw(shaped: Any, samplings: Any, wanted: Any, token_ids: Any) -> torch.Tensor:
        drawn.append([(one.position, one.depth) for one in wanted])
        return shaped.argmax(dim=-1) + 100

    drafter, *_ = make(draw, temperature=1.0)
    wanted = [Wanted(0, "a", 30, depth=0, length=3)]
    (candidate,) = drafter.draft(STATES, torch.tensor([1]), wanted).candidates()
    # The token that was drawn is gone on from, not the most probable one.
    assert [draft.token for draft in candidate.drafts] == [110, 211, 312]
    assert drawn == [[(30, 0)], [(31, 1)], [(32, 2)]]
    drafter.go_on(torch.zeros(1, 4), [5], wanted)
    assert drawn[3:] == [[(30, 0)], [(31, 1)], [(32, 2)]]
