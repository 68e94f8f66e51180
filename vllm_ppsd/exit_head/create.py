"""Make an untrained exit head from a target's own weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from vllm_ppsd.exit_head.checkpoint import save
from vllm_ppsd.exit_head.config import ExitHeadConfig, HeadType, Target
from vllm_ppsd.exit_head.errors import ExitHeadError
from vllm_ppsd.exit_head.fingerprint import fingerprint, model_folder, read_model_config

FINAL_NORM = "model.norm.weight"


def describe_target(folder: Path) -> Target:
    """Return the ``target`` entry of a head made for the model in ``folder``."""
    found = read_model_config(folder)
    return Target(
        architecture=found["architectures"][0],
        num_hidden_layers=found["num_hidden_layers"],
        hidden_size=found["hidden_size"],
        vocab_size=found["vocab_size"],
        fingerprint=fingerprint(folder),
    )


def init_head(
    model: str,
    output: str | Path,
    *,
    exit_layer: int,
    head_type: HeadType = "lens",
    num_layers: int = 1,
    intermediate_size: int | None = None,
    draft_token_ids: list[int] | None = None,
) -> ExitHeadConfig:
    """Write an untrained head.

    The final norm is the target's own. An ``mlp`` head starts as the identity
    (its output projection is zero); a ``transformer`` head starts from the
    target's layers right behind the exit.

    Raises:
        ExitHeadError: the target lacks what is needed, or ``output`` exists.
    """
    folder = model_folder(model)
    target = describe_target(folder)
    hidden = target.hidden_size
    config = ExitHeadConfig(
        head_type=head_type,
        exit_layer=exit_layer,
        num_layers=num_layers if head_type == "transformer" else 0,
        intermediate_size=(intermediate_size or 2 * hidden) if head_type == "mlp" else None,
        draft_vocab_size=None if draft_token_ids is None else len(draft_token_ids),
        target=target,
    )
    norm = _read(folder, lambda name: name == FINAL_NORM)
    if FINAL_NORM not in norm:
        raise ExitHeadError(f"the target {folder} holds no tensor {FINAL_NORM}")
    tensors = {"norm.weight": norm[FINAL_NORM]}
    if config.intermediate_size is not None:
        dtype = tensors["norm.weight"].dtype
        generator = torch.Generator().manual_seed(0)
        up = torch.randn(config.intermediate_size, hidden, generator=generator) / hidden**0.5
        tensors["mlp.norm.weight"] = torch.ones(hidden, dtype=dtype)
        tensors["mlp.up.weight"] = up.to(dtype)
        tensors["mlp.down.weight"] = torch.zeros(hidden, config.intermediate_size, dtype=dtype)
    for index in range(config.num_layers):
        source = f"model.layers.{min(exit_layer + index, target.num_hidden_layers - 1)}."
        layer = _read(folder, partial(_startswith, source))
        tensors |= {f"layers.{index}.{name[len(source) :]}": t for name, t in layer.items()}
    if draft_token_ids is not None:
        tensors["draft_token_ids"] = torch.tensor(draft_token_ids, dtype=torch.int64)
    save(output, config, tensors)
    return config


def _read(folder: Path, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys() if wanted(name)}
    return found


def _startswith(prefix: str, name: str) -> bool:
    return name.startswith(prefix)
