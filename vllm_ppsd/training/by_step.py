"""Acceptance by step: of the draft behind an exit state, and of each continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from vllm_ppsd.sampling.noise import choose
from vllm_ppsd.training.chains import Chains, chains_of
from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.draws import Draws
from vllm_ppsd.training.head import TrainableHead
from vllm_ppsd.training.loss import DraftVocabulary

Scored = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scores of drafts, by logits [chains, draft vocabulary] and the batch's rows, int64 [chains]."""

LONGEST = 8
"""Drafts that are judged in a burst."""

BEST = (2, 4, 8)
"""How many of the head's best tokens a figure *among the k best* looks at."""


@dataclass(frozen=True)
class Step:
    """One draft step on text that the target wrote.

    Attributes:
        acceptance: share of drafts that are the target's token.
        given: the same, of those chains whose drafts were right in all steps before; 0 where
            there are none.
        joint: share of chains whose drafts are right up to this step.
        among: share of the target's tokens among the head's k best, by k.
        rows: how many drafts were judged.
        kept: of chains whose drafts were right up to this step, how many drafts come out the same
            when they are drafted again, behind the exit state; 0 behind an exit state.
        mended: of chains whose first miss is in this step, how many drafts come out right then.
    """

    acceptance: float
    given: float
    joint: float
    among: dict[int, float]
    rows: int
    kept: float = 0.0
    mended: float = 0.0


def burst_tokens(steps: Sequence[Step], drafts: int) -> float:
    """Return the tokens that a burst of so many drafts stands for on average.

    That is the drafts accepted before the first miss, and the target's own token behind them.
    """
    return 1 + sum(step.joint for step in steps[:drafts])


@dataclass
class StepCounts:
    """Counts hits of chains, step by step.

    Chains are given batch by batch; within a batch, first step to last.
    """

    _counts: list[dict[str, int]] = field(default_factory=list)
    _alive: torch.Tensor | None = None

    def begin(self, chains: int, device: torch.device) -> None:
        """A batch of chains begins, all right so far."""
        self._alive = torch.ones(chains, dtype=torch.bool, device=device)

    def judge(
        self,
        step: int,
        best: torch.Tensor,
        tokens: torch.Tensor,
        again: torch.Tensor | None = None,
    ) -> None:
        """Take in a step of every chain.

        Args:
            step: from 1.
            best: int64 [chains, k], the head's best tokens, best first.
            tokens: int64 [chains], the target's.
            again: int64 [chains], drafts of the same positions behind exit states.
        """
        assert self._alive is not None
        while len(self._counts) < step:
            self._counts.append(
                dict.fromkeys(
                    ("rows", "hits", "before", "both", "kept", "mended", *map(str, BEST)), 0
                )
            )
        right = best == tokens[:, None]
        hit = right[:, 0]
        counts = self._counts[step - 1]
        counts["rows"] += len(tokens)
        counts["hits"] += int(hit.sum())
        counts["before"] += int(self._alive.sum())
        if again is not None:
            alive = self._alive & (again == tokens)
            counts["kept"] += int((alive & hit).sum())
            counts["mended"] += int((alive & ~hit).sum())
        self._alive = self._alive & hit
        counts["both"] += int(self._alive.sum())
        for k in BEST:
            counts[str(k)] += int(right[:, :k].any(dim=1).sum())

    def steps(self) -> list[Step]:
        """Return the figures of every step."""
        return [
            Step(
                c["hits"] / c["rows"],
                c["both"] / max(1, c["before"]),
                c["both"] / c["rows"],
                {k: c[str(k)] / c["rows"] for k in BEST},
                c["rows"],
                c["kept"] / max(1, c["both"]),
                c["mended"] / max(1, c["before"] - c["both"]),
            )
            for c in self._counts
            if c["rows"]
        ]


def count_steps(
    counts: StepCounts,
    by_step: Sequence[torch.Tensor],
    chains: Chains,
    vocabulary: DraftVocabulary,
    tokens: torch.Tensor,
    skipped: int = 0,
    scored: Scored | None = None,
) -> None:
    """Take in a batch's drafts, step by step; where steps are skipped, drafted again as well.

    Args:
        counts: which they are added to.
        by_step: logits of every step, as ``TrainableHead.forward`` returns them.
        chains: of the batch.
        vocabulary: what the head can draft.
        tokens: int64 [rows], the target's.
        skipped: how many steps, the first ones, are not judged.
        scored: what drafts are chosen by; None for the logits.
    """
    counts.begin(len(chains.starts), tokens.device)
    for step, logits in enumerate(by_step[skipped:], start=1 + skipped):
        rows = chains.rows(step)
        scores = logits[rows] if step == 1 else logits
        if scored is not None:
            scores = scored(scores, rows)
        best = scores.topk(max(BEST)).indices
        again = None
        if skipped:
            behind = by_step[0][rows]
            again = vocabulary.tokens(
                (behind if scored is None else scored(behind, rows)).argmax(dim=-1)
            )
        counts.judge(step - skipped, vocabulary.tokens(best), tokens[rows], again)


@torch.no_grad()
def judge_steps(
    head: TrainableHead,
    batches: Iterable[Batch],
    vocabulary: DraftVocabulary,
    lm_head: torch.Tensor,
    temperature: float,
    known: bool,
) -> list[Step]:
    """Return the acceptance of bursts of ``LONGEST`` drafts, by step.

    At a temperature head and target draw with the same noise in every position. Each step reads
    the text; that its token need not be the one drawn there with this noise is left out of
    account.

    Args:
        head: with continuations.
        batches: with ``final`` set.
        vocabulary: what it can draft.
        lm_head: the target's, [vocabulary, hidden].
        temperature: that the text was written at; 0 for greedy drafts.
        known: whether all drafts are continuations, behind a token that the target has chosen,
            from its own final state; else the first is behind an exit state.
    """
    head.eval()
    draws = Draws(head, lm_head, temperature) if temperature else None
    drawable = vocabulary.tokens(torch.arange(len(head.lm_head), device=lm_head.device))
    skipped = int(known)
    counts = StepCounts()
    for batch in batches:
        chains = chains_of(batch, LONGEST + skipped, float(known))
        if not chains.spans:
            continue
        by_step = head(batch.states, batch.lengths, batch.rows, batch.deeper, chains)
        tokens, scored = batch.next, None
        if draws is not None:
            assert batch.final is not None
            drawn, kept = [], []
            for logits, noise in draws.of(batch.final):
                drawn.append(choose(logits, noise))
                kept.append(noise[:, drawable])
            tokens, scored = torch.cat(drawn), _by_noise(torch.cat(kept), temperature)
        count_steps(counts, by_step, chains, vocabulary, tokens, skipped, scored)
    return counts.steps()


def _by_noise(noise: torch.Tensor, temperature: float) -> Scored:
    """Return scores of which the largest is what ``choose`` would; noise is [rows, drafts]."""
    return lambda logits, rows: logits / temperature - noise[rows].log()
