"""Cached states as packed batches, and which states a multi-depth head reads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from support.states import write_states

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.training.dataset import StateSet, cached_layers, diagonal
from vllm_ppsd.training.packing import pack

DOCUMENTS = [(3, 5), (2, 2), (7, 1), (1, 6), (4, 4)]
PROMPT_END, LENGTH = 2, 9


@pytest.fixture
def states(tmp_path: Path) -> StateSet:
    write_states(tmp_path, DOCUMENTS, exit_layer=2, lm_head=torch.randn(6, 8))
    return StateSet(tmp_path, 2)


def test_a_batch_holds_its_documents_one_behind_the_other(states: StateSet):
    one, two = states.documents[0], states.documents[3]
    alone = [states.batch([one], final=True), states.batch([two], final=True)]
    both = states.batch([one, two], final=True)
    assert both.lengths == (8, 4)
    assert torch.equal(both.states, torch.cat([b.states for b in alone]))
    assert both.rows.tolist() == [2, 3, 4, 5, 6, 9, 10]
    for name in ("next", "top_ids", "top_logprobs", "final"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(b, name) for b in alone]))


def test_states_of_another_layer_are_packed_the_same_way(states: StateSet, tmp_path: Path):
    chosen = [states.documents[3], states.documents[0]]
    assert torch.equal(StateSet(tmp_path, 2).batch(chosen).states, states.batch(chosen).states)
    with pytest.raises(TrainingError, match=r"exit-5.*layer 5 are not cached"):
        StateSet(tmp_path, 5)


def test_packs_hold_every_document_once_and_stay_within_bounds(states: StateSet):
    packs = list(pack(states.documents, 12, random.Random(0)))
    assert sorted(d.length for p in packs for d in p) == sorted(sum(d) for d in DOCUMENTS)
    assert all(sum(d.length for d in p) <= 12 for p in packs)


def test_the_split_is_the_same_every_time(states: StateSet):
    assert states.split(2, 7) == states.split(2, 7)
    training, held_out = states.split(2, 7)
    assert len(training) == 3
    assert not set(training) & set(held_out)
    with pytest.raises(TrainingError, match="leave none of 5"):
        states.split(5, 7)


def test_more_documents_hold_out_none_that_was_trained_on(states: StateSet):
    everything = list(states.documents)
    whole = {seed: set(states.split(2, seed)[1]) for seed in range(8)}
    states.documents = everything[:3]
    assert any(whole[seed] != set(states.split(2, seed)[1]) for seed in whole)
    for seed, held_out in whole.items():
        trained_on, _ = states.split(2, seed)
        assert not held_out & set(trained_on)


def test_tokens_count_as_written_and_as_probable(states: StateSet):
    batch = states.batch(states.documents)
    expected = torch.bincount(batch.next, minlength=6).double()
    for ids, logprobs in zip(batch.top_ids, batch.top_logprobs, strict=True):
        expected[ids] += logprobs.double().exp()
    torch.testing.assert_close(states.token_counts(states.documents, 6), expected)


def test_missing_states_are_named(tmp_path: Path):
    with pytest.raises(TrainingError, match="holds no states"):
        StateSet(tmp_path, 2)
    write_states(tmp_path, DOCUMENTS, exit_layer=2, lm_head=torch.randn(6, 8))
    with pytest.raises(TrainingError, match="states of layer 3 are not cached"):
        StateSet(tmp_path, 3)


def depth(number: int) -> torch.Tensor:
    """States that say whose they are: 100 · depth + token, from the prompt's last token on."""
    tokens = torch.arange(PROMPT_END, LENGTH - 1)
    return (100 * number + tokens).float()[:, None]


def test_the_last_stage_needs_no_cache_of_its_own():
    assert cached_layers(8, [15, 22, 30]) == [8, 15, 22]
    assert cached_layers(18, []) == [18]


def test_each_stage_is_one_token_behind_the_one_before():
    deeper = diagonal([depth(2), depth(3), depth(4)], LENGTH, PROMPT_END).squeeze(-1)
    for token in range(LENGTH):
        expected = [
            100 * (place + 2) + token - place - 1 if token - place - 1 >= PROMPT_END else 0
            for place in range(3)
        ]
        assert deeper[token].tolist() == expected


def test_a_short_document_reads_nothing():
    assert not diagonal([depth(2)[:1]], PROMPT_END + 1, PROMPT_END).any()
