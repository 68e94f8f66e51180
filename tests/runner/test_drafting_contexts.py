"""Contexts for drafts: where a row's next tokens go, step by step."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, is_forward_context_available

from vllm_ppsd.runner.drafting import Layout, draft_context

BLOCK_SIZE = 4
BLOCKS = torch.tensor([[7, 3, 0], [9, 8, 2]], dtype=torch.int32)


class Group:
    """Keeps the metadata that it is asked to build from."""

    def __init__(self, *names: str) -> None:
        self.layer_names = list(names)

    def build_metadata_for_drafting(self, metadata: Any, draft_index: int) -> Any:
        return metadata, draft_index


def layout(blocks: torch.Tensor, *groups: list[Group]) -> Layout:
    tables = [(blocks, BLOCK_SIZE)] * len(groups)
    return Layout(VllmConfig(), torch.device("cpu"), groups, tables)


def test_every_step_is_one_position_on():
    one = layout(BLOCKS, [Group("a", "b")])
    with draft_context(one, [3, 10], depth=1, steps=2) as steps:
        seen = []
        for at in steps:
            context = get_forward_context()
            assert isinstance(context.attn_metadata, dict)
            metadata, depth = context.attn_metadata["b"]
            assert context.attn_metadata["a"] is context.attn_metadata["b"]
            assert isinstance(context.slot_mapping, dict)
            assert context.slot_mapping["a"] is metadata.slot_mapping
            assert metadata.block_table_tensor.tolist() == [[7, 3, 0], [9, 8, 2]]
            assert metadata.max_seq_len == int(metadata.seq_lens.max())
            assert metadata.query_start_loc.tolist() == [0, 1, 2]
            slots, lengths = metadata.slot_mapping.tolist(), metadata.seq_lens.tolist()
            seen.append((at.tolist(), slots, lengths, depth))
    assert seen == [
        ([3, 10], [7 * 4 + 3, 2 * 4 + 2], [4, 11], 1),
        ([4, 11], [3 * 4 + 0, 2 * 4 + 3], [5, 12], 2),
    ]
    assert not is_forward_context_available()


def test_layers_of_every_group_find_their_metadata():
    groups = layout(BLOCKS[1:], [Group("a")], [Group("b"), Group("c")])
    with draft_context(groups, [0], depth=0, steps=1) as steps:
        assert next(steps).tolist() == [0]
        assert set(get_forward_context().attn_metadata) == {"a", "b", "c"}
