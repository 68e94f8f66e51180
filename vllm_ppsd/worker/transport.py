"""Drafts on their way down the pipeline, inside vLLM's ``IntermediateTensors``."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.parallel_state import get_pp_group

KEY = "ppsd_drafts"


def attach(output: Any, drafts: list[int]) -> None:
    """Add one draft per row to what goes to the next stage.

    vLLM pickles what is no tensor into the message that announces the tensors, so
    a list costs no message of its own and, on CUDA, no copy to the device. Only the
    shared-memory transport of the CPU backend takes nothing but tensors.
    """
    if get_pp_group().use_cpu_custom_send_recv:
        output.tensors[KEY] = torch.tensor(drafts, dtype=torch.int64)
    else:
        output.tensors[KEY] = drafts


def detach(intermediate: Any) -> list[int] | None:
    """Remove the drafts from what the previous stage sent and return them, if any.

    vLLM copies the other tensors into buffers that know the model's keys only.
    """
    if intermediate is None:
        return None
    drafts = intermediate.tensors.pop(KEY, None)
    return drafts.tolist() if isinstance(drafts, torch.Tensor) else drafts
