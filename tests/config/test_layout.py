"""Layers are split so that stage 0 ends at the exit layer."""

from __future__ import annotations

import pytest

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.config.layout import balanced_exit_layer, check_partition, split_layers
from vllm_ppsd.costs import ModelShape
from vllm_ppsd.planning.shape import assumed_head

SMOLLM2 = ModelShape(30, 576, 1536, 9, 3, 64, 49152)
LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256)


def test_the_lm_head_of_a_small_model_weighs_as_much_as_eight_layers():
    assert SMOLLM2.lm_head_cost == pytest.approx(8.0, abs=0.01)
    assert LLAMA_8B.lm_head_cost == pytest.approx(2.4, abs=0.1)


@pytest.mark.parametrize("shape", [SMOLLM2, LLAMA_8B])
@pytest.mark.parametrize("stages", [2, 3, 4, 8])
def test_every_split_is_whole_and_starts_at_the_exit(shape: ModelShape, stages: int):
    for exit_layer in range(1, shape.num_layers - stages + 2):
        split = split_layers(shape.num_layers, shape.lm_head_cost, exit_layer, stages)
        assert len(split) == stages
        assert split[0] == exit_layer
        assert sum(split) == shape.num_layers
        assert min(split) >= 1


def test_a_head_weighs_its_layers_maps_and_rows_of_the_lm_head():
    head = assumed_head(SMOLLM2, 8)
    hidden, layer = SMOLLM2.hidden_size, SMOLLM2.layer_weights
    rows = head.draft_vocab_size
    assert rows is not None
    expected = 1 + (rows + hidden) * hidden / layer
    assert SMOLLM2.head_cost(head) == pytest.approx(expected)
    further_on = head.model_copy(update={"num_layers": 2, "start_layer": 16})
    assert SMOLLM2.head_cost(further_on) == pytest.approx(expected + 1 + hidden**2 / layer)


def test_the_last_stage_has_fewer_layers_for_its_lm_head():
    assert split_layers(SMOLLM2.num_layers, SMOLLM2.lm_head_cost, 8, 3) == [8, 15, 7]
    assert split_layers(LLAMA_8B.num_layers, LLAMA_8B.lm_head_cost, 8, 4) == [8, 9, 9, 6]


def test_without_a_head_the_exit_balances_the_stages():
    assert balanced_exit_layer(SMOLLM2, 2) == 19
    assert balanced_exit_layer(LLAMA_8B, 2) == 17


@pytest.mark.parametrize("exit_layer", [0, 30, 31])
def test_an_exit_layer_that_does_not_fit_is_refused(exit_layer: int):
    with pytest.raises(PPSDConfigError, match=f"exit layer {exit_layer} does not fit 2"):
        split_layers(SMOLLM2.num_layers, SMOLLM2.lm_head_cost, exit_layer, 2)


def test_a_fitting_partition_wins():
    assert check_partition("8,12,10", 8, 30, 3) == [8, 12, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b", "not a comma-separated list"),
        ("8,22", "does not split 30 layers over 3"),
        ("8,12,11", "does not split"),
        ("8,22,0", "does not split"),
        ("9,11,10", "after layer 8"),
    ],
)
def test_a_partition_that_does_not_fit_is_refused(text: str, message: str):
    with pytest.raises(PPSDConfigError, match=message):
        check_partition(text, 8, 30, 3)
