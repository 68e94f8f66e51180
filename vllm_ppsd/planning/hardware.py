"""The name of what a number was measured on."""

from __future__ import annotations

import os
from pathlib import Path


def hardware() -> str:
    """Return the accelerator's name, or the processor's and how many cores may be used."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores"
    return "a CPU"
