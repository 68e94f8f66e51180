"""All roads lead to one config object; wrong input fails before weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import runners
from support.heads import with_steps, write_lens
from support.tiny import make_tiny_model
from transformers import GPT2Config
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_ppsd.config.entry import SCHEDULER_CLS, WORKER_CLS
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.exit_head import checkpoint, lookup
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.create import describe_target, init_head
from vllm_ppsd.exit_head.lookup import HEAD_VARIABLE
from vllm_ppsd.plugin import register
from vllm_ppsd.protocol import BurstPlan


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    register()
    for name in ("VLLM_PP_LAYER_PARTITION", HEAD_VARIABLE, "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")


def config_of(arguments: EngineArgs) -> PPSDConfig:
    vllm_config = arguments.create_engine_config()
    assert vllm_config.scheduler_config.scheduler_cls == SCHEDULER_CLS
    assert vllm_config.parallel_config.worker_cls == WORKER_CLS["cpu", False]
    assert isinstance(vllm_config.speculative_config, PPSDConfig)
    return vllm_config.speculative_config


def engine(folder: Path, stages: int = 2, **options) -> EngineArgs:
    return EngineArgs(
        str(folder), pipeline_parallel_size=stages, max_model_len=256, enforce_eager=True, **options
    )


def command_line(folder: Path, *words: str) -> EngineArgs:
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    line = ["--model", str(folder), "-pp", "2", "--max-model-len", "256", *words]
    return AsyncEngineArgs.from_cli_args(parser.parse_args(line))


def test_all_roads_lead_to_one_config(tiny_llama: Path):
    head = str(tiny_llama / "ppsd")
    configs = [
        config_of(engine(tiny_llama, speculative_config={"method": "ppsd"})),
        config_of(engine(tiny_llama, speculative_config={"model": "ppsd"})),
        config_of(engine(tiny_llama, speculative_config={"method": "ppsd", "model": head})),
        config_of(engine(tiny_llama, spec_method="ppsd")),
        config_of(engine(tiny_llama, spec_model="ppsd")),
        config_of(command_line(tiny_llama, "--speculative-model", "ppsd")),
        config_of(command_line(tiny_llama, "--speculative-model", head)),
        config_of(command_line(tiny_llama, "--spec-method", "ppsd", "--spec-tokens", "1")),
        config_of(command_line(tiny_llama, "-sc", '{"method": "ppsd"}')),
    ]
    for config in configs:
        assert (config.model, config.exit_layer, config.max_drafts) == (head, 3, 1)
        assert config.layer_partition == [3, 3]


def test_the_depth_follows_the_pipeline_size(tiny_llama: Path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1|0")
    arguments = engine(tiny_llama, stages=3, speculative_config={"method": "ppsd"})
    vllm_config = arguments.create_engine_config()
    assert vllm_config.speculative_config.max_drafts == 2
    assert vllm_config.max_concurrent_batches == 4


def test_without_the_flag_nothing_is_speculative(tiny_llama: Path):
    vllm_config = command_line(tiny_llama).create_engine_config()
    assert vllm_config.speculative_config is None
    assert vllm_config.max_concurrent_batches == 2


def test_the_environment_names_a_head(tiny_llama: Path, tmp_path: Path, monkeypatch):
    bare = shutil.copytree(tiny_llama, tmp_path / "bare", ignore=shutil.ignore_patterns("ppsd"))
    monkeypatch.setenv(HEAD_VARIABLE, str(tiny_llama / "ppsd"))
    config = config_of(engine(bare, speculative_config={"method": "ppsd"}))
    assert config.model == str(tiny_llama / "ppsd")


def test_without_a_head_the_error_names_the_places_and_the_command(tmp_path: Path):
    bare = make_tiny_model(tmp_path / "bare", seed=5)
    with pytest.raises(PPSDConfigError) as error:
        engine(bare, speculative_config={"method": "ppsd"}).create_engine_config()
    for word in (str(bare / "ppsd"), HEAD_VARIABLE, "shipped with", "vllm-ppsd train"):
        assert word in str(error.value)


def refused(arguments: EngineArgs, match: str) -> None:
    with pytest.raises(PPSDConfigError, match=match):
        arguments.create_engine_config()


def test_on_one_device_the_threshold_follows_the_cost_of_a_draft(tiny_llama: Path):
    arguments = engine(tiny_llama, 1, speculative_config={"method": "ppsd"})
    config = arguments.create_engine_config().speculative_config
    assert 0 < config.draft_threshold <= 1


def test_a_threshold_is_refused_in_a_pipeline(tiny_llama: Path):
    options = {"method": "ppsd", "draft_threshold": 0.25}
    refused(
        engine(tiny_llama, speculative_config=options), "draft_threshold=0.25 is for one device"
    )


def test_load_adaptive_drafting_is_the_default_of_a_pipeline_alone(tiny_llama: Path):
    assert config_of(engine(tiny_llama, speculative_config={"method": "ppsd"})).load_adaptive
    options = {"method": "ppsd", "load_adaptive": False}
    assert not config_of(engine(tiny_llama, speculative_config=options)).load_adaptive
    refused(engine(tiny_llama, 1, speculative_config=options), "load_adaptive is for a pipeline")


def test_pipeline_size_1_runs_vllms_own_speculative_decoding(tiny_llama: Path):
    options = {"method": "ppsd", "draft_threshold": 0.25}
    vllm_config = engine(tiny_llama, 1, speculative_config=options).create_engine_config()
    config = vllm_config.speculative_config
    assert not config.is_pipelined
    assert (config.exit_layer, config.max_drafts, config.draft_threshold) == (3, 5, 0.25)
    assert vllm_config.num_lookahead_tokens == 5
    assert vllm_config.scheduler_config.scheduler_cls is None
    assert vllm_config.parallel_config.worker_cls == "vllm_ppsd.worker.cpu.SingleCPUWorker"


def test_one_device_needs_a_head_even_for_synthetic_drafts(tmp_path: Path):
    record = tmp_path / "record.jsonl"
    record.touch()
    drafter = {"record": str(record), "acceptance": 1.0}
    options = {"method": "ppsd", "exit_layer": 3, "synthetic_drafter": drafter}
    bare = make_tiny_model(tmp_path / "bare", seed=5)
    refused(engine(bare, 1, speculative_config=options), "needs an exit head")


def record_of(folder: Path, text: str = "") -> dict:
    file = folder / "record.jsonl"
    file.write_text(text)
    return {"method": "ppsd", "synthetic_drafter": {"record": str(file), "acceptance": 1.0}}


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


def test_weights_are_read_from_the_files_that_heads_are_made_for(tiny_llama: Path):
    ppsd = {"method": "ppsd"}
    load = engine(tiny_llama, speculative_config=ppsd).create_engine_config().load_config
    assert load.load_format == "hf"
    assert load.ignore_patterns == ["original/**/*", "consolidated*"]
    named = engine(tiny_llama, speculative_config=ppsd, load_format="dummy")
    assert named.create_engine_config().load_config.load_format == "dummy"
    refused(
        engine(tiny_llama, speculative_config=ppsd, load_format="mistral"), "--load-format mistral"
    )
    assert engine(tiny_llama).create_engine_config().load_config.load_format == "auto"


@pytest.mark.parametrize(
    "name", ["return_sampling_mask", "enable_trace_replay", "enable_batch_sharded_sampling"]
)
def test_what_counts_rows_of_logits_by_requests_is_refused(tiny_llama: Path, name: str):
    options = {"speculative_config": {"method": "ppsd"}, name: True}
    refused(engine(tiny_llama, **options), f"--{name.replace('_', '-')} expects one row of logits")


def test_the_target_is_looked_for_where_vllm_puts_it(tiny_llama: Path, monkeypatch):
    asked = set()

    def folder(model: str, revision: str | None, download_dir: str | None) -> Path:
        asked.add(download_dir)
        return Path(model)

    for module in (lookup, checkpoint):
        monkeypatch.setattr(module, "model_folder", folder)
    config_of(engine(tiny_llama, speculative_config={"method": "ppsd"}, download_dir="/downloads"))
    assert asked == {"/downloads"}


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


def test_lanes_carry_one_token_unless_asked(tiny_llama: Path, tmp_path: Path):
    config = config_of(engine(tiny_llama, speculative_config={"method": "ppsd"}))
    assert (config.exact, config.longest_burst, config.num_speculative_tokens) == (True, 1, 1)
    assert config.plan == BurstPlan(reentry=0, following=1, depth=1)
    options = synthetic(tmp_path) | {"exact": False, "burst": {"reentry": 3, "following": 2}}
    config = config_of(engine(tiny_llama, speculative_config=options))
    assert config.plan == BurstPlan(reentry=3, following=2, depth=1)
    # vLLM counts accepted drafts by position up to here.
    assert (config.longest_burst, config.num_speculative_tokens) == (4, 4)
    options["burst"] = {"reentry": 3, "following": 0}
    config = config_of(engine(tiny_llama, speculative_config=options))
    assert config.plan == BurstPlan(reentry=3, following=1, depth=0), "draft, then verify"


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


def synthetic(folder: Path) -> dict[str, Any]:
    record = folder / "record.jsonl"
    record.write_text(json.dumps({"prompt_token_ids": [5], "output_token_ids": [7]}) + "\n")
    return {"method": "ppsd", "synthetic_drafter": {"record": str(record), "acceptance": 0.5}}


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


def test_how_sampled_drafts_are_made_depends_on_the_place(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    ppsd = {"method": "ppsd"}
    assert config_of(engine(tiny_llama, speculative_config=ppsd)).draft_sampling == "coupled"
    one = engine(tiny_llama, 1, speculative_config=ppsd).create_engine_config()
    assert one.speculative_config.draft_sampling == "probabilistic"
    options = ppsd | {"draft_sampling": "coupled"}
    refused(engine(tiny_llama, 1, speculative_config=options), "coupled' works not with vLLM's V1")
    options = ppsd | {"draft_sampling": "probabilistic"}
    refused(engine(tiny_llama, speculative_config=options), "probabilistic' works with vLLM's V1")
    runners.use(monkeypatch, "V2")
    one = engine(tiny_llama, 1, speculative_config=ppsd).create_engine_config()
    assert one.speculative_config.draft_sampling == "coupled"
    refused(
        engine(tiny_llama, 1, speculative_config=options), "probabilistic' works with vLLM's V1"
    )
    runners.use(monkeypatch, "V1")
    for how in ("greedy", "coupled"):
        options = ppsd | {"draft_sampling": how}
        config = config_of(engine(tiny_llama, speculative_config=options))
        assert config.draft_sampling == how
        assert config.makes_noise == (how == "coupled")


def test_a_multi_depth_head_brings_its_layout(tiny_llama: Path, tmp_path: Path):
    head = write_lens(tiny_llama, tmp_path / "head", [5, 6])
    options = {"method": "ppsd", "model": head}
    three = config_of(engine(tiny_llama, 3, speculative_config=options))
    assert (three.layer_partition, three.feedback_stages) == ([3, 2, 1], [1, 2])
    refused(engine(tiny_llama, 2, speculative_config=options), "reads the states behind layer 5")


def test_any_pipeline_ends_with_the_last_layer(tiny_llama: Path, tmp_path: Path):
    head = write_lens(tiny_llama, tmp_path / "head", [6])
    options = {"method": "ppsd", "model": head}
    for stages in (2, 3):
        found = config_of(engine(tiny_llama, stages, speculative_config=options))
        assert found.feedback_stages == [stages - 1]
    one = engine(tiny_llama, 1, speculative_config=options).create_engine_config()
    assert one.speculative_config.feedback_stages == []
    options["feedback"] = "arrived"
    refused(engine(tiny_llama, 2, speculative_config=options), "unknown key.* feedback")


def test_a_head_that_goes_on_drafts_cheaply_on_one_device(tiny_llama: Path, tmp_path: Path):
    init_head(str(tiny_llama), tmp_path / "one", exit_layer=3, head_type="transformer")
    heads = {1: str(tmp_path / "one"), 4: with_steps(tmp_path / "one", tmp_path / "four", 4)}
    configs = {}
    for steps, head in heads.items():
        arguments = engine(tiny_llama, 1, speculative_config={"method": "ppsd", "model": head})
        configs[steps] = arguments.create_engine_config().speculative_config
        assert configs[steps].head_steps == steps
    assert configs[4].draft_threshold < configs[1].draft_threshold / 1.5


def test_more_continuations_than_a_head_makes_are_refused(tiny_llama: Path, tmp_path: Path):
    init_head(str(tiny_llama), tmp_path / "one", exit_layer=3, head_type="transformer")
    head = with_steps(tmp_path / "one", tmp_path / "two", steps=2)
    options = {"method": "ppsd", "model": head, "num_speculative_tokens": 8}
    engine(tiny_llama, 1, speculative_config=options).create_engine_config()
    too_many = engine(tiny_llama, 1, speculative_config=options | {"num_speculative_tokens": 9})
    refused(too_many, "num_speculative_tokens=9, but a head goes on for at most 8 tokens")
