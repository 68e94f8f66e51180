"""Lanes of several rows on V2: which samples count."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vllm_ppsd.runner.v2.sampler import LaneSampler, accepted


@dataclass
class Output:
    sampled_token_ids: torch.Tensor
    num_sampled: torch.Tensor
    num_rejected: torch.Tensor


class Sampler:
    """Samples given tokens, one a row."""

    marker = "vLLM's"

    def __init__(self, tokens: list[int], chunks: tuple[int, ...] = ()) -> None:
        self.tokens, self.chunks = torch.tensor(tokens), chunks

    def __call__(self, logits: torch.Tensor, batch: Any) -> Output:
        ones = torch.ones(batch.num_reqs, dtype=torch.int32)
        ones[list(self.chunks)] = 0
        self.inputs = batch.input_ids.tolist()
        return Output(self.tokens.view(-1, 1), ones, torch.zeros_like(ones))


def batch(counts: list[int], lengths: list[int] | None = None) -> Any:
    """A batch of lanes that sample so many rows, the last ones of their lengths."""
    ends = np.cumsum([0, *(lengths or counts)])
    rows = [
        end - count + i for end, count in zip(ends[1:], counts, strict=True) for i in range(count)
    ]
    return SimpleNamespace(
        num_reqs=len(counts),
        num_draft_tokens=sum(counts) - len(counts),
        num_draft_tokens_per_req=np.array(counts) - 1,
        cu_num_logits=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
        query_start_loc_np=ends,
        logits_indices=torch.tensor(rows),
        input_ids=torch.full((int(ends[-1]),), 9, dtype=torch.int32),
    )


def sample(counts: list[int], drafts: list[list[int]], tokens: list[int], **kind: Any) -> Any:
    prepared: list[int] = []
    sampler = LaneSampler(Sampler(tokens, kind.get("chunks", ())), prepared.append)
    sampler.expect(drafts)
    output = sampler(torch.zeros(0), batch(counts, kind.get("lengths")))
    return sampler, output, prepared


def test_samples_count_as_far_as_they_are_the_drafts_that_follow():
    sampler, output, prepared = sample([3, 1, 2], [[5, 6], [], [7]], [5, 8, 1, 2, 7, 4])
    assert output.num_sampled.tolist() == [2, 1, 2]
    assert output.num_rejected.tolist() == [1, 0, 0]
    assert [
        row[:n].tolist() for row, n in zip(output.sampled_token_ids, [2, 1, 2], strict=True)
    ] == [
        [5, 8],
        [2],
        [7, 4],
    ]
    assert output.num_sampled.dtype == torch.int32
    assert sampler._sampler.inputs == [9, 5, 6, 9, 9, 7], "penalties are told the drafts"
    assert prepared == [0]


def test_drafts_stand_at_the_end_of_a_lane():
    _, output, _ = sample([2], [[5]], [5, 1], lengths=[4])
    assert output.num_sampled.tolist() == [2]


def test_nothing_is_sampled_in_a_prompts_chunk():
    _, output, _ = sample([1, 2], [[], [5]], [3, 4, 5], chunks=(0,))
    assert output.num_sampled.tolist() == [0, 1]
    assert output.num_rejected.tolist() == [0, 1]


def test_lanes_of_one_row_go_through():
    sampler, output, prepared = sample([1, 1], [[], []], [3, 4])
    assert output.sampled_token_ids.tolist() == [[3], [4]]
    assert prepared == []
    assert sampler.marker == "vLLM's"


def test_no_lane_goes_on_in_the_next_ones_rows():
    starts = torch.tensor([0, 1, 3], dtype=torch.int32)
    tokens, right = accepted(torch.tensor([6, 1, 2]), torch.tensor([9, 6, 1]), starts, longest=2)
    assert right.tolist() == [0, 1]
    assert tokens.tolist() == [[6, 1], [1, 2]]
