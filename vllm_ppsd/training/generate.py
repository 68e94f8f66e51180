"""Step 1: the target writes the training text, batched by vLLM's ``LLM`` class."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer

from vllm_ppsd.exit_head.fingerprint import fingerprint, model_folder
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import Prompt, read_prompts
from vllm_ppsd.training.answers import answer, engine
from vllm_ppsd.training.documents import Document, write_documents
from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.shards import Shards, require_space

BYTES_PER_TOKEN = 8
"""What a token takes in a shard of text, as JSON."""


def generate(recipe: Recipe, work: Path, device: torch.device) -> None:
    """Write ``work/text``: shards of documents, one JSON object a line.

    Shards that are there already are kept. The target computes in bfloat16 only
    where the device does so natively: elsewhere that is many times slower.

    Raises:
        TrainingError: a prompt file is wrong, the disk is too small, or the work
            folder was begun with other settings.
    """
    settings = recipe.generation
    longest = _longest_prompt(recipe)
    prompts = read_prompts(recipe.data) if recipe.data else []
    if not prompts and not recipe.text:
        raise TrainingError("no training data: name prompt files (data) or plain text (text)")
    shards = Shards(work / "text", ".jsonl", text_settings(recipe, prompts))
    jobs = _jobs(prompts, recipe)
    missing = [i for i in range(len(jobs)) if not shards.path(i).is_file()]
    texts = [Path(path) for path in recipe.text]
    tokens = len(missing) * settings.prompts_per_shard * (settings.max_tokens + 128)
    require_space(work, tokens * BYTES_PER_TOKEN, "the training text")
    if missing:
        Console().print(
            f"{len(prompts)} prompts, {len(jobs)} shards of text, {len(missing)} still to write"
        )
    for offset, text in enumerate(texts):
        if not shards.path(len(jobs) + offset).is_file():
            documents = _plain(model_folder(recipe.model), text, settings.max_tokens)
            shards.write(len(jobs) + offset, partial(write_documents, documents))
    if missing:
        _answer({index: jobs[index] for index in missing}, recipe, shards, longest, device)


def _answer(
    jobs: dict[int, list[tuple[Prompt, float]]],
    recipe: Recipe,
    shards: Shards,
    longest: int,
    device: torch.device,
) -> None:
    """Have the target answer the prompts of each missing shard."""
    settings = recipe.generation
    left_out = written = 0
    with engine(recipe, longest, device) as llm, progress("shards of text") as bar:
        started = time.monotonic()
        done = answer(llm, jobs, settings.max_num_seqs, settings.max_tokens, longest)
        for count, shard in enumerate(done, 1):
            shards.write(shard.index, partial(write_documents, shard.documents))
            left_out += shard.left_out
            written += sum(len(d.output) for d in shard.documents)
            rate = written / (time.monotonic() - started)
            bar.to(count, len(jobs), f"{rate:.0f} answer tokens/s")
    if left_out:
        Console().print(f"{left_out} prompts were longer than {longest} tokens and left out")


def text_settings(recipe: Recipe, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return what the text depends on, for the work folder's manifest."""
    return {
        "model": fingerprint(model_folder(recipe.model)),
        "prompts": _digest(prompt.text for prompt in prompts),
        "text": _digest(Path(path).read_text() for path in recipe.text),
        **recipe.generation.model_dump(mode="json", exclude={"max_num_seqs", "enforce_eager"}),
    }


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return f"sha256:{digest.hexdigest()}"


def _longest_prompt(recipe: Recipe) -> int:
    """Return the longest prompt, in tokens, that recipe and model allow.

    Raises:
        TrainingError: the answers alone exceed the model's length.
    """
    settings = recipe.generation
    config = AutoConfig.from_pretrained(model_folder(recipe.model))
    limits = {"positions": getattr(config, "max_position_embeddings", None)}
    if getattr(config, "use_sliding_window", True):
        # Training attends within whole documents (training/attention.py).
        limits["sliding window"] = getattr(config, "sliding_window", None)
    longest = settings.max_prompt_tokens
    for what, limit in limits.items():
        if limit is None:
            continue
        if limit <= settings.max_tokens:
            raise TrainingError(
                f"answers of {settings.max_tokens} tokens leave no room for a prompt in "
                f"{recipe.model}'s {what} of {limit}; lower max_tokens"
            )
        longest = min(longest, limit - settings.max_tokens)
    return longest


def _jobs(prompts: Sequence[Prompt], recipe: Recipe) -> list[list[tuple[Prompt, float]]]:
    """Return the prompts with their temperatures, shuffled, one list per shard."""
    settings = recipe.generation
    order = [prompt for prompt in prompts for _ in range(settings.samples)]
    pairs = [
        (prompt, settings.temperatures[i % len(settings.temperatures)])
        for i, prompt in enumerate(order)
    ]
    random.Random(settings.seed).shuffle(pairs)
    size = settings.prompts_per_shard
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def _plain(model: Path, path: Path, length: int) -> list[Document]:
    """Cut a file of plain text into documents of ``length`` tokens."""
    tokens = AutoTokenizer.from_pretrained(model).encode(path.read_text())
    pieces = [tokens[i : i + length] for i in range(0, len(tokens), length)]
    return [Document(piece[:1], piece[1:], 0.0, path.stem) for piece in pieces if len(piece) > 1]
