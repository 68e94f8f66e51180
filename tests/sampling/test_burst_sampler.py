"""Rows of a lane are sampled one behind the other, each with the tokens before it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample import sampler as vllm_sampler
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from vllm_ppsd.sampling.bursts import BurstSampler

VOCABULARY = 8


def metadata_of(lanes: int, **changes: Any) -> SamplingMetadata:
    none = torch.zeros(lanes)
    fields: dict[str, Any] = {
        "temperature": None,
        "all_greedy": True,
        "all_random": False,
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": none,
        "presence_penalties": none,
        "repetition_penalties": none + 1,
        "output_token_ids": [[] for _ in range(lanes)],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
        "spec_token_ids": [[-1]] * lanes,
    }
    return SamplingMetadata(**(fields | changes))


def sample(
    rows: list[list[int]], drafts: list[list[int]], sampler: Any = None, **changes: Any
) -> tuple[list[list[int]], Any, list[int]]:
    """Sample lanes whose rows' most probable tokens are given; return tokens, output and rounds."""
    tokens = [token for lane in rows for token in lane]
    logits = torch.nn.functional.one_hot(torch.tensor(tokens), VOCABULARY).to(torch.float32)
    # The runner-up is the next token.
    logits += torch.nn.functional.one_hot((torch.tensor(tokens) + 1) % VOCABULARY, VOCABULARY) / 2
    metadata = SpecDecodeMetadata.make_dummy(
        [[0] * (len(lane) - 1) for lane in rows], logits.device
    )
    ends = torch.tensor([len(lane) for lane in rows]).cumsum(0)
    metadata.bonus_logits_indices = (ends - 1).to(torch.int32)
    rounds: list[int] = []
    bursts = BurstSampler(sampler or Sampler(), rounds.append)
    bursts.expect(drafts)
    output = bursts(metadata, None, logits, metadata_of(len(rows), **changes))
    parsed, logprobs = RejectionSampler.parse_output(
        output.sampled_token_ids, VOCABULARY, logprobs_tensors=output.logprobs_tensors
    )
    return parsed, logprobs, rounds


def test_a_lanes_tokens_count_up_to_the_first_that_is_not_its_draft():
    tokens, _, rounds = sample([[1, 2, 3], [4, 5], [6]], [[1, 7], [4], []])
    assert tokens == [[1, 2], [4, 5], [6]]
    assert rounds == [0, 1]


def test_no_row_is_sampled_behind_a_difference_in_all_lanes():
    tokens, _, rounds = sample([[1, 2, 3, 4], [5, 6, 7]], [[0, 2, 3], []])
    assert tokens == [[1], [5]]
    assert rounds == [0]


def test_bad_words_see_the_tokens_before_in_the_lane():
    bad = {0: [[1, 2]]}
    tokens, _, _ = sample([[1, 2, 3]], [[1, 3]], bad_words_token_ids=bad)
    assert tokens == [[1, 3, 3]], "behind 1, 2 is ruled out, and 3 comes next"
    tokens, _, _ = sample([[0, 2, 3]], [[0, 2]], bad_words_token_ids=bad)
    assert tokens == [[0, 2, 3]]


def test_penalties_count_the_tokens_before_in_the_lane():
    tokens, _, _ = sample(
        [[1, 1, 1]],
        [[1, 2]],
        no_penalties=False,
        prompt_token_ids=torch.full((1, 1), VOCABULARY),
        presence_penalties=torch.ones(1),
    )
    assert tokens == [[1, 2, 0]]


def test_stop_tokens_are_ruled_out_until_there_are_enough_with_those_in_the_lane():
    processor: Any = object.__new__(MinTokensLogitsProcessor)
    processor.device, processor.neg_inf_tensor = torch.device("cpu"), torch.tensor(-torch.inf)
    processor.min_toks = {1: (2, [9], {5}, False)}
    processor.logits_slice = torch.tensor([1]), torch.tensor([5])
    processor.restore_logits_slice = torch.tensor([], dtype=torch.int64), torch.tensor([])
    tokens, _, _ = sample(
        [[5, 5, 5], [5, 5, 5]], [[5, 5], [6, 5]], logitsprocs=LogitsProcessors([processor])
    )
    assert tokens == [[5, 5, 5], [6, 5, 5]]


def test_logprobs_are_those_of_the_rows_that_count(monkeypatch: pytest.MonkeyPatch):
    # vLLM's is compiled, which takes longer than all tests here.
    monkeypatch.setattr(vllm_sampler, "batched_count_greater_than", lambda x, y: (x >= y).sum(-1))

    def values(token: int) -> float:
        logits = torch.zeros(VOCABULARY)
        logits[token], logits[token + 1] = 1.0, 0.5
        return logits.log_softmax(0)[token].item()

    _, logprobs, _ = sample([[1, 2, 3], [4, 5]], [[1, 7], [4]], max_num_logprobs=1)
    assert logprobs.cu_num_generated_tokens == [0, 2, 4]
    assert logprobs.logprob_token_ids[:, 0].tolist() == [1, 2, 4, 5]
    assert logprobs.sampled_token_ranks.tolist() == [1] * 4
    torch.testing.assert_close(
        torch.from_numpy(logprobs.logprobs[:, 0]), torch.tensor([values(t) for t in (1, 2, 4, 5)])
    )


def test_every_round_is_sampled_with_the_rows_of_that_depth():
    seen: list[list[int]] = []

    def sampler(logits: torch.Tensor, sampling_metadata: Any, predict_bonus_token: bool) -> Any:
        tokens = logits.argmax(-1)
        seen.append(tokens.tolist())
        assert predict_bonus_token == (len(seen) > 1)
        ranks = SimpleNamespace(value=tokens)
        return SamplerOutput(
            tokens.to(torch.int32)[:, None],
            LogprobsTensors(tokens[:, None], tokens[:, None] / 2, ranks.value),
        )

    sample([[1, 2, 3], [4]], [[1, 2], []], sampler)
    assert seen == [[1, 4], [2, 4], [3, 4]]
