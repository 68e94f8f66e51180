"""The ways of decoding that ``vllm-ppsd bench`` compares."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from vllm_ppsd.bench.methods import Method
from vllm_ppsd.bench.runs import Answer
from vllm_ppsd.tools.engines import engine, generate

Contender = Callable[[Sequence[int], int, float, int], Answer]
"""A way of decoding that is ready: from prompt, number of output tokens, temperature and seed
to the answer, of exactly so many tokens."""


@dataclass(frozen=True)
class Setting:
    """What all contenders share.

    Attributes:
        model: the target.
        head: folder of its exit head.
        partition: decoder layers per stage; the first is the exit layer.
        max_model_len: tokens of the longest prompt and its answer.
    """

    model: str
    head: str
    partition: tuple[int, ...]
    max_model_len: int


EARLY_EXIT_DRAFTS = 5
"""Of Transformers a round at most, as of PPSD on one device; fewer where it is unsure."""


@contextmanager
def _engine(
    setting: Setting, stages: int, speculation: dict[str, Any] | None
) -> Iterator[Contender]:
    """vLLM."""
    with engine(
        setting.model,
        stages=stages,
        partition=setting.partition if stages > 1 else (),
        speculative_config=speculation,
        max_model_len=setting.max_model_len,
    ) as llm:

        def answer(prompt: Sequence[int], tokens: int, temperature: float, seed: int) -> Answer:
            run = generate(llm, prompt, tokens, temperature=temperature, seed=seed)
            return Answer(run.tokens, run.ms_per_token, run.drafts, run.hits)

        yield answer


@contextmanager
def _transformers(model: str, early_exit: int | None) -> Iterator[Contender]:
    """Hugging Face's ``generate``, in this process."""
    loaded = _transformers_model(model)
    exit_option = {} if early_exit is None else {"assistant_early_exit": early_exit}
    threads = len(os.sched_getaffinity(0))

    def answer(prompt: Sequence[int], tokens: int, temperature: float, seed: int) -> Answer:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        clock = _Clock()
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        ids = torch.tensor([list(prompt)], device=loaded.device)
        output = loaded.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            # Past every end of text, as the other contenders: no token has this id.
            eos_token_id=loaded.config.vocab_size,
            pad_token_id=0,
            streamer=clock,
            **(sampling if temperature else {"do_sample": False}),
            **exit_option,
        )
        return Answer(output[0, len(prompt) :].tolist(), clock.ms_per_token())

    try:
        yield answer
    finally:
        _transformers_model.cache_clear()


@cache
def _transformers_model(model: str) -> Any:
    """Load a model once for all that use it."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    loaded = AutoModelForCausalLM.from_pretrained(model, device_map="auto", dtype="auto")
    # None of the model's own preferences (penalties, temperatures), as in vLLM here.
    loaded.generation_config = GenerationConfig(
        num_assistant_tokens=EARLY_EXIT_DRAFTS, num_assistant_tokens_schedule="constant"
    )
    return loaded


class _Clock:
    """A streamer of ``generate`` that notes when how many tokens came."""

    def __init__(self) -> None:
        self._lots: list[tuple[float, int]] = []

    def put(self, tokens: Any) -> None:
        self._lots.append((time.perf_counter(), tokens.numel()))

    def end(self) -> None:
        """Part of the protocol; the last lot has been noted."""

    def ms_per_token(self) -> float:
        # The first lot is the prompt, the second took its pass.
        (begin, _), *rest = self._lots[1:]
        return 1000 * (rest[-1][0] - begin) / sum(count for _, count in rest)


STARTS: Mapping[Method, Callable[[Setting], AbstractContextManager[Contender]]] = {
    Method.PLAIN: lambda setting: _engine(setting, len(setting.partition), None),
    # On one device: in a pipeline vLLM 0.32 has a drafter on the last stage alone, and its
    # CPU runner asks every stage for one while it warms up.
    Method.NGRAM: lambda setting: _engine(
        setting, 1, {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    ),
    Method.SINGLE: lambda setting: _engine(setting, 1, None),
    Method.TRANSFORMERS: lambda setting: _transformers(setting.model, None),
    Method.EARLY_EXIT: lambda setting: _transformers(setting.model, setting.partition[0]),
    Method.PPSD: lambda setting: _engine(
        setting, len(setting.partition), {"method": "ppsd", "model": setting.head}
    ),
}
"""How to start each contender, in the order in which they are started."""


@contextmanager
def started(
    setting: Setting, methods: Sequence[Method], *, backwards: bool
) -> Iterator[dict[Method, Contender]]:
    """Start contenders, the last first if ``backwards``, and stop them at the end.

    Yields:
        The contenders, as ``methods`` are ordered.
    """
    order = [method for method in STARTS if method in methods]
    with ExitStack() as stack:
        contenders = {
            method: stack.enter_context(STARTS[method](setting))
            for method in (reversed(order) if backwards else order)
        }
        yield {method: contenders[method] for method in methods}
