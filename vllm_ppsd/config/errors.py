"""The error that a user sees when PPSD was asked for and cannot be had."""


class PPSDConfigError(ValueError):
    """PPSD was asked for and something does not fit; says what and what to do."""
