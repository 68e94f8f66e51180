"""Step 1: the target writes the training text, batched by vLLM's ``LLM`` class."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vllm_ppsd.config.environment import environment
from vllm_ppsd.exit_head.fingerprint import fingerprint, model_folder
from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.progress import progress
from vllm_ppsd.training.prompts import Prompt, read_prompts
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.shards import Shards, require_space
from vllm_ppsd.training.target import compute_dtype

CORES = "VLLM_CPU_OMP_THREADS_BIND"
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


def generate(recipe: Recipe, work: Path, device: torch.device, **engine_options: Any) -> None:
    """Write ``work/text``: shards of documents, one JSON object a line.

    Shards that are there already are kept. The target computes in bfloat16 only
    where the device does so natively: elsewhere that is many times slower.

    Raises:
        TrainingError: a prompt file is wrong, the disk is too small, or the work
            folder was begun with other settings.
    """
    settings = recipe.generation
    prompts = read_prompts(recipe.data) if recipe.data else []
    if not prompts and not recipe.text:
        raise TrainingError("no training data: name prompt files (data) or plain text (text)")
    shards = Shards(work / "text", ".jsonl", text_settings(recipe))
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
    from vllm import LLM

    with environment({CORES: os.environ.get(CORES) or _all_cores()}):
        llm = LLM(
            recipe.model,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=settings.max_prompt_tokens + settings.max_tokens,
            seed=settings.seed,
            dtype=str(compute_dtype(device)).removeprefix("torch."),
            **engine_options,
        )
    left_out = 0
    with progress("shards of text") as bar:
        for index in bar.track(missing):
            documents, skipped = _answer(llm, jobs[index], recipe)
            left_out += skipped
            shards.write(index, partial(write_documents, documents))
        for offset, text in enumerate(texts):
            documents = _plain(llm.get_tokenizer(), text, settings.max_tokens)
            shards.write(len(jobs) + offset, partial(write_documents, documents))
    if left_out:
        Console().print(
            f"{left_out} prompts were longer than {settings.max_prompt_tokens} tokens and left out"
        )


def text_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what the text depends on, for the work folder's manifest."""
    return {
        "model": fingerprint(model_folder(recipe.model)),
        "data": [Path(path).name for path in recipe.data],
        "text": [Path(path).name for path in recipe.text],
        **recipe.generation.model_dump(mode="json", exclude={"max_num_seqs"}),
    }


def write_documents(documents: Sequence[Document], path: Path) -> None:
    """Write documents as JSONL."""
    path.write_text("".join(json.dumps(document.__dict__) + "\n" for document in documents))


def read_documents(path: Path) -> Iterator[Document]:
    """Read what ``write_documents`` wrote."""
    for line in path.read_text().splitlines():
        yield Document(**json.loads(line))


def _all_cores() -> str:
    """Return vLLM's notation for every core of this process; its default spares one."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))


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


def _answer(
    llm: Any, jobs: Sequence[tuple[Prompt, float]], recipe: Recipe
) -> tuple[list[Document], int]:
    """Let the target answer; return the documents and how many prompts were left out."""
    from vllm import SamplingParams

    settings = recipe.generation
    tokenizer = llm.get_tokenizer()
    requests, parameters, kept = [], [], []
    for prompt, temperature in jobs:
        tokens = chat_tokens(tokenizer, prompt.text)
        if len(tokens) > settings.max_prompt_tokens:
            continue
        requests.append({"prompt_token_ids": tokens})
        parameters.append(
            # No seed per request: on CPU, vLLM cannot cut a seeded prompt in chunks.
            SamplingParams(temperature=temperature, max_tokens=settings.max_tokens)
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


def chat_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return one user turn in the chat template, or as it is where there is none."""
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(text))
    return list(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    )


def _plain(tokenizer: Any, path: Path, length: int) -> list[Document]:
    """Cut a file of plain text into documents of ``length`` tokens."""
    tokens = tokenizer.encode(path.read_text())
    pieces = [tokens[i : i + length] for i in range(0, len(tokens), length)]
    return [Document(piece[:1], piece[1:], 0.0, path.stem) for piece in pieces if len(piece) > 1]
