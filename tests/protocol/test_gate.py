"""Whether several requests draft, by what was counted with drafts and without."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from vllm_ppsd.protocol.gate import BEFORE, STALE, DraftingGate

TICK = 0.05


class Load:
    """Requests that decode at some rate with drafts, and at another without."""

    def __init__(self, requests: int, drafting: float, plain: float, promise: float = 1.2) -> None:
        self.gate = DraftingGate()
        self.requests, self.promise = requests, promise
        self.rates = {True: drafting, False: plain}
        self.clock = itertools.count()
        self.open: list[bool] = []

    def run(self, seconds: float) -> float:
        """Decode for so long; return the share of time in which requests drafted."""
        ticks = round(seconds / TICK)
        ways = [self.tick() for _ in range(ticks)]
        return sum(ways) / ticks

    def tick(self) -> bool:
        way = self.gate.choose(self.requests, self.promise)
        self.gate.retired(round(self.rates[way] * TICK), next(self.clock) * TICK, prompts=False)
        return way


def test_where_drafts_cost_more_than_they_bring_none_are_made():
    load = Load(20, drafting=400, plain=500)
    assert load.run(5) == pytest.approx(0.4, abs=0.1), "both ways are tried"
    assert load.run(100) < 0.1
    assert "no request of 12 to 23 drafts: 400 tokens/s with drafts, 500 w" in load.gate.describe()


def test_where_they_pay_they_are_made():
    load = Load(6, drafting=300, plain=200)
    load.run(5)
    assert load.run(100) > 0.95
    assert load.gate.is_open


def test_a_way_that_was_slower_is_tried_again():
    load = Load(20, drafting=400, plain=500)
    load.run(10)
    load.rates[True] = 600
    load.run(STALE * 3)
    assert load.run(10) == 1.0


def test_every_load_has_its_own_choice():
    load = Load(20, drafting=400, plain=500)
    load.run(10)
    load.requests, load.rates = 3, {True: 200.0, False: 100.0}
    load.run(5)
    assert load.run(20) > 0.9
    load.requests, load.rates = 20, {True: 400.0, False: 500.0}
    assert load.run(20) < 0.1


@pytest.mark.parametrize(
    "change", [lambda load: setattr(load, "requests", 1), lambda load: setattr(load, "promise", 1)]
)
def test_one_request_and_plain_plans_are_no_business_of_it(change: Callable[[Load], None]):
    load = Load(20, drafting=400, plain=500)
    load.run(10)
    change(load)
    assert load.run(10) == 1.0


def test_what_loses_again_and_again_is_tried_less_and_less():
    load = Load(20, drafting=400, plain=500)
    first, later = load.run(200), load.run(800)
    assert 0 < later < first / 2


def test_ticks_with_prompts_are_not_counted():
    load = Load(20, drafting=500, plain=400)
    for step in range(4000):
        way = load.gate.choose(20, 1.2)
        # Drafting happens to run beside the prompts.
        prompts = way and step % 3 == 0
        for _ in range(20 if prompts else 1):
            now = next(load.clock) * TICK
        load.gate.retired(0 if prompts else round(load.rates[way] * TICK), now, prompts)
    assert load.gate.is_open


def test_results_of_ticks_before_a_change_are_not_counted():
    load = Load(20, drafting=500, plain=400)
    load.run(60)
    gate = load.gate
    while gate.is_open:
        load.tick()
    for _ in range(BEFORE - 1):
        load.gate.choose(20, 1.2)
        load.gate.retired(10_000, next(load.clock) * TICK, prompts=False)
    load.run(10)
    assert gate.is_open


def test_a_request_that_ends_before_the_next_one_comes_does_not_change_the_load():
    load = Load(32, drafting=400, plain=500)
    for step in range(2000):
        load.requests = 32 - step % 2
        load.tick()
    assert not load.gate.is_open
    assert "no request of 24 to 47 drafts" in load.gate.describe()
