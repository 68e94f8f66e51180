"""Attention metadata for a batch of drafts: one token a request, behind what is verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata


@dataclass(frozen=True)
class DraftBatch:
    """What a forward pass over one draft per request needs besides the tokens.

    Attributes:
        positions: int64 [requests].
        attention: attention metadata by layer name.
        slots: key/value slots by layer name, int64 [requests].
    """

    positions: torch.Tensor
    attention: dict[str, Any]
    slots: dict[str, torch.Tensor]


def draft_batch(runner: Any, rows: list[int], positions: list[int], depth: int) -> DraftBatch:
    """Return the batch in which the requests in ``rows`` stand at ``positions``.

    Args:
        runner: vLLM's model runner.
        rows: rows of its input batch.
        positions: one per row; a block is allocated for each (vLLM's lookahead).
        depth: how many drafts came before in this step.
    """
    device = runner.device
    count = len(rows)
    at = torch.tensor(positions, dtype=torch.int64, device=device)
    chosen = torch.tensor(rows, dtype=torch.int64, device=device)
    starts = torch.arange(count + 1, dtype=torch.int32)
    attention: dict[str, Any] = {}
    slots: dict[str, torch.Tensor] = {}
    for group in range(len(runner.kv_cache_config.kv_cache_groups)):
        table = runner.input_batch.block_table[group]
        blocks = table.get_device_tensor(runner.input_batch.num_reqs)[chosen]
        block = blocks.gather(1, (at // table.block_size)[:, None])[:, 0].to(torch.int64)
        slot = block * table.block_size + at % table.block_size
        metadata = CommonAttentionMetadata(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=(at + 1).to(torch.int32),
            num_reqs=count,
            num_actual_tokens=count,
            max_query_len=1,
            max_seq_len=max(positions) + 1,
            block_table_tensor=blocks,
            slot_mapping=slot,
            positions=at,
            seq_lens_cpu_upper_bound=torch.tensor(positions, dtype=torch.int32) + 1,
        )
        for attention_group in runner.attn_groups[group]:
            built = attention_group.build_metadata_for_drafting(metadata, draft_index=depth)
            attention |= dict.fromkeys(attention_group.layer_names, built)
            slots |= dict.fromkeys(attention_group.layer_names, slot)
    return DraftBatch(at, attention, slots)
