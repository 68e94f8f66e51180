"""A head made for a quantised target holds the target's weights as floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantised import FP8, W8A8, quantise

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.create import describe_target, head_config, initial_tensors, read_tensors


def tensors_of(model: Path) -> dict[str, torch.Tensor]:
    config = head_config(describe_target(model), exit_layer=3, head_type="transformer")
    return initial_tensors(str(model), config)


@pytest.mark.parametrize(("config", "tolerance"), [(W8A8, 1 / 127), (FP8, 1 / 16)])
def test_tensors_are_those_of_the_unquantised_target(
    tiny_llama: Path, tmp_path: Path, config: dict[str, Any], tolerance: float
):
    quantised = tensors_of(quantise(tiny_llama, tmp_path / "quantised", config))
    expected = tensors_of(tiny_llama)
    assert quantised.keys() == expected.keys()
    for name, tensor in expected.items():
        largest = float(tensor.float().abs().max())
        torch.testing.assert_close(
            quantised[name].float(), tensor.float(), rtol=0, atol=tolerance * largest
        )


def test_another_method_is_refused_by_name(tiny_llama: Path, tmp_path: Path):
    model = quantise(tiny_llama, tmp_path / "quantised", W8A8 | {"quant_method": "gptq"})
    with pytest.raises(ExitHeadError, match=r"quantised by gptq.*down_proj\.weight as floats"):
        tensors_of(model)
    assert read_tensors(model, "model.norm.weight")
