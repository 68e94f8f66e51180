"""The last stage's part in bursts: every row of a lane is sampled as a step of its own would be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

Prepare = Callable[[int], None]
"""Told, before the rows of so many drafts behind a lane's first are sampled."""


class BurstSampler:
    """Takes the place of vLLM's rejection sampler.

    A row is sampled by vLLM's whole sampler, with the drafts before it in its lane as output
    tokens, so that penalties, bad words, logits processors and logprobs are those of plain
    decoding. First come the first rows of all lanes, then the second ones, and so on as long as
    some lane's samples are its drafts.

    Args:
        sampler: vLLM's.
        prepare: called before each round.
    """

    def __init__(self, sampler: Any, prepare: Prepare) -> None:
        self._sampler, self._prepare = sampler, prepare
        self._drafts: Sequence[Sequence[int]] = ()

    def expect(self, drafts: Sequence[Sequence[int]]) -> None:
        """Say, by row of the batch, which drafts the next call's lanes have behind their first
        row that samples; none of lanes that do not count."""
        self._drafts = drafts

    def __call__(
        self,
        metadata: SpecDecodeMetadata,
        draft_probs: torch.Tensor | None,
        logits: torch.Tensor,
        sampling_metadata: SamplingMetadata,
    ) -> SamplerOutput:
        """Sample; arguments and result as vLLM's. Drafts are those of ``expect``."""
        drafts, self._drafts = self._drafts, ()
        last = metadata.bonus_logits_indices
        counts = torch.tensor(metadata.num_draft_tokens, device=last.device)
        samples: list[torch.Tensor] = []
        logprobs: list[LogprobsTensors] = []
        agreeing = list(range(len(drafts)))
        while agreeing:
            depth = len(samples)
            self._prepare(depth)
            # A lane that has no such row is sampled where it ends, for nothing.
            rows = last - (counts - depth).clamp(min=0)
            output = self._sampler(
                logits=logits[rows],
                sampling_metadata=_behind(sampling_metadata, drafts, depth),
                # That is, with the tokens before it in its lane.
                predict_bonus_token=depth > 0,
            )
            tokens = output.sampled_token_ids[:, 0]
            kept = torch.full_like(tokens, PLACEHOLDER_TOKEN_ID)
            kept[agreeing] = tokens[agreeing]
            samples.append(kept)
            if output.logprobs_tensors is not None:
                logprobs.append(output.logprobs_tensors)
            sampled = tokens.tolist()
            agreeing = [
                row
                for row in agreeing
                if depth < len(drafts[row]) and drafts[row][depth] == sampled[row]
            ]
        return SamplerOutput(
            sampled_token_ids=_in_columns(samples, metadata.max_spec_len),
            logprobs_tensors=_interleaved(logprobs, metadata.max_spec_len) if logprobs else None,
        )


class _MinTokens:
    """vLLM's processor of ``min_tokens``, for rows that have more output before them.

    Args:
        stock: vLLM's.
        more: how many tokens more.
    """

    def __init__(self, stock: MinTokensLogitsProcessor, more: int) -> None:
        self._stock, self._more = stock, more

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Rule stop tokens out where a request's output is too short."""
        enough = [
            (row, stop)
            for row, (least, output, stops, _) in self._stock.min_toks.items()
            if len(output) + self._more >= least
            for stop in stops
        ]
        if not enough:
            return self._stock.apply(logits)
        rows, stops = torch.tensor(enough, device=logits.device).T
        before = logits[rows, stops]
        logits = self._stock.apply(logits)
        logits[rows, stops] = before
        return logits


def _behind(
    metadata: SamplingMetadata, drafts: Sequence[Sequence[int]], depth: int
) -> SamplingMetadata:
    """Return the metadata of rows with ``depth`` drafts before them in their lanes."""
    if not depth:
        return metadata
    processors = copy.copy(metadata.logitsprocs)
    processors.non_argmax_invariant = [
        _MinTokens(one, depth) if isinstance(one, MinTokensLogitsProcessor) else one
        for one in processors.non_argmax_invariant
    ]
    return replace(
        metadata,
        logitsprocs=processors,
        spec_token_ids=[list(one[:depth]) for one in drafts],
        # Requests with a budget for thinking carry one token.
        thinking_budget_state_holder=None,
    )


def _in_columns(samples: Sequence[torch.Tensor], longest: int) -> torch.Tensor:
    """Return the samples as vLLM does, int32 [lanes, longest + 1]."""
    missing = torch.full_like(samples[0], PLACEHOLDER_TOKEN_ID)
    return torch.stack([*samples, *[missing] * (longest + 1 - len(samples))], dim=1)


def _interleaved(logprobs: Sequence[LogprobsTensors], longest: int) -> LogprobsTensors:
    """Return the rounds' logprobs as vLLM does: rows of a lane follow each other."""
    padded = [*logprobs, *[logprobs[0]] * (longest + 1 - len(logprobs))]
    ids, values, ranks = zip(*(one[:3] for one in padded), strict=True)
    return LogprobsTensors(
        torch.stack(ids, dim=1).flatten(0, 1),
        torch.stack(values, dim=1).flatten(0, 1),
        torch.stack(ranks, dim=1).flatten(0, 1),
    )
