"""What PPSD refuses, and why: checked before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_ppsd.config.errors import ExitHeadError, PPSDConfigError
from vllm_ppsd.exit_head.architectures import ARCHITECTURES, architecture


def check(engine_args: Any, model_config: Any, parallel_config: Any) -> None:
    """Refuse what does not work, all reasons at once.

    Raises:
        PPSDConfigError: with one line per reason.
    """
    reasons = list(_reasons(engine_args, model_config, parallel_config))
    if reasons:
        raise PPSDConfigError("PPSD cannot run like this:\n- " + "\n- ".join(reasons))


def _reasons(engine_args: Any, model_config: Any, parallel_config: Any) -> Iterator[str]:
    yield from _platform_reasons()
    yield from _parallel_reasons(parallel_config)
    yield from _model_reasons(model_config, parallel_config)
    yield from _feature_reasons(engine_args, parallel_config)


def uses_v2_runner() -> bool:
    """Whether vLLM will use its V2 model runner, unless an option stands against it.

    ``VllmConfig.use_v2_model_runner`` knows all options, but exists too late to refuse anything in
    the user's process.
    """
    from vllm import envs
    from vllm.triton_utils import importing

    wanted = envs.VLLM_USE_V2_MODEL_RUNNER
    return bool(importing.HAS_TRITON if wanted is None else wanted)


def _platform_reasons() -> Iterator[str]:
    from vllm.platforms import current_platform

    if not (current_platform.is_cpu() or current_platform.is_cuda()):
        yield f"the platform {current_platform.device_type!r} is not supported, only cpu and cuda"
    if current_platform.is_cuda() and not uses_v2_runner():
        yield (
            "on CUDA, PPSD needs vLLM's V2 model runner, and VLLM_USE_V2_MODEL_RUNNER=0 or a "
            "missing Triton turns it off"
        )


def check_runner(vllm_config: Any, expects_v2: bool) -> None:
    """Refuse, in a worker that has loaded nothing, another model runner than its class is for.

    Args:
        vllm_config: the worker's.
        expects_v2: which one that is.

    Raises:
        PPSDConfigError: an option made vLLM use its V1 model runner, or this process's environment
            is not that of the process which configured the engine.
    """
    from vllm.platforms import current_platform

    if vllm_config.use_v2_model_runner == expects_v2:
        return
    if uses_v2_runner() != expects_v2:
        here, there = ("V1", "V2") if expects_v2 else ("V2", "V1")
        raise PPSDConfigError(
            f"vLLM would use its {here} model runner in this process, and the engine counts on "
            f"{there}; install Triton on all nodes or on none, and set "
            "VLLM_USE_V2_MODEL_RUNNER to the same value on all"
        )
    remedy = "set VLLM_USE_V2_MODEL_RUNNER=0"
    if current_platform.is_cuda():
        remedy = "leave that out: on CUDA, PPSD needs V2"
    raise PPSDConfigError(
        "vLLM's V2 model runner does not support something that was asked for, as vLLM says "
        f"above, so that it would use V1; {remedy}"
    )


def _parallel_reasons(parallel: Any) -> Iterator[str]:
    for name in (
        "data_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    ):
        if getattr(parallel, name, 1) > 1:
            yield f"{name} > 1 is not supported yet; leave it at 1"
    backend = parallel.distributed_executor_backend
    own = ("mp", "uni") if parallel.pipeline_parallel_size == 1 else ("mp",)
    if backend == "ray":
        yield from _ray_reasons()
    elif backend not in (None, *own):
        yield f"the executor backend {backend!r} is not supported yet; use `mp`"


def _ray_reasons() -> Iterator[str]:
    from vllm import envs
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        yield "vLLM's executor backend `ray` is for GPUs; use `mp`"
    elif not envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND:
        yield (
            "vLLM's older Ray executor runs stages without their workers; leave "
            "VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0 out, or use `mp`"
        )


def _model_reasons(model: Any, parallel: Any) -> Iterator[str]:
    name = model.architectures[0]
    try:
        one_device = architecture(name).one_device and not model.using_transformers_backend()
    except ExitHeadError as error:
        yield str(error)
    else:
        if parallel.pipeline_parallel_size == 1 and not one_device:
            supported = sorted(known for known, each in ARCHITECTURES.items() if each.one_device)
            yield (
                f"{name} is not supported on one device yet, only {', '.join(supported)} in vLLM's "
                "own implementation; pass `--pipeline-parallel-size 2` or more"
            )
    if model.runner_type != "generate":
        yield f"the model runs as {model.runner_type!r}; PPSD is for text generation"
    if model.is_encoder_decoder:
        yield "encoder-decoder models are not supported"
    if model.is_multimodal_model:
        yield "multimodal models are not supported yet"
    if model.is_hybrid or model.is_attention_free:
        yield "models with recurrent state are not supported: a flush cannot rewind it"
    if model.enable_prompt_embeds:
        yield "prompt embeddings are not supported yet"


def _feature_reasons(arguments: Any, parallel: Any) -> Iterator[str]:
    if arguments.load_format == "mistral":
        yield (
            "--load-format mistral reads other files than those that exit heads are made for; "
            "leave it out"
        )
    if arguments.async_scheduling:
        yield "async scheduling is not supported by V1 pipelines; leave --async-scheduling out"
    if arguments.enable_lora and parallel.pipeline_parallel_size == 1:
        yield "LoRA is not supported on one device yet; pass `--pipeline-parallel-size 2` or more"
    for name in ("return_sampling_mask", "enable_trace_replay", "enable_batch_sharded_sampling"):
        if getattr(arguments, name):
            yield f"--{name.replace('_', '-')} expects one row of logits a request; leave it out"
    if arguments.kv_transfer_config is not None:
        yield "KV transfer is not supported yet"
    if arguments.ec_transfer_config is not None:
        yield "encoder-cache transfer is not supported"
    for name in ("worker_cls", "scheduler_cls"):
        value = getattr(arguments, name)
        if value not in (None, "auto") and "vllm_ppsd" not in str(value):
            yield f"--{name.replace('_', '-')} is set to {value!r}; PPSD brings its own"
