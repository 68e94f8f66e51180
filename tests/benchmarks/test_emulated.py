"""From emulated pipelines to a table."""

from __future__ import annotations

from benchmarks import emulated


def test_the_overhead_of_a_tick_is_shown_where_every_draft_is_a_hit():
    row = {
        "stages": 4,
        "acceptance": 1.0,
        "plain_ms": 124.0,
        "ppsd_ms": 31.5,
        "ratios": [3.9, 4.0, 3.8],
        "ideal": 4.0,
        "model": 3.95,
        "overhead_ms": 1.5,
        "identical": True,
    }
    _, _, all_hits, some = emulated.render([row, row | {"acceptance": 0.5}]).splitlines()
    assert "3.90 (3.80 to 4.00)" in all_hits
    assert "| 1.5 ms | yes |" in all_hits
    assert "1.5 ms" not in some
