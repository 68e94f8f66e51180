"""The ways of decoding that ``vllm-ppsd bench`` compares."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from vllm_ppsd.bench import engines
from vllm_ppsd.bench.methods import Method
from vllm_ppsd.bench.runs import Answer
from vllm_ppsd.config.cpu_binding import deal


class Contender(ABC):
    """A way of decoding, ready to answer."""

    @abstractmethod
    def answer(self, prompt: Sequence[int], tokens: int, temperature: float, seed: int) -> Answer:
        """Decode exactly ``tokens`` tokens for one prompt."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds."""


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


class Engine(Contender):
    """vLLM."""

    def __init__(self, setting: Setting, stages: int, speculation: dict[str, Any] | None) -> None:
        counting = speculation is not None and speculation["method"] == "ppsd"
        self._llm = engines.start(
            setting.model,
            stages=stages,
            cores=deal(sorted(os.sched_getaffinity(0)), stages),
            partition=setting.partition if stages > 1 else (),
            speculative_config=speculation,
            max_model_len=setting.max_model_len,
            **(engines.PER_REQUEST if counting else {}),
        )

    def answer(self, prompt: Sequence[int], tokens: int, temperature: float, seed: int) -> Answer:
        run = engines.generate(self._llm, prompt, tokens, temperature, seed)
        return Answer(run.tokens, run.ms_per_token, run.drafts, run.hits)

    def close(self) -> None:
        engines.stop(self._llm)


class Transformers(Contender):
    """Hugging Face's ``generate``, in this process."""

    def __init__(self, model: str, early_exit: int | None) -> None:
        self._model = _transformers_model(model)
        self._early_exit = {} if early_exit is None else {"assistant_early_exit": early_exit}
        self._threads = len(os.sched_getaffinity(0))

    def answer(self, prompt: Sequence[int], tokens: int, temperature: float, seed: int) -> Answer:
        torch.set_num_threads(self._threads)
        torch.manual_seed(seed)
        clock = _Clock()
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        ids = torch.tensor([list(prompt)], device=self._model.device)
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            # Past every end of text, as the other contenders: no token has this id.
            eos_token_id=self._model.config.vocab_size,
            pad_token_id=0,
            streamer=clock,
            **(sampling if temperature else {"do_sample": False}),
            **self._early_exit,
        )
        return Answer(output[0, len(prompt) :].tolist(), clock.ms_per_token())

    def close(self) -> None:
        del self._model
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


STARTS: Mapping[Method, Callable[[Setting], Contender]] = {
    Method.PLAIN: lambda setting: Engine(setting, len(setting.partition), None),
    # On one device: in a pipeline vLLM 0.32 has a drafter on the last stage alone, and its
    # CPU runner asks every stage for one while it warms up.
    Method.NGRAM: lambda setting: Engine(
        setting, 1, {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    ),
    Method.SINGLE: lambda setting: Engine(setting, 1, None),
    Method.TRANSFORMERS: lambda setting: Transformers(setting.model, None),
    Method.EARLY_EXIT: lambda setting: Transformers(setting.model, setting.partition[0]),
    Method.PPSD: lambda setting: Engine(
        setting, len(setting.partition), {"method": "ppsd", "model": setting.head}
    ),
}
"""How to start each contender, in the order in which they are started."""


def start(
    setting: Setting, methods: Sequence[Method], *, backwards: bool
) -> dict[Method, Contender]:
    """Start contenders, the last first if ``backwards``; return them as ``methods`` are ordered."""
    started: dict[Method, Contender] = {}
    order = [method for method in STARTS if method in methods]
    try:
        for method in reversed(order) if backwards else order:
            started[method] = STARTS[method](setting)
    except BaseException:
        for contender in started.values():
            contender.close()
        raise
    return {method: started[method] for method in methods}
