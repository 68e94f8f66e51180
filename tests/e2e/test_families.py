"""Targets of every architecture: their text, and what an untrained head says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import engine as e
from support.reference import Reference
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.architectures import ARCHITECTURES
from vllm_ppsd.exit_head.create import init_head
from vllm_ppsd.exit_head.fingerprint import describe_target

pytestmark = pytest.mark.e2e

PROMPT, TOKENS = list(range(5, 45)), 40
EXIT_LAYER = 4
RARE = ["ernie4_5", "gemma", "gemma2", "gemma3", "glm4", "granite_moe", "ministral3", "mixtral"]
RARE += ["olmoe", "phi3", "qwen2_moe", "qwen3_moe", "smollm3"]


@pytest.mark.parametrize(
    "family", ["granite", *(pytest.param(family, marks=pytest.mark.long) for family in RARE)]
)
def test_text_is_the_targets_and_drafts_are_its_early_layers(tmp_path: Path, family: str):
    model = make_tiny_model(tmp_path / family, family, tied=family != "olmoe")
    known = ARCHITECTURES[describe_target(model).architecture]
    head = init_head(
        str(model),
        model / "ppsd",
        exit_layer=EXIT_LAYER,
        head_type="transformer" if known.transformer_heads else "lens",
    )
    reference = Reference(model)
    expected = reference.greedy(PROMPT, TOKENS)
    with e.engine(model, ppsd={}, dtype="float32") as llm:
        llm.collective_rpc(_record_logits)
        assert e.generate(llm, PROMPT, e.params(TOKENS)).tokens == expected
        e.assert_drafted(llm)
        seen: dict[int, torch.Tensor] = llm.collective_rpc(_recorded_logits)[0]
    early = reference.logits([*PROMPT, *expected], EXIT_LAYER + head.num_layers)
    # Behind these a draft was made that was looked at.
    for position in range(len(PROMPT), len(PROMPT) + TOKENS - 2):
        torch.testing.assert_close(seen[position], early[position], rtol=1e-3, atol=1e-3)


def _record_logits(worker) -> None:
    """Keep the head's logits on stage 0, the latest of each position."""
    if worker.ppsd.drafter is None:
        return
    head = worker.ppsd.drafter.head
    forward, worker.seen = head.forward, {}

    def recording(positions, hidden_states, residual, rows, deeper):
        guess = forward(positions, hidden_states, residual, rows, deeper)
        worker.seen |= dict(zip(positions[rows].tolist(), guess.logits, strict=True))
        return guess

    head.forward = recording


def _recorded_logits(worker) -> dict[int, torch.Tensor]:
    return getattr(worker, "seen", {})


@pytest.mark.long
def test_a_compiled_target_may_hand_over_no_residual(tmp_path: Path):
    model = make_tiny_model(tmp_path / "granite", "granite")
    init_head(str(model), model / "ppsd", exit_layer=EXIT_LAYER, head_type="transformer")
    with e.engine(model, ppsd={}, dtype="float32", enforce_eager=False) as llm:
        expected = Reference(model).greedy(PROMPT, TOKENS)
        assert e.generate(llm, PROMPT, e.params(TOKENS)).tokens == expected
        e.assert_drafted(llm)
