"""The worker's side of PPSD, as a mixin for CPU and CUDA workers alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm import envs
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import get_pp_group
from vllm.utils.network_utils import get_ip, get_loopback_ip

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.config.support import check_runner
from vllm_ppsd.engine.output import PPSDSchedulerOutput
from vllm_ppsd.hooks.marks import hide_within
from vllm_ppsd.lifeline import follow_engine
from vllm_ppsd.runner.port import PipelinePort, RunnerMixin
from vllm_ppsd.worker.channels import StageChannels
from vllm_ppsd.worker.handover import Handover
from vllm_ppsd.worker.middle import MiddleStage
from vllm_ppsd.worker.proposer import ProposerStage
from vllm_ppsd.worker.scorer import ScorerStage
from vllm_ppsd.worker.stage import Stage


class StageError(RuntimeError):
    """A stage has failed; names the stage and what was raised there."""


class PPSDWorkerMixin:
    """Splits the layers, hides the speculative config, makes the stage.

    A worker runs plain decoding: with the speculative config gone, vLLM builds the
    same batches, kernels and compiled graphs as without PPSD.

    Attributes:
        has_cpu_tensors: whether hidden states can take PPSD's way to the next stage.
        is_v2: whether the worker's model runner is vLLM's V2.
        ppsd: this rank's stage.
    """

    has_cpu_tensors = False
    is_v2 = False
    ppsd: Stage
    _handover: Handover | None = None
    _failure: str | None = None

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        config = vllm_config.speculative_config
        assert isinstance(config, PPSDConfig)
        check_runner(vllm_config, self.is_v2)
        self.ppsd_config = config
        follow_engine(envs.VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS)
        # This process's own copy of the config, and its own environment.
        hide_within(vllm_config)
        os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, config.layer_partition))
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        parallel = self.parallel_config  # type: ignore[attr-defined]
        # Ray tells nobody how many nodes there are.
        several_nodes = parallel.nnodes > 1 or parallel.distributed_executor_backend == "ray"
        # On one node vLLM's CPU stages share memory, which is hard to beat.
        hands_over = several_nodes and self.has_cpu_tensors
        channels = StageChannels(
            host=get_ip() if several_nodes else get_loopback_ip(),
            patience=envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS,
            states=hands_over,
            places=self.ppsd_config.longest_burst > 1,
            feedback=self.ppsd_config.feedback_stages,
        )
        if hands_over:
            self._handover = get_pp_group().ppsd_handover = Handover(channels)
        self._mixin: RunnerMixin = self.model_runner  # type: ignore[attr-defined]
        self.ppsd = make_stage(self.ppsd_config, self._mixin.make_port(), channels)
        self._mixin.ppsd_stage = self.ppsd

    @torch.inference_mode()
    def execute_model(self, scheduler_output: Any) -> Any:
        with self._failing_for_good():
            if not isinstance(scheduler_output, PPSDSchedulerOutput):
                # A step of vLLM's warm-up.
                return super().execute_model(scheduler_output)  # type: ignore[misc]
            if self._handover is not None:
                self._handover.tick = scheduler_output.tick.number
            self.ppsd.sends.extend(self._pp_send_work)
            self._pp_send_work: list[Any] = []
            output = super().execute_model(scheduler_output)  # type: ignore[misc]
            self._mixin.after_send()
            return output

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: Any) -> Any:
        with self._failing_for_good():
            return super().sample_tokens(grammar_output)  # type: ignore[misc]

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """Name the stage in what is raised, and run nothing more on it.

        The next stage would take a later tick's states for those of the tick that failed.

        Raises:
            StageError: something was raised within, or in an earlier step.
        """
        if self._failure is not None:
            raise StageError(self._failure)
        try:
            yield
        except Exception as error:
            stage = get_pp_group().rank_in_group
            self._failure = f"stage {stage}: {type(error).__name__}: {error}"
            raise StageError(self._failure) from error


def make_stage(config: PPSDConfig, port: PipelinePort, channels: StageChannels) -> Stage:
    """Return the stage that this rank's place in the pipeline makes it."""
    group = get_pp_group()
    if group.is_first_rank:
        return ProposerStage(port, config, channels)
    if group.is_last_rank:
        return ScorerStage(port, config, channels)
    return MiddleStage(port, config, channels)
