"""What a user sees when an exit head cannot be used."""

from vllm_ppsd.config.errors import PPSDConfigError


class ExitHeadError(PPSDConfigError):
    """An exit head is missing, broken, or made for another target."""
