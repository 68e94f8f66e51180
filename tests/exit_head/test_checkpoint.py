"""An exit head on disk: what is wrong with it is said by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import make_tiny_model

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder, save
from vllm_ppsd.exit_head.create import describe_target, head_config, init_head, initial_tensors
from vllm_ppsd.exit_head.fingerprint import fingerprint


@pytest.fixture
def head(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "head"
    config = head_config(
        describe_target(tiny_llama), exit_layer=3, head_type="lens", output_map=True
    )
    save(folder, config, initial_tensors(str(tiny_llama), config))
    return folder


def edit(head: Path, **changes) -> None:
    file = head / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(head: Path, match: str) -> None:
    with pytest.raises(ExitHeadError, match=match):
        ExitHeadFolder.open(head)


def test_a_head_comes_back_as_it_was_written(head: Path, tiny_llama: Path):
    opened = ExitHeadFolder.open(head)
    assert opened.config.head_type == "lens"
    assert opened.config.target.fingerprint == fingerprint(tiny_llama)
    assert set(opened.tensors()) == {"norm.weight", "map.weight", "map.bias"}
    opened.check_target(str(tiny_llama))


def test_a_missing_folder_or_file_is_named(head: Path):
    refused(head / "nowhere", "does not exist")
    (head / "model.safetensors").unlink()
    refused(head, "holds no model.safetensors")


def test_truncated_weights_are_refused(head: Path):
    file = head / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(head, "truncated")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"head_kind": "lens"}, "head_kind"),
        ({"start_layer": 5}, "only the transformer head has layers"),
        ({"format_version": 3}, "format_version"),
        ({"steps": 4}, "only the transformer head goes on from its own prediction"),
        ({"steps": 9}, "steps"),
        ({"head_type": "mlp"}, "mlp heads are no longer supported"),
        ({"intermediate_size": 32}, "mlp heads are no longer supported"),
        ({"head_type": "transformer"}, "num_layers"),
        ({"exit_layer": 6}, "exit layer 6 is out of range: the target has 6 layers"),
        ({"draft_vocab_size": 9999}, "draft_vocab_size 9999 exceeds"),
        ({"draft_vocab_size": 16}, "misses the tensor draft_token_ids"),
    ],
)
def test_a_wrong_field_is_named(head: Path, changes: dict, match: str):
    edit(head, **changes)
    refused(head, match)


def test_a_head_of_0_1_loads(head: Path):
    edit(head, intermediate_size=None)
    assert ExitHeadFolder.open(head).config.output_map


def test_a_tensor_of_another_shape_is_named(head: Path):
    file = head / "model.safetensors"
    save_file(load_file(file) | {"map.weight": torch.zeros(48, 128)}, file)
    refused(head, r"map.weight has shape \(48, 128\), expected \(128, 128\)")


def test_a_missing_or_unknown_tensor_is_named(head: Path):
    file = head / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"extra.weight": torch.zeros(1)}, file)
    refused(head, "unknown tensor extra.weight")
    del tensors["map.bias"]
    save_file(tensors, file)
    refused(head, "misses the tensor map.bias")


def test_a_transformer_head_needs_its_layers(tiny_llama: Path, tmp_path: Path):
    folder = tmp_path / "head"
    init_head(str(tiny_llama), folder, exit_layer=3, head_type="transformer", num_layers=2)
    names = set(ExitHeadFolder.open(folder).tensors())
    assert "layers.1.self_attn.q_proj.weight" in names
    edit(folder, num_layers=3)
    refused(folder, r"misses the tensors layers.2.\*")


def test_targets_with_experts_take_no_transformer_heads(tmp_path: Path):
    model = make_tiny_model(tmp_path / "model", "qwen3_moe")
    init_head(str(model), tmp_path / "lens", exit_layer=3)
    with pytest.raises(ExitHeadError, match="Qwen3MoeForCausalLM takes no transformer heads"):
        init_head(str(model), tmp_path / "head", exit_layer=3, head_type="transformer")


def test_an_existing_folder_is_not_overwritten(head: Path):
    opened = ExitHeadFolder.open(head)
    with pytest.raises(ExitHeadError, match="exists already"):
        save(head, opened.config, opened.tensors())


def test_nothing_is_half_written(tiny_llama: Path, head: Path, tmp_path: Path):
    opened = ExitHeadFolder.open(head)
    with pytest.raises(ExitHeadError, match="misses the tensor"):
        save(tmp_path / "new", opened.config, {"norm.weight": torch.zeros(128)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head"]


def test_a_fingerprint_tells_weights_apart(tiny_llama: Path, tmp_path: Path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(tiny_llama)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy) != fingerprint(tiny_llama)
