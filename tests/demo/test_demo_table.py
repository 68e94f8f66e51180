"""What ``make demo`` says about its runs."""

from __future__ import annotations

from vllm_ppsd.demo.run import Turn, remarks, table
from vllm_ppsd.tools.engines import Timed


def turn(plain_ms: float, ppsd_ms: float, last: int = 3) -> Turn:
    def timed(tokens: list[int], ms: float, drafts: int, hits: int) -> Timed:
        return Timed([1], tokens, ms * (len(tokens) - 1) / 1000, 5, 0.1, drafts, hits)

    return Turn(timed([1, 2, 3], plain_ms, 0, 0), timed([1, 2, last], ppsd_ms, 4, 3))


def test_what_is_identical_is_counted_and_the_promise_named():
    turns = [turn(20, 10), turn(21, 10, last=4)]
    (line,) = remarks(turns, exact=False)
    assert "1 of 2" in line and "--exact" in line
    (line,) = remarks(turns[:1], exact=True)
    assert "1 of 1" in line and "exact mode" in line


def test_a_busy_machine_is_named_in_place_of_advice():
    *_, line = remarks([turn(20, 25), turn(26, 25)], exact=True)
    assert "busy" in line and "26%" in line
    *_, line = remarks([turn(20, 25), turn(20, 25)], exact=True)
    assert "does not pay" in line


def test_speedup_and_acceptance_are_of_all_turns():
    made = table([turn(20, 10), turn(20, 10)])
    cells = [list(column.cells) for column in made.columns]
    assert cells[3] == ["", "0.75"] and cells[4] == ["1.00", "2.00"]
