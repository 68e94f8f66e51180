"""The proposer on one device: how far it drafts, and with what.

A head that goes on from a final state drafts alone, behind the state that the newest token was
sampled from. Any other head needs an exit state for every draft, from the target's first layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, set_current_vllm_config

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.drafter.build import build_drafter
from vllm_ppsd.drafter.head import Draw
from vllm_ppsd.drafter.interface import Drafter, ExitStates, Wanted
from vllm_ppsd.protocol import AcceptanceBook, Draft
from vllm_ppsd.protocol.acceptance import PRIOR
from vllm_ppsd.runner.port import SingleRunnerPort, Verified
from vllm_ppsd.single.draft_probabilities import DraftProbabilities
from vllm_ppsd.single.early_layers import COMPILE_TAG, EarlyLayers
from vllm_ppsd.to_device import on_device

DOUBT = 100
"""Steps without drafting after which a low acceptance rate is mostly doubted, and tried anew."""


class EarlyExitProposer:
    """The runner hands over its port and the config; V1 builds it by name before.

    Args:
        vllm_config: the target's vLLM config.

    Attributes:
        drafts: drafts a step, at most.
        threshold: probability that all drafts up to one are right under which nothing is drafted
            behind it, for a request of ordinary acceptance.
        drafter: proposes the tokens.
    """

    drafter: Drafter

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._vllm_config = vllm_config
        self._probabilities: DraftProbabilities | None = None

    def adopt(
        self, port: SingleRunnerPort, config: PPSDConfig, coupled: Draw | None = None
    ) -> None:
        """Take the port to the runner, and the config.

        Args:
            port: to the runner.
            config: PPSD's.
            coupled: draws drafts with the noise that they are verified with, where the runner
                has one that can be shared.
        """
        self._port, self._config, self._draw = port, config, coupled
        assert config.draft_threshold is not None
        self.drafts, self.threshold = config.max_drafts, config.draft_threshold
        self._goes_on = config.head_steps > 1
        self._acceptance = AcceptanceBook(DOUBT)

    def load_model(self, target: Any) -> None:
        """Build the drafter, and where it needs them the early layers around the target's."""
        if not self._goes_on:
            with set_current_vllm_config(self._vllm_config), set_model_tag(COMPILE_TAG):
                self._early = EarlyLayers(
                    vllm_config=self._vllm_config,
                    inner=target.model,
                    exit_layer=self._config.exit_layer,
                )
        model = self._vllm_config.model_config
        # A recorded draft is drawn from nothing.
        if self._config.draft_sampling == "probabilistic" and not self._config.synthetic_drafter:
            self._probabilities = DraftProbabilities(
                model.get_vocab_size(), self.drafts, model.seed
            )
            self._draw = self._probabilities.draw
        self.drafter = build_drafter(self._config, self._port, self._draw, with_probabilities=True)

    def write_entries(self, positions: torch.Tensor, states: torch.Tensor) -> None:
        """Fill the head's key/value cache from the target's own pass.

        Called within that pass's forward context. Entries of drafts that turn out
        misses are written again when their positions are.

        Args:
            positions: int64 [tokens].
            states: [tokens, hidden] behind the exit layer.
        """
        self.drafter.write_entries(ExitStates(positions, states, None))

    def warm_up(self, num_tokens: int) -> None:
        """Compile what a draft runs."""
        device = self._port.device
        tokens = torch.zeros(num_tokens, dtype=torch.int32, device=device)
        positions = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        with self._port.warm_up_context(num_tokens):
            if self._goes_on:
                model = self._vllm_config.model_config
                hidden = torch.zeros(
                    num_tokens, model.get_hidden_size(), dtype=model.dtype, device=device
                )
                self.drafter.warm_up(ExitStates(positions, hidden, None), behind_passes=False)
            else:
                self.drafter.warm_up(ExitStates(positions, *self._early(tokens, positions)))

    def propose(
        self, verified: Sequence[Verified], final: torch.Tensor, rows: int
    ) -> list[list[int]]:
        """Draft behind every request that sampled a token in this step.

        A request's first token is handed out before anything is drafted behind it:
        drafts would add to the time to the first token.

        Args:
            verified: the requests of which this step has sampled.
            final: [sampled, hidden], the pass's final states that were sampled from.
            rows: of the runner's batch.

        Returns:
            Per row, up to ``drafts`` tokens.
        """
        if self._probabilities is not None:
            self._probabilities.begin(rows)
        self._judge(verified)
        drafts: list[list[int]] = [[] for _ in range(rows)]
        behind = [one for one in verified if not one.is_first]
        promising = [one for one in behind if self._pays(one.request_id, 1.0)]
        drafting = {one.row for one in promising}
        for one in behind:
            if one.row not in drafting:
                self._acceptance.decay_to_prior(one.request_id)
        if self._goes_on:
            self._draft_on(promising, final, drafts)
        else:
            self._draft_early(promising, drafts)
        return drafts

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is remembered of requests that have left."""
        for request_id in request_ids:
            self._acceptance.forget(request_id)

    def probabilities(self) -> torch.Tensor | None:
        """Return what this step's drafts were drawn from, float32 [rows, drafts, vocabulary]."""
        return None if self._probabilities is None else self._probabilities.result()

    def _judge(self, verified: Sequence[Verified]) -> None:
        """Learn how many of each request's drafts were hits; behind a miss none counts."""
        for one in verified:
            for _ in range(one.accepted):
                self._acceptance.judged(one.request_id, hit=True)
            if one.accepted < one.drafted:
                self._acceptance.judged(one.request_id, hit=False)

    def _pays(self, request_id: str, probability: float) -> bool:
        """Whether drafting pays behind drafts that are right with this probability, by the head.

        The threshold is for a request of ordinary acceptance; one that did worse lately
        needs surer drafts, or drafts nothing.
        """
        return probability * self._acceptance.rate(request_id) / PRIOR >= self.threshold

    def _draft_on(
        self, behind: Sequence[Verified], final: torch.Tensor, drafts: list[list[int]]
    ) -> None:
        """Add continuations, which need the head alone, to the rows of ``drafts``."""
        room = self._port.max_model_len - 1
        behind = [one for one in behind if one.position < room]
        if not behind:
            return
        wanted = [
            Wanted(
                one.row,
                one.request_id,
                one.position + 1,
                length=min(self.drafts, room - one.position),
            )
            for one in behind
        ]
        drafted = self.drafter.go_on(
            final[on_device([one.sampled_from for one in behind], final.device)],
            [one.token for one in behind],
            wanted,
            lambda one, probability: self._pays(one.request_id, probability),
        )
        for one, burst in zip(behind, drafted.of_each(), strict=True):
            drafts[one.row].extend(burst)

    def _draft_early(self, behind: Sequence[Verified], drafts: list[list[int]]) -> None:
        """Add drafts behind exit states, each of a pass of its own, to the rows of ``drafts``."""
        newest = {one.row: one.token for one in behind}
        right = {one.row: 1.0 for one in behind}
        for depth in range(self.drafts):
            room = self._port.max_model_len - 1 - depth
            behind = [one for one in behind if one.position < room]
            if not behind:
                break
            drafted = self._draft(behind, [newest[one.row] for one in behind], depth)
            for one, draft in zip(behind, drafted, strict=True):
                newest[one.row] = draft.token
                right[one.row] *= draft.probability or 0.0
                drafts[one.row].append(draft.token)
            behind = [one for one in behind if self._pays(one.request_id, right[one.row])]

    def _draft(
        self, behind: Sequence[Verified], tokens: Sequence[int], depth: int
    ) -> Sequence[Draft]:
        """Return a draft behind each request's newest token."""
        rows = [one.row for one in behind]
        at = [one.position + depth for one in behind]
        device = self._port.device
        input_ids = on_device(tokens, device, torch.int32)
        every = torch.arange(len(behind), device=device)
        wanted = [
            Wanted(one.row, one.request_id, one.position + depth + 1, depth) for one in behind
        ]
        with self._port.draft_context(rows, at, depth) as steps:
            positions = next(steps)
            states = ExitStates(positions, *self._early(input_ids, positions))
            drafted = self.drafter.draft(states, every, wanted)
            return [one.drafts[0] for one in drafted.candidates()]
