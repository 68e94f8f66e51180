"""What tools ask of a PPSD worker, mixed into it by vLLM's ``worker_extension_cls``.

``LLM.collective_rpc`` calls these methods by name, on every rank.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.parallel_state import get_pp_group

from vllm_ppsd.trace.recorder import Recorder


class ToolsWorkerExtension:
    """Record traces, and change drafting between requests; no request may be running."""

    model_runner: Any

    def start_trace(self) -> None:
        """Record what this stage does until ``stop_trace``."""
        group = get_pp_group()
        self._recorder = Recorder(self.model_runner, group.rank_in_group, group.is_last_rank)

    def stop_trace(self) -> str:
        """Return what was recorded since ``start_trace``: a ``StageRecord`` as JSON."""
        return self._recorder.stop().model_dump_json()

    def set_synthetic_acceptance(self, acceptance: float) -> None:
        """Change how often the synthetic drafter is right, from 0 to 1."""
        runner = self.model_runner
        drafter = runner.ppsd_stage if hasattr(runner, "ppsd_stage") else runner.drafter
        drafter.set_synthetic_acceptance(acceptance)

    def set_drafts(self, drafts: int, threshold: float) -> None:
        """Change how many tokens a step drafts on one device, and its draft threshold."""
        drafter = self.model_runner.drafter
        drafter.drafts, drafter.threshold = drafts, threshold
