"""The table of ``benchmarks.first_token``."""

from __future__ import annotations

from benchmarks.first_token import PLAIN, PPSD, render


def test_a_ratio_is_of_one_turn():
    seconds = {PLAIN: [1.0, 2.0, 1.0], PPSD: [1.02, 2.04, 1.02]}
    line = render([{"stages": 2, "length": 1000, "seconds": seconds}]).splitlines()[-1]
    assert line == "| 2 | 1000 | 1000 | 1020 | 1.02 (1.02 to 1.02) |"
