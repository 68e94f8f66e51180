"""The worker's side of PPSD, as a mixin for CPU and CUDA workers alike."""

from __future__ import annotations

import os
from typing import Any

import torch
from vllm.config import VllmConfig

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.worker.lifeline import follow_engine


class PPSDWorkerMixin:
    """Splits the layers, hides the speculative config, hands it to the runner.

    A worker runs plain decoding: with the speculative config gone, vLLM builds the
    same batches, kernels and compiled graphs as without PPSD.
    """

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        config = vllm_config.speculative_config
        assert isinstance(config, PPSDConfig)
        self.ppsd_config = config
        follow_engine()
        # This process's own copy of the config, and its own environment.
        vllm_config.speculative_config = None
        os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, config.layer_partition))
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        self.model_runner.adopt(self.ppsd_config)  # type: ignore[attr-defined]

    @torch.inference_mode()
    def execute_model(self, scheduler_output: Any) -> Any:
        stage = self.model_runner.ppsd_stage  # type: ignore[attr-defined]
        stage.sends.extend(self._pp_send_work)
        self._pp_send_work: list[Any] = []
        output = super().execute_model(scheduler_output)  # type: ignore[misc]
        stage.after_send()
        return output

    def set_synthetic_acceptance(self, acceptance: float) -> None:
        """Change how often the synthetic drafter is right; for benchmarks and tests.

        Called on every rank through ``LLM.collective_rpc``.
        """
        self.model_runner.ppsd_stage.set_synthetic_acceptance(acceptance)  # type: ignore[attr-defined]
