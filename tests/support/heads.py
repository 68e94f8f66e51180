"""Untrained heads of multi-depth shape, without training's work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_ppsd.exit_head.checkpoint import save
from vllm_ppsd.exit_head.create import describe_target, head_config, initial_tensors


def write_lens(model: Path, folder: Path, deeper_layers: Sequence[int]) -> str:
    """Write a lens head behind layer 3 of a tiny model; return its folder."""
    config = head_config(
        describe_target(model), exit_layer=3, head_type="lens", deeper_layers=deeper_layers
    )
    save(folder, config, initial_tensors(str(model), config))
    return str(folder)
