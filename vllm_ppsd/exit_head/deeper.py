"""How a multi-depth head reads the states of later stages."""

from __future__ import annotations

import torch

_EPSILON = 1e-6


def rms_normalize(state: torch.Tensor) -> torch.Tensor:
    """Return states divided by their root mean square; zero stays zero.

    The stages' states differ in size by orders of magnitude; the projection behind
    this has no bias, so that a state that is not there adds nothing.
    """
    return torch.nn.functional.rms_norm(state, state.shape[-1:], eps=_EPSILON)
