"""Caching states: what is compared with the model itself before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.tiny import make_tiny_model

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.architectures import LogitsShape
from vllm_ppsd.training import packing, target
from vllm_ppsd.training.generate import Document, write_documents
from vllm_ppsd.training.recipe import Cache
from vllm_ppsd.training.states import TARGET, cache_states

CPU = torch.device("cpu")


def write_text(work: Path) -> None:
    (work / "text").mkdir(parents=True)
    tokens = torch.randint(3, 512, (3, 60), generator=torch.Generator().manual_seed(0)).tolist()
    documents = [Document(row[:10], row[10:], 0.0, "random") for row in tokens]
    # The first shard's prompts were all too long.
    write_documents([], work / "text" / "00000.jsonl")
    write_documents(documents, work / "text" / "00001.jsonl")


def test_logits_that_are_not_the_models_own_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = str(make_tiny_model(tmp_path / "granite", "granite"))
    write_text(tmp_path)
    monkeypatch.setattr(target, "logits_shape", lambda _: LogitsShape())
    with pytest.raises(TrainingError, match=r"granite \(GraniteForCausalLM\) diverge.* nats"):
        cache_states(model, Cache(), [3], tmp_path, CPU)
    assert not list(tmp_path.glob("states/*/*.safetensors"))


def test_attention_that_is_not_the_models_own_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = str(make_tiny_model(tmp_path / "gemma2", "gemma2"))
    write_text(tmp_path)
    attend = packing.packed_attention
    monkeypatch.setattr(packing, "packed_attention", lambda *arguments: attend(*arguments[:5]))
    with pytest.raises(TrainingError, match="Gemma2ForCausalLM"):
        cache_states(model, Cache(), [3], tmp_path, CPU)


def test_states_whose_logits_were_shaped_otherwise_are_refused(tmp_path: Path):
    model = str(make_tiny_model(tmp_path / "granite", "granite"))
    write_text(tmp_path)
    cache_states(model, Cache(), [3], tmp_path, CPU)
    assert len(list(tmp_path.glob("states/*/00001.safetensors"))) == 2
    manifest = tmp_path / "states" / TARGET / "manifest.json"
    settings = json.loads(manifest.read_text())
    assert settings.pop("logits") == {"scale": 0.25, "soft_cap": None}
    manifest.write_text(json.dumps(settings))
    with pytest.raises(TrainingError, match="was made with logits = None"):
        cache_states(model, Cache(), [3], tmp_path, CPU)
