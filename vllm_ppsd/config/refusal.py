"""How a request for PPSD fails in a vLLM that PPSD does not fit.

This wraps the function that turns arguments into a speculative config, and the wrapper does
nothing but refuse; ``--speculative-model`` is there, so that whoever uses it reads the reason. The
stock vLLM it finds stays as it is.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm_ppsd.config.arguments import add_speculative_model_flag, requested
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.contract.series import supported


def install_refusal(reason: str) -> None:
    """Make ``EngineArgs`` refuse PPSD, naming ``reason`` and the way to mend it."""
    from vllm.engine.arg_utils import EngineArgs

    original = EngineArgs.create_speculative_config
    if getattr(original, "__vllm_ppsd_hook__", None) is not None:
        return

    @functools.wraps(original)
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        if requested(self):
            raise PPSDConfigError(
                f"PPSD was asked for, but it does not fit this vLLM: {reason}. "
                f"Run `vllm-ppsd doctor`; this release is for vLLM {', '.join(supported())}."
            )
        return original(self, *args, **kwargs)

    refuse.__vllm_ppsd_hook__ = "refusal"  # type: ignore[attr-defined]
    EngineArgs.create_speculative_config = refuse
    stock = EngineArgs.add_cli_args

    @functools.wraps(stock)
    def with_flag(*args: Any, **kwargs: Any) -> Any:
        parser = stock(*args, **kwargs)
        add_speculative_model_flag(parser)
        return parser

    EngineArgs.add_cli_args = staticmethod(with_flag)
