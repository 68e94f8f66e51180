"""All roads lead to one config object."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import runners
from support.arguments import command_line, config_of, engine, refused, synthetic
from support.heads import with_steps, write_lens

from vllm_ppsd.exit_head import checkpoint, lookup
from vllm_ppsd.exit_head.create import init_head
from vllm_ppsd.exit_head.lookup import HEAD_VARIABLE
from vllm_ppsd.protocol import BurstPlan

pytestmark = pytest.mark.usefixtures("plain_environment")


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


def test_on_one_device_the_threshold_follows_the_cost_of_a_draft(tiny_llama: Path):
    arguments = engine(tiny_llama, 1, speculative_config={"method": "ppsd"})
    config = arguments.create_engine_config().speculative_config
    assert 0 < config.draft_threshold <= 1


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


def test_the_target_is_looked_for_where_vllm_puts_it(tiny_llama: Path, monkeypatch):
    asked = set()

    def folder(model: str, revision: str | None, download_dir: str | None) -> Path:
        asked.add(download_dir)
        return Path(model)

    for module in (lookup, checkpoint):
        monkeypatch.setattr(module, "model_folder", folder)
    config_of(engine(tiny_llama, speculative_config={"method": "ppsd"}, download_dir="/downloads"))
    assert asked == {"/downloads"}


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
