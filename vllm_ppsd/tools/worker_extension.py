"""What tools ask of a PPSD worker, mixed into it by vLLM's ``worker_extension_cls``.

``LLM.collective_rpc`` calls these methods by name, on every rank.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.parallel_state import get_pp_group

from vllm_ppsd.drafter.recorded import RecordedDrafter
from vllm_ppsd.trace.recorder import Recorder
from vllm_ppsd.worker.events import NoEvents


class ToolsWorkerExtension:
    """Record traces, and change drafting between requests; no request may be running."""

    device: Any
    ppsd: Any

    def start_trace(self) -> None:
        """Record what this stage does until ``stop_trace``."""
        stage = get_pp_group().rank_in_group
        self.ppsd.events = Recorder(stage, synchronizes=self.device.type != "cpu")

    def stop_trace(self) -> str:
        """Return what was recorded since ``start_trace``: a ``StageRecord`` as JSON."""
        recorder, self.ppsd.events = self.ppsd.events, NoEvents()
        record: str = recorder.record().model_dump_json()
        return record

    def set_synthetic_acceptance(self, acceptance: float) -> None:
        """Change how often recorded drafts are right, from 0 to 1."""
        if isinstance(self.ppsd.drafter, RecordedDrafter):
            self.ppsd.drafter.acceptance = acceptance

    def set_drafts(self, drafts: int, threshold: float) -> None:
        """Change how many tokens a step drafts on one device, and its draft threshold."""
        self.ppsd.drafts, self.ppsd.threshold = drafts, threshold
