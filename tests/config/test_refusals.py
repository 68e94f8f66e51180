"""Wrong input fails before weights are loaded, and says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.arguments import command_line, config_of, engine, record_of, refused, synthetic
from support.heads import with_steps
from support.tiny import make_tiny_model
from transformers import GPT2Config

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.create import describe_target, init_head
from vllm_ppsd.exit_head.lookup import HEAD_VARIABLE

pytestmark = pytest.mark.usefixtures("plain_environment")


def test_without_a_head_the_error_names_the_places_and_the_command(tmp_path: Path):
    bare = make_tiny_model(tmp_path / "bare", seed=5)
    with pytest.raises(PPSDConfigError) as error:
        engine(bare, speculative_config={"method": "ppsd"}).create_engine_config()
    for word in (str(bare / "ppsd"), HEAD_VARIABLE, "shipped with", "vllm-ppsd train"):
        assert word in str(error.value)


def test_a_threshold_is_refused_in_a_pipeline(tiny_llama: Path):
    options = {"method": "ppsd", "draft_threshold": 0.25}
    refused(
        engine(tiny_llama, speculative_config=options), "draft_threshold=0.25 is for one device"
    )


def test_one_device_needs_a_head_even_for_synthetic_drafts(tmp_path: Path):
    record = tmp_path / "record.jsonl"
    record.touch()
    drafter = {"record": str(record), "acceptance": 1.0}
    options = {"method": "ppsd", "exit_layer": 3, "synthetic_drafter": drafter}
    bare = make_tiny_model(tmp_path / "bare", seed=5)
    refused(engine(bare, 1, speculative_config=options), "needs an exit head")


def test_an_unknown_model_is_refused_even_without_a_head(tmp_path: Path):
    config = GPT2Config(architectures=["GPT2LMHeadModel"], n_positions=512, n_layer=4)
    config.save_pretrained(tmp_path / "gpt2")
    for stages in (1, 2):
        arguments = engine(
            tmp_path / "gpt2",
            stages,
            skip_tokenizer_init=True,
            speculative_config=record_of(tmp_path),
        )
        refused(arguments, "GPT2LMHeadModel is not supported yet; PPSD knows")


def test_a_damaged_record_is_refused_before_weights_load(tiny_llama: Path, tmp_path: Path):
    options = record_of(tmp_path, '{"prompt_token_ids": [1]}\n')
    refused(engine(tiny_llama, speculative_config=options), r"record\.jsonl, line 1: ")


@pytest.mark.parametrize(
    "name", ["return_sampling_mask", "enable_trace_replay", "enable_batch_sharded_sampling"]
)
def test_what_counts_rows_of_logits_by_requests_is_refused(tiny_llama: Path, name: str):
    options = {"speculative_config": {"method": "ppsd"}, name: True}
    refused(engine(tiny_llama, **options), f"--{name.replace('_', '-')} expects one row of logits")


@pytest.mark.parametrize("name", ["model.safetensors", "ppsd/model.safetensors"])
def test_files_of_another_user_are_refused(tiny_llama: Path, name: str, monkeypatch):
    opened = open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file) == str(tiny_llama / name):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr("io.open", refuse)
    refused(
        engine(tiny_llama, speculative_config={"method": "ppsd"}),
        f"cannot read {tiny_llama / name}: Permission denied",
    )


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"burst": {"reentry": 3}, "exact": True}, "with exact=true they carry one"),
        ({"burst": {"reentry": 8}, "exact": False}, "burst: reentry: .* less than 8"),
        ({"burst": {"following": 9}, "exact": False}, "burst: following: .* equal to 8"),
        ({"burst": {"depth": 2}, "exact": False}, "burst: depth: Extra inputs"),
        ({"exact": False, "draft_sampling": "greedy"}, "draws a token's noise anew"),
    ],
)
def test_bursts_that_cannot_be_are_refused(tiny_llama: Path, tmp_path: Path, more, match):
    refused(engine(tiny_llama, speculative_config=synthetic(tmp_path) | more), match)


def test_bursts_need_a_head_that_goes_on_and_no_processors_of_ones_own(tiny_llama: Path, tmp_path):
    options = {"method": "ppsd", "exact": False, "burst": {"reentry": 3}}
    refused(engine(tiny_llama, speculative_config=options), "drafts one token, and cannot go on")
    options |= synthetic(tmp_path)
    processors = {"logits_processors": ["some.Processor"]}
    arguments = engine(tiny_llama, speculative_config=options, **processors)
    refused(arguments, "leave --logits-processors out")
    for name in ("exact", "burst"):
        alone = {"method": "ppsd", name: options[name]}
        refused(engine(tiny_llama, 1, speculative_config=alone), f"{name} is for a pipeline")


def test_an_unknown_key_is_refused_by_name(tiny_llama: Path):
    options = {"method": "ppsd", "prompt_lookup_max": 3, "draft_depth": 2}
    refused(engine(tiny_llama, speculative_config=options), "draft_depth, prompt_lookup_max")


def test_a_wrong_value_is_refused_by_name(tiny_llama: Path):
    options = {"method": "ppsd", "num_speculative_tokens": -1}
    refused(engine(tiny_llama, speculative_config=options), "max_drafts")


def test_an_option_given_twice_is_refused(tiny_llama: Path):
    options = {"method": "ppsd", "num_speculative_tokens": 1}
    refused(engine(tiny_llama, speculative_config=options, spec_tokens=1), "--spec-tokens")


def test_an_exit_layer_beside_the_heads_is_refused(tiny_llama: Path):
    options = {"method": "ppsd", "exit_layer": 4}
    refused(engine(tiny_llama, speculative_config=options), "made for exit layer 3")


def test_a_head_that_does_not_fit_the_stages_is_refused(tiny_llama: Path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1|0|1|0")
    refused(
        engine(tiny_llama, 5, speculative_config={"method": "ppsd"}),
        "exit layer 3 does not fit 5 pipeline stages",
    )


def test_a_users_partition_must_fit_the_head(tiny_llama: Path, monkeypatch):
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "4,2")
    refused(engine(tiny_llama, speculative_config={"method": "ppsd"}), "after layer 3")


def test_too_few_cores_are_refused(tiny_llama: Path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "auto")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    refused(engine(tiny_llama, speculative_config={"method": "ppsd"}), "at least 2 CPU cores")


def test_a_missing_head_is_refused(tiny_llama: Path):
    refused(command_line(tiny_llama, "--speculative-model", "/no/such/head"), "does not exist")


def test_another_models_head_is_refused(tiny_llama: Path, tmp_path: Path):
    other = make_tiny_model(tmp_path / "other", seed=7)
    options = {"method": "ppsd", "model": str(tiny_llama / "ppsd")}
    refused(engine(other, speculative_config=options), "target.fingerprint differs")


def test_another_architectures_head_is_refused(tiny_llama: Path, tmp_path: Path):
    other = make_tiny_model(tmp_path / "other", "qwen3")
    options = {"method": "ppsd", "model": str(tiny_llama / "ppsd")}
    refused(engine(other, speculative_config=options), "target.architecture")


def test_a_head_that_the_architecture_takes_not_is_refused(tmp_path: Path):
    model = make_tiny_model(tmp_path / "model", "qwen3_moe")
    init_head(str(model), model / "ppsd", exit_layer=3)
    (model / "ppsd" / "config.json").write_text(
        ExitHeadConfig(
            head_type="transformer", exit_layer=3, num_layers=1, target=describe_target(model)
        ).model_dump_json()
    )
    tensors = load_file(model / "ppsd" / "model.safetensors")
    tensors["layers.0.mlp.gate.weight"] = torch.zeros(4, 128)
    save_file(tensors, model / "ppsd" / "model.safetensors")
    refused(engine(model, speculative_config={"method": "ppsd"}), "takes no transformer heads")


def test_the_transformers_backend_is_for_lens_heads_in_pipelines(tiny_llama: Path, tmp_path: Path):
    head = str(tmp_path / "head")
    init_head(str(tiny_llama), head, exit_layer=3, head_type="transformer")
    options = {"method": "ppsd", "model": head}
    theirs = {"model_impl": "transformers", "speculative_config": options}
    refused(engine(tiny_llama, **theirs), "Transformers backend, of whose layers")
    options["model"] = str(tiny_llama / "ppsd")
    config_of(engine(tiny_llama, **theirs))
    refused(engine(tiny_llama, 1, **theirs), "not supported on one device yet")


def test_a_synthetic_drafter_without_its_record_is_refused(tiny_llama: Path):
    drafter = {"record": "/no/such/record", "acceptance": 0.5}
    options = {"method": "ppsd", "synthetic_drafter": drafter}
    refused(engine(tiny_llama, speculative_config=options), "cannot read /no/such/record")


def test_a_synthetic_drafter_with_a_wrong_field_is_refused(tiny_llama: Path):
    drafter = {"record": "x", "acceptance": 2, "colour": "red"}
    options = {"method": "ppsd", "synthetic_drafter": drafter}
    refused(engine(tiny_llama, speculative_config=options), r"acceptance: .*colour: ")


def test_unsupported_features_are_refused_together(tiny_llama: Path):
    arguments = engine(tiny_llama, spec_method="ppsd", async_scheduling=True, scheduler_cls="x.Y")
    with pytest.raises(PPSDConfigError) as error:
        arguments.create_engine_config()
    assert "async scheduling" in str(error.value)
    assert "--scheduler-cls" in str(error.value)


def test_the_head_in_the_model_folder_must_be_whole(tiny_llama: Path, tmp_path: Path):
    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    file = broken / "ppsd" / "config.json"
    entry = json.loads(file.read_text())
    entry["num_layres"] = 1
    file.write_text(json.dumps(entry))
    refused(engine(broken, speculative_config={"method": "ppsd"}), "num_layres")


def test_more_continuations_than_a_head_makes_are_refused(tiny_llama: Path, tmp_path: Path):
    init_head(str(tiny_llama), tmp_path / "one", exit_layer=3, head_type="transformer")
    head = with_steps(tmp_path / "one", tmp_path / "two", steps=2)
    options = {"method": "ppsd", "model": head, "num_speculative_tokens": 8}
    engine(tiny_llama, 1, speculative_config=options).create_engine_config()
    too_many = engine(tiny_llama, 1, speculative_config=options | {"num_speculative_tokens": 9})
    refused(too_many, "num_speculative_tokens=9, but a head goes on for at most 8 tokens")
