"""What the planner says of bursts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planning.test_cost_model import FREE

from vllm_ppsd.cli.main import main
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.exit_head.checkpoint import save
from vllm_ppsd.exit_head.create import describe_target, head_config, initial_tensors
from vllm_ppsd.planning.bursts import (
    BY_STEP,
    assumed_rates,
    burst_choice,
    burst_times,
    measured_rates,
)


def test_rates_come_from_the_heads_origin(tmp_path: Path):
    assert measured_rates(tmp_path) is None
    origin = tmp_path / "origin.json"
    origin.write_text(json.dumps({"rounds": []}))
    assert measured_rates(tmp_path) is None
    origin.write_text(json.dumps({BY_STEP: [0.8, 0.75, 0.7]}))
    rates = measured_rates(tmp_path)
    assert rates is not None
    assert (rates.steps, rates.reentry) == ((0.8, 0.75, 0.7), 0.75)


@pytest.mark.parametrize("known", [[], [0.8, 1.5], 0.8, ["high"], [True]])
def test_what_are_no_rates_is_refused(tmp_path: Path, known: object):
    (tmp_path / "origin.json").write_text(json.dumps({BY_STEP: known}))
    with pytest.raises(PPSDConfigError, match="step 1 first"):
        measured_rates(tmp_path)


def test_assumed_rates_follow_the_first_step():
    assert assumed_rates(0.39).steps[:2] == pytest.approx((0.39, 0.36))


def test_times_are_the_layouts():
    times = burst_times(FREE.over_link(3), (12, 12))
    assert len(times.stages) == 2
    assert times.stages[0] == pytest.approx(12 * FREE.at(1).layer)
    assert times.hop == pytest.approx(3)


def test_bursts_are_expected_to_do_more_than_one_token():
    rates = assumed_rates(0.78)
    one, _ = burst_choice(FREE, (12, 12), 1, rates, 1)
    _, alone = burst_choice(FREE, (12, 12), 1, rates, 1)
    words, speedup = burst_choice(FREE, (12, 12), 6, rates, 1)
    assert one.startswith("0 drafts behind a true token")
    assert words != one
    assert speedup > 1.1 * alone


def test_the_command_prints_bursts_for_a_head_of_several_steps(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = head_config(
        describe_target(tiny_llama), exit_layer=3, head_type="transformer", steps=4
    )
    head = tmp_path / "head"
    save(head, config, initial_tensors(str(tiny_llama), config))
    words = ["plan", str(tiny_llama), "--stages", "2", "--head", str(head)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "with bursts in the first layout: " in out
    assert "acceptance of the head's steps behind the first" in out
    (head / "origin.json").write_text(json.dumps({BY_STEP: [0.8, 0.75, 0.7, 0.7]}))
    assert main(words) == 0
    assert "acceptance of the head's steps" not in capsys.readouterr().out
