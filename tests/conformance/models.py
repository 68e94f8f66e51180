"""A stand-in for the hub model that vLLM's scheduler tests name.

A scheduler reads a model's configuration and never its weights, so a folder with
a configuration and a tokenizer is enough. vLLM takes a folder of the model's name
in the working directory for the model itself, so the tests need not be told.

The tests' other model takes images. PPSD refuses such models, so it has no
stand-in, and the tests that need it fail before they build a scheduler.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import OPTConfig, PreTrainedTokenizerFast

NAME = "facebook/opt-125m"


def write_model(folder: Path) -> None:
    """Write the stand-in under ``folder``, named as on the hub.

    The context length is that of the hub's model, because the tests count with it.
    """
    OPTConfig(
        vocab_size=50272,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        architectures=["OPTForCausalLM"],
    ).save_pretrained(folder / NAME)
    words = WordLevel({f"t{i}": i for i in range(8)}, unk_token="t0")
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), bos_token="t1", eos_token="t2", pad_token="t0"
    ).save_pretrained(folder / NAME)
