"""The hook table: what ``vllm-ppsd doctor`` prints and ``patches/`` documents."""

from __future__ import annotations

from vllm_ppsd.hooks import changes
from vllm_ppsd.hooks.hook import Hook, HookError

HOOKS: tuple[Hook, ...] = (
    Hook(
        name="speculative-config",
        module="vllm.engine.arg_utils",
        attribute="EngineArgs.create_speculative_config",
        source_sha256="f64805340e5ddc727a94f7dd0b6fe1ec7c7508c7aa19de3650f54513bd622968",
        wrap=changes.create_speculative_config,
        why="vLLM has no registry for speculative methods; this makes `ppsd` one.",
    ),
    Hook(
        name="speculative-model-flag",
        module="vllm.engine.arg_utils",
        attribute="EngineArgs.add_cli_args",
        source_sha256="a4378d5d3c331416d9b8b6f9aaddc0cea1552bdd23bf36c8a42297e0682d4a10",
        wrap=changes.add_cli_args,
        why="Adds the command line flag `--speculative-model`.",
    ),
    Hook(
        name="concurrent-batches",
        module="vllm.config.vllm",
        attribute="VllmConfig.max_concurrent_batches",
        source_sha256="02317a4f8152d4cbd7f9940becc2f5db63b6d18cadf0c60d6cad3e9c6217d534",
        wrap=changes.max_concurrent_batches,
        why="As many steps in flight as drafts may be, plus the one that is known.",
    ),
    Hook(
        name="no-draft-rpc",
        module="vllm.v1.engine.core",
        attribute="EngineCore.post_step",
        source_sha256="7be3a30902cf64d68cc27203d8e3e84529d49f387db60d53221b94189e6f950d",
        wrap=changes.post_step,
        why="PPSD's drafts stay on stage 0; asking for them would drain the pipeline.",
    ),
    Hook(
        name="sampling-parameters",
        module="vllm.sampling_params",
        attribute="SamplingParams._validate_spec_decode",
        source_sha256="2283724c4c43d009421e4438577593bbc550ffc00eb3faa872e4683cf607f070",
        wrap=changes.validate_spec_decode,
        why="vLLM's sampler retires every token, so min_p and logit_bias work too.",
    ),
    Hook(
        name="cpu-model-runner",
        module="vllm.v1.worker.cpu_worker",
        attribute="CPUWorker.init_device",
        source_sha256="6ee534a42cb3fb3e991a05324ce538211031e0f11f774eeb029e6aba4f7a4843",
        wrap=changes.cpu_init_device,
        why="CPUWorker names its model runner class; this lets a subclass choose.",
        platform="cpu",
    ),
    Hook(
        name="expand-kernel",
        module="vllm.utils.cpu_triton_utils",
        attribute="_expand_kernel_impl",
        source_sha256="b0d7df291932f1c3d0818bcba211d3c9b2a701de070dc888ff659948763e9559",
        wrap=changes.expand_kernel,
        why="On CPU, vLLM loses the temperature of drafted tokens; sampling needs it.",
        platform="cpu",
    ),
    Hook(
        name="queue-room",
        module="vllm.v1.executor.multiproc_executor",
        attribute="MultiprocExecutor._init_executor",
        source_sha256="7d434c1fe3f98605e1b2887e26fb5fd315bddfd81bbe786cbba55270c84fc2d5",
        wrap=changes.init_executor,
        why="vLLM's queue to the workers holds five steps; long pipelines have more in flight.",
    ),
    Hook(
        name="send-states",
        module="vllm.distributed.parallel_state",
        attribute="GroupCoordinator.isend_tensor_dict",
        source_sha256="0e734faeb96436beab67e7293b4d64d343e3e381c25afdb80a9bdd97cfe1d28c",
        wrap=changes.isend_tensor_dict,
        why="Between nodes a hand-over is four gloo messages in turn; this makes it one.",
        platform="cpu",
    ),
    Hook(
        name="receive-states",
        module="vllm.distributed.parallel_state",
        attribute="GroupCoordinator.irecv_tensor_dict",
        source_sha256="8a38e665c9814c06f6413a96ee60be9e4abc2e4d4681a5742f8087c10e87578e",
        wrap=changes.irecv_tensor_dict,
        why="The receiving end of `send-states`.",
        platform="cpu",
    ),
    Hook(
        name="clean-shutdown",
        module="vllm.v1.engine.utils",
        attribute="CoreEngineProcManager.shutdown",
        source_sha256="8cc77bc13ac03fc98a0068d0106757923a81de1eff17a22e76c3ae4d7246661b",
        wrap=changes.shutdown_engines,
        why="vLLM kills the engine with its SIGTERM; this lets it stop its workers first.",
    ),
)


def problems() -> list[str]:
    """Why hooks do not fit the installed vLLM; empty if all fit."""
    return [problem for hook in HOOKS if hook.applies() and (problem := hook.problem()) is not None]


def install_all() -> None:
    """Install every hook, or none.

    Raises:
        HookError: at least one hook does not fit; the message names each.
    """
    found = problems()
    if found:
        raise HookError("; ".join(found))
    for hook in HOOKS:
        if hook.applies():
            hook.install()
