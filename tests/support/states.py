"""Random cached states on disk, without a target."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from vllm_ppsd.training.states import TARGET, exit_name


def write_states(
    folder: Path,
    documents: list[tuple[int, int]],
    *,
    exit_layer: int,
    lm_head: torch.Tensor,
    shards: int = 2,
    seed: int = 0,
) -> None:
    """Write documents of (prompt, answer) tokens, dealt out to ``shards``.

    The final state is a fixed affine map of the exit state, and the next token what
    ``lm_head`` [vocabulary, hidden] makes of it: something a head can learn.
    """
    hidden = lm_head.shape[1]
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(hidden, hidden, generator=generator) / hidden**0.5
    for shard in range(shards):
        mine = documents[shard::shards]
        lengths = [prompt + answer for prompt, answer in mine]
        states = torch.randn(sum(lengths), hidden, generator=generator).bfloat16()
        final = (states.float() @ turn + 0.1).bfloat16()
        rows, start = [], 0
        for (prompt, _), length in zip(mine, lengths, strict=True):
            rows += range(start + prompt - 1, start + length - 1)
            start += length
        top = torch.log_softmax(final[rows].float() @ lm_head.float().T, dim=-1).topk(4)
        next_tokens = top.indices[:, 0]
        name = f"{shard:05d}.safetensors"
        for kind in (TARGET, exit_name(exit_layer)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        save_file(
            {
                "tokens": torch.zeros(sum(lengths), dtype=torch.int32),
                "lengths": torch.tensor(lengths, dtype=torch.int32),
                "rows": torch.tensor(rows, dtype=torch.int32),
                "next": next_tokens.int(),
                "final": final[rows],
                "top_ids": top.indices.int(),
                "top_logprobs": top.values.half(),
            },
            str(folder / TARGET / name),
            metadata={"sources": json.dumps([f"s{shard}"] * len(mine))},
        )
        save_file({"states": states}, str(folder / exit_name(exit_layer) / name))
