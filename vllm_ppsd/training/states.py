"""Step 2: cache what the head learns from, one pass of the target per document.

Two kinds of safetensors shards, one of each per shard of text. ``states/target``:

- ``tokens`` int32 [tokens], ``lengths`` int32 [documents], documents packed;
- ``rows`` int32 [rows]: positions whose next token the target wrote;
- ``next`` int32 [rows]: that token;
- ``final`` bfloat16 [rows, hidden]: the LM head's input;
- ``top_ids`` int32 and ``top_logprobs`` float16 [rows, k]: the target's most
  probable next tokens, best first;
- metadata ``sources``: each document's source, as JSON.

``states/exit-<E>``: ``states`` bfloat16 [tokens, hidden], behind layer E. An exit
added later costs a pass, but the others are kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoConfig

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.architectures import LogitsShape, logits_shape
from vllm_ppsd.exit_head.fingerprint import fingerprint
from vllm_ppsd.exit_head.target_files import model_folder
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.training.generate import Document, read_documents
from vllm_ppsd.training.memory import keep_freed_memory
from vllm_ppsd.training.packing import pack
from vllm_ppsd.training.recipe import Cache
from vllm_ppsd.training.shards import Shards, require_space
from vllm_ppsd.training.target import Target, compute_dtype

TARGET = "target"


def cache_states(
    model: str,
    settings: Cache,
    exits: Sequence[int],
    work: Path,
    device: torch.device,
    shards: int | None = None,
) -> None:
    """Write ``work/states``; shards that are there already are kept.

    Args:
        exits: layers of the model whose states are wanted.
        shards: of text, how many are used; None for all.

    Raises:
        TrainingError: there is no text, the disk is too small, the states there were cached
            for another model, or those to be cached would not be the model's own.
    """
    if device.type == "cpu":
        keep_freed_memory()
    # A shard of text is empty where all its prompts were too long.
    texts = [p for p in sorted((work / "text").glob("*.jsonl"))[:shards] if p.stat().st_size]
    if not texts:
        raise TrainingError(f"{work / 'text'} holds no text; generate it first")
    folder = model_folder(model)
    made_for = {"model": fingerprint(folder)}
    distributions = {"top_k": settings.top_k} | _shaped_by(folder)
    kinds = {TARGET: Shards(work / "states" / TARGET, ".safetensors", made_for | distributions)}
    kinds |= {
        name: Shards(work / "states" / name, ".safetensors", made_for)
        for name in map(exit_name, exits)
    }
    missing = [
        path for path in texts if not all(k.path(int(path.stem)).is_file() for k in kinds.values())
    ]
    if not missing:
        return
    target = Target(model, device, compute_dtype(device))
    needed = _bytes(missing, target.config.hidden_size, len(exits), settings.top_k)
    Console().print(f"the states will take about {needed / 1e9:.2f} GB in {work / 'states'}")
    require_space(work, needed, "the cache of states")
    some = islice(chain.from_iterable(map(read_documents, missing)), 2)
    target.check([d.prompt + d.output for d in some])
    with progress("shards of states") as bar:
        for path in bar.track(missing):
            documents = list(read_documents(path))
            tensors = _shard(target, documents, settings, exits, device)
            metadata = {"sources": json.dumps([d.source for d in documents])}
            index = int(path.stem)
            for name, kind in kinds.items():
                if not kind.path(index).is_file():
                    kind.write(index, partial(save_file, tensors[name], metadata=metadata))


def _shaped_by(folder: Path) -> dict[str, Any]:
    """Return what shapes the target's logits, for the manifest, if anything does."""
    shape = logits_shape(AutoConfig.from_pretrained(folder))
    return {} if shape == LogitsShape() else {"logits": asdict(shape)}


def exit_name(exit_layer: int) -> str:
    """Return the folder's name for the states of an exit layer."""
    return f"exit-{exit_layer}"


def _shard(
    target: Target,
    documents: Sequence[Document],
    settings: Cache,
    exits: Sequence[int],
    device: torch.device,
) -> dict[str, dict[str, torch.Tensor]]:
    """Return tensors by name, for each kind of shard."""
    parts: dict[str, list[dict[str, torch.Tensor]]] = {}
    offset = 0
    for batch in pack(documents, settings.batch_tokens):
        lengths = [d.length for d in batch]
        tokens = torch.tensor([t for d in batch for t in d.prompt + d.output], device=device)
        rows = rows_of(batch).to(device)
        states, final = target.run(tokens, lengths, exits)
        final = final[rows]
        logprobs = target.logits(final).log_softmax(dim=-1)
        top = logprobs.topk(settings.top_k)
        kinds = {
            TARGET: {
                "tokens": tokens.int(),
                "lengths": torch.tensor(lengths, dtype=torch.int32),
                "rows": (rows + offset).int(),
                "next": tokens[rows + 1].int(),
                "final": final.bfloat16(),
                "top_ids": top.indices.int(),
                "top_logprobs": top.values.half(),
            }
        }
        kinds |= {exit_name(e): {"states": state.bfloat16()} for e, state in states.items()}
        for name, tensors in kinds.items():
            parts.setdefault(name, []).append({key: t.cpu() for key, t in tensors.items()})
        offset += len(tokens)
    return {
        name: {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        for name, pieces in parts.items()
    }


def rows_of(documents: Sequence[Document]) -> torch.Tensor:
    """Return the packed positions whose next token the target wrote, int64 [rows]."""
    rows: list[int] = []
    start = 0
    for document in documents:
        first = start + len(document.prompt) - 1
        rows += range(first, first + len(document.output))
        start += document.length
    return torch.tensor(rows, dtype=torch.int64)


def _bytes(texts: Sequence[Path], hidden: int, exits: int, top_k: int) -> int:
    tokens = rows = 0
    for path in texts:
        for document in read_documents(path):
            tokens += document.length
            rows += len(document.output)
    return tokens * (4 + 2 * hidden * exits) + rows * (8 + 2 * hidden + 6 * top_k)
