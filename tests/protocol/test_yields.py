"""What plans really yield decides between the kinds, once it is known."""

from __future__ import annotations

import itertools

import pytest
from protocol.test_burst_policy import MID, policy
from protocol.test_burst_value import times

from vllm_ppsd.protocol.acceptance import PRIORS
from vllm_ppsd.protocol.burst_policy import PATIENCE, TRIAL
from vllm_ppsd.protocol.burst_value import tokens_per_second
from vllm_ppsd.protocol.yields import LEAST, STALE, YieldBook


def window(book: YieldBook, follows: bool, share: float, tokens: int = 2 * LEAST) -> None:
    """Run a window that yields a share of 100 tokens a second."""
    for number in range(tokens + 1):
        book.retired(1, number / (100 * share))
    book.end(follows, 100.0)


def test_a_factor_is_learned_per_kind_of_plan():
    book = YieldBook()
    assert (book.factor(False), book.is_known(False)) == (1.0, False)
    for _ in range(3):
        window(book, False, 0.9)
    assert book.factor(False) == pytest.approx(0.9)
    assert book.factor(True) == 1.0, "it may keep what it promises"
    for _ in range(20):
        window(book, False, 1.1)
    assert book.factor(False) == pytest.approx(1.1, abs=0.01)
    assert book.factor(True) == pytest.approx(1.1, abs=0.01), "or as much as the other"
    window(book, True, 0.6)
    assert book.factor(True) == pytest.approx(0.6)


def test_few_tokens_say_nothing_yet_and_a_pause_begins_anew():
    book = YieldBook()
    window(book, False, 0.5, tokens=LEAST - 1)
    assert not book.is_known(False)
    book.retired(5, 0.0)
    book.begin()
    for number in range(2 * LEAST):
        book.retired(1, 100 + number / 100)
    book.end(False, 100.0)
    assert book.factor(False) == pytest.approx(1.0)


@pytest.mark.parametrize(("waiting", "ahead"), [(1.0, 0.7), (0.7, 1.0)])
def test_the_kind_that_really_yields_more_is_chosen(waiting: float, ahead: float):
    choice, parts = policy(depth=1), times(2, 0.1, 0.1, 0.05)
    now, depths = 0.0, []
    for _ in range(20 * PATIENCE):
        plan = choice.choose(["r"], parts)["r"]
        now += 1 / (tokens_per_second(plan, parts, MID) * (ahead if plan.depth else waiting))
        choice.retired(1, now)
        depths.append(plan.depth)
    assert 1 in depths, "it promises more"
    settled = depths[4 * PATIENCE :]
    right = settled.count(int(ahead > waiting)) / len(settled)
    # The other kind is tried again now and then, for two short looks.
    assert right >= 1 - 2 * TRIAL / (STALE * PATIENCE)


def test_a_kind_that_promises_less_is_tried_now_and_then_until_its_yield_is_known():
    choice, parts = policy(depth=1), times(2, 0.15, 0, 0.05)
    now, depths = 0.0, []
    for ask in range(40 * PATIENCE):
        plan = choice.choose(["r"], parts)["r"]
        depths.append(plan.depth)
        if ask % 4 == 0:  # so slow that a trial's first look sees too few tokens
            now += 1 / tokens_per_second(plan, parts, MID)
            choice.retired(1, now)
    changes = sum(a != b for a, b in itertools.pairwise(depths))
    assert changes == 4, "to the other kind and back, and again when that is long ago"
    assert depths.count(1 - depths[0]) >= 4 * LEAST


def test_what_is_known_of_a_kind_that_has_not_run_for_long_is_doubted():
    book = YieldBook()
    for _ in range(3):
        window(book, False, 0.5)
    window(book, True, 0.9)
    for _ in range(STALE - 2):
        assert book.is_fresh(False)
        window(book, True, 0.9)
    window(book, True, 0.9)
    assert book.is_known(False)
    assert not book.is_fresh(False)
    window(book, False, 0.8)
    assert book.is_fresh(False)
    assert book.factor(False) == pytest.approx(0.8), "what was before counts no more"


def test_times_that_only_the_other_kind_shows_are_found_out():
    """Hops are long for a while, and only plans without lanes ahead measure them.

    Lanes ahead yield less than they promise, so that they pay on long hops alone.
    """
    long, short = times(2, 0.15, 0.3, 0.05), times(2, 0.15, 0, 0.05)
    choice, measured = policy(depth=1), short
    choice.acceptance.overall = rates = PRIORS[1]
    now, depths = 0.0, []
    for ask in range(80 * PATIENCE):
        real = long if 4 * PATIENCE <= ask < 20 * PATIENCE else short
        plan = choice.choose(["r"], measured)["r"]
        now += 1 / (tokens_per_second(plan, real, rates) * (0.85 if plan.depth else 1.0))
        choice.retired(1, now)
        depths.append(plan.depth)
        measured = measured if plan.depth else real
    assert depths[20 * PATIENCE] == 1
    assert depths[-20 * PATIENCE :].count(0) > 18 * PATIENCE
