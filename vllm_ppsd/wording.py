"""Wording that several errors share."""

from __future__ import annotations

from pydantic import ValidationError


def problems(error: ValidationError, whole: str) -> str:
    """Return every field that is wrong, with what is wrong about it.

    Args:
        whole: what to call the input where no single field is at fault.
    """
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or whole}: {item['msg']}" for item in error.errors()
    )
