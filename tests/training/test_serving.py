"""The trained head and the served head give the same logits on the same states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.served import served_head
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder, save
from vllm_ppsd.exit_head.create import describe_target, head_config, init_head
from vllm_ppsd.training.build import checkpoint_tensors, trained, untrained
from vllm_ppsd.training.packing import packed_attention

LENGTH = 24
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
HEADS: dict[str, dict[str, Any]] = {
    "lens": {"head_type": "lens", "output_map": True},
    "transformer": {"head_type": "transformer", "num_layers": 2, "output_map": True},
    "further on": {
        "head_type": "transformer",
        "num_layers": 1,
        "start_layer": 5,
        "output_map": True,
    },
}
MULTI_DEPTH = {"head_type": "transformer", "output_map": True, "deeper_layers": [5, 6]}


class PlainAttention(torch.nn.Module):
    """In place of vLLM's attention, which needs an engine's key/value cache."""

    def __init__(self, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shaped = [
            x.view(1, LENGTH, heads, -1).transpose(1, 2)
            for x, heads in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads))
        ]
        return packed_attention(*shaped, [LENGTH]).reshape(LENGTH, -1)


def served_logits(
    head: Path, model: Path, states: torch.Tensor, deeper: torch.Tensor | None = None
) -> torch.Tensor:
    with served_head(head, model) as served:
        for layer in served.layers:
            layer.self_attn.attn = PlainAttention(4, 2)
        rows = torch.arange(LENGTH)
        guess = served(torch.arange(LENGTH), states / 2, states / 2, rows, deeper)
        return guess.logits.clone()


@pytest.mark.parametrize(
    ("family", "kind"),
    # Only the transformer head has layers of the target's own class.
    [
        ("llama", "lens"),
        ("llama", "further on"),
        *((family, "transformer") for family in FAMILIES),
    ],
)
def test_a_trained_head_is_served_as_it_was_trained(
    family: str, kind: str, tmp_path: Path, vllm_process: None
):
    model = make_tiny_model(tmp_path / family, family, tied=family != "qwen2")
    tokens = torch.arange(500, 100, -1)
    config = head_config(
        describe_target(model), exit_layer=4, draft_vocab_size=len(tokens), **HEADS[kind]
    )
    head, vocabulary = untrained(str(model), config, tokens)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).bfloat16())
    save(tmp_path / "head", config, checkpoint_tensors(head, vocabulary))
    states = torch.randn(LENGTH, 128)
    with torch.no_grad():
        (expected,) = head(states, [LENGTH], torch.arange(LENGTH))
    logits = served_logits(tmp_path / "head", model, states)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lens", "transformer"])
def test_a_served_head_is_trained_on_as_it_was_served(
    kind: str, tmp_path: Path, vllm_process: None
):
    model = make_tiny_model(tmp_path / "llama")
    options = {k: v for k, v in HEADS[kind].items() if k != "output_map"}
    init_head(str(model), tmp_path / "head", exit_layer=4, **options)
    head, _ = trained(ExitHeadFolder.open(tmp_path / "head"), str(model))
    states = torch.randn(LENGTH, 128)
    with torch.no_grad():
        (expected,) = head(states, [LENGTH], torch.arange(LENGTH))
    logits = served_logits(tmp_path / "head", model, states)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", [{}, {"start_layer": 5}])
@pytest.mark.parametrize("there", [True, False])
def test_a_multi_depth_head_is_served_as_it_was_trained(
    there: bool, start: dict[str, int], tmp_path: Path, vllm_process: None
):
    """With deeper states, and without any, as on one device."""
    model = make_tiny_model(tmp_path / "llama")
    config = head_config(describe_target(model), exit_layer=4, **MULTI_DEPTH, **start)
    head, vocabulary = untrained(str(model), config, None)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).bfloat16())
    save(tmp_path / "head", config, checkpoint_tensors(head, vocabulary))
    states, deeper = torch.randn(LENGTH, 128), 30 * torch.randn(LENGTH, 2, 128)
    deeper[:5] = 0
    if not there:
        deeper.zero_()
    with torch.no_grad():
        (expected,) = head(states, [LENGTH], torch.arange(LENGTH), deeper)
    logits = served_logits(tmp_path / "head", model, states, deeper if there else None)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
