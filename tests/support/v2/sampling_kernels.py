"""V2's sampling kernels in torch; see ``kernels``."""

from __future__ import annotations

from itertools import pairwise

import torch


def temperature(
    logits: torch.Tensor,
    stride: int,
    expanded: torch.Tensor,
    temperatures: torch.Tensor,
    vocab_size: int,
    BLOCK_SIZE: int,
) -> None:
    given = temperatures[expanded]
    logits /= given.masked_fill(given == 0, 1.0)[:, None]


def gumbel_sample(
    local_argmax: torch.Tensor,
    local_argmax_stride: int,
    local_max: torch.Tensor,
    local_max_stride: int,
    cache: torch.Tensor | None,
    cache_stride_0: int,
    cache_stride_1: int,
    cache_col: torch.Tensor | None,
    cache_source: torch.Tensor | None,
    cache_source_stride: int,
    logits: torch.Tensor,
    logits_stride: int,
    expanded: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    temperatures: torch.Tensor,
    vocab_size: int,
    BLOCK_SIZE: int,
    IS_DRAFTING: bool,
    APPLY_TEMPERATURE: bool,
    USE_FP64: bool,
    PER_TOKEN_COL: bool,
) -> None:
    assert cache is None and not IS_DRAFTING and not APPLY_TEMPERATURE and not USE_FP64
    values = logits.float()
    given = temperatures[expanded]
    noise = _gumbel(seeds[expanded], positions, vocab_size)
    values = torch.where((given != 0)[:, None], values + noise, values)
    local_max[:] = -torch.inf
    local_max[:, 0], local_argmax[:, 0] = values.max(dim=-1)


def topk_log_softmax(
    output: torch.Tensor,
    logits: torch.Tensor,
    logits_stride: int,
    ids: torch.Tensor,
    ids_stride: int,
    topk: int,
    vocab_size: int,
    BLOCK_SIZE: int,
    TOPK_BLOCK_SIZE: int,
) -> None:
    output[:] = logits.float().log_softmax(dim=-1).gather(-1, ids)


def ranks(
    output: torch.Tensor,
    logits: torch.Tensor,
    logits_stride: int,
    token_ids: torch.Tensor,
    vocab_size: int,
    BLOCK_SIZE: int,
) -> None:
    output[:] = (logits >= logits.gather(-1, token_ids[:, None])).sum(dim=-1)


def min_p(
    logits: torch.Tensor,
    stride: int,
    expanded: torch.Tensor,
    given: torch.Tensor,
    vocab_size: int,
    BLOCK_SIZE: int,
) -> None:
    least = logits.amax(dim=-1) + given[expanded].log()
    logits.masked_fill_(logits < least[:, None], -torch.inf)


def penalties(
    logits: torch.Tensor,
    logits_stride: int,
    expanded: torch.Tensor,
    token_ids: torch.Tensor,
    local: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    prompt_mask: torch.Tensor,
    prompt_mask_stride: int,
    counts: torch.Tensor,
    counts_stride: int,
    vocab_size: int,
    BLOCK_SIZE: int,
) -> None:
    for row, (request, depth) in enumerate(zip(expanded.tolist(), local.tolist(), strict=True)):
        seen = counts[request].clone()
        drafts = token_ids[row - depth + 1 : row + 1].to(torch.int64)
        seen.index_add_(0, drafts, torch.ones_like(drafts, dtype=seen.dtype))
        bits = prompt_mask[request][:, None] >> torch.arange(32) & 1
        known = (bits.view(-1)[:vocab_size] > 0) | (seen > 0)
        scale = torch.where(known, repetition[request], 1.0)
        values = logits[row]
        values = values * torch.where(values > 0, 1.0 / scale, scale)
        values = values - frequency[request] * seen
        logits[row] = values - presence[request] * (seen > 0)


