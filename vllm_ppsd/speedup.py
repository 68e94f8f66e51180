"""What an acceptance rate is worth (plain Python). Costs are in decoder layers.

Decoding a few tokens is bound by reading weights, so a layer, the LM head and the
exit head cost what they weigh, and a pass over several tokens costs what a pass over
one does.
"""

from __future__ import annotations

from vllm_ppsd.protocol.acceptance import PRIOR


def ideal_speedup(stages: int, alpha: float) -> float:
    """Return n / (alpha + n(1 - alpha)): PPSD over a plain pipeline of n equal stages."""
    return stages / (alpha + stages * (1 - alpha))


def tokens_per_round(drafts: int, alpha: float) -> float:
    """Return (1 - alpha^(K+1)) / (1 - alpha): tokens that a full pass verifies on one device.

    Every draft is taken to be a hit with probability ``alpha`` if all before it were
    (Leviathan et al., arXiv 2211.17192, equation 1).
    """
    return float(drafts + 1) if alpha == 1 else (1 - alpha ** (drafts + 1)) / (1 - alpha)


def round_cost(drafts: float, draft_cost: float, token_cost: float = 0.0) -> float:
    """Return what a round on one device costs, in full passes: its drafts and the verify.

    Args:
        drafts: drafts of the round.
        draft_cost: cost of a draft, in full passes.
        token_cost: what a pass over one token more costs more, in passes over one token:
            next to nothing where reading weights takes longer than computing.
    """
    return 1 + drafts * (draft_cost + token_cost)


def one_device_speedup(drafts: int, draft_cost: float, alpha: float) -> float:
    """Return the speedup of ``drafts`` early-exit drafts a round over plain decoding.

    Args:
        drafts: drafts of every round.
        draft_cost: cost of a draft, in full passes.
        alpha: acceptance rate of a draft whose predecessors were hits.
    """
    return tokens_per_round(drafts, alpha) / round_cost(drafts, draft_cost)


def best_one_device_speedup(most: int, draft_cost: float, alpha: float) -> float:
    """Return the speedup at the best number of drafts up to ``most``; arguments as above."""
    return max(one_device_speedup(drafts, draft_cost, alpha) for drafts in range(most + 1))


def draft_threshold(draft_cost: float) -> float:
    """Return the probability of a draft under which drafting behind it does not pay.

    Behind a draft of probability p, the next one adds p * alpha tokens to a round, and
    takes time in which the rounds before it delivered draft_cost * speedup tokens; so p
    must exceed draft_cost * speedup / alpha. The prior stands for alpha here; the
    proposer scales p by a request's own recent acceptance rate. docs/measurements.md
    compares this with the best thresholds of ``python -m benchmarks.draft_length``.

    Args:
        draft_cost: cost of a draft, in full passes.
    """
    return min(1.0, draft_cost * best_one_device_speedup(8, draft_cost, PRIOR) / PRIOR)
