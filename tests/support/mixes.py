"""Random mixes of requests, and an engine that is driven through them step by step."""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

VOCABULARY = range(3, 512)
CHOICES = ["t5t6t7t8", "t5t9", "t11t12t13"]


@dataclass(frozen=True)
class Asked:
    """A request of a mix.

    Attributes:
        name: its id.
        prompt: token ids.
        sampling: its parameters; what they leave to chance is seeded.
        arrives: engine step at which it is added.
        leaves: output tokens after which its client leaves, or None; with 0, in the step
            after it came.
        priority: lower is more urgent.
    """

    name: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    arrives: int
    leaves: int | None
    priority: int


@dataclass(frozen=True)
class Got:
    """What came back: per sequence its tokens, and whether the request finished."""

    tokens: tuple[tuple[int, ...], ...]
    finished: bool


def random_mix(
    seed: int, size: int, heads: Sequence[Sequence[int]] = (), one_device: bool = False
) -> list[Asked]:
    """Return ``size`` requests of every kind, arriving over a while.

    Args:
        seed: of everything that is random.
        size: number of requests.
        heads: sequences which some of the prompts begin with.
        one_device: only what vLLM's rejection sampler takes, and greedy: what it samples
            is plain decoding's in distribution alone.
    """
    rng = random.Random(seed)
    return [_asked(rng, f"{seed}-{number}", heads, one_device) for number in range(size)]


def drive(llm: Any, mix: Sequence[Asked], resets: Container[int] = ()) -> dict[str, Got]:
    """Add and abort requests at their steps, until all have left; return what came.

    Args:
        llm: the engine.
        mix: the requests.
        resets: steps before which the prefix cache is reset, and all running requests with it.
    """
    core = llm.llm_engine
    seen: dict[str, list[list[int]]] = {asked.name: [] for asked in mix}
    finished: set[str] = set()
    staying: dict[str, int] = {}
    waiting = sorted(mix, key=lambda asked: asked.arrives)
    step = 0
    while waiting or core.has_unfinished_requests():
        while waiting and waiting[0].arrives <= step:
            asked = waiting.pop(0)
            core.add_request(
                asked.name,
                {"prompt_token_ids": list(asked.prompt)},
                asked.sampling,
                priority=asked.priority,
            )
            seen[asked.name] = [[] for _ in range(asked.sampling.n)]
            if asked.leaves is not None:
                staying[asked.name] = asked.leaves
        if step in resets:
            core.reset_prefix_cache(reset_running_requests=True)
        for output in core.step():
            for completion in output.outputs:
                seen[output.request_id][completion.index] += completion.token_ids
            if output.finished:
                finished.add(output.request_id)
                staying.pop(output.request_id, None)
        left = [name for name, tokens in staying.items() if len(seen[name][0]) >= tokens]
        core.abort_request(left)
        for name in left:
            del staying[name]
        step += 1
    return {
        name: Got(tuple(tuple(tokens) for tokens in found), name in finished)
        for name, found in seen.items()
    }


def stay(mix: Sequence[Asked]) -> list[Asked]:
    """Return the mix with nobody leaving."""
    return [replace(asked, leaves=None) for asked in mix]


def plain_runs(
    plain: Any, seeds: Sequence[int], size: int
) -> tuple[list[list[Asked]], dict[str, Got]]:
    """Return mixes, the later of which continue answers to the first, and what is expected."""
    first = random_mix(seeds[0], size)
    expected = drive(plain, stay(first))
    heads = [
        [*asked.prompt, *tokens]
        for asked in first
        for answer in expected[asked.name].tokens
        # The synthetic drafter's wrong draft is the token after the right one.
        for tokens in (answer, [*answer[:-1], (answer[-1] + 1) % 512])
    ]
    mixes = [first, *(random_mix(seed, size, heads) for seed in seeds[1:])]
    for mix in mixes[1:]:
        expected |= drive(plain, stay(mix))
    return mixes, expected


def recorded(
    mixes: Sequence[Sequence[Asked]], expected: dict[str, Got]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return prompts and their first answers, as a synthetic drafter's record has them."""
    return [(asked.prompt, expected[asked.name].tokens[0]) for mix in mixes for asked in mix]


def check(mix: Sequence[Asked], got: dict[str, Got], expected: dict[str, Got]) -> None:
    """Assert that what came of every request of the mix is what is expected of it."""
    for asked in mix:
        here, there = got[asked.name], expected[asked.name]
        assert here.finished or asked.leaves is not None
        for tokens, wanted in zip(here.tokens, there.tokens, strict=bool(here.tokens)):
            ended = here.finished or len(tokens) == len(wanted)
            assert tokens == (wanted if ended else wanted[: len(tokens)]), asked


def _asked(
    rng: random.Random, name: str, heads: Sequence[Sequence[int]], one_device: bool
) -> Asked:
    head = list(rng.choice(heads)) if heads and rng.random() < 0.6 else []
    prompt = head[:200] + rng.choices(VOCABULARY, k=rng.choice([1, 2, 5, 30, 31, 40]))
    return Asked(
        name=name,
        prompt=tuple(prompt),
        sampling=_sampling(rng, one_device),
        arrives=rng.randrange(60),
        leaves=rng.randrange(8) if rng.random() < 0.15 else None,
        priority=rng.randrange(3),
    )


def _sampling(rng: random.Random, one_device: bool) -> SamplingParams:
    options: dict[str, Any] = {
        "max_tokens": rng.choice([1, 2, 3, 4, 12, 30]),
        "ignore_eos": rng.random() < 0.5,
        # Every step's tokens are seen, of requests that are aborted as well.
        "output_kind": RequestOutputKind.DELTA,
    }
    if rng.random() < 0.6 and not one_device:
        options |= {"temperature": rng.choice([0.5, 1.0, 1.5]), "seed": rng.randrange(99)}
        options |= {"top_p": rng.choice([1.0, 0.9]), "top_k": rng.choice([0, 20])}
        options |= {"min_p": rng.choice([0.0, 0.05]), "n": rng.choice([1, 1, 2])}
    else:
        options["temperature"] = 0.0
    feature = rng.randrange(8)
    if feature == 0:
        options |= {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "min_tokens": 1}
    elif feature == 1:
        options |= {"allowed_token_ids": list(range(3, 512, 7)), "logprobs": 3}
    elif feature == 2:
        options |= {"stop_token_ids": list(range(3, 512, 11)), "presence_penalty": 0.5}
    elif feature == 3:
        options |= {"prompt_logprobs": 1} | ({} if one_device else {"logit_bias": {7: 3.0}})
    elif feature == 4:
        options |= {"stop": ["7"], "bad_words": ["t17", "t71"]}
    elif feature == 5:
        options["structured_outputs"] = StructuredOutputsParams(choice=CHOICES)
    return SamplingParams(**options)
