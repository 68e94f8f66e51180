"""From vLLM's engine arguments to a ``PPSDConfig``: resolve, check, wire.

Everything that can be known before weights are loaded is checked here, in the
process that the user started.
"""

from __future__ import annotations

import os
from itertools import accumulate
from typing import Any

from pydantic import ValidationError

from vllm_ppsd.config import arguments, cpu_binding, support
from vllm_ppsd.config.announcement import announce
from vllm_ppsd.config.errors import PPSDConfigError, problems
from vllm_ppsd.config.layout import balanced_exit_layer, check_partition, split_layers
from vllm_ppsd.config.ppsd import (
    FixedBurst,
    PPSDConfig,
    SyntheticDrafter,
    check_option_names,
)
from vllm_ppsd.costs import ModelShape, draft_threshold
from vllm_ppsd.drafter.recorded import read_record
from vllm_ppsd.exit_head import lookup
from vllm_ppsd.exit_head.architectures import check_head
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.exit_head.target_files import DUPLICATES
from vllm_ppsd.hooks.marks import mark_engine

SCHEDULER_CLS = "vllm_ppsd.engine.scheduler.PPSDScheduler"
WORKER_CLS = {
    # by device, and whether vLLM uses its V2 model runner
    ("cpu", False): "vllm_ppsd.worker.cpu.PPSDCPUWorker",
    ("cpu", True): "vllm_ppsd.worker.cpu_v2.V2CPUWorker",
    ("cuda", True): "vllm_ppsd.worker.cuda.V2CUDAWorker",
}
ONE_DEVICE_WORKER_CLS = {
    ("cpu", False): "vllm_ppsd.worker.cpu.SingleCPUWorker",
    ("cpu", True): "vllm_ppsd.worker.cpu_v2.V2SingleCPUWorker",
    ("cuda", True): "vllm_ppsd.worker.cuda.V2SingleCUDAWorker",
}
ONE_DEVICE_DRAFTS = 5
"""Drafts of a step on one device, unless the user says how many."""


def create(engine_args: Any, model_config: Any, parallel_config: Any) -> PPSDConfig:
    """Build the config and point vLLM at the PPSD scheduler and worker.

    Args:
        engine_args: vLLM's ``EngineArgs``; its ``scheduler_cls`` is set.
        model_config: the target's ``ModelConfig``.
        parallel_config: the target's ``ParallelConfig``; its ``worker_cls`` is set.

    Raises:
        PPSDConfigError: PPSD cannot run like this; says why and what to do.
    """
    options = arguments.options(engine_args)
    check_option_names(options)
    support.check(engine_args, model_config, parallel_config)
    ppsd_config = resolve(options, model_config, parallel_config, engine_args.download_dir)
    _wire(engine_args, parallel_config, ppsd_config)
    mark_engine()
    announce(ppsd_config, model_shape(model_config))
    return ppsd_config


def resolve(
    options: dict[str, Any],
    model_config: Any,
    parallel_config: Any,
    download_dir: str | None = None,
) -> PPSDConfig:
    """Fill in exit head, exit layer, layer split and draft depth."""
    stages = parallel_config.pipeline_parallel_size
    synthetic = _synthetic_drafter(options.get("synthetic_drafter"))
    shape = model_shape(model_config)
    head = _exit_head(options, model_config, synthetic, stages, download_dir)
    exit_layer = _exit_layer(options.get("exit_layer"), head, shape, stages)
    own_partition = os.environ.get("VLLM_PP_LAYER_PARTITION")
    if stages == 1:
        partition = [shape.num_layers]
    elif own_partition:
        partition = check_partition(own_partition, exit_layer, shape.num_layers, stages)
    elif head is not None and head.config.stages and len(head.config.stages) == stages:
        partition = head.config.stages
    else:
        partition = split_layers(shape.num_layers, shape.lm_head_cost, exit_layer, stages)
    _check_for_pipelines(options, stages)
    try:
        return PPSDConfig(
            model=str(head.path) if head else None,
            max_drafts=options.get("num_speculative_tokens", stages - 1 or ONE_DEVICE_DRAFTS),
            exit_layer=exit_layer,
            layer_partition=partition,
            head_steps=head.config.steps if head else 1,
            deeper_layers=_deeper_layers(head, partition),
            draft_threshold=options.get("draft_threshold", _draft_threshold(head, shape, stages)),
            draft_sampling=_draft_sampling(options.get("draft_sampling"), stages),
            exact=options.get("exact", stages == 1 or not _goes_on(head)),
            burst=_burst(options.get("burst")),
            load_adaptive=options.get("load_adaptive", True),
            synthetic_drafter=synthetic,
            target_model_config=model_config,
            target_parallel_config=parallel_config,
        )
    except ValidationError as error:
        raise PPSDConfigError(problems(error, "config")) from None


def _goes_on(head: ExitHeadFolder | None) -> bool:
    """Whether lanes may carry several of a head's drafts."""
    return head is not None and head.config.steps > 1 and not head.config.deeper_layers


