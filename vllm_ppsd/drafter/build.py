"""Make the drafter that a config asks for."""

from __future__ import annotations

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.drafter.head import Draw, HeadDrafter
from vllm_ppsd.drafter.interface import Drafter
from vllm_ppsd.drafter.recorded import RecordedDrafter, read_record
from vllm_ppsd.exit_head.build import build_exit_head
from vllm_ppsd.runner.port import RunnerPort


def build_drafter(
    config: PPSDConfig, port: RunnerPort, draw: Draw | None, with_probabilities: bool = False
) -> Drafter:
    """Return the exit head's drafter, or recorded drafts around it where a record is named.

    Args:
        config: PPSD's; it has a head or a record.
        port: to the model runner, whose target is loaded.
        draw: draws the head's drafts for sampled requests.
        with_probabilities: whether drafts carry the head's probability.

    Raises:
        PPSDConfigError: the record can't be read.
    """
    drafter: Drafter | None = None
    if config.model is not None:
        built = build_exit_head(config.model, port.vllm_config, port.model(), config.goes_on)
        drafter = HeadDrafter(*built, port, draw, with_probabilities)
    if config.synthetic_drafter is not None:
        drafter = RecordedDrafter(
            read_record(config.synthetic_drafter.record),
            config.synthetic_drafter,
            port.vllm_config.model_config.get_vocab_size(),
            port.prompt_token_ids,
            port.device,
            drafter,
        )
    assert drafter is not None
    return drafter
