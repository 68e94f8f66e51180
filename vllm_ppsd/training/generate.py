"""Step 1: the target writes the training text, batched by vLLM's ``LLM`` class."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig

from vllm_ppsd.config.cpu_binding import CORES, deal
from vllm_ppsd.config.environment import environment
from vllm_ppsd.exit_head.fingerprint import fingerprint, model_folder
from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.progress import progress
from vllm_ppsd.training.prompts import Prompt, chat_tokens, read_prompts
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.shards import Shards, require_space
from vllm_ppsd.training.target import compute_dtype

BYTES_PER_TOKEN = 8
"""What a token takes in a shard of text, as JSON."""


@dataclass(frozen=True)
class Document:
    """One prompt with the target's answer, or plain text with no prompt.

    Attributes:
        prompt: token ids.
        output: token ids that the target wrote (or the plain text's).
        temperature: at which the answer was sampled.
        source: where the prompt came from.
    """

    prompt: list[int]
    output: list[int]
    temperature: float
    source: str

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.output)


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
    text_missing = not all(shards.path(len(jobs) + i).is_file() for i in range(len(texts)))
    if not missing and not text_missing:
        return
    tokens = len(missing) * settings.prompts_per_shard * (settings.max_tokens + 128)
    require_space(work, tokens * BYTES_PER_TOKEN, "the training text")
    Console().print(
        f"{len(prompts)} prompts, {len(jobs)} shards of text, {len(missing)} still to write"
    )
    left_out = 0
    with _engine(recipe, longest, device) as llm, progress("shards of text") as bar:
        for index in bar.track(missing):
            documents, skipped = _answer(llm, jobs[index], settings.max_tokens, longest)
            left_out += skipped
            shards.write(index, partial(write_documents, documents))
        for offset, text in enumerate(texts):
            documents = _plain(llm.get_tokenizer(), text, settings.max_tokens)
            shards.write(len(jobs) + offset, partial(write_documents, documents))
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


def write_documents(documents: Sequence[Document], path: Path) -> None:
    """Write documents as JSONL."""
    path.write_text("".join(json.dumps(document.__dict__) + "\n" for document in documents))


def read_documents(path: Path) -> Iterator[Document]:
    """Read what ``write_documents`` wrote."""
    for line in path.read_text().splitlines():
        yield Document(**json.loads(line))


def _longest_prompt(recipe: Recipe) -> int:
    """Return the longest prompt, in tokens, that recipe and model allow.

    Raises:
        TrainingError: the answers alone exceed the model's length.
    """
    settings = recipe.generation
    config = AutoConfig.from_pretrained(model_folder(recipe.model))
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return settings.max_prompt_tokens
    if limit <= settings.max_tokens:
        raise TrainingError(
            f"answers of {settings.max_tokens} tokens leave no room for a prompt in "
            f"{recipe.model}'s {limit} positions; lower max_tokens"
        )
    return min(settings.max_prompt_tokens, limit - settings.max_tokens)


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


@contextmanager
def _engine(recipe: Recipe, longest: int, device: torch.device) -> Iterator[Any]:
    """Yield vLLM's ``LLM`` on the target, on all cores, and stop it afterwards."""
    from vllm import LLM

    settings = recipe.generation
    # vLLM's own default spares a core.
    all_cores = deal(sorted(os.sched_getaffinity(0)), 1)
    with environment({CORES: os.environ.get(CORES) or all_cores}):
        llm = LLM(
            recipe.model,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=longest + settings.max_tokens,
            seed=settings.seed,
            dtype=str(compute_dtype(device)).removeprefix("torch."),
            enforce_eager=settings.enforce_eager,
        )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def _answer(
    llm: Any, jobs: Sequence[tuple[Prompt, float]], max_tokens: int, longest: int
) -> tuple[list[Document], int]:
    """Let the target answer; return the documents and how many prompts were left out."""
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    requests, parameters, kept = [], [], []
    for prompt, temperature in jobs:
        tokens = chat_tokens(tokenizer, prompt.text)
        if len(tokens) > longest:
            continue
        requests.append({"prompt_token_ids": tokens})
        parameters.append(
            # No seed per request: on CPU, vLLM cannot cut a seeded prompt in chunks.
            SamplingParams(temperature=temperature, max_tokens=max_tokens)
        )
        kept.append((prompt, temperature))
    answers = llm.generate(requests, parameters, use_tqdm=False)
    documents = [
        Document(
            list(answer.prompt_token_ids),
            list(answer.outputs[0].token_ids),
            temperature,
            prompt.source,
        )
        for answer, (prompt, temperature) in zip(answers, kept, strict=True)
    ]
    return documents, len(jobs) - len(kept)


def _plain(tokenizer: Any, path: Path, length: int) -> list[Document]:
    """Cut a file of plain text into documents of ``length`` tokens."""
    tokens = tokenizer.encode(path.read_text())
    pieces = [tokens[i : i + length] for i in range(0, len(tokens), length)]
    return [Document(piece[:1], piece[1:], 0.0, path.stem) for piece in pieces if len(piece) > 1]
