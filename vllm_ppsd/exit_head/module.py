"""The exit head in vLLM layers: what stage 0 runs behind its last layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor

from vllm_ppsd.exit_head.architectures import architecture, logits_shape
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.deeper import rms_normalize
from vllm_ppsd.exit_head.layers import build_layer, carries_residual, write_layer_entries


class Guess(NamedTuple):
    """What a head says at some rows.

    Attributes:
        drafts: int64 [rows], ids in the target's vocabulary.
        probabilities: float32 [rows], the head's of its drafts.
        logits: float32 [rows, draft vocabulary].
        final: [rows, hidden], the predicted final states, which the LM head reads.
    """

    drafts: torch.Tensor
    probabilities: torch.Tensor
    logits: torch.Tensor
    final: torch.Tensor


@support_torch_compile(
    dynamic_arg_dims={
        "positions": 0,
        "hidden_states": 0,
        "residual": 0,
        "rows": 0,
        "deeper": 0,
    }
)
class ExitHead(nn.Module):
    """Drafts the next token from the hidden state behind the exit layer.

    vLLM compiles it as it compiles the target, unless compilation is off.

    Args:
        vllm_config: the target's vLLM config.
        config: the head's config.
        layer: one of the target's decoder layers: the head's norm is of the kind of its input
            norm, and the layers of ``transformer`` heads are of its class.
        lm_head: the target's LM head, or the rows of it for the draft vocabulary.
    """

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        config: ExitHeadConfig,
        layer: Any,
        lm_head: nn.Module,
    ) -> None:
        super().__init__()
        self.config = config
        self._entries_alone = architecture(config.target.architecture).entries_alone
        self._carries_residual = carries_residual(layer)
        self.layers = nn.ModuleList(
            build_layer(type(layer), vllm_config, config, index)
            for index in range(config.num_layers)
        )
        self.input_map: ReplicatedLinear | None = None
        if config.start_layer is not None:
            self.input_map = ReplicatedLinear(config.target.hidden_size, config.target.hidden_size)
        # Stage 0 holds no final norm that could be asked for its class and epsilon.
        self.norm = copy.deepcopy(layer.input_layernorm)
        self.map: ReplicatedLinear | None = None
        if config.output_map:
            self.map = ReplicatedLinear(config.target.hidden_size, config.target.hidden_size)
        self.deeper_in, self.deeper_out = (
            nn.ModuleList(
                ReplicatedLinear(config.target.hidden_size, config.target.hidden_size, bias=False)
                for _ in config.deeper_layers
            )
            for _ in range(2)
        )
        self.fuse: ReplicatedLinear | None = None
        if config.steps > 1:
            self.fuse = ReplicatedLinear(2 * config.target.hidden_size, config.target.hidden_size)
        self.draft_token_ids: nn.Parameter | None = None
        if config.draft_vocab_size is not None:
            self.draft_token_ids = nn.Parameter(
                torch.zeros(config.draft_vocab_size, dtype=torch.int64), requires_grad=False
            )
        # Not a submodule: the target owns and loads it.
        self._lm_head = [lm_head]
        shape = logits_shape(vllm_config.model_config.hf_text_config)
        self._logits = LogitsProcessor(
            config.draft_vocab_size or config.target.vocab_size,
            scale=shape.scale,
            soft_cap=shape.soft_cap,
        )
        self._logits.use_all_gather = True

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        rows: torch.Tensor,
        deeper: torch.Tensor | None = None,
    ) -> Guess:
        """Return one draft per row.

        The inputs go down the pipeline afterwards and must not change.

        Args:
            positions: int64 [tokens].
            hidden_states: [tokens, hidden], as between two layers of the target.
            residual: [tokens, hidden] or None; the exit's state is the sum of both.
            rows: int64 [rows], the tokens to draft behind.
            deeper: [tokens, later stages, hidden], what a multi-depth head reads besides:
                zero where there is nothing; None on one device.
        """
        state = self._input(hidden_states, residual, deeper)
        final = self._final(self._behind_layers(positions, state)[rows])
        if deeper is not None:
            final = self._add(final, self.deeper_out, deeper[rows])
        return self._guess(final)

    def go_on(self, positions: torch.Tensor, final: torch.Tensor, embedded: torch.Tensor) -> Guess:
        """Return one draft per token, where there is no exit state; see ``Continuation``."""
        assert self.fuse is not None
        state, _ = self.fuse(torch.cat([final, embedded], dim=-1))
        return self._guess(self._final(self._behind_layers(positions, state)))

    @property
    def token_ids(self) -> torch.Tensor:
        """What it can draft: int64 [draft vocabulary], ids in the target's vocabulary."""
        if self.draft_token_ids is not None:
            return self.draft_token_ids
        return torch.arange(self.config.target.vocab_size, device=self.norm.weight.device)

    def warm_up(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        deeper: torch.Tensor | None = None,
    ) -> None:
        """Run once on tokens of no meaning, which compiles; arguments as in ``forward``."""
        # Fewer rows than tokens: equal sizes would be compiled as one.
        self(
            positions,
            hidden_states,
            residual,
            torch.arange(max(1, len(positions) // 2), device=positions.device),
            deeper,
        )

    def write_entries(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        deeper: torch.Tensor | None = None,
    ) -> None:
        """Write the key/value entries of the head's decoder layers, and nothing more.

        Arguments as in ``forward``; they are not changed. Entries of the last layer do
        not depend on its attention and MLP, which over a prompt take most of the head's
        time; both are left out for architectures with ``entries_alone``.
        """
        if not self.layers:
            return
        state = self._input(hidden_states, residual, deeper)
        alone = self._entries_alone
        hidden, carried = self._through(
            self.layers[:-1] if alone else self.layers, positions, state
        )
        if alone:
            last: Any = self.layers[-1]
            if carried is None:
                hidden = last.input_layernorm(hidden)
            else:
                hidden, _ = last.input_layernorm(hidden, carried)
            write_layer_entries(last.self_attn, positions, hidden)

    def _behind_layers(self, positions: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        if not self.layers:
            return state
        hidden, carried = self._through(self.layers, positions, state)
        return hidden if carried is None else hidden + carried

    def _final(self, state: torch.Tensor) -> torch.Tensor:
        state = self.norm(state)
        if self.map is not None:
            state, _ = self.map(state)
        return state

    def _guess(self, final: torch.Tensor) -> Guess:
        logits = self._logits(self._lm_head[0], final).float()
        best, drafts = logits.max(dim=-1)
        probabilities = (best - logits.logsumexp(dim=-1)).exp()
        if self.draft_token_ids is not None:
            drafts = self.draft_token_ids[drafts]
        return Guess(drafts, probabilities, logits, final)

    def _input(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        deeper: torch.Tensor | None,
    ) -> torch.Tensor:
        state = hidden_states if residual is None else hidden_states + residual
        if self.input_map is not None:
            added, _ = self.input_map(state)
            state = state + added
        if deeper is not None:
            state = self._add(state, self.deeper_in, deeper)
        return state

    @staticmethod
    def _add(state: torch.Tensor, projections: nn.ModuleList, deeper: torch.Tensor) -> torch.Tensor:
        for project, states in zip(projections, rms_normalize(deeper).unbind(dim=1), strict=True):
            added, _ = project(states)
            state = state + added
        return state

    def _through(
        self, layers: Iterable[nn.Module], positions: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run decoder layers on a copy: vLLM's fused norms work in place.

        Returns:
            Hidden states, and what the layers carry beside them and is to be added; None where
            they carry nothing.
        """
        hidden, carried = state.clone(), None
        for layer in layers:
            if self._carries_residual:
                hidden, carried = layer(positions, hidden, carried)
            else:
                hidden = layer(positions, hidden)
        return hidden, carried
