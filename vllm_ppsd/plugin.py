"""Entry point of the vLLM plugin (group ``vllm.general_plugins``)."""

from __future__ import annotations

import logging

logger = logging.getLogger("vllm.plugins.ppsd")


def register() -> None:
    """Install the hooks; re-entrant, and harmless where PPSD is not asked for.

    Where anything that PPSD relies on differs in the installed vLLM, nothing is changed
    except that asking for PPSD, also by its flag, fails at once with the reason.
    """
    from vllm_ppsd.contract.check import install_all

    try:
        install_all()
    except Exception as error:  # whatever a foreign vLLM raises, it must go on
        logger.debug("PPSD stays out of this vLLM: %s", error)
        _refuse_requests(str(error))


def _refuse_requests(reason: str) -> None:
    """Make a request for PPSD fail with ``reason`` where the contract does not hold."""
    try:
        from vllm_ppsd.config.refusal import install_refusal

        install_refusal(reason)
    except Exception as error:
        logger.debug("PPSD cannot even refuse here: %s", error)
