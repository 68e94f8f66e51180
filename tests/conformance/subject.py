"""PPSD's scheduler as vLLM's tests build it: with the config of a pipeline."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, ClassVar

from vllm.config import VllmConfig

from vllm_ppsd.config.ppsd import PPSDConfig, SyntheticDrafter
from vllm_ppsd.engine.scheduler import PPSDScheduler


class Subject(PPSDScheduler):
    """``PPSDScheduler``, whichever kind of scheduling the test asked vLLM for.

    The tests know nothing of PPSD, so the config that they make is turned into that
    of a PPSD pipeline; a speculative config of their own is replaced. Their model
    runner outputs carry no drafts: nothing is compared and nothing is flushed, but
    with ``max_drafts`` above 0 positions are sent ahead of their tokens.
    """

    max_drafts: ClassVar[int] = 0
    was_driven: ClassVar[bool] = False
    """Whether the test at hand came by this scheduler at all."""
    _admission: Any = SimpleNamespace(received=lambda *_: None)
    """Of a scheduler that a test makes with object.__new__; others have their own."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        Subject.was_driven = True
        ours = copy.copy(vllm_config)
        # Set afterwards: vLLM checks the size against the devices of this machine.
        ours.parallel_config = copy.copy(vllm_config.parallel_config)
        ours.parallel_config.pipeline_parallel_size = 2
        ours.speculative_config = PPSDConfig(
            max_drafts=self.max_drafts,
            exit_layer=1,
            layer_partition=[1, 1],
            # What a tick takes on this machine must not decide what a test sees.
            load_adaptive=False,
            synthetic_drafter=SyntheticDrafter(record="never read", acceptance=0.0),
            target_model_config=ours.model_config,
            target_parallel_config=ours.parallel_config,
        )
        super().__init__(ours, *args, **kwargs)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        Subject.was_driven = True  # a test may have made one with object.__new__
        return super().update_from_output(*args, **kwargs)
