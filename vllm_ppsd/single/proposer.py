"""The proposer on one device: drafts with the target's first layers and the exit head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.exit_head.module import ExitHead, build_exit_head
from vllm_ppsd.protocol import AcceptanceBook
from vllm_ppsd.protocol.acceptance import PRIOR
from vllm_ppsd.single.chances import Chances
from vllm_ppsd.single.draft_batch import draft_batch
from vllm_ppsd.single.early_layers import COMPILE_TAG, EarlyLayers
from vllm_ppsd.worker.synthetic import RecordedDrafts

DOUBT = 100
"""Steps without drafting after which a low acceptance rate is mostly doubted, and tried anew."""


class EarlyExitProposer:
    """vLLM builds it by name, then the runner hands over itself and the config.

    Args:
        vllm_config: the target's vLLM config.

    Attributes:
        drafts: drafts a step, at most.
        threshold: probability of a draft under which nothing is drafted behind it, for
            a request of ordinary acceptance.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._vllm_config = vllm_config
        self._recorded: RecordedDrafts | None = None
        self._chances: Chances | None = None

    def adopt(self, runner: Any, config: PPSDConfig) -> None:
        """Take the runner whose batch is drafted for."""
        self._runner, self._config = runner, config
        assert config.draft_threshold is not None
        self.drafts, self.threshold = config.max_drafts, config.draft_threshold
        self._acceptance = AcceptanceBook(DOUBT)

    def load_model(self, target: Any) -> None:
        """Build the head, and the early layers around the target's weights."""
        assert self._config.model is not None
        self._head: ExitHead = build_exit_head(self._config.model, self._vllm_config, target)
        with set_current_vllm_config(self._vllm_config), set_model_tag(COMPILE_TAG):
            self._early = EarlyLayers(
                vllm_config=self._vllm_config,
                inner=target.model,
                exit_layer=self._config.exit_layer,
            )
        model_config = self._vllm_config.model_config
        probabilistic = self._config.draft_sampling == "probabilistic"
        # A synthetic draft is drawn from nothing.
        if probabilistic and self._config.synthetic_drafter is None:
            self._chances = Chances(
                self._head.token_ids, model_config.get_vocab_size(), self.drafts, model_config.seed
            )
        if self._config.synthetic_drafter is not None:
            self._recorded = RecordedDrafts.load(
                self._config.synthetic_drafter, self._vllm_config.model_config.get_vocab_size()
            )

    def observe(self, positions: torch.Tensor, states: torch.Tensor) -> None:
        """Fill the head's key/value cache from the target's own pass.

        Called within that pass's forward context. Entries of drafts that turn out
        misses are written again when their positions are.

        Args:
            positions: int64 [tokens].
            states: [tokens, hidden] behind the exit layer.
        """
        self._head.write_entries(positions, states, residual=None)

    def warm_up(self, num_tokens: int) -> None:
        """Compile what a draft runs."""
        device = self._runner.device
        tokens = torch.zeros(num_tokens, dtype=torch.int32, device=device)
        positions = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        with (
            torch.inference_mode(),
            set_forward_context(None, self._vllm_config, num_tokens=num_tokens),
        ):
            self._head.warm_up(positions, *self._early(tokens, positions))

    def set_synthetic_acceptance(self, acceptance: float) -> None:
        """Change how often the synthetic drafter is right, where there is one."""
        if self._recorded is not None:
            self._recorded.acceptance = acceptance

    def propose(
        self, sampled: list[list[int]], verified: Mapping[str, Sequence[int]]
    ) -> list[list[int]]:
        """Draft behind every request that sampled a token in this step.

        A request's first token is handed out before anything is drafted behind it:
        drafts would add to the time to the first token.

        Args:
            sampled: per row of the batch, the tokens that were accepted and sampled;
                none where the prompt is not finished.
            verified: the drafts that this step verified, by request id.

        Returns:
            Per row, up to ``drafts`` tokens.
        """
        if self._chances is not None:
            self._chances.begin(len(sampled))
        batch = self._runner.input_batch
        drafts: list[list[int]] = [[] for _ in sampled]
        rows = [row for row, tokens in enumerate(sampled) if tokens]
        self._judge(rows, sampled, verified)
        rows = [row for row in rows if not self._has_one_token(row)]
        certain = [1.0] * len(rows)
        promising = self._promising(rows, certain)
        for row in set(rows).difference(promising):
            self._acceptance.passed_over(batch.req_ids[row])
        rows = promising
        newest = {row: sampled[row][-1] for row in rows}
        first = {row: int(batch.num_tokens_no_spec[row]) - 1 for row in rows}
        room = {row: self._runner.max_model_len - 1 - first[row] for row in rows}
        for depth in range(self.drafts):
            rows = [row for row in rows if depth < room[row]]
            if not rows:
                break
            positions = [first[row] + depth for row in rows]
            inputs = [newest[row] for row in rows]
            tokens, probabilities = self._draft(rows, inputs, positions, depth)
            for i, row in enumerate(rows):
                newest[row] = tokens[i]
                if self._recorded is not None:
                    request = self._runner.requests[batch.req_ids[row]]
                    newest[row] = self._recorded.draft(request, positions[i] + 1)
                drafts[row].append(newest[row])
            rows = self._promising(rows, probabilities)
        return drafts

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is remembered of requests that have left."""
        for request_id in request_ids:
            self._acceptance.forget(request_id)

    def _has_one_token(self, row: int) -> bool:
        """Whether this step sampled the first token of a request's output."""
        batch = self._runner.input_batch
        return bool(batch.num_tokens_no_spec[row] == batch.num_prompt_tokens[row] + 1)

    def _judge(
        self, rows: list[int], sampled: list[list[int]], verified: Mapping[str, Sequence[int]]
    ) -> None:
        """Learn how many of each request's drafts were hits; behind a miss none counts."""
        for row in rows:
            request_id = self._runner.input_batch.req_ids[row]
            hits = len(sampled[row]) - 1
            for _ in range(hits):
                self._acceptance.judged(request_id, hit=True)
            if hits < len(verified.get(request_id, ())):
                self._acceptance.judged(request_id, hit=False)

    def _promising(self, rows: list[int], probabilities: Sequence[float]) -> list[int]:
        """Return the rows behind whose newest token drafting pays.

        The threshold is for a request of ordinary acceptance; one that did worse lately
        needs surer drafts, or drafts nothing.
        """
        names = self._runner.input_batch.req_ids
        return [
            row
            for row, probability in zip(rows, probabilities, strict=True)
            if probability * self._acceptance.rate(names[row]) / PRIOR >= self.threshold
        ]

    def _draft(
        self, rows: list[int], tokens: list[int], positions: list[int], depth: int
    ) -> tuple[list[int], list[float]]:
        """Return a draft behind each token, and the head's probability of it."""
        batch = draft_batch(self._runner, rows, positions, depth)
        input_ids = torch.tensor(tokens, dtype=torch.int32, device=self._runner.device)
        every = torch.arange(len(rows), device=self._runner.device)
        with set_forward_context(
            batch.attention, self._vllm_config, num_tokens=len(rows), slot_mapping=batch.slots
        ):
            hidden, residual = self._early(input_ids, batch.positions)
            drafts, probabilities, logits = self._head(batch.positions, hidden, residual, every)
        if self._chances is not None:
            requests = [self._runner.requests[self._runner.input_batch.req_ids[r]] for r in rows]
            after = [position + 1 for position in positions]
            drafts = self._chances.draw(rows, requests, after, drafts, logits, depth)
        return drafts.tolist(), probabilities.tolist()

    def distributions(self) -> torch.Tensor | None:
        """Return what this step's drafts were drawn from, float32 [rows, drafts, vocabulary]."""
        return None if self._chances is None else self._chances.taken()
