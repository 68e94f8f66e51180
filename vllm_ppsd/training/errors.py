"""What training refuses."""

from vllm_ppsd.config.errors import PPSDConfigError


class TrainingError(PPSDConfigError):
    """A recipe, a prompt file or a work folder cannot be used; says what to do."""
