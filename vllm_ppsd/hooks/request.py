"""Whether a vLLM config asks for PPSD, without importing the config class."""

from __future__ import annotations

from typing import Any

METHOD = "ppsd"


def is_ppsd(speculative_config: Any) -> bool:
    """Whether ``speculative_config`` (or None) is a ``PPSDConfig``."""
    return getattr(speculative_config, "method", None) == METHOD
