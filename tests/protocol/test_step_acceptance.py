"""Acceptance rates by step: what is judged, what is shared, what is forgotten."""

from __future__ import annotations

import random

import pytest

from vllm_ppsd.protocol.acceptance import PRIOR_SAMPLED_STEPS, PRIOR_STEPS, Rates, StepBook


def learn(
    book: StepBook, request: str, rates: Rates, lanes: int, reentry: bool = False, length: int = 5
) -> None:
    rng = random.Random(0)
    chain = rates.reentry_chain(length) if reentry else rates.following_chain(length)
    for _ in range(lanes):
        hits = 0
        while hits < length and rng.random() < chain[hits]:
            hits += 1
        first = 2 if reentry else 1
        judged = range(first, first + min(hits + 1, length))
        book.judged(request, list(judged), hits, reentry)


def test_before_anything_is_judged_the_prior_stands():
    assert StepBook().rates("a") == Rates(PRIOR_STEPS, PRIOR_STEPS[1])


def test_rates_by_step_are_learned_though_misses_hide_what_follows():
    book, true = StepBook(), Rates((0.9, 0.6, 0.8, 0.7, 0.75, 0.7, 0.7, 0.7), 0.5)
    learn(book, "a", true, 3000)
    known = book.rates("a")
    assert known.steps[0] == pytest.approx(0.9, abs=0.12)
    assert known.steps[1] < known.steps[2]
    assert known.steps[1] == pytest.approx(0.6, abs=0.15)


def test_the_first_draft_behind_a_root_has_a_rate_of_its_own():
    book = StepBook()
    for _ in range(400):
        book.judged("a", [2], 0, reentry=True)
    other = book.rates("b")
    assert other.reentry < 0.2
    assert other.steps[0] == PRIOR_STEPS[0]
    assert other.steps[1] > other.reentry + 0.1


def test_a_request_has_its_level_and_a_new_one_starts_where_all_are():
    book = StepBook()
    for _ in range(60):
        book.judged("bad", [1], 0, reentry=False)
        book.judged("good", [1, 2], 2, reentry=False)
    assert book.rates("good").steps[3] > book.rates("bad").steps[3] + 0.2
    assert book.rates("new") == book.overall
    book.forget("bad")
    assert book.rates("bad") == book.overall
    assert len(book) == 1


def test_doubt_leads_back_to_the_prior():
    book = StepBook()
    for _ in range(200):
        book.judged("a", [1], 0, reentry=False)
    assert book.rates("a").steps[0] < 0.2
    for _ in range(2000):
        book.decay_to_prior(["a"], 200)
    assert book.rates("a").steps == pytest.approx(PRIOR_STEPS, abs=0.01)


def test_rates_stay_off_never_and_always():
    book = StepBook()
    for _ in range(5000):
        book.judged("a", [1, 2], 2, reentry=False)
    assert max(book.rates("a").steps) < 1
    assert book.rates("a").steps[0] > 0.95


def test_steps_beyond_the_known_ones_are_as_the_last():
    rates = Rates((0.8, 0.7), 0.6)
    assert rates.following_chain(4) == (0.8, 0.7, 0.7, 0.7)
    assert rates.reentry_chain(3) == (0.6, 0.7, 0.7)
    assert rates.reentry_chain(0) == ()


@pytest.mark.parametrize(("steps", "accepted"), [([1, 2, 3], 1), ([1], 2), ([0], 0)])
def test_what_cannot_have_been_judged_is_refused(steps: list[int], accepted: int):
    with pytest.raises(ValueError, match="draft"):
        StepBook().judged("a", steps, accepted, reentry=False)


def test_drafts_that_are_drafted_again_are_learned_apart():
    book = StepBook()
    for _ in range(400):
        book.drafted_again([True, True], [])
        book.drafted_again([True], [False])
    learned = book.rates("a")
    assert learned.kept > 0.97
    assert learned.mended < 0.1
    assert learned.steps == Rates().steps


def test_a_lane_goes_on_behind_the_first_draft_that_is_mended():
    rates = Rates(kept=0.9, mended=0.4)
    assert rates.goes_on((), 0.8) == 0.8
    assert rates.goes_on((0.7,), 0.8) == pytest.approx(0.3 * 0.4 + 0.7 * 0.9 * 0.8)
    two = 0.3 * 0.4 + 0.7 * 0.9 * (0.5 * 0.4 + 0.5 * 0.9 * 0.8)
    assert rates.goes_on((0.7, 0.5), 0.8) == pytest.approx(two)


def test_sampled_requests_are_a_kind_of_their_own():
    book = StepBook()
    book.arrived("sampled", True)
    book.arrived("greedy", False)
    assert book.rates("sampled").steps == PRIOR_SAMPLED_STEPS
    assert book.rates("greedy") == Rates()
    for _ in range(400):
        book.judged("sampled", [1], 0, reentry=False)
    assert book.rates("sampled").steps[0] < 0.1
    assert book.rates("greedy") == Rates(), "what is sampled says nothing of what is greedy"
    book.arrived("another", True)
    assert book.rates("another").steps[0] < PRIOR_SAMPLED_STEPS[0]
    book.decay_to_prior(["another"], doubt=1)
    assert book.rates("another").steps == PRIOR_SAMPLED_STEPS
    book.forget("another")
    assert book.rates("another") == Rates()