def bincount(
    expanded: torch.Tensor,
    all_token_ids: torch.Tensor,
    all_token_ids_stride: int,
    prompt_len: torch.Tensor,
    prefill_len: torch.Tensor,
    prompt_mask: torch.Tensor,
    prompt_mask_stride: int,
    counts: torch.Tensor,
    counts_stride: int,
    BLOCK_SIZE: int,
) -> None:
    for request in expanded.tolist():
        prompt, prefill = int(prompt_len[request]), int(prefill_len[request])
        for token in all_token_ids[request, :prompt].tolist():
            bit = 1 << token % 32
            prompt_mask[request, token // 32] |= bit - 2**32 if bit == 2**31 else bit
        for token in all_token_ids[request, prompt:prefill].tolist():
            counts[request, token] += 1


def bias(
    logits: torch.Tensor,
    logits_stride: int,
    vocab_size: int,
    expanded: torch.Tensor,
    num_allowed: torch.Tensor,
    allowed: torch.Tensor,
    allowed_stride: int,
    num_bias: torch.Tensor,
    bias_ids: torch.Tensor,
    bias_ids_stride: int,
    biases: torch.Tensor,
    bias_stride: int,
    positions: torch.Tensor,
    min_lens: torch.Tensor,
    num_stop: torch.Tensor,
    restore_when_all_masked: torch.Tensor,
    stop: torch.Tensor,
    stop_stride: int,
    BLOCK_SIZE: int,
    LOGITS_BLOCK_SIZE: int,
    CHECK_ALL_MASKED_ROWS: bool,
) -> None:
    assert not CHECK_ALL_MASKED_ROWS
    for row, request in enumerate(expanded.tolist()):
        if count := int(num_allowed[request]):
            ids = allowed[request, :count].to(torch.int64)
            kept = logits[row, ids]
            logits[row] = -torch.inf
            logits[row, ids] = kept
        if count := int(num_bias[request]):
            logits[row, bias_ids[request, :count].to(torch.int64)] += biases[request, :count]
        if positions[row] + 1 < min_lens[request]:
            logits[row, stop[request, : num_stop[request]].to(torch.int64)] = -torch.inf


def bad_words(
    logits: torch.Tensor,
    logits_stride: int,
    expanded: torch.Tensor,
    words: torch.Tensor,
    words_stride: int,
    offsets: torch.Tensor,
    offsets_stride: int,
    num_words: torch.Tensor,
    all_token_ids: torch.Tensor,
    all_token_ids_stride: int,
    prompt_len: torch.Tensor,
    total_len: torch.Tensor,
    input_ids: torch.Tensor,
    local: torch.Tensor,
) -> None:
    for row, (request, depth) in enumerate(zip(expanded.tolist(), local.tolist(), strict=True)):
        output = all_token_ids[request, prompt_len[request] : total_len[request]].tolist()
        output += input_ids[row - depth + 1 : row + 1].tolist()
        ends = offsets[request, : int(num_words[request]) + 1].tolist()
        for start, end in pairwise(ends):
            *before, last = words[request, start:end].tolist()
            if len(before) <= len(output) and output[len(output) - len(before) :] == before:
                logits[row, last] = -torch.inf


def prompt_logprobs(
    token_ids: torch.Tensor,
    query_start_loc: torch.Tensor,
    idx_mapping: torch.Tensor,
    num_computed_tokens: torch.Tensor,
    all_token_ids: torch.Tensor,
    all_token_ids_stride: int,
    BLOCK_SIZE: int,
) -> None:
    for row, request in enumerate(idx_mapping.tolist()):
        start, end = query_start_loc[row : row + 2].tolist()
        first = int(num_computed_tokens[request]) + 1
        token_ids[start:end] = all_token_ids[request, first : first + end - start]


def grammar_bitmask(
    logits: torch.Tensor,
    logits_stride: int,
    logits_indices: torch.Tensor,
    cu_num_logits: torch.Tensor,
    bitmask: torch.Tensor,
    bitmask_stride: int,
    vocab_size: int,
    MASK_STRIDE: int,
    BLOCK_SIZE: int,
) -> None:
    for mask, place in zip(bitmask, logits_indices.tolist(), strict=True):
        row, depth = divmod(place, MASK_STRIDE)
        start, end = cu_num_logits[row : row + 2].tolist()
        if start + depth < end:
            allowed = (mask[:, None] >> torch.arange(32) & 1).view(-1)[:vocab_size] > 0
            logits[start + depth].masked_fill_(~allowed, -torch.inf)


_WORD = 2**32 - 1


def _gumbel(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return Gumbel noise, float32 [rows, vocabulary]: murmur3 of seed, position and token."""
    bits = torch.zeros(len(seeds), 1, dtype=torch.int64)
    for key in (seeds & _WORD, seeds >> 32 & _WORD, positions.to(torch.int64) & _WORD):
        bits = _mixed(bits, key[:, None])
    bits = _mixed(bits, torch.arange(vocab_size)[None]) ^ 16
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ bits >> shift) * factor & _WORD
    bits = bits ^ bits >> 16
    high, low = (bits >> 16).float(), (bits & 0xFFFF).float()
    uniform = high * 2.0**-16 + (low + 0.5) * 2.0**-32
    return -(-torch.log1p(-uniform.clamp(max=1 - 2.0**-24))).log()


def _mixed(bits: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    key = _rotated(key * 0xCC9E2D51 & _WORD, 15) * 0x1B873593 & _WORD
    return (_rotated(bits ^ key, 13) * 5 + 0xE6546B64) & _WORD


def _rotated(bits: torch.Tensor, by: int) -> torch.Tensor:
    return (bits << by | bits >> (32 - by)) & _WORD


_SAMPLE = "vllm.v1.worker.gpu.sample"
KERNELS = {
    f"{_SAMPLE}.gumbel._temperature_kernel": temperature,
    f"{_SAMPLE}.gumbel._gumbel_sample_kernel": gumbel_sample,
    f"{_SAMPLE}.logprob._topk_log_softmax_kernel": topk_log_softmax,
    f"{_SAMPLE}.logprob._ranks_kernel": ranks,
    f"{_SAMPLE}.min_p._min_p_kernel": min_p,
    f"{_SAMPLE}.penalties._penalties_kernel": penalties,
    f"{_SAMPLE}.penalties._bincount_kernel": bincount,
    f"{_SAMPLE}.logit_bias._bias_kernel": bias,
    f"{_SAMPLE}.bad_words._bad_words_kernel": bad_words,
    f"{_SAMPLE}.prompt_logprob._prompt_logprobs_token_ids_kernel": prompt_logprobs,
    "vllm.v1.worker.gpu.structured_outputs._apply_grammar_bitmask_kernel": grammar_bitmask,
}
"""By the name that vLLM finds them by."""
