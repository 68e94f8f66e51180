"""A head with steps in plain torch, without any cache: what is served must say the same."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.training.build import trained


class PlainHead:
    """A transformer head of a tied target.

    Args:
        one: folder of the head of one step.
        head: folder of the same head with a fusion.
        model: the target's.
    """

    def __init__(self, one: Path | str, head: Path | str, model: Path) -> None:
        self.head, vocabulary = trained(ExitHeadFolder.open(one), str(model))
        fuse = ExitHeadFolder.open(head).tensors()
        self._weight, self._bias = fuse["fuse.weight"].float(), fuse["fuse.bias"].float()
        self._embeddings = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
        self._embeddings = self._embeddings.float()
        self.token_ids = vocabulary.token_ids
        if self.token_ids is None:
            self.token_ids = torch.arange(len(self._embeddings))

    @torch.inference_mode()
    def first_inputs(self, states: torch.Tensor, deeper: torch.Tensor | None) -> torch.Tensor:
        """Return what the first layer reads of exit states, [tokens, hidden]."""
        if self.head.input_map is not None:
            states = states + self.head.input_map(states)
        if deeper is not None:
            for project, state in zip(self.head.deeper_in, deeper.unbind(dim=1), strict=True):
                states = states + project(_normed(state))
        return states

    @torch.inference_mode()
    def final(self, inputs: torch.Tensor, deeper: torch.Tensor | None = None) -> torch.Tensor:
        """Return the final state predicted at the last of a sequence's inputs, [hidden].

        Args:
            inputs: [tokens, hidden], of the first layer.
            deeper: [later stages, hidden], read at the last.
        """
        input_map, self.head.input_map = self.head.input_map, None
        try:
            state = self.head.features(inputs, [len(inputs)], torch.tensor([len(inputs) - 1]))[0]
        finally:
            self.head.input_map = input_map
        if self.head.map is not None:
            state = self.head.map(state)
        if deeper is not None:
            for project, read in zip(self.head.deeper_out, deeper, strict=True):
                state = state + project(_normed(read))
        return state

    @torch.inference_mode()
    def logits(self, final: torch.Tensor) -> torch.Tensor:
        """Return the logits of a final state, [draft vocabulary]."""
        return self._embeddings[self.token_ids] @ final

    @torch.inference_mode()
    def fused(self, final: torch.Tensor, token: int) -> torch.Tensor:
        """Return what the first layer reads of a final state and the token behind it, [hidden]."""
        return self._weight @ torch.cat([final, self._embeddings[token]]) + self._bias


def _normed(state: torch.Tensor) -> torch.Tensor:
    return state / (state.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
