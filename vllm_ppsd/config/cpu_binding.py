"""One set of cores per worker on the CPU backend.

vLLM binds one rank per NUMA node by itself. Several ranks on one node need
``VLLM_CPU_OMP_THREADS_BIND``; where the user has not set it, the cores that this
process may use are dealt out evenly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from vllm.logger import init_logger

from vllm_ppsd.config.errors import PPSDConfigError

logger = init_logger("vllm.plugins.ppsd")
CORES = "VLLM_CPU_OMP_THREADS_BIND"
PARTITION = "VLLM_PP_LAYER_PARTITION"


def deal(cores: Sequence[int], ranks: int) -> str:
    """Return vLLM's notation for ``cores`` dealt out to ``ranks``, in order.

    Raises:
        PPSDConfigError: there are fewer cores than ranks.
    """
    if len(cores) < ranks:
        raise PPSDConfigError(
            f"{ranks} workers (pipeline stages times tensor parallel size) need at least "
            f"{ranks} CPU cores, one each, but this process may use {len(cores)}; use fewer "
            "workers or more cores"
        )
    share, extra = divmod(len(cores), ranks)
    groups: list[str] = []
    start = 0
    for rank in range(ranks):
        size = share + (rank < extra)
        groups.append(",".join(map(str, cores[start : start + size])))
        start += size
    return "|".join(groups)


def apply(ranks: int) -> None:
    """Set the binding for ``ranks`` workers unless the user has set one."""
    if os.environ.get(CORES, "auto") != "auto":
        return
    binding = deal(sorted(os.sched_getaffinity(0)), ranks)
    os.environ[CORES] = binding
    logger.info("PPSD: CPU cores per worker: %s=%r", CORES, binding)
