"""The errors that a user sees when something that was asked for cannot be had."""

from __future__ import annotations

from pydantic import ValidationError


class PPSDConfigError(ValueError):
    """PPSD was asked for and something does not fit; says what and what to do."""


class ExitHeadError(PPSDConfigError):
    """An exit head is missing, broken, or made for another target."""


class TrainingError(PPSDConfigError):
    """A recipe, a prompt file or a work folder cannot be used; says what to do."""


def problems(error: ValidationError, whole: str) -> str:
    """Return every field that is wrong, with what is wrong about it.

    Args:
        whole: what to call the input where no single field is at fault.
    """
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or whole}: {item['msg']}" for item in error.errors()
    )
