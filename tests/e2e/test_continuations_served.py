"""In an engine, continuations are those of plain torch behind the target's own states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import engine as e
from support.heads import with_steps
from support.plain_head import PlainHead
from support.reference import Reference
from support.runners import V2_IN_LONG_RUNS
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.create import init_head

pytestmark = [pytest.mark.e2e, *V2_IN_LONG_RUNS]

EXIT_LAYER, DRAFTS, TOKENS = 3, 3, 40
PROMPTS = [list(range(5, 25)), list(range(100, 190)), [9, 9, 9, 9]]


def test_drafts_are_what_the_head_says_behind_the_targets_states(tmp_path: Path):
    model, one = make_tiny_model(tmp_path / "llama"), tmp_path / "one"
    init_head(str(model), one, exit_layer=EXIT_LAYER, head_type="transformer", num_layers=2)
    reference = Reference(model)
    texts = [[*prompt, *reference.greedy(prompt, TOKENS)] for prompt in PROMPTS]
    folder = with_steps(one, tmp_path / "head", 2, texts, model)
    drafting = {"model": folder, "num_speculative_tokens": DRAFTS, "draft_threshold": 0.0}
    with e.engine(model, stages=1, ppsd=drafting, dtype="float32", block_size=32) as llm:
        llm.collective_rpc(_record)
        seen = []
        for prompt, text in zip(PROMPTS, texts, strict=True):
            assert [*prompt, *e.generate(llm, prompt, e.params(TOKENS)).tokens] == text
            seen.append(llm.collective_rpc(_recorded)[0])
        e.assert_drafted(llm)
    head = PlainHead(one, folder, model)
    for tokens, steps in zip(texts, seen, strict=True):
        check(head, tokens, *reference.states(tokens, EXIT_LAYER), steps)


def check(
    head: PlainHead,
    tokens: list[int],
    states: torch.Tensor,
    finals: torch.Tensor,
    seen: list[tuple[int, torch.Tensor]],
) -> None:
    """Compare the steps seen, position and logits of each, with plain torch."""
    bursts = [seen[i : i + DRAFTS] for i in range(0, len(seen), DRAFTS)]
    # Behind the last token drafts are made that nobody verifies.
    bursts = [burst for burst in bursts if burst[0][0] < len(tokens)]
    assert len(bursts) >= TOKENS // (DRAFTS + 1) - 1
    for burst in bursts:
        start = burst[0][0]
        inputs, final, token = states[:start], finals[start - 1], tokens[start]
        for step, (position, logits) in enumerate(burst):
            assert position == start + step
            inputs = torch.cat([inputs, head.fused(final, token)[None]])
            final = head.final(inputs)
            torch.testing.assert_close(logits, head.logits(final), rtol=1e-3, atol=1e-3)
            token = int(logits.argmax())


def _record(worker) -> None:
    """Keep what the head says behind every token that it goes on from."""
    continuation = worker.ppsd.drafter.continuation
    forward, worker.seen = continuation.forward, []

    def recording(positions, final, tokens):
        guess = forward(positions, final, tokens)
        worker.seen.append((positions.item(), guess.logits[0].clone()))
        return guess

    continuation.forward = recording


def _recorded(worker) -> list[tuple[int, torch.Tensor]]:
    """Return what was kept since the last time."""
    seen = list(worker.seen)
    worker.seen.clear()
    return seen
