"""What tools ask of a PPSD worker, mixed into it by vLLM's ``worker_extension_cls``.

``LLM.collective_rpc`` calls these methods by name, on every rank.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.parallel_state import get_pp_group

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.drafter.recorded import RecordedDrafter
from vllm_ppsd.single.proposer import EarlyExitProposer
from vllm_ppsd.trace.recorder import Recorder
from vllm_ppsd.worker.events import EventSink
from vllm_ppsd.worker.stage import Stage


class ToolsWorkerExtension:
    """Record traces, and change drafting between requests; no request may be running."""

    device: Any
    ppsd: Any

    def start_trace(self) -> None:
        """Record what this stage does until ``stop_trace``."""
        if not isinstance(self.ppsd, Stage):
            raise PPSDConfigError("only the stages of a pipeline can be traced")
        stage = get_pp_group().rank_in_group
        self.ppsd.events = Recorder(stage, synchronizes=self.device.type != "cpu")

    def stop_trace(self) -> str:
        """Return what was recorded since ``start_trace``: a ``StageRecord`` as JSON."""
        recorder, self.ppsd.events = self.ppsd.events, EventSink()
        record: str = recorder.record().model_dump_json()
        return record

    def set_synthetic_acceptance(self, acceptance: float) -> None:
        """Change how often recorded drafts are right, from 0 to 1."""
        drafter = self.ppsd.drafter if self.ppsd is not None else None
        # Of a pipeline's stages only the first drafts.
        if isinstance(drafter, RecordedDrafter):
            drafter.acceptance = acceptance

    def set_drafts(self, drafts: int, threshold: float) -> None:
        """Change how many tokens a step drafts on one device, and its draft threshold."""
        if not isinstance(self.ppsd, EarlyExitProposer):
            raise PPSDConfigError("only on one device are drafts a step and a threshold set")
        self.ppsd.drafts, self.ppsd.threshold = drafts, threshold
