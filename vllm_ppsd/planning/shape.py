"""The sizes that costs follow from where nothing was measured."""

from __future__ import annotations

from vllm_ppsd.costs import ModelShape
from vllm_ppsd.exit_head.config import ExitHeadConfig, Target

DRAFT_VOCABULARY = 4
"""The draft vocabulary of an assumed head: one token in so many."""


def shape_of(model: str) -> ModelShape:
    """Return a model's sizes, from its config.

    Args:
        model: a folder or a name on the hub.
    """
    from vllm.engine.arg_utils import EngineArgs

    from vllm_ppsd.config.entry import model_shape

    return model_shape(EngineArgs(model).create_model_config())


def assumed_head(shape: ModelShape, exit_layer: int = 1) -> ExitHeadConfig:
    """Return a head like the one that ships: one layer, an output map, part of the vocabulary."""
    return ExitHeadConfig(
        head_type="transformer",
        exit_layer=exit_layer,
        num_layers=1,
        output_map=True,
        draft_vocab_size=max(1, shape.vocab_size // DRAFT_VOCABULARY),
        target=Target(
            architecture="assumed",
            num_hidden_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            vocab_size=shape.vocab_size,
            fingerprint="sha256:" + "0" * 64,
        ),
    )
