"""Recent acceptance rates, per request and overall."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

PRIOR = 0.72
"""Before anything was judged: about that of the head that ships."""

MEMORY = 32
"""Verdicts after which a rate has forgotten most of what was before."""


class AcceptanceBook:
    """Moving averages of hits.

    Args:
        doubt: occasions without a draft after which a rate is mostly back at the
            prior, so that a request that did badly is tried anew.

    Attributes:
        overall: the rate over all requests, where a new one starts.
    """

    def __init__(self, doubt: int) -> None:
        self._doubt = doubt
        self._rates: dict[str, float] = {}
        self.overall = PRIOR

    def judged(self, request_id: str, hit: bool) -> None:
        """Learn that a draft of a request was a hit, or a miss."""
        before = self.rate(request_id)
        self._rates[request_id] = before + (hit - before) / MEMORY
        self.overall += (hit - self.overall) / MEMORY

    def decay_to_prior(self, request_id: str) -> None:
        """A request was not let draft: doubt what is known of it a little."""
        before = self.rate(request_id)
        self._rates[request_id] = before + (PRIOR - before) / self._doubt
        self.overall += (PRIOR - self.overall) / self._doubt

    def rate(self, request_id: str) -> float:
        """Return the recent acceptance rate of a request."""
        return self._rates.get(request_id, self.overall)

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._rates.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._rates)


STEPS = 8
"""Draft steps that have a rate of their own: the most tokens of a lane."""

PRIOR_STEPS = (0.78, 0.72, 0.7, 0.69, 0.68, 0.67, 0.66, 0.65)
"""By step, given that all drafts before were right, before anything was judged."""

PRIOR_SAMPLED_STEPS = (0.56, 0.53, 0.55, 0.57, 0.59, 0.6, 0.61, 0.62)
PRIOR_SAMPLED_REENTRY = 0.48
"""The same where tokens are sampled, and of the first draft behind a known token: of the head that
ships, at temperature 1 (``docs/heads.md``)."""

KEPT, MENDED = 0.94, 0.42
"""Of drafts that are drafted again, of the head that ships; see ``Rates``."""

SHARED = 0.25
"""How much the verdict on a continuation says about the other continuations."""

SHAPE_MEMORY = 128
"""Verdicts after which the rates over all requests have forgotten most of what was before."""

REENTRY = 2
"""Step of the first draft behind a root's true token: a continuation as well, whose rate is its
own because it goes on from a true final state."""


class Rates(msgspec.Struct, frozen=True):
    """Acceptance rates, each given that all drafts before were right.

    Attributes:
        steps: of the drafts of a following lane, step 1 first.
        reentry: of the first draft behind a root's true token. The ones behind that go on from
            the head's own prediction, as steps 3 and more do.
        kept: how often a right draft comes out the same when stage 0 drafts it again, behind the
            exit state.
        mended: how often a wrong one comes out right then.
    """

    steps: tuple[float, ...] = PRIOR_STEPS
    reentry: float = PRIOR_STEPS[REENTRY - 1]
    kept: float = KEPT
    mended: float = MENDED

    def following_chain(self, length: int) -> tuple[float, ...]:
        """Return the rates of the drafts of a following lane."""
        return self._up_to(0, length)

    def reentry_chain(self, drafts: int) -> tuple[float, ...]:
        """Return the rates of the drafts behind a root's true token."""
        return (self.reentry, *self._up_to(REENTRY, drafts - 1)) if drafts else ()

    def goes_on(self, drafts: Sequence[float], first: float) -> float:
        """Return how often the lane behind another one goes on, whatever is replaced.

        Args:
            drafts: rates of that one's drafts that are not judged yet.
            first: rate of a first draft behind all of them.
        """
        right, goes_on = 1.0, 0.0
        for rate in drafts:
            goes_on += right * (1 - rate) * self.mended
            right *= rate * self.kept
        return goes_on + right * first

    def _up_to(self, first: int, count: int) -> tuple[float, ...]:
        """Steps beyond the last known one are as that one."""
        known = self.steps[first : first + count]
        return known + self.steps[-1:] * (count - len(known))


PRIORS = Rates(), Rates(PRIOR_SAMPLED_STEPS, PRIOR_SAMPLED_REENTRY)
"""Of greedy requests, and of those whose tokens are sampled."""


