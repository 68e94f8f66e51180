"""Step 1: the target writes the training text, through a vLLM engine that is kept full."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig

from vllm_ppsd.config.cpu_binding import CORES
from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.fingerprint import fingerprint
from vllm_ppsd.exit_head.target_files import model_folder
from vllm_ppsd.files import read_json_lines
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import Prompt, chat_tokens, read_prompts
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.shards import Shards, require_space
from vllm_ppsd.training.target import compute_dtype

BYTES_PER_TOKEN = 8
"""What a token takes in a shard of text, as JSON."""

CPU_MEMORY = 0.6
"""Share of a CPU's memory for the target that writes. vLLM refuses to start where its own
default, 0.92, is not free; what else runs on a CPU has its memory there too."""


@dataclass(frozen=True)
class Document:
    """One prompt with the target's answer.

    Attributes:
        prompt: token ids.
        output: token ids that the target wrote.
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


def write_documents(documents: Sequence[Document], path: Path) -> None:
    """Write documents as JSONL."""
    path.write_text("".join(json.dumps(document.__dict__) + "\n" for document in documents))


def read_documents(path: Path) -> Iterator[Document]:
    """Read what ``write_documents`` wrote.

    Raises:
        TrainingError: names the file and the line that holds no document.
    """
    for number, row in read_json_lines(path, TrainingError):
        try:
            yield Document(**row)
        except TypeError:
            raise TrainingError(
                f"{path}, line {number}: no document; remove the file, and it is written again"
            ) from None


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
    if not recipe.data:
        raise TrainingError("no training data: name prompt files (data)")
    prompts = read_prompts(recipe.data)
    shards = Shards(work / "text", ".jsonl", text_settings(recipe, prompts))
    jobs = dict(enumerate(_jobs(prompts, recipe)[: recipe.shards]))
    missing = {index: job for index, job in jobs.items() if not shards.path(index).is_file()}
    if not missing:
        return
    tokens = len(missing) * settings.prompts_per_shard * (settings.max_tokens + 128)
    require_space(work, tokens * BYTES_PER_TOKEN, "the training text")
    Console().print(
        f"{len(prompts)} prompts, {len(jobs)} shards of text, {len(missing)} still to write"
    )
    _answer(missing, recipe, shards, longest, device)


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
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(hashlib.sha256(prompt.text.encode()).digest())
    return {
        "model": fingerprint(model_folder(recipe.model)),
        "prompts": f"sha256:{digest.hexdigest()}",
        **recipe.generation.model_dump(mode="json", exclude={"max_num_seqs", "enforce_eager"}),
    }


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
            f"{recipe.model}'s positions of {limit}; lower max_tokens"
        )
    return int(min(settings.max_prompt_tokens, limit - settings.max_tokens))


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


def engine(recipe: Recipe, longest: int, device: torch.device) -> AbstractContextManager[Any]:
    """Return vLLM's ``LLM`` on the target, on all cores, stopped at the end of the context."""
    from vllm_ppsd.tools import engines

    settings = recipe.generation
    on_cpu: dict[str, Any] = {"gpu_memory_utilization": CPU_MEMORY} if device.type == "cpu" else {}
    return engines.engine(
        recipe.model,
        cores=os.environ.get(CORES),
        max_num_seqs=settings.max_num_seqs,
        max_model_len=longest + settings.max_tokens,
        seed=settings.seed,
        dtype=str(compute_dtype(device)).removeprefix("torch."),
        enforce_eager=settings.enforce_eager,
        # The engine has the machine to itself.
        max_num_batched_tokens=None,
        kv_cache_memory_bytes=None,
        **on_cpu,
    )


@dataclass
class Shard:
    """A shard's documents.

    Attributes:
        index: the shard's number.
        documents: prompts with their answers, in the order asked.
        left_out: prompts that were too long to be asked.
        unanswered: documents whose answer has not ended.
    """

    index: int
    documents: list[Document]
    left_out: int
    unanswered: int


def answer(
    llm: Any,
    jobs: Mapping[int, Sequence[tuple[Prompt, float]]],
    max_num_seqs: int,
    max_tokens: int,
    longest: int,
) -> Iterator[Shard]:
    """Yield each shard when its last answer has ended.

    The next shard's prompts are asked as soon as a place in the batch is free, so the
    batch never thins out between shards: a batch of few requests decodes hardly
    faster than a full one.

    Args:
        llm: vLLM's ``LLM``.
        jobs: shard numbers to prompts with the temperatures of their answers.
        max_num_seqs: requests that the engine decodes at once.
        max_tokens: tokens in an answer at most.
        longest: tokens in a prompt at most; longer ones are left out.
    """
    waiting = list(jobs)
    asked: dict[int, Shard] = {}
    while waiting or asked:
        while waiting and llm.llm_engine.get_num_unfinished_requests() < max_num_seqs:
            index = waiting.pop(0)
            asked[index] = _ask(llm, index, jobs[index], max_tokens, longest)
        # An engine without requests would wait for ever.
        steps = llm.llm_engine.step() if llm.llm_engine.has_unfinished_requests() else []
        for output in steps:
            index, row = map(int, output.request_id.split(":"))
            asked[index].documents[row].output.extend(output.outputs[0].token_ids)
            asked[index].unanswered -= 1
        for index in [index for index, shard in asked.items() if not shard.unanswered]:
            yield asked.pop(index)


def _ask(
    llm: Any, index: int, jobs: Sequence[tuple[Prompt, float]], max_tokens: int, longest: int
) -> Shard:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    tokenizer = llm.get_tokenizer()
    documents = [
        Document(tokens, [], temperature, prompt.source)
        for prompt, temperature in jobs
        if len(tokens := chat_tokens(tokenizer, prompt.text)) <= longest
    ]
    inputs = llm.renderer.render_cmpl([{"prompt_token_ids": d.prompt} for d in documents])
    for row, document in enumerate(documents):
        llm.llm_engine.add_request(
            f"{index}:{row}",
            inputs[row],
            # No seed per request: on CPU, vLLM cannot cut a seeded prompt in chunks.
            SamplingParams(
                temperature=document.temperature,
                max_tokens=max_tokens,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
        )
    return Shard(index, documents, len(jobs) - len(documents), unanswered=len(documents))
