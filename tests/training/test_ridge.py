"""Where the head's maps start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.states import write_states
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.create import describe_target, head_config
from vllm_ppsd.exit_head.deeper import rms_normalize
from vllm_ppsd.training.acceptance import validate
from vllm_ppsd.training.build import read_lm_head, untrained
from vllm_ppsd.training.chains import chains_of
from vllm_ppsd.training.dataset import StateSet
from vllm_ppsd.training.packing import pack
from vllm_ppsd.training.ridge import Ridge, fit_fusion, fit_input_map, fit_output_map


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_tiny_model(tmp_path / "tiny"))


def test_rows_that_come_in_parts_are_one_regression():
    torch.manual_seed(0)
    x, turn = torch.randn(200, 5).double(), torch.randn(5, 3).double()
    y = x @ turn + 2
    ridge = Ridge(5, 3)
    for part in range(0, 200, 40):
        ridge.add(x[part : part + 40], y[part : part + 40])
    weights, bias = ridge.solve(torch.zeros(5))
    torch.testing.assert_close(weights, turn)
    torch.testing.assert_close(bias, torch.full((3,), 2.0).double())


def test_rows_of_no_weight_do_not_count():
    torch.manual_seed(0)
    x = torch.randn(40, 2)
    y = x.clone()
    y[:10] = 100
    weight = torch.ones(40, 1)
    weight[:10] = 0
    ridge = Ridge(2, 2)
    ridge.add(x, y, weight)
    weights, _ = ridge.solve(torch.zeros(2))
    torch.testing.assert_close(weights, torch.eye(2).double())


def test_ridge_makes_a_head_that_is_mostly_right(model: str, tmp_path: Path):
    """The final state is affine in the exit state; only the norm hides its scale."""
    write_states(tmp_path / "states", [(4, 12)] * 40, exit_layer=3, lm_head=read_lm_head(model))
    states = StateSet(tmp_path / "states", 3)
    config = head_config(
        describe_target(Path(model)), exit_layer=3, head_type="lens", output_map=True
    )
    head, vocabulary = untrained(model, config, None)
    batches = [states.batch(p, final=True) for p in pack(states.documents, 64)]
    assert validate(head, batches, vocabulary).acceptance < 0.1
    fit_output_map(head, batches)
    assert validate(head, batches, vocabulary).acceptance > 0.7


@pytest.mark.parametrize("deeper_layers", [[], [6]])
def test_the_input_map_carries_the_states_to_where_the_layers_start(
    model: str, tmp_path: Path, deeper_layers: list[int]
):
    """They are affine in what the head reads; one token's huge state does not matter."""
    write_states(tmp_path / "states", [(4, 12)] * 80, exit_layer=3, lm_head=read_lm_head(model))
    states = StateSet(tmp_path / "states", 3, deeper_layers)
    config = head_config(
        describe_target(Path(model)),
        exit_layer=3,
        start_layer=5,
        head_type="transformer",
        deeper_layers=deeper_layers,
    )
    head, _ = untrained(model, config, None)
    batch = states.batch(states.documents)
    turn, other = (torch.randn(128, 128) / 128**0.5 for _ in range(2))
    goal = batch.states.float() + batch.states.float() @ turn + 0.5
    if batch.deeper is not None:
        goal = goal + rms_normalize(batch.deeper[:, 0].float()) @ other
    huge = goal.clone()
    huge[7] += 1e4
    fit_input_map(head, [(batch, huge)])
    assert head.input_map is not None
    with torch.no_grad():
        mapped = batch.states.float() + head.input_map(batch.states.float())
        if batch.deeper is not None:
            mapped = mapped + head.deeper_in[0](rms_normalize(batch.deeper[:, 0].float()))
    error = (mapped - goal).square().mean() / goal.square().mean()
    assert error < 0.01


def test_the_fusion_finds_what_the_next_position_reads(model: str, tmp_path: Path):
    """What step 1 reads there is affine in the embedding of the token before."""
    write_states(tmp_path / "states", [(4, 12)] * 80, exit_layer=3, lm_head=read_lm_head(model))
    states = StateSet(tmp_path / "states", 3)
    config = head_config(
        describe_target(Path(model)), exit_layer=3, head_type="transformer", steps=2
    )
    head, _ = untrained(model, config, None)
    batch = states.batch(states.documents, final=True)
    turn = torch.randn(128, 128, generator=torch.Generator().manual_seed(0)) / 12
    starts = chains_of(batch, 2).starts
    read = head.embedding[batch.next[starts]] @ turn + 1
    batch.states[batch.rows[starts + 1]] = read.bfloat16()
    fit_fusion(head, [batch])
    for final in (head.predicted(batch.states, batch.lengths, batch.rows), batch.final.float()):
        fused = head.fused(final[starts], batch.next[starts])
        assert (fused - read).square().mean() < 0.05 * read.var()
