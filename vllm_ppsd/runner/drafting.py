"""Contexts for layers over one token each of some requests, made outside vLLM's own pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_ppsd.to_device import on_device


class Layout(NamedTuple):
    """Where a model runner keeps what such layers need.

    Attributes:
        vllm_config: the worker's.
        device: where the layers run.
        attn_groups: vLLM's, by group of layers that share a block table.
        tables: by such a group, the block tables of the requests, int32 [rows, blocks], and
            tokens of a block.
    """

    vllm_config: VllmConfig
    device: torch.device
    attn_groups: Sequence[Sequence[Any]]
    tables: Sequence[tuple[torch.Tensor, int]]


@contextmanager
def draft_context(
    layout: Layout, positions: Sequence[int], depth: int, steps: int
) -> Iterator[Iterator[torch.Tensor]]:
    """Let layers run over the next tokens of some requests; see ``RunnerPort.draft_context``.

    All that a step needs is laid out for all steps at once, and one forward context serves them:
    a step costs no more than the attention backend's metadata.

    Args:
        layout: of the requests.
        positions: of the first step's tokens.
        depth: drafts before the first step.
        steps: how often the context moves on, at most.
    """
    device = layout.device
    first = on_device(positions, device)
    at = first + torch.arange(steps, device=device)[:, None]
    groups = [_group(blocks, size, positions, at) for blocks, size in layout.tables]
    attention: dict[str, Any] = {}
    slots: dict[str, torch.Tensor] = {}

    def enter(step: int) -> None:
        for common, attn_groups in zip(groups, layout.attn_groups, strict=True):
            metadata = common(step)
            for attention_group in attn_groups:
                built = attention_group.build_metadata_for_drafting(
                    metadata, draft_index=depth + step
                )
                for name in attention_group.layer_names:
                    attention[name], slots[name] = built, metadata.slot_mapping

    def walk() -> Iterator[torch.Tensor]:
        yield at[0]
        for step in range(1, steps):
            enter(step)
            yield at[step]

    # vLLM keeps the dictionaries that it is given, unless they are empty.
    enter(0)
    with set_forward_context(
        attention, layout.vllm_config, num_tokens=len(positions), slot_mapping=slots
    ):
        yield walk()


def _group(
    blocks: torch.Tensor, block_size: int, positions: Sequence[int], at: torch.Tensor
) -> Callable[[int], CommonAttentionMetadata]:
    """Return what makes the metadata of a step for one group of layers; ``at`` is [steps, rows]."""
    count = len(positions)
    block = blocks.T.gather(0, at // block_size).to(torch.int64)
    slots = block * block_size + at % block_size
    lengths = (at + 1).to(torch.int32)
    starts = torch.arange(count + 1, dtype=torch.int32)
    device_starts = torch.arange(count + 1, dtype=torch.int32, device=at.device)
    begins = torch.tensor(positions, dtype=torch.int32)
    upper_bounds = begins + torch.arange(1, len(at) + 1, dtype=torch.int32)[:, None]
    longest = max(positions) + 1

    def common(step: int) -> CommonAttentionMetadata:
        return CommonAttentionMetadata(
            query_start_loc=device_starts,
            query_start_loc_cpu=starts,
            seq_lens=lengths[step],
            num_reqs=count,
            num_actual_tokens=count,
            max_query_len=1,
            max_seq_len=longest + step,
            block_table_tensor=blocks,
            slot_mapping=slots[step],
            positions=at[step],
            seq_lens_cpu_upper_bound=upper_bounds[step],
        )

    return common
