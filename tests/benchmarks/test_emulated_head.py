"""The table of ``benchmarks.emulated_head``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from benchmarks.emulated_head import render, split


def test_layers_behind_the_exit_are_dealt_out_evenly():
    config: Any = SimpleNamespace(exit_layer=18, target=SimpleNamespace(num_hidden_layers=30))
    assert split(config, 4) == [18, 4, 4, 4]
    assert split(config, 8) == [18, 2, 2, 2, 2, 2, 1, 1]


def test_a_row_has_speedup_acceptance_and_temperature():
    row = {
        "stages": 4,
        "temperature": 0.0,
        "plain_ms": [400.0, 402.0],
        "ppsd_ms": [150.0, 160.0],
        "speedups": [2.6, 2.5],
        "drafts": 100,
        "hits": 70,
        "same": 1,
    }
    line = render([row]).splitlines()[-1]
    assert line.startswith("| 4 | 0 | 401 | 155 | 0.70 | 2.55")
    assert line.endswith("| 1 of 2 |")
