"""What plans really yield decides between depths, once it is known."""

from __future__ import annotations

import pytest
from protocol.test_burst_value import times
from protocol.test_bursts import MID, policy

from vllm_ppsd.protocol.burst_policy import PATIENCE
from vllm_ppsd.protocol.burst_value import tokens_per_second
from vllm_ppsd.protocol.yields import LEAST, YieldBook


def window(book: YieldBook, depth: int, share: float, tokens: int = 2 * LEAST) -> None:
    """Run a window that yields a share of 100 tokens a second."""
    for number in range(tokens + 1):
        book.retired(1, number / (100 * share))
    book.end(depth, 100.0)


def test_a_factor_is_learned_per_depth():
    book = YieldBook()
    assert (book.factor(0), book.is_known(0)) == (1.0, False)
    for _ in range(3):
        window(book, 0, 0.9)
        window(book, 2, 0.6)
    assert book.factor(0) == pytest.approx(0.9)
    assert book.factor(2) == pytest.approx(0.6)
    assert book.factor(1) == 1.0
    for _ in range(20):
        window(book, 2, 1.1)
    assert book.factor(2) == pytest.approx(1.1, abs=0.01)
    assert book.factor(1) == pytest.approx(1.1, abs=0.01), "as good as the best"


def test_few_tokens_say_nothing_and_a_pause_begins_anew():
    book = YieldBook()
    window(book, 0, 0.5, tokens=LEAST - 1)
    assert not book.is_known(0)
    book.retired(5, 0.0)
    book.begin()
    for number in range(2 * LEAST):
        book.retired(1, 100 + number / 100)
    book.end(0, 100.0)
    assert book.factor(0) == pytest.approx(1.0)


@pytest.mark.parametrize(("waiting", "ahead"), [(1.0, 0.7), (0.7, 1.0)])
def test_the_depth_that_really_yields_more_is_chosen(waiting: float, ahead: float):
    choice, parts = policy(depth=1), times(2, 0.1, 0.1, 0.05)
    now, depths = 0.0, []
    for _ in range(20 * PATIENCE):
        plan = choice.choose(["r"], parts)["r"]
        now += 1 / (tokens_per_second(plan, parts, MID) * (ahead if plan.depth else waiting))
        choice.retired(1, now)
        depths.append(plan.depth)
    assert 1 in depths, "it promises more"
    assert set(depths[4 * PATIENCE :]) == {int(ahead > waiting)}
