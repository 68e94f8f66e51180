"""Whether engine arguments ask for PPSD, and with which options."""

from __future__ import annotations

from typing import Any

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.hooks.request import METHOD

_ALIASES = (
    ("--spec-method", "method", "spec_method"),
    ("--spec-model", "model", "spec_model"),
    ("--spec-tokens", "num_speculative_tokens", "spec_tokens"),
)


def requested(engine_args: Any) -> bool:
    """Whether ``EngineArgs`` name the method ``ppsd`` in any of vLLM's spellings."""
    given = engine_args.speculative_config or {}
    method = engine_args.spec_method or given.get("method")
    if method is not None:
        return bool(method == METHOD)
    return METHOD in (engine_args.spec_model, given.get("model"))


def options(engine_args: Any) -> dict[str, Any]:
    """Collect the options of every spelling into one dictionary.

    Raises:
        PPSDConfigError: an option is given twice.
    """
    collected = {
        key.replace("-", "_"): value
        for key, value in (engine_args.speculative_config or {}).items()
    }
    for flag, key, attribute in _ALIASES:
        value = getattr(engine_args, attribute)
        if value is None:
            continue
        if key in collected:
            raise PPSDConfigError(
                f"{flag} and --speculative-config['{key}'] say the same thing; give one of them"
            )
        collected[key] = value
    collected["method"] = METHOD
    return collected
