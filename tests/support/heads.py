"""Heads of every shape, without training's work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from support.reference import Reference
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder, save
from vllm_ppsd.exit_head.create import describe_target, head_config, initial_tensors


def write_lens(model: Path, folder: Path, deeper_layers: Sequence[int]) -> str:
    """Write a lens head behind layer 3 of a tiny model; return its folder."""
    config = head_config(
        describe_target(model), exit_layer=3, head_type="lens", deeper_layers=deeper_layers
    )
    save(folder, config, initial_tensors(str(model), config))
    return str(folder)


def write_multi_depth(model: Path, folder: Path, deeper_layers: Sequence[int]) -> str:
    """Write a head to which deeper states matter: other ones would be other drafts; return its
    folder."""
    config = head_config(
        describe_target(model), exit_layer=3, head_type="transformer", deeper_layers=deeper_layers
    )
    tensors = initial_tensors(str(model), config)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.startswith("deeper_")]:
        noise = torch.randn(tensors[name].shape, generator=generator)
        tensors[name] = (0.02 * noise).to(tensors[name].dtype)
    save(folder, config, tensors)
    return str(folder)


def with_steps(
    head: Path | str,
    folder: Path,
    steps: int = 4,
    texts: Sequence[Sequence[int]] = (),
    model: Path | None = None,
) -> str:
    """Copy a transformer head of one step into one that goes on; return its folder.

    Args:
        head: folder of the head of one step.
        folder: to write.
        steps: of the new head.
        texts: of the target, which its fusion is fitted to (its drafts are then right now and
            then); else it is random.
        model: folder of the target, where there are texts.
    """
    old = ExitHeadFolder.open(head)
    config = old.config.model_copy(update={"steps": steps, "format_version": 2})
    tensors = old.tensors()
    hidden, dtype = config.target.hidden_size, tensors["norm.weight"].dtype
    fuse = 0.2 * torch.randn(hidden, 2 * hidden + 1, generator=torch.Generator().manual_seed(0))
    if model is not None:
        fuse = _fitted(model, config.exit_layer, texts)
    tensors["fuse.weight"] = fuse[:, :-1].to(dtype)
    tensors["fuse.bias"] = fuse[:, -1].to(dtype)
    save(folder, config, tensors)
    return str(folder)


def _fitted(model: Path, exit_layer: int, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Fit exit states to the final state before and the token, [hidden, 2 * hidden + 1]."""
    reference = Reference(model)
    inputs, outputs = [], []
    for text in texts:
        exits, finals = reference.states(text, exit_layer)
        embedded = reference.embedded(text[1:])
        inputs.append(torch.cat([finals[:-1], embedded, torch.ones(len(text) - 1, 1)], dim=1))
        outputs.append(exits[1:])
    x, y = torch.cat(inputs), torch.cat(outputs)
    ridge = 1e-3 * torch.eye(x.shape[1]) * x.square().sum() / x.shape[1]
    return torch.linalg.solve(x.T @ x + ridge, x.T @ y).T
