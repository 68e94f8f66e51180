"""The target's answers to the prompts, from a vLLM engine that is kept full."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_ppsd.config.cpu_binding import CORES, deal
from vllm_ppsd.config.environment import environment
from vllm_ppsd.tools.prompts import Prompt, chat_tokens
from vllm_ppsd.training.documents import Document
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.target import compute_dtype

CPU_MEMORY = 0.6
"""Share of a CPU's memory for the target that writes. vLLM refuses to start where its own
default, 0.92, is not free; what else runs on a CPU has its memory there too."""


@contextmanager
def engine(recipe: Recipe, longest: int, device: torch.device) -> Iterator[Any]:
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
            **({"gpu_memory_utilization": CPU_MEMORY} if device.type == "cpu" else {}),
        )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


@dataclass
class Answered:
    """A shard's documents.

    Attributes:
        index: the shard's number.
        documents: prompts with their answers, in the order asked.
        left_out: prompts that were too long to be asked.
    """

    index: int
    documents: list[Document]
    left_out: int


@dataclass
class _Asked:
    prompts: list[tuple[Prompt, float, list[int]]]
    left_out: int
    answers: dict[int, list[int]] = field(default_factory=dict)


def answer(
    llm: Any,
    jobs: Mapping[int, Sequence[tuple[Prompt, float]]],
    max_num_seqs: int,
    max_tokens: int,
    longest: int,
) -> Iterator[Answered]:
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
    asked: dict[int, _Asked] = {}
    while waiting or asked:
        while waiting and llm.llm_engine.get_num_unfinished_requests() < max_num_seqs:
            index = waiting.pop(0)
            asked[index] = _ask(llm, index, jobs[index], max_tokens, longest)
        # An engine without requests would wait for ever.
        steps = llm.llm_engine.step() if llm.llm_engine.has_unfinished_requests() else []
        for output in steps:
            index, row = map(int, output.request_id.split(":"))
            asked[index].answers[row] = list(output.outputs[0].token_ids)
        for index in [i for i, shard in asked.items() if len(shard.answers) == len(shard.prompts)]:
            shard = asked.pop(index)
            documents = [
                Document(tokens, shard.answers[row], temperature, prompt.source)
                for row, (prompt, temperature, tokens) in enumerate(shard.prompts)
            ]
            yield Answered(index, documents, shard.left_out)


def _ask(
    llm: Any, index: int, jobs: Sequence[tuple[Prompt, float]], max_tokens: int, longest: int
) -> _Asked:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    tokenizer = llm.get_tokenizer()
    every = [(prompt, temp, chat_tokens(tokenizer, prompt.text)) for prompt, temp in jobs]
    kept = [job for job in every if len(job[2]) <= longest]
    inputs = llm.renderer.render_cmpl([{"prompt_token_ids": tokens} for *_, tokens in kept])
    for row, (_, temperature, _) in enumerate(kept):
        llm.llm_engine.add_request(
            f"{index}:{row}",
            inputs[row],
            # No seed per request: on CPU, vLLM cannot cut a seeded prompt in chunks.
            SamplingParams(
                temperature=temperature,
                max_tokens=max_tokens,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
        )
    return _Asked(kept, len(every) - len(kept))