class StepBook:
    """Learns acceptance by step: its shape over all requests of a kind, its level of each.

    Greedy and sampled requests are two kinds: what is sampled is harder to guess. A draft is
    judged only if all before it in its lane were right, so what is learned is given that they
    were.
    """

    def __init__(self) -> None:
        self._overall = list(PRIORS)
        self._sampled: set[str] = set()
        self._levels: dict[str, float] = {}

    @property
    def overall(self) -> Rates:
        """The rates over all greedy requests."""
        return self._overall[False]

    @overall.setter
    def overall(self, rates: Rates) -> None:
        self._overall[False] = rates

    def arrived(self, request_id: str, sampled: bool) -> None:
        """A request has come; without this it is taken to be greedy.

        Args:
            request_id: the engine's id of the request.
            sampled: whether its tokens are sampled.
        """
        if sampled:
            self._sampled.add(request_id)

    def judged(self, request_id: str, steps: Sequence[int], accepted: int, reentry: bool) -> None:
        """Learn what became of a request's drafts, up to the first miss.

        Args:
            request_id: the engine's id of the request.
            steps: of the drafts that were compared, in their order.
            accepted: how many of these, the first ones, were right.
            reentry: whether the first of them stood behind a root's true token.

        Raises:
            ValueError: a draft behind a miss is among them, or a step is none.
        """
        if not accepted <= len(steps) <= accepted + 1:
            raise ValueError(f"{len(steps)} drafts were judged, but {accepted} were right")
        for index, step in enumerate(steps):
            if step < 1:
                raise ValueError(f"{step} is no draft step: the first is 1")
            step = min(step, STEPS)
            self._learn(request_id, step, reentry and index == 0, index < accepted)

    def drafted_again(self, kept: Sequence[bool], mended: Sequence[bool]) -> None:
        """Learn what became of drafts that stage 0 has drafted again, up to the first wrong one.

        Args:
            kept: of the right drafts, whether they came out the same.
            mended: of the wrong ones, whether they came out right.
        """
        for known, name in ((kept, "kept"), (mended, "mended")):
            for one in known:
                rate: float = getattr(self.overall, name)
                rate = bounded(rate + (one - rate) / SHAPE_MEMORY)
                self._overall = [
                    msgspec.structs.replace(overall, **{name: rate}) for overall in self._overall
                ]

    def rates(self, request_id: str) -> Rates:
        """Return the recent acceptance rates of a request."""
        level = self._levels.get(request_id, 0.0)
        overall = self._overall[request_id in self._sampled]
        if not level:
            return overall
        return msgspec.structs.replace(
            overall,
            steps=tuple(bounded(step + level) for step in overall.steps),
            reentry=bounded(overall.reentry + level),
        )

    def decay_to_prior(self, request_ids: Sequence[str], doubt: int) -> None:
        """Some requests did not draft in a tick: doubt what is known a little.

        Args:
            request_ids: the engine's ids of the requests.
            doubt: ticks after which the rates are mostly back at the prior.
        """
        for request_id in request_ids:
            self._levels[request_id] = self._levels.get(request_id, 0.0) * (1 - 1 / doubt)
        for kind in {request_id in self._sampled for request_id in request_ids}:
            overall, prior = self._overall[kind], PRIORS[kind]
            self._overall[kind] = msgspec.structs.replace(
                overall,
                steps=tuple(
                    rate + (before - rate) / doubt
                    for rate, before in zip(overall.steps, prior.steps, strict=True)
                ),
                reentry=overall.reentry + (prior.reentry - overall.reentry) / doubt,
            )

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._levels.pop(request_id, None)
        self._sampled.discard(request_id)

    def __len__(self) -> int:
        return len(self._levels)

    def _learn(self, request_id: str, step: int, reentry: bool, hit: bool) -> None:
        kind = request_id in self._sampled
        overall = self._overall[kind]
        known = overall.reentry if reentry else overall.steps[step - 1]
        level = self._levels.get(request_id, 0.0)
        self._levels[request_id] = level + (hit - bounded(known + level)) / MEMORY
        change = (hit - known) / SHAPE_MEMORY
        steps = tuple(
            bounded(rate + change * (1.0 if s == step and not reentry else SHARED))
            if (s == step or (step > 1 and s > 1))
            else rate
            for s, rate in enumerate(overall.steps, 1)
        )
        own = 1.0 if reentry else SHARED if step > 1 else 0.0
        reentering = bounded(overall.reentry + change * own)
        self._overall[kind] = msgspec.structs.replace(overall, steps=steps, reentry=reentering)


def bounded(value: float) -> float:
    """Neither never nor always: both would make lanes of no use or without end."""
    return min(0.98, max(0.02, value))
