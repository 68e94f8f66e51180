"""Heads of every shape, without training's work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder, save
from vllm_ppsd.exit_head.create import describe_target, head_config, initial_tensors


def write_lens(model: Path, folder: Path, deeper_layers: Sequence[int]) -> str:
    """Write a lens head behind layer 3 of a tiny model; return its folder."""
    config = head_config(
        describe_target(model), exit_layer=3, head_type="lens", deeper_layers=deeper_layers
    )
    save(folder, config, initial_tensors(str(model), config))
    return str(folder)


def with_steps(head: Path | str, folder: Path, steps: int = 4, noise: float = 0.02) -> str:
    """Copy a transformer head of one step into one that goes on, by a random fusion.

    The fusion is the token's embedding and a little of everything else: what goes on from there
    is right now and then.
    """
    old = ExitHeadFolder.open(head)
    config = old.config.model_copy(update={"steps": steps, "format_version": 2})
    tensors = old.tensors()
    dtype = tensors["norm.weight"].dtype
    hidden = config.target.hidden_size
    generator = torch.Generator().manual_seed(0)
    fuse = noise * torch.randn(hidden, 2 * hidden, generator=generator)
    fuse[:, hidden:] += torch.eye(hidden)
    tensors["fuse.weight"] = fuse.to(dtype)
    tensors["fuse.bias"] = (noise * torch.randn(hidden, generator=generator)).to(dtype)
    save(folder, config, tensors)
    return str(folder)
