"""Heads for quantised targets: trained in floats, on what the quantised target says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantised import FP8, W8A8, quantise
from support.tiny import NUM_LAYERS, VOCAB_SIZE, make_tiny_model
from transformers import AutoModelForCausalLM

from vllm_ppsd.exit_head.create import describe_target, head_config
from vllm_ppsd.training.build import read_lm_head, untrained
from vllm_ppsd.training.target import Target

EXIT_LAYER = 3
LENGTHS = [30, 50]


@pytest.mark.parametrize("config", [W8A8, FP8], ids=["w8a8", "fp8"])
def test_a_head_of_the_layers_that_are_left_says_what_the_target_says(
    tmp_path: Path, config: dict[str, Any]
):
    whole = make_tiny_model(tmp_path / "tiny", tied=False)
    model = str(quantise(whole, tmp_path / "quantised", config))
    tokens = torch.randint(3, VOCAB_SIZE, (sum(LENGTHS),), generator=torch.manual_seed(0))
    target = Target(model, torch.device("cpu"), torch.float32)
    target.check([d.tolist() for d in tokens.split(LENGTHS)])
    states, final = target.run(tokens, LENGTHS, [EXIT_LAYER])
    logits = target.logits(final)
    own = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        expected = torch.cat([own(d[None]).logits[0] for d in tokens.split(LENGTHS)])
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-4)
    head_of = head_config(
        describe_target(Path(model)),
        exit_layer=EXIT_LAYER,
        head_type="transformer",
        num_layers=NUM_LAYERS - EXIT_LAYER,
    )
    head, _ = untrained(model, head_of, None)
    (said,) = head(states[EXIT_LAYER].clone(), LENGTHS, torch.arange(sum(LENGTHS)))
    log_p, log_q = logits.log_softmax(-1), said.log_softmax(-1)
    # It does not quantise what its layers read.
    assert (log_p.exp() * (log_p - log_q)).sum(-1).median() < 0.05
    said.sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in head.parameters())
    torch.testing.assert_close(read_lm_head(model), read_lm_head(str(whole)))
