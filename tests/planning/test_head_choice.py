"""Heads to choose from: their names, costs and rates."""

import pytest

from vllm_ppsd.costs import ModelShape
from vllm_ppsd.planning.heads import HELD, choices
from vllm_ppsd.planning.plan import plans, plans_with_heads
from vllm_ppsd.planning.shape import assumed_head
from vllm_ppsd.planning.times import assumed_profile

RATES = dict.fromkeys(range(1, 30), 0.7)


def shape(vocab_size: int) -> ModelShape:
    return ModelShape(30, 576, 1536, 9, 3, 64, vocab_size)


def found(vocab_size: int):
    sizes = shape(vocab_size)
    base = assumed_head(sizes)
    times = assumed_profile("m", sizes, base)
    return sizes, base, times, list(choices(base, RATES))


def test_the_head_of_the_rates_keeps_its_rates_and_cost():
    sizes, base, times, heads = found(48_000)
    same = next(c for c in heads if c.config == base)
    assert same.name == "1 layer, 12,000 tokens"
    assert same.rates == pytest.approx(RATES)
    assert same.profile(times, sizes).at(1).head == pytest.approx(times.at(1).head)


def test_a_larger_vocabulary_accepts_more_and_costs_more():
    sizes, _, times, heads = found(48_000)
    one = [c for c in heads if c.config.num_layers == 1]
    rates = [c.rates[10] for c in one]
    costs = [c.profile(times, sizes).at(1).head for c in one]
    assert len(one) == len(HELD)
    assert rates == sorted(rates)
    assert costs == sorted(costs)
    assert rates[-1] == pytest.approx(0.7 / 0.966)


def test_a_vocabulary_smaller_than_known_holds_less():
    sizes = shape(48_000)
    tiny = assumed_head(sizes).model_copy(update={"draft_vocab_size": 4000})
    rates = [c.rates[10] for c in choices(tiny, {10: 0.4})]
    assert max(rates) > 0.4 * 0.966 / 0.945 * 1.5


def test_the_search_is_never_worse_than_with_one_head_and_says_how_to_train_the_best():
    sizes, _, times, heads = found(48_000)
    best = plans_with_heads(times, 2, sizes, heads)[0]
    alone = plans(times, 2, RATES)[0]
    assert best.speedup >= alone.speedup
    assert best.choice is not None
    said = best.choice.training("m", best.exit_layer)
    assert said.startswith(f"vllm-ppsd train m --exit-layer {best.exit_layer} --layers ")
    assert f"--draft-vocab-size {best.choice.config.draft_vocab_size}" in said


def test_a_large_vocabulary_is_cut_for_a_small_model_and_kept_whole_for_a_large_one():
    def chosen(sizes: ModelShape) -> float:
        base = assumed_head(sizes)
        times = assumed_profile("m", sizes, base)
        best = plans_with_heads(times, 2, sizes, choices(base, RATES))[0]
        return (best.choice.config.draft_vocab_size or 0) / sizes.vocab_size

    large = ModelShape(80, 8192, 28672, 64, 8, 128, 128_256)
    assert chosen(shape(48_000)) < chosen(large)
