"""The worker's side of PPSD on one device, with V1."""

from __future__ import annotations

from typing import Any

from vllm.config import SpeculativeConfig, VllmConfig

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.config.support import check_runner
from vllm_ppsd.hooks.marks import mark_worker
from vllm_ppsd.runner.v1_single import SingleRunnerMixin

PROPOSER = "vllm_ppsd.single.proposer.EarlyExitProposer"


class SingleWorkerMixin:
    """Names the proposer to V1 in the way that it offers for classes of others."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        config = vllm_config.speculative_config
        assert isinstance(config, PPSDConfig)
        check_runner(vllm_config, expects_v2=False)
        self.ppsd_config = config
        mark_worker()
        # This process's own copy of the config.
        vllm_config.speculative_config = (
            SpeculativeConfig(
                method="custom_class",
                model=PROPOSER,
                num_speculative_tokens=config.max_drafts,
                target_model_config=config.target_model_config,
                target_parallel_config=config.target_parallel_config,
            )
            if config.max_drafts
            else None
        )
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        mixin: SingleRunnerMixin = self.model_runner  # type: ignore[attr-defined]
        self.ppsd = mixin.adopt(self.ppsd_config)
