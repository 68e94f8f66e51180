"""Calls of vLLM's V2 kernels with random arguments, and their results.

    python -m support.v2.cases FILE [torch]

writes the results to a file: of the kernels themselves, or of ``support.v2.kernels``. The
grammar's kernel is left out: Triton's interpreter does not take its mask.
"""

from __future__ import annotations

import sys

# Makes a CPU do where V2 expects a GPU; must be first.
import vllm.v1.worker.cpu_worker  # isort: skip  # noqa: F401
import numpy as np
import torch
from vllm.v1.worker.gpu import block_table, buffer_utils, input_batch
from vllm.v1.worker.gpu.sample import (
    bad_words,
    gumbel,
    logit_bias,
    logprob,
    min_p,
    penalties,
    prompt_logprob,
)

from support import v2

CPU = torch.device("cpu")
SLOTS, LENGTH, VOCABULARY = 6, 64, 70
Results = dict[str, torch.Tensor]


def ints(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def some(*shape: int, below: int = VOCABULARY) -> torch.Tensor:
    return torch.randint(below, shape, dtype=torch.int32)


def writes() -> Results:
    one = buffer_utils.StagedWriteTensor((SLOTS, LENGTH), torch.int32, CPU)
    one.stage_write(2, 5, [7, 8, 9])
    one.stage_write(4, 0, [1])
    one.stage_write_elem(0, 3)
    one.apply_write()
    return {"written": one.gpu}


def tables() -> Results:
    results = {}
    for groups in (1, 2):
        known = block_table.BlockTables([4, 8][:groups], SLOTS, LENGTH, [16, 8][:groups], CPU)
        for slot in (3, 1):
            blocks = tuple(some(5, below=50).tolist() for _ in range(groups))
            known.append_block_ids(slot, blocks, overwrite=True)
        known.append_block_ids(1, tuple([60, 61] for _ in range(groups)), overwrite=False)
        known.apply_staged_writes()
        slots = ints(1, 3, dtype=torch.int64)
        gathered = known.gather_block_tables(slots, num_reqs_padded=2)
        ends, positions = ints(0, 3, 5), ints(4, 5, 6, 17, 18, dtype=torch.int64)
        mapped = known.compute_slot_mappings(slots, ends, positions, num_tokens_padded=6)
        results |= {f"table {groups} {i}": each.clone() for i, each in enumerate(gathered)}
        results[f"slots {groups}"] = mapped.clone()
    return results


def inputs() -> Results:
    slots, ends = ints(4, 0, 2, dtype=torch.int64), ints(0, 4, 7, 8)
    # In a prompt, behind it with drafts, behind it.
    computed, prefill = ints(9, 0, 12, 0, 3, 0), ints(9, 0, 9, 0, 20, 0)
    tokens, ids = some(SLOTS, LENGTH), torch.zeros(8, dtype=torch.int32)
    ahead = torch.zeros(2, SLOTS, dtype=torch.int32)
    input_batch.prepare_prefill_inputs(ids, ahead, slots, ends, tokens, prefill, computed)
    positions, lengths = torch.zeros(8, dtype=torch.int64), some(SLOTS)
    input_batch.prepare_pos_seq_lens(slots, ends, computed, positions, lengths)
    newest, drafts = some(SLOTS, 1).to(torch.int64), some(SLOTS, 3).to(torch.int64)
    rows = ints(0, 1, 4, 5)
    indices = input_batch.combine_sampled_and_draft_tokens(
        ids, slots, newest, ends, lengths, prefill, drafts, rows, 5
    )
    sampled = ints(1, 2, 1)
    counted, rejected = input_batch.get_num_sampled_and_rejected(
        sampled, lengths, rows, slots, prefill
    )
    expanded, local = input_batch.expand_idx_mapping(slots, 5, rows, 4)
    total, counts = prefill.clone(), torch.zeros(SLOTS, VOCABULARY, dtype=torch.int32)
    input_batch.post_update(
        ints(-1, 0, 2, dtype=torch.int64),
        computed,
        newest,
        counts,
        some(3, 4).to(torch.int64),
        counted,
        rejected,
        ends,
        tokens,
        total,
    )
    input_batch.post_update_num_computed_tokens(slots, computed, ends)
    names = "ids ahead positions lengths indices counted rejected expanded local computed newest"
    values = (ids, ahead, positions, lengths, indices, counted, rejected, expanded, local)
    results = dict(zip(names.split(), (*values, computed, newest), strict=True))
    return results | {"tokens": tokens, "total": total, "counts": counts}


def sampling() -> Results:
    rows, local = ints(2, 2, 2, 5, dtype=torch.int64), ints(0, 1, 2, 0)
    logits, ids = torch.randn(4, VOCABULARY), some(4)
    temperature = torch.tensor([1.0, 1.0, 0.7, 1.0, 1.0, 0.0])
    results = {}

    def changed(name: str, call: object) -> None:
        results[name] = logits.clone()
        call(results[name])  # type: ignore[operator]

    changed("temperature", lambda x: gumbel.apply_temperature(x, rows, temperature))
    seeds, at = torch.randint(-(2**62), 2**62, (SLOTS,)), ints(3, 4, 5, 9, dtype=torch.int64)
    results["sampled"] = gumbel.gumbel_sample(
        logits, rows, temperature, seeds, at, apply_temperature=False, is_drafting=False
    )
    top = logprob.compute_topk_scores(logits, 3, results["sampled"])
    results["ids"], results["scores"] = top.logprob_token_ids, top.logprobs
    results["ranks"] = top.selected_token_ranks
    least = torch.tensor([0.0, 0.0, 0.3, 0.0, 0.0, 0.1])
    changed("min p", lambda x: min_p.apply_min_p(x, rows, least))
    prompt, prefill, total = some(6, below=9) + 3, ints(*[16] * 6), ints(*[20] * 6)
    tokens = some(SLOTS, LENGTH, below=8)
    mask = torch.zeros(SLOTS, 3, dtype=torch.int32)
    counts = torch.zeros(SLOTS, VOCABULARY, dtype=torch.int32)
    penalties.bincount(rows.unique(), tokens, prompt, prefill, mask, counts, 16)
    results["mask"], results["counts"] = mask, counts
    three = (torch.rand(SLOTS) + 1, torch.rand(SLOTS), torch.rand(SLOTS))
    changed(
        "penalties",
        lambda x: penalties.apply_penalties(x, rows, ids, local, *three, mask, counts),
    )
    changed(
        "bias",
        lambda x: logit_bias.apply_logit_bias(
            x,
            rows,
            at,
            ints(0, 0, 0, 0, 0, 5),
            some(SLOTS, 8).sort().values,
            ints(0, 0, 2, 0, 0, 1),
            ints(*range(SLOTS * 4)).view(SLOTS, 4),
            torch.rand(SLOTS, 4),
            ints(*[6] * SLOTS),
            ints(0, 0, 2, 0, 0, 1),
            torch.zeros(SLOTS, dtype=torch.bool),
            some(SLOTS, 4),
        ),
    )
    # Slot 2's words: its newest token and one more; its first draft and one more; one alone.
    words, newest, draft = some(SLOTS, 12), int(tokens[2, 19]), int(ids[1])
    words[2, :5] = ints(newest, 33, draft, 44, 55)
    offsets = torch.zeros(SLOTS, 5, dtype=torch.int32)
    offsets[2, :4] = ints(0, 2, 4, 5)
    changed(
        "bad words",
        lambda x: bad_words.apply_bad_words(
            x, rows, words, offsets, ints(0, 0, 3, 0, 0, 0), tokens, prompt, total, ids, local, 3
        ),
    )
    slots = ints(5, 2, dtype=torch.int64)
    results["prompt"] = prompt_logprob.get_prompt_logprobs_token_ids(
        7, ints(0, 3, 7), slots, prompt, tokens
    )
    return results


def main() -> None:
    """Write the results of every case."""
    file, *how = sys.argv[1:]
    if how:
        v2.register()
    results: Results = {}
    for seed in range(5):
        torch.manual_seed(seed)
        np.random.seed(seed)
        for case in (writes, tables, inputs, sampling):
            results |= {f"{case.__name__} {seed}: {k}": v for k, v in case().items()}
    torch.save(results, file)


if __name__ == "__main__":
    main()
