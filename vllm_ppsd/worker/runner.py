"""The V1 model runner's side of PPSD, as a mixin for CPU and CUDA runners alike."""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm.distributed.parallel_state import get_pp_group

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import StaleBook
from vllm_ppsd.worker.messages import Lines
from vllm_ppsd.worker.proposer import ProposerStage
from vllm_ppsd.worker.scorer import ScorerStage
from vllm_ppsd.worker.skipping import SkippingStage
from vllm_ppsd.worker.stage import Stage


class PPSDRunnerMixin:
    """Calls the stage object at four points of vLLM's tick; holds no rule itself."""

    ppsd_stage: Stage

    def adopt(self, config: PPSDConfig, lines: Lines) -> None:
        """Take up the role that this rank's place in the pipeline gives it."""
        group = get_pp_group()
        if group.is_first_rank:
            self.ppsd_stage = ProposerStage(self, config, lines)
        elif group.is_last_rank:
            self.ppsd_stage = ScorerStage(self, config, lines)
        else:
            self.ppsd_stage = SkippingStage(self, config, lines, StaleBook())

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self.ppsd_stage.load()

    def _dummy_run(self, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        output = super()._dummy_run(num_tokens, *args, **kwargs)  # type: ignore[misc]
        self.ppsd_stage.warm_up(num_tokens)
        return output

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        self._allocate_intermediate_tensors()
        return self.ppsd_stage.execute(
            super().execute_model,  # type: ignore[misc]
            scheduler_output,
            intermediate_tensors,
        )

    def sample_tokens(self, grammar_output: Any) -> Any:
        return self.ppsd_stage.sample(super().sample_tokens, grammar_output)  # type: ignore[misc]

    def _update_states(self, scheduler_output: Any) -> Any:
        self.ppsd_stage.before_update(scheduler_output)
        return super()._update_states(scheduler_output)  # type: ignore[misc]

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_inputs(*args, **kwargs)  # type: ignore[misc]
        self.ppsd_stage.after_prepare(prepared[0])
        return prepared

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = partial(super()._model_forward, *args, **kwargs)  # type: ignore[misc]
        return self.ppsd_stage.forward(forward, kwargs["positions"])

    def _allocate_intermediate_tensors(self) -> None:
        """Allocate the buffers that vLLM allocates in its warm-up, which eager CPU skips."""
        runner: Any = self
        if runner.intermediate_tensors is None and not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens,
                dtype=runner.model_config.dtype,
                device=runner.device,
            )
