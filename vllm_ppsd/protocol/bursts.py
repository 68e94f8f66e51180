"""How long the lanes of a request are, how many of them are in flight, and what parts take."""

from __future__ import annotations

import msgspec


class BurstPlan(msgspec.Struct, frozen=True):
    """How one request drafts, until another plan is chosen.

    Attributes:
        reentry: drafts behind a root's true token: continuations of the head, which goes on from
            the target's true final state. 0 is a root of one token.
        following: tokens of each lane that follows, all drafts: the first from a fresh exit
            state, the others continuations. 1 or more, where ``depth`` is not 0.
        depth: how many lanes may be drafted behind lanes whose verdicts are not known. 0 is
            draft-then-verify: every lane is a root, and nothing follows it before its verdict;
            with ``reentry`` 0 as well it is plain decoding.
    """

    reentry: int = 0
    following: int = 1
    depth: int = 1


PLAIN = BurstPlan(0, 1, 0)
"""Plain decoding."""


class StageTimes(msgspec.Struct, frozen=True):
    """What the parts of a tick take, all in one unit.

    Attributes:
        stages: s_0 … s_{n-1}: a pass over one row, on the last stage with LM head and sampler.
        first_step: the head's step 1, for one lane.
        continuation: every further step of it.
        row: what a further row costs, in passes over one row.
        hop: a way from one stage to another, or from the last one back to stage 0.
        beside: what a pass takes while other stages work, in passes without them: more than 1
            where stages share memory or cores.
    """

    stages: tuple[float, ...]
    first_step: float = 0.0
    continuation: float = 0.0
    row: float = 0.0
    hop: float = 0.0
    beside: float = 1.0

    def shared(self) -> StageTimes:
        """Return the times of stages that all work at once."""
        stages = tuple(seconds * self.beside for seconds in self.stages)
        return msgspec.structs.replace(self, stages=stages, beside=1.0)

    def stage(self, stage: int, rows: float) -> float:
        """Return what a stage takes for so many rows."""
        return self.stages[stage] * (1 + self.row * (rows - 1))

    def continuations(self, steps: float, lanes: float = 1) -> float:
        """Return what the head takes for continuations alone, of so many lanes at once."""
        return steps * self.continuation * (1 + self.row * (lanes - 1))

    def drafting(self, length: float, lanes: float = 1) -> float:
        """Return what the head takes for step 1 and the continuations behind it."""
        step_one = self.first_step * (1 + self.row * (lanes - 1))
        return step_one + self.continuations(length - 1, lanes)


def describe(plan: BurstPlan) -> str:
    """Return a plan in words."""
    if plan == PLAIN:
        return "no drafts"
    root = f"{plan.reentry} drafts behind a true token"
    if not plan.depth:
        return f"{root}, then the verdict"
    return f"{root}, {plan.depth} lanes of {plan.following} ahead of the verdict"