def model_shape(model_config: Any) -> ModelShape:
    """Read a target's shape from its ``ModelConfig``."""
    text = model_config.hf_text_config
    return ModelShape(
        num_layers=text.num_hidden_layers,
        hidden_size=model_config.get_hidden_size(),
        intermediate_size=getattr(text, "intermediate_size", None)
        or 4 * model_config.get_hidden_size(),
        num_heads=text.num_attention_heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=model_config.get_head_size(),
        vocab_size=model_config.get_vocab_size(),
    )


def _synthetic_drafter(given: Any) -> SyntheticDrafter | None:
    if given is None or isinstance(given, SyntheticDrafter):
        return given
    try:
        drafter = SyntheticDrafter.model_validate(given)
    except ValidationError as error:
        raise PPSDConfigError(f"synthetic_drafter: {problems(error, 'config')}") from None
    read_record(drafter.record)
    return drafter


def _burst(given: Any) -> FixedBurst | None:
    if given is None or isinstance(given, FixedBurst):
        return given
    try:
        return FixedBurst.model_validate(given)
    except ValidationError as error:
        raise PPSDConfigError(f"burst: {problems(error, 'config')}") from None


def _exit_head(
    options: dict[str, Any],
    model_config: Any,
    synthetic: SyntheticDrafter | None,
    stages: int,
    download_dir: str | None,
) -> ExitHeadFolder | None:
    """Find and check the exit head; with a synthetic drafter it may be left out."""
    named = options.get("model")
    plain = options.get("num_speculative_tokens") == 0 and options.get("exit_layer")
    if named is None and (synthetic is not None or plain):
        return None
    model, revision = model_config.model, model_config.revision
    head = lookup.find(named, model, revision, stages, download_dir)
    head.check_target(model, revision, download_dir)
    check_head(head.config.target.architecture, head.config.head_type)
    if head.config.num_layers and model_config.using_transformers_backend():
        raise PPSDConfigError(
            f"the target {model_config.model} runs through vLLM's Transformers backend, of whose "
            f"layers the transformer head {head.path} cannot be built; leave --model-impl out, or "
            "use a lens head"
        )
    return head


def _exit_layer(
    given: int | None, head: ExitHeadFolder | None, shape: ModelShape, stages: int
) -> int:
    if head is None:
        return given or balanced_exit_layer(shape, stages)
    if given is not None and given != head.config.exit_layer:
        raise PPSDConfigError(
            f"exit_layer={given}, but the exit head {head.path} was made for exit layer "
            f"{head.config.exit_layer}; leave exit_layer out"
        )
    return head.config.exit_layer


def _check_for_pipelines(options: dict[str, Any], stages: int) -> None:
    """Refuse on one device what is for pipelines."""
    if stages > 1:
        return
    if "load_adaptive" in options:
        raise PPSDConfigError(
            "load_adaptive is for a pipeline, whose stages requests share; on one device, leave "
            "it out"
        )
    for name in ("exact", "burst"):
        if name in options:
            raise PPSDConfigError(
                f"{name} is for a pipeline, whose lanes it is about; on one device, leave it out"
            )


def _deeper_layers(head: ExitHeadFolder | None, partition: list[int]) -> list[int]:
    """Return the ends of the stages whose states a head reads; none on one device."""
    if head is None or len(partition) == 1:
        return []
    wanted, ends = head.config.deeper_layers, list(accumulate(partition))
    if missing := [layer for layer in wanted if layer not in ends]:
        raise PPSDConfigError(
            f"the exit head {head.path} reads the states behind layer "
            f"{', '.join(map(str, missing))}, but the layers are split as {partition}, and no "
            f"stage ends there; it was made for {head.config.stages}"
        )
    return wanted


def _draft_threshold(head: ExitHeadFolder | None, shape: ModelShape, stages: int) -> float | None:
    if stages > 1 or head is None:
        return None
    return draft_threshold(shape.draft_cost(head.config))


def _draft_sampling(given: str | None, stages: int) -> str:
    """Return how drafts for sampled requests are made; V1 on one device shares no noise."""
    v1_alone = stages == 1 and not support.uses_v2_runner()
    own, other = ("probabilistic", "coupled") if v1_alone else ("coupled", "probabilistic")
    if given == other:
        place = "with vLLM's V1 model runner on one device"
        place = f"not {place}" if v1_alone else f"{place} alone"
        raise PPSDConfigError(
            f"draft_sampling={other!r} works {place}; leave it out, or say 'greedy'"
        )
    return given or own


def _wire(engine_args: Any, parallel_config: Any, config: PPSDConfig) -> None:
    from vllm.platforms import current_platform

    engine_args.async_scheduling = False
    if engine_args.load_format == "auto":
        # Where there are Mistral's own files, too, vLLM would fetch and read those instead.
        engine_args.load_format = "hf"
        ignored = engine_args.ignore_patterns
        ignored = [ignored] if isinstance(ignored, str) else ignored
        engine_args.ignore_patterns = [*ignored, DUPLICATES]
    kind = current_platform.device_type, support.uses_v2_runner()
    if not config.is_pipelined:
        parallel_config.worker_cls = ONE_DEVICE_WORKER_CLS[kind]
        return
    engine_args.scheduler_cls = SCHEDULER_CLS
    parallel_config.worker_cls = WORKER_CLS[kind]
    if current_platform.is_cpu():
        cpu_binding.apply(parallel_config.local_world_size)
