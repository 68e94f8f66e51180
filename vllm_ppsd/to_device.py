"""Values of the host on the device, without waiting for it.

``torch.tensor(values, device=...)``, ``tensor.to(device)`` and an index that is a list wait for all
that the device has been given to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from vllm.utils.torch_utils import async_tensor_h2d


def on_device(
    values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Return a vector on the device."""
    vector: torch.Tensor = async_tensor_h2d(list(values), device=device, dtype=dtype)
    return vector
