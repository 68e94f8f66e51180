"""Build a trainable head from the target's weights or from a head on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.create import initial_tensors, read_tensors, zero_maps
from vllm_ppsd.exit_head.target_files import model_folder
from vllm_ppsd.training.head import TrainableHead
from vllm_ppsd.training.loss import DraftVocabulary
from vllm_ppsd.training.packing import PACKED

LM_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DRAFT_TOKENS = "draft_token_ids"


def untrained(
    model: str, config: ExitHeadConfig, draft_token_ids: torch.Tensor | None
) -> tuple[TrainableHead, DraftVocabulary]:
    """Return a head that starts from the target's own weights."""
    return _build(model, config, initial_tensors(model, config), draft_token_ids)


def trained(
    folder: ExitHeadFolder, model: str, config: ExitHeadConfig | None = None
) -> tuple[TrainableHead, DraftVocabulary]:
    """Return the head in ``folder``.

    Args:
        folder: the head.
        model: its target.
        config: another than its own, which may differ in the exit layer, and in deeper layers
            and steps where it has none: their maps are then zero.

    Raises:
        ExitHeadError: it was made for another model.
    """
    folder.check_target(model)
    config = config or folder.config
    tensors = zero_maps(config, torch.bfloat16) | folder.tensors()
    return _build(model, config, tensors, tensors.pop(DRAFT_TOKENS, None))


def checkpoint_tensors(head: TrainableHead, vocabulary: DraftVocabulary) -> dict[str, torch.Tensor]:
    """Return what an exit-head folder holds: bfloat16 weights and the draft vocabulary."""
    tensors = {name: t.detach().cpu().bfloat16() for name, t in head.state_dict().items()}
    if vocabulary.token_ids is not None:
        tensors[DRAFT_TOKENS] = vocabulary.token_ids.cpu()
    return tensors


def read_lm_head(model: str) -> torch.Tensor:
    """Return the target's LM head, [vocabulary, hidden], from its safetensors.

    Raises:
        TrainingError: there is none.
    """
    tied = AutoConfig.from_pretrained(model_folder(model)).tie_word_embeddings
    return _read(model, EMBEDDING if tied else LM_HEAD)


def read_embedding(model: str) -> torch.Tensor:
    """Return the target's input embedding, [vocabulary, hidden], from its safetensors.

    Raises:
        TrainingError: there is none.
    """
    return _read(model, EMBEDDING)


def _read(model: str, name: str) -> torch.Tensor:
    folder = model_folder(model)
    tensors = read_tensors(folder, name)
    if name not in tensors:
        raise TrainingError(f"{folder} holds no tensor {name}")
    return tensors[name]


def _build(
    model: str,
    config: ExitHeadConfig,
    tensors: Mapping[str, torch.Tensor],
    draft_token_ids: torch.Tensor | None,
) -> tuple[TrainableHead, DraftVocabulary]:
    model_config = AutoConfig.from_pretrained(Path(model_folder(model)))
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(model_config, attn_implementation=PACKED)
    lm_head = read_lm_head(model)[: config.target.vocab_size]
    if draft_token_ids is not None:
        lm_head = lm_head[draft_token_ids]
    embedding = read_embedding(model) if config.steps > 1 else None
    head = TrainableHead(config, skeleton.model, lm_head, embedding)
    try:
        head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise TrainingError(
            f"the tensors of the head do not fit {config.target.architecture} in transformers: "
            f"{error}"
        ) from error
    return head, DraftVocabulary(draft_token_ids, config.target.vocab_size)
