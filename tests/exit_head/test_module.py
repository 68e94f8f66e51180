"""The served head is of its target's kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.quantised import W8A8, quantise
from support.reference import Reference
from support.served import served_head
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.exit_head.create import init_head

TOKENS = 8


def transformer_head(model: Path) -> Path:
    init_head(str(model), model / "ppsd", exit_layer=4, head_type="transformer", num_layers=2)
    return model / "ppsd"


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_a_lens_norms_and_shapes_logits_as_the_target(
    family: str, tmp_path: Path, vllm_process: None
):
    model = make_tiny_model(tmp_path / family, family)
    init_head(str(model), model / "ppsd", exit_layer=4)
    states, every = torch.randn(TOKENS, 128), torch.arange(TOKENS)
    with served_head(model / "ppsd", model) as head:
        logits = head(every, states, None, every).logits.clone()
    torch.testing.assert_close(logits, Reference(model).logits_of(states), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "windows"), [("gemma2", [16, None]), ("gemma3", [16, None])])
def test_a_layer_is_of_the_kind_that_it_started_from(
    family: str, windows: list[int | None], tmp_path: Path, vllm_process: None
):
    """The number of a layer decides: 4 has a sliding window, 5 has none."""
    model = make_tiny_model(tmp_path / family, family)
    with served_head(transformer_head(model), model) as head:
        assert [layer.self_attn.attn.sliding_window for layer in head.layers] == windows


def test_two_layers_that_started_from_the_same_have_caches_of_their_own(
    tmp_path: Path, vllm_process: None
):
    model = make_tiny_model(tmp_path / "llama")
    init_head(str(model), model / "ppsd", exit_layer=5, head_type="transformer", num_layers=2)
    with served_head(model / "ppsd", model) as head:
        first, second = (layer.self_attn.attn.layer_name for layer in head.layers)
    assert first != second


def test_tensors_that_the_target_packs_are_loaded_as_they_are(tmp_path: Path, vllm_process: None):
    model = make_tiny_model(tmp_path / "phi3", "phi3")
    check_projections(model, ["self_attn.qkv_proj", "mlp.gate_up_proj"])


def test_layers_of_a_quantised_target_are_served_in_floats(tmp_path: Path, vllm_process: None):
    model = quantise(make_tiny_model(tmp_path / "llama"), tmp_path / "quantised", W8A8)
    check_projections(model, ["self_attn.o_proj", "mlp.down_proj"])


def check_projections(model: Path, names: list[str]) -> None:
    """Fail where a projection of the first layer is not what the head's folder holds of it."""
    folder = transformer_head(model)
    stored = ExitHeadFolder.open(folder).tensors()
    with served_head(folder, model) as head:
        for name in names:
            weight = stored[f"layers.0.{name}.weight"].float()
            x = torch.randn(TOKENS, weight.shape[1])
            projected, _ = head.layers[0].get_submodule(name)(x)
            torch.testing.assert_close(projected, x @ weight.T, rtol=1e-4, atol=1e-4)
