"""What a served head says behind its own guesses, beside the same in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.heads import with_steps
from support.plain_head import PlainHead
from support.served import served
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.checkpoint import save
from vllm_ppsd.exit_head.create import describe_target, head_config
from vllm_ppsd.training.build import checkpoint_tensors, untrained

LENGTH, STEPS = 20, 3
HEADS: dict[str, dict[str, Any]] = {
    "two layers": {"num_layers": 2, "output_map": True},
    "further on": {"num_layers": 1, "start_layer": 5, "output_map": True},
    "multi-depth": {"num_layers": 1, "output_map": True, "deeper_layers": [5, 6]},
    "no map": {"num_layers": 1},
}


class CachedAttention(torch.nn.Module):
    """In place of vLLM's attention: every call's tokens follow those of the call before."""

    def __init__(self, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.keys, self.values = (torch.zeros(kv_heads, 0, 32) for _ in range(2))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        tokens = len(q)
        query, key, value = (x.view(tokens, -1, 32).transpose(0, 1) for x in (q, k, v))
        self.keys = torch.cat([self.keys, key], dim=1)
        self.values = torch.cat([self.values, value], dim=1)
        before = self.keys.shape[1] - tokens
        mask = torch.ones(tokens, before + tokens, dtype=torch.bool).tril(before)
        output = torch.nn.functional.scaled_dot_product_attention(
            query, self.keys, self.values, attn_mask=mask, enable_gqa=True
        )
        return output.transpose(0, 1).reshape(tokens, -1)


def head_with_steps(model: Path, folder: Path, vocabulary: torch.Tensor, **make: Any) -> Path:
    """Write a random head, and make it go on."""
    config = head_config(
        describe_target(model),
        exit_layer=4,
        head_type="transformer",
        draft_vocab_size=len(vocabulary),
        **make,
    )
    head, drafted = untrained(str(model), config, vocabulary)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    save(folder / "one", config, checkpoint_tensors(head, drafted))
    return Path(with_steps(folder / "one", folder / "head", STEPS))


def in_plain_torch(
    head: PlainHead, states: torch.Tensor, deeper: torch.Tensor | None
) -> tuple[list[torch.Tensor], list[int]]:
    """Return the logits of every step, and the tokens drafted."""
    inputs = head.first_inputs(states, deeper)
    final = head.final(inputs, None if deeper is None else deeper[-1])
    logits, tokens = [head.logits(final)], []
    while True:
        tokens.append(int(head.token_ids[logits[-1].argmax()]))
        if len(tokens) == STEPS:
            return logits, tokens
        inputs = torch.cat([inputs, head.fused(final, tokens[-1])[None]])
        final = head.final(inputs)
        logits.append(head.logits(final))


@pytest.mark.parametrize("make", HEADS)
def test_continuations_are_those_of_plain_torch(make: str, tmp_path: Path, vllm_process: None):
    torch.manual_seed(1)
    model = make_tiny_model(tmp_path / "llama")
    vocabulary = torch.arange(500, 100, -1)
    folder = head_with_steps(model, tmp_path, vocabulary, **HEADS[make])
    states = torch.randn(LENGTH, 128)
    deeper = 30 * torch.randn(LENGTH, 2, 128) if "deeper_layers" in HEADS[make] else None
    plain = PlainHead(tmp_path / "one", folder, model)
    expected, drafts = in_plain_torch(plain, states, deeper)
    with served(folder, model) as (head, continuation):
        assert continuation is not None
        for layer in head.layers:
            layer.self_attn.attn = CachedAttention(4, 2)
        last = torch.tensor([LENGTH - 1])
        guess = head(torch.arange(LENGTH), states / 2, states / 2, last, deeper)
        guesses = [guess]
        for position in range(LENGTH, LENGTH + STEPS - 1):
            guess = continuation(torch.tensor([position]), guess.final, guess.drafts)
            guesses.append(guess)
        assert [guess.drafts.item() for guess in guesses] == drafts
        for guess, logits in zip(guesses, expected, strict=True):
            # Every step carries on the rounding of those before.
            atol = 1e-4 * float(logits.abs().max())
            torch.testing.assert_close(guess.logits[0], logits, rtol=1e-4, atol=atol)
            best = logits.softmax(-1).max()
            torch.testing.assert_close(guess.probabilities[0], best, rtol=1e-3, atol=1e-5)


def test_a_head_of_one_step_does_not_go_on(tmp_path: Path, vllm_process: None):
    model = make_tiny_model(tmp_path / "llama")
    vocabulary = torch.arange(400)
    head_with_steps(model, tmp_path, vocabulary, num_layers=1)
    with served(tmp_path / "one", model) as (head, continuation):
        assert continuation is None
        assert head.fuse is None
