"""Both ends of coupled sampling: the drafts of stage 0 and vLLM's sampler on the last stage."""

from __future__ import annotations

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from vllm_ppsd.sampling.drafts import draw, is_greedy, shape
from vllm_ppsd.sampling.noise import state
from vllm_ppsd.sampling.sampler import CoupledSampler

VOCABULARY = 200
ALL = torch.arange(VOCABULARY)
POSITIONS = range(300)
STATES = [state(11, position) for position in POSITIONS]


def some_logits(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(POSITIONS), VOCABULARY, generator=generator)


def target_draws(logits: torch.Tensor, states: list[int] = STATES, **options) -> torch.Tensor:
    sampler = CoupledSampler(TopKTopPSampler())
    sampler.expect(states)
    sampled, _ = sampler(logits.clone(), {}, options.get("k"), options.get("p"))
    return sampled


def head_draws(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    return draw(shape(logits, [sampling] * len(logits)), STATES, ALL)


def test_a_head_that_knows_the_target_is_always_right():
    logits = some_logits()
    assert torch.equal(head_draws(logits, SamplingParams()), target_draws(logits))


@pytest.mark.parametrize("k, p", [(20, None), (None, 0.8), (20, 0.8)])
def test_also_under_top_k_and_top_p(k: int | None, p: float | None):
    logits, rows = some_logits(), len(POSITIONS)
    sampling = SamplingParams(temperature=0.7, top_k=k or 0, top_p=p or 1.0)
    target = target_draws(
        logits / 0.7,
        k=None if k is None else torch.full((rows,), k),
        p=None if p is None else torch.full((rows,), p),
    )
    assert torch.equal(head_draws(logits, sampling), target)


def test_a_head_that_nearly_knows_it_is_right_far_more_often_than_its_argmax():
    logits = some_logits()
    near = logits + 0.3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    target = target_draws(logits)
    coupled = (head_draws(near, SamplingParams()) == target).float().mean()
    argmax = (near.argmax(dim=-1) == target).float().mean()
    assert coupled > 2 * argmax


def test_the_draft_vocabulary_keeps_its_tokens_noise():
    logits, ids = some_logits(), torch.arange(0, VOCABULARY, 2)
    outside = torch.full_like(logits, -torch.inf)
    outside[:, ids] = logits[:, ids]
    drafts = draw(shape(logits[:, ids], [SamplingParams()] * len(logits)), STATES, ids)
    assert torch.equal(drafts, target_draws(outside))


def test_min_p_rules_out_what_vllm_rules_out():
    logits = torch.tensor([[0.0, -1.0, -3.0, -4.0]])
    kept = shape(logits, [SamplingParams(temperature=2.0, min_p=0.3)])[0]
    chances = (logits[0] / 2).softmax(dim=0)
    assert torch.isfinite(kept).tolist() == (chances >= 0.3 * chances.max()).tolist()


def test_the_heads_logits_are_not_changed():
    logits = some_logits()
    before = logits.clone()
    head_draws(logits, SamplingParams(temperature=0.5, top_p=0.9, min_p=0.1))
    assert torch.equal(logits, before)


def test_what_is_greedy_to_vllm():
    assert is_greedy(SamplingParams(temperature=0.0))
    assert not is_greedy(SamplingParams(temperature=0.01))


def test_warm_up_needs_no_states():
    sampler = CoupledSampler(TopKTopPSampler())
    sampled, processed = sampler(some_logits()[:3], {}, None, None)
    assert len(sampled) == 3
    assert processed is None


@pytest.mark.parametrize("mode", ["processed_logits", "processed_logprobs"])
def test_processed_logprobs_as_vllm_returns_them(mode):
    logits = some_logits()[:3]
    ours, theirs = CoupledSampler(TopKTopPSampler(mode)), TopKTopPSampler(mode)
    k = torch.tensor([5, 5, 5])
    assert torch.equal(
        ours(logits.clone(), {}, k, None)[1], theirs.forward_native(logits.clone(), {}, k, None)[1]
    )
