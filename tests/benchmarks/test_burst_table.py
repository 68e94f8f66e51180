"""The table of ``benchmarks.bursts``."""

from __future__ import annotations

from benchmarks.bursts import DEFAULT, PLAIN, fixed, render, rows
from benchmarks.engine_process import Run


def test_a_row_pairs_each_run_with_the_plain_pipelines():
    runs = {
        PLAIN: [Run([1, 2], 40.0, 0, 0), Run([3, 4], 60.0, 0, 0)],
        DEFAULT: [Run([1, 2], 20.0, 10, 8), Run([3, 5], 20.0, 10, 7)],
    }
    plain, default = rows(runs)
    assert plain["speedups"] == [1.0, 1.0] and plain["alpha"] is None
    assert default["speedups"] == [2.0, 3.0]
    assert default["alpha"] == 0.75
    assert (default["same"], default["runs"]) == (1, 2)
    text = render([row | {"temperature": 1.0} for row in (plain, default)])
    assert "| 1 | default | 20.0 |" in text and "1 of 2" in text


def test_a_fixed_burst_is_read():
    assert fixed("4,0") == {"reentry": 4, "following": 0}
