"""The planner's choices, and the command that prints them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planning.test_cost_model import FREE, profile

from vllm_ppsd.cli.main import main
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.planning.plan import between, plans


def test_rates_between_known_exits_are_on_a_straight_line():
    assert between({8: 0.4, 12: 0.8}) == pytest.approx({8: 0.4, 9: 0.5, 10: 0.6, 11: 0.7, 12: 0.8})


def test_at_equal_acceptance_the_balanced_layout_wins():
    best, *_ = plans(FREE, 2, dict.fromkeys(range(1, 24), 0.8))
    assert best.partition == (12, 12)
    assert best.drafts == 1
    assert best.speedup == pytest.approx(2 / 1.2)


def test_a_slow_link_wants_more_drafts_in_flight():
    rates = dict.fromkeys(range(1, 24), 0.85)
    near, far = plans(FREE, 2, rates)[0], plans(FREE.over_link(30), 2, rates)[0]
    assert near.drafts < far.drafts


def test_a_deeper_exit_pays_where_it_accepts_more():
    made = profile()
    flat = plans(made, 2, dict.fromkeys(range(1, 29), 0.6))[0]
    steep = plans(made, 2, {e: 0.4 if e < 19 else 0.95 for e in range(1, 29)})[0]
    assert flat.exit_layer < 19 == steep.exit_layer


@pytest.mark.parametrize(("stages", "rates"), [(1, {3: 0.5}), (25, {3: 0.5}), (4, {23: 0.9})])
def test_what_cannot_be_split_is_refused(stages: int, rates: dict[int, float]):
    with pytest.raises(PPSDConfigError):
        plans(FREE, stages, rates)


def test_the_command_prints_layouts_assumptions_and_how_to_serve(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rates = tmp_path / "a.json"
    rates.write_text(json.dumps({"2": 0.5, "4": 0.8}))
    picture = tmp_path / "plan.png"
    words = ["plan", str(tiny_llama), "--stages", "2", "--acceptance", str(rates)]
    assert main([*words, "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "assumed, not measured: hand-overs, verdicts" in out
    assert f"vllm serve {tiny_llama} --pipeline-parallel-size 2" in out
    assert picture.stat().st_size > 10_000
    rates.write_text('{"2": 1.5}')
    assert main(words) == 2
    assert "between 0 and 1" in capsys.readouterr().err


def test_a_profile_that_names_no_head_or_is_of_another_model_is_refused(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "p.json"
    words = ["plan", str(tiny_llama), "--stages", "2", "--profile", str(path)]
    path.write_text(profile().model_dump_json())
    assert main(words) == 2
    assert "is of a model with 30 layers" in capsys.readouterr().err
    path.write_text(profile().model_copy(update={"num_layers": 6}).model_dump_json())
    assert main(words) == 2
    assert "does not say which exit head it was measured with" in capsys.readouterr().err
