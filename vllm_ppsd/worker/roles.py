"""Which stage a rank of the pipeline is."""

from __future__ import annotations

from vllm.distributed.parallel_state import get_pp_group

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import StaleBook
from vllm_ppsd.runner.port import RunnerPort
from vllm_ppsd.worker.channels import StageChannels
from vllm_ppsd.worker.non_last import NonLastStage
from vllm_ppsd.worker.proposer import ProposerStage
from vllm_ppsd.worker.scorer import ScorerStage
from vllm_ppsd.worker.stage import Stage


def make_stage(config: PPSDConfig, port: RunnerPort, channels: StageChannels) -> Stage:
    """Return the stage that this rank's place in the pipeline makes it."""
    group = get_pp_group()
    if group.is_first_rank:
        return ProposerStage(port, config, channels)
    if group.is_last_rank:
        return ScorerStage(port, config, channels)
    return NonLastStage(port, config, channels, StaleBook())
