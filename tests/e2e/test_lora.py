"""Requests with an adapter and without one, in turn: output is plain decoding's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import engine as e
from support.runners import V2_IN_LONG_RUNS
from support.tiny import NUM_LAYERS, make_tiny_model
from vllm.lora.request import LoRARequest

from vllm_ppsd.exit_head.create import init_head

pytestmark = [pytest.mark.e2e, pytest.mark.long, *V2_IN_LONG_RUNS]

PROMPTS = [list(range(5, 25)), list(range(40, 43))]
SAMPLINGS = [e.params(24), e.params(24, temperature=0.9, seed=7)]
RANK = 4
OPTIONS = {"enable_lora": True, "max_lora_rank": 8}


def run(llm, adapter: LoRARequest) -> dict[bool, list[e.Output]]:
    return {
        adapted: [
            e.generate(llm, prompt, sampling, adapter if adapted else None)
            for prompt in PROMPTS
            for sampling in SAMPLINGS
        ]
        for adapted in (True, False)
    }


def test_output_is_that_of_plain_decoding(tmp_path: Path):
    model = make_tiny_model(tmp_path / "qwen2", "qwen2")
    # A head that takes its LM head's rows out of the wrapped embedding.
    init_head(
        str(model),
        model / "ppsd",
        exit_layer=3,
        head_type="transformer",
        draft_token_ids=list(range(0, 512, 2)),
    )
    adapter = LoRARequest("random", 1, str(write_adapter(tmp_path / "adapter")))
    with e.engine(model, ppsd=e.PLAIN, **OPTIONS) as plain:
        expected = run(plain, adapter)
    assert expected[True] != expected[False]
    with e.engine(model, ppsd={}, **OPTIONS) as llm:
        assert run(llm, adapter) == expected
        e.assert_drafted(llm)


def write_adapter(folder: Path) -> Path:
    """Write a random adapter for the query projections and the MLP's last ones."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tensors = {}
    for layer in range(NUM_LAYERS):
        for module, wide in (("self_attn.q_proj", 128), ("mlp.down_proj", 256)):
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = 0.2 * torch.randn(RANK, wide)
            tensors[f"{name}.lora_B.weight"] = 0.2 * torch.randn(128, RANK)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
