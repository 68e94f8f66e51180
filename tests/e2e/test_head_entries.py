"""The entries that a head writes without attending are those of its whole layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import engine as e
from support.runners import V2_IN_LONG_RUNS
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.architectures import ARCHITECTURES
from vllm_ppsd.exit_head.create import init_head

pytestmark = [pytest.mark.e2e, *V2_IN_LONG_RUNS]


@pytest.mark.parametrize(
    "family",
    ["llama", "qwen3", *(pytest.param(name, marks=pytest.mark.long) for name in ("qwen2", "phi3"))],
)
def test_entries_are_those_of_the_whole_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
):
    model = make_tiny_model(tmp_path / family, family)
    head = init_head(
        str(model), model / "ppsd", exit_layer=3, head_type="transformer", num_layers=2
    )
    lean = entries(model)
    name = head.target.architecture
    assert ARCHITECTURES[name].entries_alone
    monkeypatch.setitem(ARCHITECTURES, name, replace(ARCHITECTURES[name], entries_alone=False))
    whole = entries(model)
    assert len(lean) == 2
    for ours, theirs in zip(lean, whole, strict=True):
        assert theirs.count_nonzero() > 0
        torch.testing.assert_close(ours, theirs)


def entries(model: Path) -> list[torch.Tensor]:
    """The head's key/value caches after a prompt and a few tokens behind it."""
    with e.engine(
        model, stages=1, ppsd={"num_speculative_tokens": 2}, dtype="float32", block_size=32
    ) as llm:
        e.generate(llm, range(5, 75), e.params(6))
        caches: list[list[torch.Tensor]] = llm.collective_rpc(_caches)
    return caches[0]


def _caches(worker) -> list[torch.Tensor]:
    head = worker.ppsd.drafter.head
    return [layer.self_attn.attn.kv_cache.clone() for layer in head.layers]
