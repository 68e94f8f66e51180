"""vLLM's V2 model runner on a machine without a GPU: its kernels run in torch.

A process that is to use it calls ``install``. Where it starts by itself, as a server does, vLLM
does, if ``PYTHON_PATH`` is on its ``PYTHONPATH``: it finds there what it takes for a plugin.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from support.late import SEED

_HERE = Path(__file__).parent
PYTHON_PATH = os.pathsep.join(map(str, (_HERE.parents[1], _HERE / "plugin")))


def install() -> None:
    """Let vLLM believe in V2, and run its kernels in torch."""
    import vllm.config.vllm

    # The config refuses V2 where Triton is missing; nobody else needs to believe in Triton.
    vllm.config.vllm.HAS_TRITON = True
    if SEED in os.environ:
        from support.late import installed

        installed.install()
        register(installed.launched)
    else:
        register()


@cache
def register(launched: Callable[[Any], Any] | None = None) -> None:
    """Run V2's kernels in torch; ``launched`` makes of a kernel what launches it."""
    from support.v2 import kernels

    kernels.register(launched)
