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
from vllm_ppsd.training.chains import ChainEntries, Chains
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
        embedding: the target's input embedding, [vocabulary, hidden], frozen; None for a head
            without continuations.
    """

    def __init__(
        self,
        config: ExitHeadConfig,
        decoder: Any,
        lm_head: torch.Tensor,
        embedding: torch.Tensor | None = None,
    ) -> None:
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
        self.fuse = nn.Linear(2 * hidden, hidden) if config.steps > 1 else None
        # None of these is part of the checkpoint.
        self._rotary = [type(decoder.rotary_emb)(layer_config)]
        # Some targets turn positions differently in each type of layer.
        typed = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
        self._rotary_arguments = [(layer_config.layer_types[n],) if typed else () for n in numbers]
        self.register_buffer("lm_head", lm_head.detach().float(), persistent=False)
        self.register_buffer(
            "embedding", None if embedding is None else embedding.detach().float(), persistent=False
        )

    def forward(
        self,
        states: torch.Tensor,
        lengths: Sequence[int],
        rows: torch.Tensor,
        deeper: torch.Tensor | None = None,
        chains: Chains | None = None,
    ) -> list[torch.Tensor]:
        """Return the logits of every step.

        Args:
            states: [tokens, hidden], packed exit states.
            lengths: tokens per document.
            rows: int64 [rows], tokens to draft behind.
            deeper: [tokens, later stages, hidden], what a multi-depth head reads besides;
                zero where there is nothing to read.
            chains: the continuations to run; None for step 1 alone.

        Returns:
            [rows, draft vocabulary] of step 1; [chains, draft vocabulary] of every further one.
        """
        entries = None if chains is None else ChainEntries(chains, rows)
        final = self.predicted(states, lengths, rows, deeper, entries)
        logits = [self.logits(final)]
        if chains is None or entries is None:
            return logits
        if not chains.spans:
            # Processes that train together expect gradients of the same parameters.
            unused = sum(p.sum() for p in self.fuse.parameters()) if self.fuse else 0
            return [logits[0] + 0 * unused]
        final = final[chains.starts]
        place = positions(lengths).to(states.device)[rows[chains.starts]]
        for step, tokens in enumerate(chains.tokens, start=2):
            if step == 2 and chains.known is not None:
                final = torch.where(chains.is_known, chains.known, final)
            entries.step = step
            fused = self.fused(final, tokens)
            hidden = self._through(fused, place + step - 1, lengths, entries)
            final = self._mapped(self.norm(hidden.float()))
            logits.append(self.logits(final))
        return logits

    def predicted(
        self,
        states: torch.Tensor,
        lengths: Sequence[int],
        rows: torch.Tensor,
        deeper: torch.Tensor | None = None,
        entries: ChainEntries | None = None,
    ) -> torch.Tensor:
        """Return the head's prediction of the target's final states, [rows, hidden].

        Arguments as in ``forward``; ``entries`` takes in those of the head's layers.
        """
        x = self._mapped(self.features(states, lengths, rows, deeper, entries))
        return x if deeper is None else x + projected(self.deeper_out, deeper[rows])

    def features(
        self,
        states: torch.Tensor,
        lengths: Sequence[int],
        rows: torch.Tensor,
        deeper: torch.Tensor | None = None,
        entries: ChainEntries | None = None,
    ) -> torch.Tensor:
        """Return what the output map (or the LM head, without one) reads, float32 [rows, hidden].

        Arguments as in ``predicted``.
        """
        place = positions(lengths).to(states.device)
        hidden = self._through(self.input(states, deeper), place, lengths, entries)
        features: torch.Tensor = self.norm(hidden[rows].float())
        return features

    def input(self, states: torch.Tensor, deeper: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the first layer reads in step 1, float32 [tokens, hidden]."""
        hidden = states.float()
        if self.input_map is not None:
            hidden = hidden + self.input_map(hidden)
        if deeper is not None:
            hidden = hidden + projected(self.deeper_in, deeper)
        return hidden

    def fused(self, final: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the first layer reads in a continuation, [rows, hidden].

        Args:
            final: [rows, hidden], the final states of the positions before, as predicted.
            tokens: int64 [rows], the tokens there.
        """
        assert self.fuse is not None
        fused: torch.Tensor = self.fuse(torch.cat([final, self.embedding[tokens]], dim=-1))
        return fused

    def logits(self, final: torch.Tensor) -> torch.Tensor:
        """Return the logits of predicted final states, float32 [rows, draft vocabulary]."""
        return self.shape.apply((final @ self.lm_head.T.to(final.dtype)).float())

    def _mapped(self, features: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = features if self.map is None else self.map(features)
        return mapped

    def _through(
        self,
        hidden: torch.Tensor,
        place: torch.Tensor,
        lengths: Sequence[int],
        entries: ChainEntries | None,
    ) -> torch.Tensor:
        """Run the layers over tokens at positions ``place``, [tokens, hidden]."""
        if not self.layers:
            return hidden
        rotary = self._rotary[0].to(hidden.device)
        packed, place = hidden[None], place[None]
        turned = {a: rotary(packed, place, *a) for a in set(self._rotary_arguments)}
        for layer, arguments in zip(self.layers, self._rotary_arguments, strict=True):
            output = layer(
                packed,
                position_ids=place,
                position_embeddings=turned[arguments],
                packed_lengths=tuple(lengths),
                entries=entries,
            )
            packed = output[0] if isinstance(output, tuple) else output
        return packed[0]
