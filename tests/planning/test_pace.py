"""Work beside other work takes longer, exactly as long as there is other work."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest
from support.simulator.pace import Pace


def test_work_is_slowed_while_there_is_other_work():
    now, events, ends = 0.0, [], {}

    def after(delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(events, (now + delay, len(events), action))

    pace = Pace(1.5, lambda: now, after)
    pace.run(0, 10.0, lambda start: ends.update({0: (start, now)}))
    after(4.0, lambda: pace.run(1, 2.0, lambda start: ends.update({1: (start, now)})))
    while events:
        now, _, action = heapq.heappop(events)
        action()
    # Stage 1's 2 ms take 3; of stage 0's 10 ms the 2 beside them do.
    assert ends[1] == pytest.approx((4.0, 7.0))
    assert ends[0] == pytest.approx((0.0, 11.0))
