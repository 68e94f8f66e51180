"""Tiny random models of the supported architectures and others, with a word-level tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

VOCAB_SIZE = 512
NUM_LAYERS = 6
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_local_experts": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # name: its config class, and what this is told besides sizes
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "ernie4_5": ("Ernie4_5Config", {}),
    "gemma": ("GemmaConfig", {}),
    "gemma2": (
        "Gemma2Config",
        {"query_pre_attn_scalar": 32, "sliding_window": 16, "final_logit_softcapping": 10.0},
    ),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 32, "sliding_window": 16}),
    "glm4": ("Glm4Config", {}),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
        },
    ),
    "granite_moe": (
        "GraniteMoeConfig",
        {"attention_multiplier": 0.1, "logits_scaling": 4.0, **_EXPERTS},
    ),
    "ministral3": ("Ministral3Config", {}),
    "mixtral": ("MixtralConfig", _EXPERTS),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, **_EXPERTS}),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 512}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "shared_expert_intermediate_size": 64, **_EXPERTS},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", _EXPERTS),
    "smollm3": ("SmolLM3Config", {}),
}
_ADDED = ("o_proj.weight", "down_proj.weight", "down_proj", "output_linear.weight")
"""What a layer's attention and MLP or experts end in."""
_NORMED = ("gemma2", "gemma3")
"""What their layers add is normed by 1 + weight first, and little beside their embeddings."""


def make_tiny_model(folder: Path, family: str = "llama", seed: int = 0, tied: bool = True) -> Path:
    """Write a random model of ``family`` to ``folder`` and return it.

    The last layers add little to the residual stream, so that an untrained exit
    head is sometimes right and sometimes wrong.
    """
    config_class, special = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
        **special,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            late = number >= NUM_LAYERS // 2
            for name, weight in layer.named_parameters():
                if family in _NORMED and name.startswith("post_"):
                    weight.add_(4 if late else 8)
                elif late and name.endswith(_ADDED):
                    weight.mul_(0.25)
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def calmed(model: Path, folder: Path, share: float = 0.07) -> Path:
    """Copy a model whose layers add only a share of what they did.

    What it writes depends on the newest token most of all, so that a head that knows little else
    is often right, and on the tokens before it, so that it is not always.
    """
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("ppsd"))
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(_ADDED):
            tensor.mul_(share)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _write_tokenizer(folder: Path) -> None:
    vocabulary = {f"t{i}": i for i in range(VOCAB_SIZE)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "t1",
                "eos_token": "t2",
                "pad_token": "t0",
            }
        )
    )
