"""Requests of all kinds of sampling."""

from __future__ import annotations

from vllm import LLM

from support import engine as e

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 220))]
VARIANTS = {
    "greedy": e.params(32),
    "temperature": e.params(32, temperature=0.9, seed=7),
    "unseeded": e.params(32, temperature=1.0),
    "top_p, top_k": e.params(32, temperature=1.2, seed=5, top_p=0.8, top_k=20),
    "penalties": e.params(32, repetition_penalty=1.3, presence_penalty=0.5, min_tokens=8),
    "frequency": e.params(32, temperature=0.7, seed=2, frequency_penalty=0.8),
    "min_p, bias": e.params(32, temperature=1.0, seed=3, min_p=0.05, logit_bias={9: 2.0}),
    "allowed": e.params(32, allowed_token_ids=list(range(3, 512, 5))),
    "bad words": e.params(32, bad_words=[f"t{i}" for i in range(3, 10)]),
    "one token": e.params(1),
    "two tokens": e.params(2),
    "three tokens": e.params(3),
    "stop": e.params(32, ignore_eos=False, stop_token_ids=list(range(0, 512, 17))),
    "stop string": e.params(32, stop=["7", "t31"]),
    "logprobs": e.params(24, logprobs=5, prompt_logprobs=1),
}


def run(llm: LLM, variants: list[str]) -> dict[str, list[e.Output]]:
    """Generate for every prompt, one request after the other."""
    return {
        name: [e.generate(llm, prompt, VARIANTS[name]) for prompt in PROMPTS] for name in variants
    }
