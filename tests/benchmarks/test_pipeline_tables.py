"""The benchmark's arithmetic and table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.engine_process import Run, engine_process
from benchmarks.pipeline import (
    ACCEPTANCES,
    PLAIN,
    SINGLE,
    draw,
    ours,
    ratios,
    render,
    render_ratios,
    rows,
    theirs,
)
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
    table = render([row])
    assert (
        "| PPSD, p = 1.0 | 40.0 (39.0 to 42.0) | 1.00 | 1.90 (1.85 to 1.95) | 0.95 | yes |" in table
    )


def test_a_pipeline_of_equal_stages_is_never_slower_than_plain():
    assert min(ideal_speedup(n, a / 10) for n in (2, 4) for a in range(11)) == pytest.approx(1)


def runs() -> dict[str, list[Run]]:
    """Two rounds; the other checkout takes a quarter longer, then as long."""
    made = {PLAIN: [Run([1, 2], 40.0, 0, 0)] * 2, SINGLE: [Run([1, 3], 30.0, 0, 0)] * 2}
    for p in ACCEPTANCES:
        made[ours(p)] = [Run([1, 2], 20.0, 10, round(10 * p))] * 2
        made[theirs(p)] = [Run([1, 2], time, 10, round(10 * p)) for time in (25.0, 20.0)]
    return made


def test_runs_are_paired_with_the_plain_ones_of_their_round():
    by_name = {row["name"]: row for row in rows(runs())}
    drafted = by_name[ours(0.7)]
    assert (drafted["alpha"], drafted["speedup"], drafted["identical"]) == (0.7, 2.0, "yes")
    assert drafted["of_ideal"] == pytest.approx(2 / ideal_speedup(2, 0.7))
    assert by_name[SINGLE]["identical"] == "other kernels"


def test_two_checkouts_are_compared_run_by_run():
    by_acceptance = ratios(runs())
    assert by_acceptance == {str(p): [0.8, 1.0] for p in ACCEPTANCES}
    assert "| 0.7 | 0.90 (0.85 to 0.95) | 2 |" in render_ratios(by_acceptance)


def test_the_picture_is_drawn(tmp_path: Path):
    draw({"rows": rows(runs()), "cpu": "some processor"}, tmp_path / "speedup.png")
    assert (tmp_path / "speedup.png").stat().st_size > 10_000


def test_a_folder_without_the_project_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="is no checkout"), engine_process(tmp_path, {}):
        pass
