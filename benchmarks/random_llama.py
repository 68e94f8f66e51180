"""A Llama of random weights, of any size."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, **sizes: int) -> None:
    """Write a model to ``folder``; ``sizes`` as of ``transformers.LlamaConfig``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=2048, eos_token_id=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
