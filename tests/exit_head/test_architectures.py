"""Which targets are refused by their config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.architectures import ARCHITECTURES, check_config

FILE = Path("m/config.json")
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 6,
    "hidden_size": 128,
    "vocab_size": 512,
}


def test_what_is_known_is_returned():
    assert check_config(LLAMA, FILE) is ARCHITECTURES["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported yet"),
        ({"architectures": None}, r"m/config\.json has no architectures"),
        ({"architectures": []}, "has no architectures"),
        ({"architectures": "LlamaForCausalLM"}, "has no architectures"),
        ({"num_hidden_layers": None}, "has num_hidden_layers None"),
        ({"num_hidden_layers": 1}, "has num_hidden_layers 1; a target needs 2 or more"),
        ({"hidden_size": "128"}, "has hidden_size '128'"),
        ({"vocab_size": True}, "has vocab_size True"),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "T5ForConditionalGeneration is an encoder-decoder model",
        ),
        (
            {"architectures": ["LlavaForConditionalGeneration"], "text_config": LLAMA},
            "LlavaForConditionalGeneration is a multimodal model.*text_config",
        ),
    ],
)
def test_others_are_refused_by_name(changes: dict[str, Any], message: str):
    with pytest.raises(ExitHeadError, match=message):
        check_config(LLAMA | changes, FILE)


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_missing_size_is_named(field: str):
    with pytest.raises(ExitHeadError, match=f"has no {field}"):
        check_config({key: LLAMA[key] for key in LLAMA if key != field}, FILE)


def test_the_message_says_what_is_supported_and_where_it_is_written():
    with pytest.raises(ExitHeadError) as error:
        check_config(LLAMA | {"architectures": ["GPT2LMHeadModel"]}, FILE)
    for name in ARCHITECTURES:
        assert name in str(error.value)
    assert "docs/operating.md, Targets" in str(error.value)
    text = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    assert "## Targets" in text
