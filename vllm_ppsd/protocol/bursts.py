"""How long the lanes of a request are, and how many of them are in flight."""

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
