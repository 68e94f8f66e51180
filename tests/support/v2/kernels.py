"""vLLM's V2 model runner without Triton: its kernels in torch.

vLLM runs its own kernels in Triton's interpreter, too, but that takes half a second a token. These
are registered as vLLM's CPU platform registers its own fallbacks. Arguments are the kernels' own,
in their order; `test_v2_kernels.py` compares the results with the interpreter's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.triton_utils import triton
from vllm.triton_utils.dispatcher import register_kernels

from support.v2 import sampling_kernels

INPUTS = "vllm.v1.worker.gpu.input_batch"


def register(launched: Callable[[Any], Any] | None = None) -> None:
    """Let this process's V2 runner launch the functions below in place of Triton kernels.

    Args:
        launched: makes of a kernel what launches it; without it, one runs where it is launched.
    """
    if not hasattr(triton, "next_power_of_2"):
        triton.next_power_of_2 = lambda n: 1 << max(0, n - 1).bit_length()
    kernels = {
        "vllm.v1.worker.gpu.buffer_utils._apply_write_kernel": apply_write,
        "vllm.v1.worker.gpu.block_table._gather_block_tables_kernel": gather_block_tables,
        "vllm.v1.worker.gpu.block_table._compute_slot_mappings_kernel": compute_slot_mappings,
        f"{INPUTS}._prepare_prefill_inputs_kernel": prepare_prefill_inputs,
        f"{INPUTS}._prepare_pos_seq_lens_kernel": prepare_pos_seq_lens,
        f"{INPUTS}._combine_sampled_and_draft_tokens_kernel": combine_tokens,
        f"{INPUTS}._get_num_sampled_and_rejected_kernel": num_sampled_and_rejected,
        f"{INPUTS}._post_update_kernel": post_update,
        f"{INPUTS}._post_update_num_computed_tokens_kernel": post_update_num_computed,
        f"{INPUTS}._expand_idx_mapping_kernel": expand_idx_mapping,
    } | sampling_kernels.KERNELS
    if launched is not None:
        kernels = {name: launched(kernel) for name, kernel in kernels.items()}
    register_kernels(kernels)


def apply_write(
    output: torch.Tensor,
    stride: int,
    indices: torch.Tensor,
    starts: torch.Tensor,
    contents: torch.Tensor,
    cu_lens: torch.Tensor,
    group_ids: torch.Tensor | None,
    BLOCK_SIZE: int,
    MULTI_GROUP: bool,
) -> None:
    begin = 0
    for write, (index, start, end) in enumerate(
        zip(indices.tolist(), starts.tolist(), cu_lens.tolist(), strict=True)
    ):
        content = contents[begin:end]
        if MULTI_GROUP:
            assert group_ids is not None
            group = int(group_ids[write])
            row = int(output[group]) + 4 * (index * int(stride[group]) + start)  # type: ignore[index]
            _ints(row, end - begin)[:] = content.numpy()
        else:
            output.view(-1)[index * stride + start :][: end - begin] = content
        begin = end


def gather_block_tables(
    idx_mapping: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
    strides: torch.Tensor,
    num_blocks: torch.Tensor,
    num_blocks_stride: int,
    num_reqs: int,
    BLOCK_SIZE: int,
) -> None:
    for group, stride in enumerate(strides.tolist()):
        for row, request in enumerate(idx_mapping.tolist()):
            count = int(num_blocks[group, request])
            source = _ints(int(sources[group]) + 4 * request * stride, count)
            _ints(int(targets[group]) + 4 * row * stride, count)[:] = source


def compute_slot_mappings(
    max_num_tokens: int,
    idx_mapping: torch.Tensor,
    query_start_loc: torch.Tensor,
    positions: torch.Tensor,
    tables: torch.Tensor,
    strides: torch.Tensor,
    block_sizes: torch.Tensor,
    enabled: torch.Tensor,
    dcp_sharded: torch.Tensor,
    slot_mappings: torch.Tensor,
    slot_mappings_stride: int,
    cp_rank: int,
    CP_SIZE: int,
    CP_INTERLEAVE: int,
    PAD_ID: int,
    TRITON_BLOCK_SIZE: int,
) -> None:
    assert CP_SIZE == 1
    requests = idx_mapping.tolist()
    starts = query_start_loc[: len(requests) + 1].tolist()
    for group, stride in enumerate(strides.tolist()):
        size = int(block_sizes[group])
        slot_mappings[group, starts[-1] :] = PAD_ID
        for request, start, end in zip(requests, starts, starts[1:], strict=False):
            at = positions[start:end].numpy()
            if request < 0 or not enabled[group]:
                slot_mappings[group, start:end] = PAD_ID
                continue
            blocks = _ints(int(tables[group]) + 4 * request * stride, stride)
            slots = blocks[at // size].astype(np.int64) * size + at % size
            slot_mappings[group, start:end] = torch.from_numpy(slots)


def prepare_prefill_inputs(
    input_ids: torch.Tensor,
    next_tokens: torch.Tensor,
    next_tokens_stride: int,
    num_lookahead: int,
    idx_mapping: torch.Tensor,
    query_start_loc: torch.Tensor,
    all_token_ids: torch.Tensor,
    all_token_ids_stride: int,
    prefill_lens: torch.Tensor,
    num_computed_tokens: torch.Tensor,
    BLOCK_SIZE: int,
    LOOKAHEAD_BLOCK: int,
) -> None:
    for row, request in enumerate(idx_mapping.tolist()):
        computed, prefill = int(num_computed_tokens[request]), int(prefill_lens[request])
        if computed >= prefill:
            continue
        start, end = query_start_loc[row : row + 2].tolist()
        behind = computed + end - start
        input_ids[start:end] = all_token_ids[request, computed:behind]
        ahead = all_token_ids[request, behind : min(behind + num_lookahead, prefill)]
        next_tokens[:, request] = 0
        next_tokens[: len(ahead), request] = ahead


def prepare_pos_seq_lens(
    positions: torch.Tensor,
    seq_lens: torch.Tensor,
    idx_mapping: torch.Tensor,
    query_start_loc: torch.Tensor,
    num_computed_tokens: torch.Tensor,
    max_num_reqs: int,
    BLOCK_SIZE: int,
) -> None:
    seq_lens[len(idx_mapping) :] = 0
    for row, request in enumerate(idx_mapping.tolist()):
        start, end = query_start_loc[row : row + 2].tolist()
        computed = int(num_computed_tokens[request])
        seq_lens[row] = computed + end - start
        positions[start:end] = torch.arange(computed, computed + end - start)


def combine_tokens(
    input_ids: torch.Tensor,
    idx_mapping: torch.Tensor,
    last_sampled: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    prefill_len: torch.Tensor,
    draft_tokens: torch.Tensor,
    draft_tokens_stride: int,
    cu_num_logits: torch.Tensor,
    logits_indices: torch.Tensor,
    BLOCK_SIZE: int,
    NUM_NEW_SAMPLED_TOKENS: int = 1,
) -> None:
    for row, request in enumerate(idx_mapping.tolist()):
        first, last = cu_num_logits[row : row + 2].tolist()
        count = last - first
        end = int(query_start_loc[row + 1])
        logits_indices[first:last] = torch.arange(end - count, end)
        length, prefill = int(seq_lens[row]), int(prefill_len[request])
        if length <= prefill:
            continue
        if NUM_NEW_SAMPLED_TOKENS and length - count >= prefill:
            input_ids[end - count] = last_sampled.view(-1)[request]
        drafts = count - NUM_NEW_SAMPLED_TOKENS
        if drafts:
            input_ids[end - drafts : end] = draft_tokens[request, :drafts]


def num_sampled_and_rejected(
    num_sampled: torch.Tensor,
    num_rejected: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_num_logits: torch.Tensor,
    idx_mapping: torch.Tensor,
    prefill_len: torch.Tensor,
) -> None:
    rows = len(idx_mapping)
    chunk = seq_lens[:rows] < prefill_len[idx_mapping]
    num_sampled[:rows].masked_fill_(chunk, 0)
    num_rejected[:rows] = (cu_num_logits.diff()[:rows] - num_sampled[:rows]).masked_fill(chunk, 0)


def post_update(
    idx_mapping: torch.Tensor,
    num_computed_tokens: torch.Tensor,
    last_sampled: torch.Tensor,
    output_bin_counts: torch.Tensor | None,
    output_bin_counts_stride: int,
    sampled: torch.Tensor,
    sampled_stride: int,
    num_sampled: torch.Tensor,
    num_rejected: torch.Tensor,
    query_start_loc: torch.Tensor | None,
    all_token_ids: torch.Tensor,
    all_token_ids_stride: int,
    total_len: torch.Tensor,
    **_: Any,
) -> None:
    for row, request in enumerate(idx_mapping.tolist()):
        if request < 0:
            continue
        count, length = int(num_sampled[row]), int(total_len[request])
        tokens = sampled[row, :count]
        if count:
            last_sampled.view(-1)[request] = tokens[-1]
            total_len[request] = length + count
            all_token_ids[request, length : length + count] = tokens.to(all_token_ids.dtype)
            if output_bin_counts is not None:
                ones = torch.ones(count, dtype=output_bin_counts.dtype)
                output_bin_counts[request].index_add_(0, tokens, ones)
        if query_start_loc is not None:
            num_computed_tokens[request] += query_start_loc[row + 1] - query_start_loc[row]
        num_computed_tokens[request] -= num_rejected[row]


def post_update_num_computed(
    idx_mapping: torch.Tensor, num_computed_tokens: torch.Tensor, query_start_loc: torch.Tensor
) -> None:
    num_computed_tokens[idx_mapping] += query_start_loc.diff()[: len(idx_mapping)]


def expand_idx_mapping(
    idx_mapping: torch.Tensor,
    expanded: torch.Tensor,
    local: torch.Tensor,
    cu_num_logits: torch.Tensor,
    BLOCK_SIZE: int,
) -> None:
    counts = cu_num_logits.diff().to(torch.int64)
    expanded[:] = idx_mapping.repeat_interleave(counts)
    starts = cu_num_logits[:-1].repeat_interleave(counts)
    local[:] = torch.arange(len(local), dtype=local.dtype) - starts


def _ints(address: int, count: int) -> np.ndarray:
    """Return int32 that lie at an address; the kernels are given addresses of tables."""
    return np.ctypeslib.as_array((ctypes.c_int32 * count).from_address(address))
