"""What the target says, straight from transformers in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


class Reference:
    """A target without any engine around it."""

    def __init__(self, model: Path) -> None:
        # Other implementations of attention leave out caps of its logits.
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """Return ``tokens`` tokens of greedy text behind ``prompt``."""
        tokens_in = torch.tensor([list(prompt)])
        found = self._model.generate(
            tokens_in,
            # Left out, it would hide padding tokens that are part of the prompt.
            attention_mask=torch.ones_like(tokens_in),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
        )
        return list(found[0, len(prompt) :].tolist())

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], layers: int) -> torch.Tensor:
        """Return what the target says behind every token with no more than its first layers.

        An exit head that nobody trained says the same.

        Returns:
            [tokens, vocabulary].
        """
        decoder = self._model.model
        whole = decoder.layers
        decoder.layers = whole[:layers]
        try:
            logits: torch.Tensor = self._model(torch.tensor([list(tokens)]), use_cache=False).logits
        finally:
            decoder.layers = whole
        return logits[0]

    @torch.inference_mode()
    def states(self, tokens: Sequence[int], layers: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states behind so many layers, and the LM head's input, [tokens, hidden]."""
        output = self._model(
            torch.tensor([list(tokens)]), use_cache=False, output_hidden_states=True
        )
        return output.hidden_states[layers][0], output.hidden_states[-1][0]

    @torch.inference_mode()
    def embedded(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the rows of the input embedding, [tokens, hidden]."""
        rows: torch.Tensor = self._model.model.embed_tokens.weight[list(tokens)]
        return rows

    @torch.inference_mode()
    def logits_of(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits, [tokens, vocabulary], of the last layer's states, [tokens, hidden]."""
        decoder = self._model.model
        handle = decoder.layers[-1].register_forward_hook(
            lambda _, __, output: (states[None],) if isinstance(output, tuple) else states[None]
        )
        try:
            tokens = torch.zeros(1, len(states), dtype=torch.int64)
            logits: torch.Tensor = self._model(tokens, use_cache=False).logits
        finally:
            handle.remove()
        return logits[0]

    @torch.inference_mode()
    def second_token(self, prompt: Sequence[int]) -> torch.Tensor:
        """Return the probabilities of the second token behind ``prompt``, at T = 1."""
        first = self._next(torch.tensor([list(prompt)]))[0]
        every = torch.arange(len(first))[:, None]
        behind = torch.cat([torch.tensor(list(prompt)).expand(len(first), -1), every], dim=1)
        return first @ self._next(behind)

    def _next(self, sequences: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(sequences).logits[:, -1]
        return torch.softmax(logits.double(), dim=-1)
