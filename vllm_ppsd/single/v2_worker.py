"""The worker's side of PPSD on one device with V2, for CPU and CUDA workers alike."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.config.support import check_runner
from vllm_ppsd.hooks.marks import hide
from vllm_ppsd.runner.v2.single import V2SingleRunnerMixin


class V2SingleWorkerMixin:
    """Hides the speculative config from V2, and gives its runner the proposer."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        config = vllm_config.speculative_config
        assert isinstance(config, PPSDConfig)
        check_runner(vllm_config, expects_v2=True)
        self.ppsd_config = config
        # In a copy: the engine may be in this process, and schedules drafts by the config.
        super().__init__(hide(vllm_config), *args, **kwargs)  # type: ignore[call-arg]

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        mixin: V2SingleRunnerMixin = self.model_runner  # type: ignore[attr-defined]
        self.ppsd = mixin.adopt(self.ppsd_config)
