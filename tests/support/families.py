"""Tiny models of every architecture, whose windows and caps show within a few tokens."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from support import tiny

_WINDOW = {"sliding_window": 16}
# Windows are shorter than documents, and caps bend what they cap.
TIGHTER = {
    "gemma2": (
        "Gemma2Config",
        {
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            **_WINDOW,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0, **_WINDOW},
    ),
    "mistral": ("MistralConfig", _WINDOW),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 512, **_WINDOW}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 3, **_WINDOW}),
}
FAMILIES = sorted(tiny.FAMILIES | TIGHTER)


def make_family(folder: Path, family: str) -> Path:
    """Write a tiny random model of ``family`` to ``folder`` and return it."""
    with mock.patch.dict(tiny.FAMILIES, TIGHTER):
        return tiny.make_tiny_model(folder, family)
