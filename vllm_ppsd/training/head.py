"""The exit head in transformers layers: what is trained.

Its parameters carry the names of the checkpoint (see
``vllm_ppsd.exit_head.checkpoint``), and its logits on given states are those of
the serving module ``vllm_ppsd.exit_head.module.ExitHead``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vllm_ppsd.exit_head.architectures import logits_shape
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.deeper import rms_normalize
from vllm_ppsd.training.packing import PACKED, positions


def projected(projections: nn.ModuleList, deeper: torch.Tensor) -> torch.Tensor:
    """Return the sum of the later stages' projected states, [tokens, hidden] in float32.

    Args:
        deeper: [tokens, later stages, hidden].
    """
    states = rms_normalize(deeper.float()).unbind(dim=1)
    return torch.stack(
        [project(state) for project, state in zip(projections, states, strict=True)]
    ).sum(dim=0)


class TrainableHead(nn.Module):
    """An exit head over cached states; its weights are to be loaded.

    Args:
        config: the head's config.
        decoder: the target's decoder in transformers (``model.model``), which may lie on the
            meta device; the head's layers, norm and rotary embedding are of its kinds.
        lm_head: the LM head's rows for the draft vocabulary, [V', hidden]; frozen.
    """

    def __init__(self, config: ExitHeadConfig, decoder: Any, lm_head: torch.Tensor) -> None:
        super().__init__()
        hidden = config.target.hidden_size
        layer_config = copy.deepcopy(decoder.config)
        layer_config._attn_implementation = PACKED
        numbers = [config.source_layer(i) for i in range(config.num_layers)]
        self.config = config
        self.shape = logits_shape(layer_config)
        # The number decides the kind of attention.
        self.layers = nn.ModuleList(type(decoder.layers[n])(layer_config, n) for n in numbers)
        self.input_map: nn.Linear | None = None
        if config.start_layer is not None:
            self.input_map = nn.Linear(hidden, hidden)
        self.norm = copy.deepcopy(decoder.norm).to_empty(device="cpu").float()
        self.map = nn.Linear(hidden, hidden) if config.output_map else None
        self.deeper_in, self.deeper_out = (
            nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in config.deeper_layers)
            for _ in range(2)
        )
        # Neither is part of the checkpoint.
        self._rotary = [type(decoder.rotary_emb)(layer_config)]
        # Some targets turn positions differently in each type of layer.
        typed = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
        self._rotary_arguments = [(layer_config.layer_types[n],) if typed else () for n in numbers]
        self.register_buffer("lm_head", lm_head.detach().float(), persistent=False)

    def features(
        self,
        states: torch.Tensor,
        lengths: Sequence[int],
        rows: torch.Tensor,
        deeper: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what the output map (or the LM head, without one) reads.

        Args:
            states: [tokens, hidden], packed exit states.
            lengths: tokens per document.
            rows: int64 [rows], tokens to draft behind.
            deeper: [tokens, later stages, hidden], what a multi-depth head reads besides;
                zero where there is nothing to read.

        Returns:
            [rows, hidden], float32.
        """
        hidden = states.float()
        if self.input_map is not None:
            hidden = hidden + self.input_map(hidden)
        if deeper is not None:
            hidden = hidden + projected(self.deeper_in, deeper)
        if self.layers:
            place = positions(lengths).to(states.device)[None]
            rotary = self._rotary[0].to(states.device)
            packed = hidden[None]
            turned = {a: rotary(packed, place, *a) for a in set(self._rotary_arguments)}
            for layer, arguments in zip(self.layers, self._rotary_arguments, strict=True):
                output = layer(
                    packed,
                    position_ids=place,
                    position_embeddings=turned[arguments],
                    packed_lengths=tuple(lengths),
                )
                packed = output[0] if isinstance(output, tuple) else output
            hidden = packed[0]
        features: torch.Tensor = self.norm(hidden[rows].float())
        return features

    def forward(
        self,
        states: torch.Tensor,
        lengths: Sequence[int],
        rows: torch.Tensor,
        deeper: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return [rows, draft vocabulary] logits; arguments as in ``features``."""
        x = self.features(states, lengths, rows, deeper)
        if self.map is not None:
            x = self.map(x)
        if deeper is not None:
            x = x + projected(self.deeper_out, deeper[rows])
        return self.shape.apply((x @ self.lm_head.T.to(x.dtype)).float())
