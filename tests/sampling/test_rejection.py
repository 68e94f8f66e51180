"""Probabilistic drafts in a pipeline: whatever they are drawn from, the target decides."""

from __future__ import annotations

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from vllm_ppsd.sampling import proposals
from vllm_ppsd.sampling.noise import second, state
from vllm_ppsd.sampling.proposals import Proposals, draw_proposals
from vllm_ppsd.sampling.rejection import RejectionSampler
from vllm_ppsd.sampling.sampler import CoupledSampler

ROWS = 20_000
DRAFTED = torch.tensor([0, 2, 3, 5])
HEAD = torch.tensor([1.0, 0.0, -1.0, 0.5])
TARGET = torch.tensor([0.2, 1.0, -0.5, 0.0, -2.0, 1.2])
STATES = [state(5, position) for position in range(ROWS)]
CRITICAL = {5: 20.52, 2: 13.82}
"""Of chi-square by degrees of freedom, at p = 0.001."""


def drafted(**options) -> tuple[torch.Tensor, Proposals]:
    samplings = [SamplingParams(**options)] * ROWS
    return draw_proposals(HEAD.expand(ROWS, -1), samplings, STATES, DRAFTED, range(ROWS))


def judged(drafts: torch.Tensor, told: Proposals | None, k: int | None = None) -> torch.Tensor:
    sampler = RejectionSampler(TopKTopPSampler())
    sampler.expect(STATES)
    sampler.tell(drafts.tolist(), told)
    top_k = None if k is None else torch.full((ROWS,), k)
    return sampler(TARGET.repeat(ROWS, 1), {}, top_k, None)[0]


def on_the_vocabulary(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    chances = torch.zeros(len(TARGET))
    chances[token_ids] = logits.softmax(dim=0)
    return chances


def distance(tokens: torch.Tensor, expected: torch.Tensor) -> float:
    counts, expected = tokens.bincount(minlength=len(TARGET)), expected * len(tokens)
    possible = expected > 0
    assert not counts[~possible].any()
    return ((counts - expected) ** 2 / expected)[possible].sum().item()


def test_the_output_has_the_targets_distribution_and_hits_where_they_overlap():
    drafts, told = drafted()
    head, target = on_the_vocabulary(HEAD, DRAFTED), TARGET.softmax(dim=0)
    assert (drafts.bincount(minlength=6) / ROWS - head).abs().max() < 0.015
    output = judged(drafts, told)
    assert distance(output, target) < CRITICAL[5]
    hits = (output == drafts).float().mean().item()
    assert hits == pytest.approx(torch.minimum(head, target).sum().item(), abs=0.012)


def test_also_where_the_target_rules_tokens_out():
    drafts, told = drafted(temperature=0.7)
    kept = TARGET.topk(3).indices
    assert distance(judged(drafts, told, k=3), on_the_vocabulary(TARGET[kept], kept)) < CRITICAL[2]


def test_what_was_drafted_tells_nothing_of_what_is_drawn_instead():
    """Given a rejected draft, the token is drawn from what of p lies above q."""
    drafts, told = drafted()
    output = judged(drafts, told)
    checked = 0
    above = (TARGET.softmax(dim=0) - on_the_vocabulary(HEAD, DRAFTED)).clamp(min=0)
    for draft in DRAFTED.tolist():
        rejected = output[(drafts == draft) & (output != draft)]
        if len(rejected) > 500:
            share = rejected.bincount(minlength=6) / len(rejected)
            assert (share - above / above.sum()).abs().max() < 0.05
            checked += 1
    assert checked > 1


def test_few_tokens_are_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proposals, "SUPPORT", 2)
    drafts, told = drafted()
    assert set(drafts.tolist()) == {0, 5}
    assert told.token_ids.shape == told.chances.shape == (ROWS, 2)
    assert distance(judged(drafts, told), TARGET.softmax(dim=0)) < CRITICAL[5]


def test_a_head_that_is_the_target_is_always_right():
    everything = torch.arange(len(TARGET))
    drafts, told = draw_proposals(
        TARGET.expand(ROWS, -1), [SamplingParams()] * ROWS, STATES, everything, range(ROWS)
    )
    assert torch.equal(judged(drafts, told), drafts)


def test_rows_without_a_proposal_are_drawn_as_with_coupled_drafts():
    drafts, told = drafted()
    coupled = CoupledSampler(TopKTopPSampler())
    coupled.expect(STATES)
    expected = coupled(TARGET.repeat(ROWS, 1), {}, None, None)[0]
    assert torch.equal(judged(drafts, None), expected)
    half = slice(0, ROWS, 2)
    some = Proposals(told.rows[half], told.token_ids[half], told.chances[half])
    output = judged(drafts, some)
    assert torch.equal(output[1::2], expected[1::2])
    assert torch.equal(output[half], judged(drafts, told)[half])


def test_a_proposal_is_for_one_tick():
    drafts, told = drafted()
    sampler = RejectionSampler(TopKTopPSampler())
    outputs = []
    for proposals_of_tick in (None, told, None):
        sampler.expect(STATES)
        if proposals_of_tick is not None:
            sampler.tell(drafts.tolist(), proposals_of_tick)
        outputs.append(sampler(TARGET.repeat(ROWS, 1), {}, None, None)[0])
    assert torch.equal(outputs[1], judged(drafts, told))
    assert not torch.equal(outputs[1], outputs[0])
    assert torch.equal(outputs[2], outputs[0])


def test_a_draft_that_the_target_rules_out_is_never_kept():
    """Even where rounding leaves nothing of the target above the head."""
    sure = torch.full((1, 6), -torch.inf)
    sure[0, 2] = 0.0
    told = Proposals([0], torch.tensor([[2, 3]]), torch.tensor([[1.0, 1e-9]]))
    sampler = RejectionSampler(TopKTopPSampler())
    for generator in STATES[:50]:
        sampler.expect([generator])
        sampler.tell([3], told)
        assert sampler(sure.clone(), {}, None, None)[0].tolist() == [2]


def test_the_second_generator_is_another_one():
    assert second(STATES[0]) != STATES[0]
    assert len({second(s) for s in STATES[:100]} | set(STATES[:100])) == 200
