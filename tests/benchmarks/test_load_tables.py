"""From runs under load, and over a slow link, to a table."""

from __future__ import annotations

from benchmarks import load, nodes


def figures(tokens: float, acceptance: float | None) -> dict[str, float | None]:
    return dict.fromkeys(load.FIGURES, 2 * tokens) | {
        "output_throughput": tokens,
        "acceptance": acceptance,
    }


def test_a_load_has_a_line_per_server_and_the_ratio():
    row = {
        "load": "4 at once",
        "runs": {
            load.PLAIN: [figures(40.0, None), figures(50.0, None), figures(60.0, None)],
            load.PPSD: [figures(44.0, 0.7), figures(50.0, 0.6), figures(90.0, 0.8)],
        },
        "ratios": [1.1, 1.0, 1.5],
    }
    _, _, plain, ppsd = load.render([row]).splitlines()
    assert plain.startswith("| 4 at once | plain | 50.0 | 100.0 |")
    assert ppsd.endswith("| 0.70 | 1.10 (1.00 to 1.50) |")


def test_a_delay_has_a_line_with_the_speedup_of_every_depth():
    row = {
        "delay_ms": 10.0,
        "ms": {nodes.PLAIN: [60.0, 66.0], "PPSD, 1 in flight": [30.0, 33.0]},
        "identical": "2 of 2",
    }
    assert nodes.render([row]).splitlines()[-1] == ("| 10 | 63.0 | 2.00 (2.00 to 2.00) | 2 of 2 |")
