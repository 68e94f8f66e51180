"""Whether a vLLM config asks for PPSD, without importing the config class."""

from __future__ import annotations

import copy
from typing import Any

METHOD = "ppsd"

_in_this_worker = False
_engine_here = False


def is_ppsd(speculative_config: Any) -> bool:
    """Whether ``speculative_config`` (or None) is a ``PPSDConfig``."""
    return getattr(speculative_config, "method", None) == METHOD


def mark_worker() -> None:
    """Note that this process is a worker that PPSD drafts in on one device."""
    global _in_this_worker
    _in_this_worker = True


def is_marked_worker() -> bool:
    """Whether this process is such a worker."""
    return _in_this_worker


def mark_engine() -> None:
    """Note that this process configured an engine with PPSD."""
    global _engine_here
    _engine_here = True


def has_engine() -> bool:
    """Whether this process configured an engine with PPSD."""
    return _engine_here


def is_pipelined(speculative_config: Any) -> bool:
    """Whether it is one whose drafts run while later pipeline stages verify."""
    return is_ppsd(speculative_config) and bool(speculative_config.is_pipelined)


def hide(vllm_config: Any) -> Any:
    """Return a copy of a ``VllmConfig`` that speculates on nothing, as far as vLLM sees.

    The copy remembers what it hides: how many steps are in flight is known by it.
    """
    plain = copy.copy(vllm_config)
    hide_within(plain)
    return plain


def hide_within(vllm_config: Any) -> None:
    """As ``hide``, of a config that nobody else has."""
    vllm_config.ppsd_hidden, vllm_config.speculative_config = vllm_config.speculative_config, None


def pipelined_config(vllm_config: Any) -> Any | None:
    """Return a config's ``PPSDConfig`` of a pipeline, hidden or not; else None."""
    for config in (vllm_config.speculative_config, getattr(vllm_config, "ppsd_hidden", None)):
        if is_pipelined(config):
            return config
    return None
