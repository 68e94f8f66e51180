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


def test_sizes_that_do_not_fit_are_left_out_and_named(monkeypatch, capsys):
    class Memory:
        available = 6 * 2**30

    monkeypatch.setattr(emulated.psutil, "virtual_memory", lambda: Memory)
    monkeypatch.setattr(emulated.resource, "getrlimit", lambda kind: (10_000, 10_000))
    assert emulated._fits(2)
    assert not emulated._fits(8)
    assert "8 stages left out: 18 processes need about 14 GB, of which 6 are free" in (
        capsys.readouterr().out
    )
    monkeypatch.setattr(emulated.resource, "getrlimit", lambda kind: (100, 100))
    assert not emulated._fits(2)
